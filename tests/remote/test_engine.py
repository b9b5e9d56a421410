"""``RemoteEngine`` as an implementation of the engine interface, against a fake server."""

from __future__ import annotations

import asyncio
import logging
import threading

import numpy as np
import pytest

import pipecat_personaplex
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.constants import FRAME_SAMPLES, FRAME_SECONDS
from pipecat_personaplex.errors import (
    ConfigError,
    EngineStopped,
    EngineUnreachable,
    InvalidAudio,
    LimitReached,
    SessionFailed,
)
from pipecat_personaplex.interface import EngineLike, SessionFrame
from pipecat_personaplex.remote import RemoteEngine
from pipecat_personaplex.service.call import Call, SessionStarted
from tests.remote.fakes import FakeServer
from tests.remote.helpers import FRIEND, WAIT, Caller, log_lines, tone, until


class TestConversation:
    def test_every_input_frame_gets_an_output_frame(self) -> None:
        with FakeServer() as server, RemoteEngine(server.url) as engine:
            caller = Caller(engine, FRIEND, SamplingParams(seed=7)).ready()
            outputs = caller.talk(*range(5))
            assert [output.index for output in outputs] == list(range(5))
            assert [output.text for output in outputs] == [f" {n}" for n in range(5)]
            for index, output in enumerate(outputs):
                np.testing.assert_array_equal(output.pcm, tone(index))
                assert output.timings.total_ms == 3.0
                assert output.agent_codes.tolist() == list(range(8))
            opening = server.conversations["secret-0"].opening
            assert opening["voice"] == "NATF2" and opening["sampling"]["seed"] == 7
            assert opening["text_prompt"] == FRIEND.text_prompt and opening["audio"] == "pcm16"
            caller.session.close()
            assert caller.ended() is None and caller.session.closed
            until(lambda: not server.open)
            assert engine.stats().frames == caller.session.stats().frames == 5
            with pytest.raises(SessionFailed, match="closed"):
                caller.session.push(tone(0))

    def test_audio_of_any_length_is_cut_into_frames(self) -> None:
        with FakeServer() as server, RemoteEngine(server.url) as engine:
            caller = Caller(engine).ready()
            for chunk in np.array_split(np.concatenate([tone(0), tone(1)]), 7):
                caller.session.push(chunk)
            for index in range(2):
                np.testing.assert_array_equal(caller.next().pcm, tone(index))

    def test_audio_pushed_before_the_session_is_ready_is_processed(self) -> None:
        with FakeServer() as server, RemoteEngine(server.url) as engine:
            caller = Caller(engine)
            caller.session.push(tone(3))
            caller.ready()
            np.testing.assert_array_equal(caller.next().pcm, tone(3))

    def test_opus_preserves_the_sound(self) -> None:
        pytest.importorskip("opuslib_next")
        with FakeServer() as server, RemoteEngine(server.url, audio="opus") as engine:
            caller = Caller(engine).ready()
            time = np.arange(10 * FRAME_SAMPLES, dtype=np.float32) / 24_000
            sine = (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
            caller.session.push(sine)
            received = np.concatenate([caller.next().pcm for _ in range(10)])
            assert server.conversations["secret-0"].opening["audio"] == "opus"
            assert np.sqrt(np.mean(received[FRAME_SAMPLES:] ** 2)) == pytest.approx(0.212, rel=0.1)

    def test_instructions_arrive_before_later_frames(self) -> None:
        with FakeServer() as server, RemoteEngine(server.url) as engine:
            caller = Caller(engine).ready()
            caller.session.say("Good morning!")
            caller.session.update(SamplingParams.greedy())
            caller.talk(0)
            messages = server.conversations["secret-0"].messages
            assert {each["type"] for each in messages} == {"say", "update"}
            assert [each["text"] for each in messages if "text" in each] == ["Good morning!"]

    def test_messages_over_the_limit_are_refused_before_sending(self) -> None:
        with FakeServer() as server, RemoteEngine(server.url) as engine:
            caller = Caller(engine).ready()
            with pytest.raises(LimitReached, match="65536"):
                caller.session.say("x" * 70_000)
            with pytest.raises(LimitReached, match="persona"):
                Caller(engine, Persona("NATF2", "y" * 70_000))
            with pytest.raises(InvalidAudio):
                caller.session.push(np.full(10, np.nan, dtype=np.float32))
            caller.talk(0)

    def test_a_full_queue_drops_the_oldest_frames(self) -> None:
        with FakeServer() as server, RemoteEngine(server.url, max_queued_frames=3) as engine:
            caller = Caller(engine)
            caller.session.push(np.concatenate([tone(index) for index in range(10)]))
            caller.ready()
            assert caller.session.stats().dropped_frames == 7
            for index in (7, 8, 9):
                np.testing.assert_array_equal(caller.next().pcm, tone(index))

    def test_frames_dropped_by_the_server_are_counted_and_not_awaited(self) -> None:
        with FakeServer() as server, RemoteEngine(server.url) as engine:
            caller = Caller(engine).ready()
            server.drop = 2
            caller.session.push(np.concatenate([tone(0), tone(1)]))
            until(lambda: caller.session.stats().dropped_frames == 2)
            assert caller.talk(2)[0].index == 0


class TestLifecycle:
    def test_it_implements_the_engine_interface(self) -> None:
        engine: EngineLike = RemoteEngine("ws://127.0.0.1:1")
        assert pipecat_personaplex.RemoteEngine is RemoteEngine
        assert not hasattr(engine, "add_voice")
        assert engine.max_in_flight_frames == 8
        assert engine.max_sessions == 0, "no server has been polled yet"

    def test_sessions_need_a_running_engine(self) -> None:
        with FakeServer() as server:
            engine = RemoteEngine(server.url)
            assert not engine.healthy and engine.voices == []
            with pytest.raises(EngineStopped, match="call start"):
                Caller(engine)
            engine.stop()
            for _ in range(2):
                engine.start()
                engine.start()
                assert engine.healthy and engine.voices == ["NATF2"]
                Caller(engine).ready().talk(0)
                engine.stop()
                engine.stop()
            with pytest.raises(EngineStopped):
                Caller(engine)

    def test_stopping_ends_sessions(self) -> None:
        with FakeServer() as server:
            with RemoteEngine(server.url) as engine:
                caller, opening = Caller(engine).ready(), Caller(engine)
            assert isinstance(caller.ended(), EngineStopped)
            assert isinstance(opening.ended(), EngineStopped)
            assert not server.open, "the sessions were closed, not disconnected"
            with pytest.raises(SessionFailed, match="stopped"):
                caller.session.wait_ready()

    def test_stop_may_be_called_in_a_callback(self) -> None:
        with FakeServer() as server:
            engine = RemoteEngine(server.url)
            engine.start()
            ended = threading.Event()
            session = engine.open_session(
                FRIEND, on_frame=lambda frame: engine.stop(), on_end=lambda error: ended.set()
            )
            session.push(tone(0))
            assert ended.wait(WAIT)
            engine.stop()
            assert not any(t.name == "personaplex-remote" for t in threading.enumerate())

    def test_arguments_of_the_wrong_type_are_refused(self) -> None:
        with FakeServer() as server, RemoteEngine(server.url) as engine:
            with pytest.raises(ConfigError, match=r"must be a Persona .*, not str"):
                engine.open_session("NATF2", on_frame=print)  # type: ignore[arg-type]
            with pytest.raises(ConfigError, match="must be SamplingParams, not dict"):
                engine.open_session(FRIEND, {}, on_frame=print)  # type: ignore[arg-type]
            assert engine.stats().sessions == 0

    def test_a_session_adopts_the_id_of_its_server(self) -> None:
        with FakeServer() as server, RemoteEngine(server.url) as engine, log_lines() as lines:
            server.public_id = "0a1b2c3d"
            caller = Caller(engine)
            assert caller.ready().session.id == "0a1b2c3d"
            server.cut()
            until(lambda: server.resumed)
            caller.talk(0)
        about = [message for session, message in lines if session == "0a1b2c3d"]
        assert any("resuming the session" in message for message in about)
        assert all(server.url in message for message in about)

    def test_a_server_without_ids_leaves_the_session_its_own(self) -> None:
        with FakeServer() as server, RemoteEngine(server.url) as engine:
            caller = Caller(engine)
            own = caller.session.id
            assert len(own) == 8 and caller.ready().session.id == own

    def test_a_session_closed_at_once_ends_without_an_error(self) -> None:
        with FakeServer() as server, RemoteEngine(server.url) as engine:
            for _ in range(20):
                caller = Caller(engine)
                caller.session.close()
                assert caller.ended() is None
            until(lambda: not server.open)
            until(lambda: engine.stats().sessions == 0)

    def test_a_callback_that_raises_ends_only_its_session(self) -> None:
        def boom(*_: object) -> None:
            raise ValueError("boom")

        with FakeServer() as server, RemoteEngine(server.url) as engine:
            other = Caller(engine).ready()
            session = engine.open_session(FRIEND, on_frame=boom, on_end=boom)
            assert session.wait_ready(WAIT)
            session.push(tone(0))
            assert session.wait_ended(WAIT)
            assert isinstance(session.error, SessionFailed) and "boom" in str(session.error)
            other.talk(0)
            until(lambda: len(server.open) == 1)

    async def test_a_service_call_works_on_it(self) -> None:
        with FakeServer() as server:
            engine = RemoteEngine(server.url)
            await asyncio.to_thread(engine.start)
            now = 0.0
            call = Call(engine, clock=lambda: now)
            call.open(FRIEND, SamplingParams())
            events = call.events()
            assert isinstance(await anext(events), SessionStarted)
            for index in range(4):
                now += FRAME_SECONDS
                call.push_audio(tone(index))
                frame = await asyncio.wait_for(anext(events), WAIT)
                assert isinstance(frame, SessionFrame) and frame.index == index
            call.close()
            await asyncio.to_thread(engine.stop)


class TestOptions:
    @pytest.mark.parametrize(
        ("url", "reached"),
        [
            ("ws://host", "ws://host/v1/session"),
            ("http://host:8998/", "ws://host:8998/v1/session"),
            ("https://host/engine", "wss://host/engine/v1/session"),
            ("wss://host/v1/session", "wss://host/v1/session"),
            ("wss://host/api/chat", "wss://host/api/chat"),
        ],
    )
    def test_urls(self, url: str, reached: str) -> None:
        assert reached in repr(RemoteEngine(url))

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "host:8998",
            "ftp://host",
            "ws://",
            "ws://host:port",
            "ws://u:p@host",
            "ws://host?a=b",
        ],
    )
    def test_invalid_urls_are_refused(self, url: str) -> None:
        with pytest.raises(ConfigError, match="engine") as raised:
            RemoteEngine(url)
        assert "u:p" not in str(raised.value)

    def test_invalid_options_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="URL of a server"):
            RemoteEngine([])
        with pytest.raises(ConfigError, match="pcm16 or opus"):
            RemoteEngine("ws://host", audio="mp3")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="max_queued_frames"):
            RemoteEngine("ws://host", max_queued_frames=0)

    def test_the_key_is_sent_and_never_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        with FakeServer(key="sesame") as server:
            with RemoteEngine(server.url, api_key="sesame") as engine:
                Caller(engine).ready().talk(0)
                assert "sesame" not in repr(engine) + repr(engine.stats()) + repr(vars(engine))
            with pytest.raises(EngineUnreachable, match="401") as raised:
                RemoteEngine(server.url, api_key="abracadabra").start()
        sent = server.requests[0].headers["Authorization"]
        assert sent == "Bearer sesame"
        client = [record for record in caplog.records if "server" not in record.name]
        assert not any("sesame" in record.getMessage() for record in client)
        assert "abracadabra" not in str(raised.value)
