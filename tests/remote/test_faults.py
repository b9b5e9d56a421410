"""Real servers with a real model, and faults of the network between them and the client."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from pipecat_personaplex import Engine
from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.constants import FRAME_SAMPLES, FRAME_SECONDS
from pipecat_personaplex.errors import (
    ConfigError,
    EngineFull,
    LimitReached,
    SessionLost,
    VoiceNotFound,
)
from pipecat_personaplex.interface import SessionFrame
from pipecat_personaplex.remote import RemoteEngine
from tests.golden_data import RESTAURANT, conversation
from tests.helpers.servers import RunningServer, ServeProcess
from tests.remote.helpers import WAIT, Caller, tone, until
from tests.remote.proxy import Proxy

pytestmark = pytest.mark.realtime

GREEDY = SamplingParams.greedy()
Tokens = list[tuple[int, ...]]


def tokens(frames: list[SessionFrame]) -> Tokens:
    """Text token, agent codes and user codes of each frame."""
    return [(f.text_token, *f.agent_codes.tolist(), *f.user_codes.tolist()) for f in frames]


def caller_pcm(frames: int) -> Pcm:
    return conversation("restaurant").user_pcm[: frames * FRAME_SAMPLES]


class Pace:
    """Pushes a frame to each caller every 80 ms until it exits."""

    def __init__(self, *callers: Caller):
        self.callers = list(callers)
        self.pushed = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Pace:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(WAIT)

    def _run(self) -> None:
        began = time.monotonic()
        while not self._stop.wait(max(0, began + self.pushed * FRAME_SECONDS - time.monotonic())):
            for caller in self.callers:
                if not caller.session.closed:
                    caller.session.push(self.audio(self.pushed))
            self.pushed += 1

    def audio(self, index: int) -> np.ndarray:
        """The frame of this index."""
        return tone(index % 99)


def test_tokens_equal_those_of_the_local_engine(loaded_engine: Engine) -> None:
    pcm = caller_pcm(20)
    with loaded_engine:
        expected = loaded_engine.converse(RESTAURANT, pcm, GREEDY)
    with RunningServer(loaded_engine) as server, RemoteEngine(server.url) as engine:
        caller = Caller(engine, RESTAURANT, GREEDY).ready()
        for frame in np.split(pcm, 20):
            caller.session.push(frame)
            caller.next()
        assert tokens(caller.frames) == tokens(list(expected.frames))
        assert [f.text for f in caller.frames] == [f.text for f in expected.frames]
        received = np.concatenate([frame.pcm for frame in caller.frames])
        np.testing.assert_allclose(received, expected.pcm, atol=1 / 65_000)


def test_errors_of_the_engine_reach_the_caller(loaded_engine: Engine) -> None:
    with RunningServer(loaded_engine) as server, RemoteEngine(server.url) as engine:
        with pytest.raises(VoiceNotFound):
            Caller(engine, Persona("NATX9"))
        error = Caller(engine, Persona("NATF2", "word " * 1000)).ended()
        assert isinstance(error, LimitReached) and "4000" in str(error)
        callers = [Caller(engine).ready() for _ in range(4)]
        with pytest.raises(EngineFull, match="all 4"):
            Caller(engine)
        callers[0].session.say("Good morning, how can I help you today?")
        words = "".join(frame.text for frame in callers[0].talk(*range(40)))
        assert "Good morning" in words


def test_nvidias_protocol_on_our_own_server(loaded_engine: Engine) -> None:
    with (
        RunningServer(loaded_engine) as server,
        RemoteEngine(f"{server.url}/api/chat") as engine,
    ):
        caller = Caller(engine, RESTAURANT, GREEDY).ready()
        frames = caller.talk(*range(12))
        assert [frame.index for frame in frames] == list(range(12))
        assert np.abs(np.concatenate([frame.pcm for frame in frames])).max() > 0
        assert "".join(frame.text for frame in frames)
        assert loaded_engine.stats().sessions == 1
        caller.session.close()
        assert caller.ended() is None
        until(lambda: loaded_engine.stats().sessions == 0)
        with pytest.raises(ConfigError, match="neither say nor update"):
            Caller(engine).session.say("Hi")
        error = Caller(engine, Persona("NATX9")).ended()
        assert error is not None and "NATX9" in str(error)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cut", "swallow", "hold"])
def test_a_session_survives_five_seconds_without_a_network(loaded_engine: Engine, how: str) -> None:
    """The session resumes, and its tokens are those of an uninterrupted conversation."""
    frames = 30
    pcm = caller_pcm(frames)
    with loaded_engine:
        expected = loaded_engine.converse(RESTAURANT, pcm, GREEDY)
    with (
        RunningServer(loaded_engine) as server,
        Proxy(int(server.url.rsplit(":", 1)[1])) as proxy,
        RemoteEngine(proxy.url, max_queued_frames=frames) as engine,
    ):
        caller = Caller(engine, RESTAURANT, GREEDY).ready()
        for index, frame in enumerate(np.split(pcm, frames)):
            if index == 10:
                getattr(proxy, how)()
                threading.Timer(5.0, proxy.heal).start()
            caller.session.push(frame)
            time.sleep(FRAME_SECONDS)
        until(lambda: len(caller.frames) == frames or caller.session.closed)
        assert caller.session.error is None
        assert [frame.index for frame in caller.frames] == list(range(frames))
        assert tokens(caller.frames) == tokens(list(expected.frames))
        assert caller.session.stats().dropped_frames == 0
        assert loaded_engine.stats().sessions == 1


@pytest.mark.slow
def test_a_killed_server_ends_only_its_own_sessions() -> None:
    options = ("--max-sessions", 8)
    with ServeProcess(*options) as stays, ServeProcess(*options) as killed:
        with RemoteEngine([stays.url, killed.url], move_calls=False) as engine:
            until(lambda: all(server.reachable for server in engine.stats().servers))
            callers = [Caller(engine).ready() for _ in range(6)]
            with Pace(*callers) as pace:
                until(lambda: all(len(caller.frames) > 12 for caller in callers))
                killed.kill()
                at = time.monotonic()
                until(lambda: sum(caller.session.closed for caller in callers) == 3)
                seconds = time.monotonic() - at
                print(f"\nkilled: 3 of 6 sessions ended after {seconds:.1f} s")
                ended = [caller for caller in callers if caller.session.closed]
                surviving = [caller for caller in callers if not caller.session.closed]
                for caller in ended:
                    error = caller.ended()
                    assert isinstance(error, SessionLost) and killed.url[7:] in str(error)
                    assert "connection refused" in str(error)
                assert seconds < 13
                port = killed.url.rsplit(":", 1)[1]
                with ServeProcess(*options, "--port", port):
                    until(lambda: all(server.reachable for server in engine.stats().servers))
                    # New sessions go to the restarted server until both have the same load.
                    more = [Caller(engine).ready() for _ in range(5)]
                    assert [s.sessions for s in engine.stats().servers] == [4, 4]
                    for caller in more:
                        caller.talk(0, 1)
            until(lambda: all(len(caller.frames) == pace.pushed for caller in surviving))
            for caller in surviving:
                assert [frame.index for frame in caller.frames] == list(range(pace.pushed))
                assert caller.session.stats().dropped_frames == 0
            late = sum(caller.session.stats().late_frames for caller in surviving)
            print(f"surviving: {pace.pushed} frames each, all complete; late {late}")
