"""Instructions of a remote session: say with progress, hush, hold, release and prompt updates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.errors import (
    ConfigError,
    EngineFailed,
    LimitReached,
    PersonaPlexError,
    SessionFailed,
    UserError,
    VoiceNotFound,
)
from pipecat_personaplex.interface import CallHistory, Speech
from pipecat_personaplex.remote import RemoteEngine
from pipecat_personaplex.remote.instructions import Instructions
from tests.helpers.servers import RunningServer, ServedFakeEngine
from tests.remote.fakes import FakeServer, Script, say
from tests.remote.helpers import FRIEND, WAIT, Caller, Done, tone, until
from tests.remote.proxy import Proxy

TEA = Persona("NATM1", "You sell tea.")


class Served:
    """A server with a fake engine, and a remote engine connected to it through a proxy."""

    def __init__(self, fake: ServedFakeEngine, proxy: Proxy, engine: RemoteEngine):
        self.fake, self.proxy, self.engine = fake, proxy, engine

    def caller(self) -> Caller:
        return Caller(self.engine).ready()


@pytest.fixture
def served() -> Iterator[Served]:
    fake = ServedFakeEngine()
    with RunningServer(fake) as server, Proxy(int(server.url.rpartition(":")[2])) as proxy:
        with RemoteEngine(proxy.url) as engine:
            yield Served(fake, proxy, engine)


def test_a_speech_shows_its_progress(served: Served) -> None:
    caller, done = served.caller(), Done()
    assert caller.session.features == frozenset({"say", "sampling", "hold", "prompt", "history"})
    speech = caller.session.say("Good morning you", when="now", on_done=done)
    assert (speech.words, speech.spoken, speech.state) == (3, 0, "waiting")
    caller.talk(0)
    until(lambda: (speech.spoken, speech.state) == (1, "speaking"))
    caller.talk(1)
    until(lambda: speech.spoken == 2)
    assert not done.calls
    caller.talk(2)
    assert done.wait() == [speech]
    assert (speech.spoken, speech.state) == (3, "said")
    assert served.fake.sessions[0].said_when == ["now"]


def test_hush_cuts_at_once_and_tells_the_server(served: Served) -> None:
    caller, done = served.caller(), Done()
    first = caller.session.say("one two three", on_done=done)
    second = caller.session.say("four", on_done=done)
    caller.talk(0)
    assert caller.session.hush(second) == [second]
    assert second.state == "cut"
    assert done.wait() == [second]
    assert caller.session.hush() == [first]
    assert first.state == "cut" and first.spoken <= 1
    assert done.wait(2) == [second, first]
    assert first.spoken == 1
    assert caller.session.hush() == []
    assert caller.talk(1)[0].text == ""


def test_hush_of_a_speech_that_is_not_sent(served: Served) -> None:
    caller, done = served.caller(), Done()
    served.proxy.hold()
    speeches = [caller.session.say(f"word {index}", on_done=done) for index in range(5)]
    assert caller.session.hush() == speeches
    served.proxy.heal()
    done.wait(5)
    assert {speech.state for speech in speeches} == {"cut"}
    caller.talk(0)
    assert served.fake.sessions[0].pieces == []


def test_refused_speeches_are_cut(served: Served) -> None:
    caller, done = served.caller(), Done()
    speech = caller.session.say("x" * 4_001, on_done=done)
    assert done.wait() == [speech]
    assert (speech.state, speech.spoken) == ("cut", 0)
    with pytest.raises(ConfigError, match="no words"):
        caller.session.say(" ")
    with pytest.raises(ConfigError, match="pause or now"):
        caller.session.say("Hi", when="later")  # type: ignore[arg-type]
    for index in range(64):
        caller.session.say(f"word{index}")
    with pytest.raises(LimitReached, match="64"):
        caller.session.say("one more")
    assert len(caller.session.hush()) == 64
    caller.talk(0)  # the server confirms instructions by frames
    until(lambda: not served.fake.sessions[0].pieces)


def test_hold_and_release(served: Served) -> None:
    caller = served.caller()
    served.fake.sessions[0].pieces += [" a", " b"]
    caller.session.hold(1)
    assert caller.talk(0)[0].text == ""
    caller.session.release()
    assert caller.talk(1)[0].text == " a"
    assert served.fake.sessions[0].holds == [1.0, 0.0]
    for seconds in (-1, 31, float("nan"), float("inf"), True, "1", None):
        with pytest.raises(ConfigError, match="from 0 to 30"):
            caller.session.hold(seconds)  # type: ignore[arg-type]


def test_a_prompt_update(served: Served) -> None:
    caller, done = served.caller(), Done()
    caller.session.update_prompt(TEA, history=10, on_done=done)
    assert done.wait() == [None]
    assert caller.session.persona == TEA
    assert served.fake.sessions[0].persona == TEA
    assert served.fake.sessions[0].prompt_history == [10]


def test_more_history_than_a_message_may_name(served: Served) -> None:
    caller, done = served.caller(), Done()
    caller.session.update_prompt(TEA, history=2_000_000, on_done=done)
    assert done.wait() == [None]


def test_nothing_is_queued_for_a_session_that_has_just_ended() -> None:
    instructions = Instructions()
    instructions.end()
    with pytest.raises(SessionFailed, match="closed; open another"):
        instructions.say("Hello.", "pause", None)
    with pytest.raises(SessionFailed, match="closed; open another"):
        instructions.update_prompt(TEA, None, None)
    assert instructions.take() is None


def test_refused_prompt_updates(served: Served) -> None:
    caller, done = served.caller(), Done()
    caller.session.update_prompt(Persona("NATX"), on_done=done)
    assert isinstance(done.wait()[0], VoiceNotFound)
    assert caller.session.persona == FRIEND
    with pytest.raises(ConfigError, match="must be a Persona"):
        caller.session.update_prompt("NATM1")  # type: ignore[arg-type]
    for history in (-1, 1.5, True):
        with pytest.raises(ConfigError, match="number of frames"):
            caller.session.update_prompt(TEA, history=history)  # type: ignore[arg-type]
    with pytest.raises(LimitReached, match="persona"):
        caller.session.update_prompt(Persona("NATM1", "y" * 70_000))


def test_prompt_updates_wait_for_each_other(served: Served) -> None:
    caller, done = served.caller(), Done()
    personas = [Persona("NATM1", f"You sell tea number {index}.") for index in range(4)]
    for persona in personas:
        caller.session.update_prompt(persona, on_done=done)
    done.wait(4)
    failed = [error for error in done.calls if error is not None]
    assert all(isinstance(error, UserError) and "later" in str(error) for error in failed)
    assert caller.session.persona == personas[-1]
    assert len(failed) == 4 - len(served.fake.sessions[0].prompts) >= 2


def test_everything_ends_with_the_session(served: Served) -> None:
    served.fake.ready = False
    caller, speech_done, prompt_done = Caller(served.engine), Done(), Done()
    until(lambda: served.fake.sessions)
    served.fake.sessions[0].make_ready()
    caller.ready()
    speech = caller.session.say("one two", on_done=speech_done)
    caller.session.update_prompt(TEA, on_done=prompt_done)
    until(lambda: served.fake.sessions[0].prompts)
    caller.talk(0)
    served.fake.fail(EngineFailed("it failed"))
    assert isinstance(caller.ended(), EngineFailed)
    assert speech_done.calls == [speech] and speech.state == "cut"
    assert [type(error) for error in prompt_done.calls] == [SessionFailed]
    for refused in (
        lambda: caller.session.say("Hi"),
        lambda: caller.session.hush(),
        lambda: caller.session.hold(1),
        lambda: caller.session.release(),
        lambda: caller.session.update_prompt(TEA),
        lambda: caller.session.update(SamplingParams()),
    ):
        with pytest.raises(SessionFailed):
            refused()
    assert len(caller.session.history().tokens) == 1


def test_close_cuts_what_waits(served: Served) -> None:
    caller, done = served.caller(), Done()
    speech = caller.session.say("one two", on_done=done)
    caller.session.close()
    assert caller.ended() is None
    assert done.calls == [speech] and speech.state == "cut"


def test_a_callback_that_raises_ends_the_session(served: Served) -> None:
    def fail(result: Speech | PersonaPlexError | None) -> None:
        raise RuntimeError("oh")

    caller = served.caller()
    caller.session.update_prompt(TEA, on_done=fail)
    error = caller.ended()
    assert type(error) is SessionFailed and "on_done callback raised RuntimeError" in str(error)
    caller = served.caller()
    served.proxy.hold()
    caller.session.say("Hi", on_done=fail)
    caller.session.hush()
    served.proxy.heal()  # if the server has the speech, its report calls on_done
    error = caller.ended()
    assert error is not None and "on_done callback raised RuntimeError" in str(error)


@pytest.mark.parametrize("how", ["cut", "hold"])
def test_instructions_are_executed_once_across_connections(served: Served, how: str) -> None:
    caller, done = served.caller(), Done()
    speeches = [caller.session.say("one", on_done=done), caller.session.say("two three")]
    caller.talk(0)
    getattr(served.proxy, how)()
    speeches.append(caller.session.say("four"))
    caller.session.hold(0.5)
    caller.session.update_prompt(TEA, on_done=done)
    caller.session.hush(speeches[1])
    served.proxy.heal()
    served.proxy.cut()
    served.proxy.heal()
    until(lambda: len(done.calls) == 2)
    until(lambda: served.fake.sessions[0].hushed)
    caller.talk(1)
    until(lambda: speeches[2].state == "said")
    session = served.fake.sessions[0]
    assert session.said == ["one", "two three", "four"]
    assert session.holds == [0.5] and session.prompts == [TEA]
    assert [speech.state for speech in speeches] == ["said", "cut", "said"]


def test_history_of_a_session(served: Served) -> None:
    caller = served.caller()
    served.fake.sessions[0].pieces += ["", " word"]
    caller.talk(0, 1, 2)
    history = caller.session.history()
    assert history.tokens.dtype == np.int16
    assert history.tokens[:, 0].tolist() == [3, 7, 3]
    np.testing.assert_array_equal(history.caller, np.concatenate([tone(0), tone(1), tone(2)]))
    again = Caller.__new__(Caller)
    again.frames, again.reports = [], type(caller.reports)()
    again.session = served.engine.open_session(
        TEA,
        on_frame=again._on_frame,
        on_ready=lambda: again.reports.put("ready"),
        history=history,
    )
    again.ready()
    assert [frame.index for frame in again.talk(3, 4)] == [0, 1]
    assert len(again.session.history().tokens) == 5
    opened = served.fake.sessions[1].opened_with
    assert opened is not None
    np.testing.assert_array_equal(opened.tokens, history.tokens)


@pytest.mark.parametrize(
    ("tokens", "audio"),
    [
        (np.zeros((3, 17), np.int64), np.zeros(1_920, np.float32)),
        (np.zeros((3, 16), np.int16), np.zeros(1_920, np.float32)),
        (np.zeros(17, np.int16), np.zeros(1_920, np.float32)),
        (np.zeros((3, 17), np.int16), np.zeros(1_919, np.float32)),
        (np.zeros((3, 17), np.int16), np.zeros(1_920, np.float64)),
        (np.zeros((3, 17), np.int16), np.zeros((1, 1_920), np.float32)),
    ],
)
def test_an_invalid_history(served: Served, tokens: Any, audio: Any) -> None:
    with pytest.raises(ConfigError, match="of a history must be"):
        served.engine.open_session(FRIEND, on_frame=print, history=CallHistory(tokens, audio))


class TestOlderServers:
    """Servers without features: say and update only, and no reports."""

    def test_what_they_cannot_do_is_refused(self) -> None:
        with FakeServer() as server, RemoteEngine(server.url) as engine:
            session = Caller(engine).ready().session
            assert session.features == {"say", "sampling"}
            with pytest.raises(ConfigError, match="does not support hold"):
                session.hold(1)
            with pytest.raises(ConfigError, match="does not support prompt"):
                session.update_prompt(TEA)
            with pytest.raises(ConfigError, match="does not support history"):
                session.history()
            history = CallHistory(np.zeros((1, 17), np.int16), np.zeros(0, np.float32))
            with pytest.raises(ConfigError, match="no reachable server supports history"):
                engine.open_session(FRIEND, on_frame=print, history=history)

    def test_a_speech_that_they_have_counts_as_said(self) -> None:
        with FakeServer() as server, RemoteEngine(server.url) as engine:
            caller, done = Caller(engine).ready(), Done()
            speech = caller.session.say("Good morning", when="now", on_done=done)
            caller.talk(0)
            assert done.wait() == [speech]
            assert (speech.state, speech.spoken) == ("said", 2)
            assert caller.session.hush() == []
            conversation = server.conversations["secret-0"]
            assert conversation.messages == [{"type": "say", "text": "Good morning"}]
            assert set(conversation.opening) == {
                *("type", "voice", "text_prompt", "sampling", "audio")
            }

    def test_unknown_features_are_ignored(self) -> None:
        with FakeServer() as server:
            server.features = ["hold", "telepathy"]
            with RemoteEngine(server.url) as engine:
                session = Caller(engine).ready().session
                assert session.features == {"hold"}
                with pytest.raises(ConfigError, match="does not support say"):
                    session.say("Hi")


def hostile(*messages: dict[str, Any]) -> Script:
    """A conversation in which the server sends these messages after the first instruction."""

    async def talk(websocket: Any) -> None:
        await say(websocket, type="ready")
        await websocket.recv()
        for message in messages:
            await say(websocket, **message)
        await websocket.wait_closed()

    return talk


@pytest.mark.parametrize(
    "message",
    [
        {"type": "speech", "id": -1, "state": "said", "spoken": 1},
        {"type": "speech", "id": 0, "state": "loud", "spoken": 1},
        {"type": "speech", "id": 0, "state": "said", "spoken": -1},
        {"type": "speech", "id": 0, "state": "said", "spoken": 10**9},
        {"type": "speech", "state": "said", "spoken": 1},
        {"type": "prompted", "id": 0},
        {"type": "prompted", "id": 0, "ok": "yes"},
        {"type": "prompted", "id": 0, "ok": False, "details": []},
    ],
)
def test_invalid_reports_end_the_session(message: dict[str, Any]) -> None:
    with FakeServer(talk=hostile(message)) as server:
        server.features = ["say", "prompt"]
        with RemoteEngine(server.url) as engine:
            caller = Caller(engine).ready()
            speech = caller.session.say("one two")
            error = caller.ended()
            assert type(error) is SessionFailed and "protocol" in str(error)
            assert speech.state == "cut"


def test_strange_reports_are_ignored() -> None:
    messages: list[dict[str, Any]] = [
        {"type": "speech", "id": 77, "state": "said", "spoken": 1},
        {"type": "prompted", "id": 77, "ok": True},
        {"type": "prompted", "ok": False},
        {"type": "speech", "id": 0, "state": "speaking", "spoken": 1_000},
        {"type": "speech", "id": 0, "state": "waiting", "spoken": 0},
        {"type": "speech", "id": 0, "state": "said", "spoken": 1},
        {"type": "speech", "id": 0, "state": "cut", "spoken": 0},
    ]
    with FakeServer(talk=hostile(*messages)) as server:
        server.features = ["say", "prompt"]
        with RemoteEngine(server.url) as engine:
            caller, done = Caller(engine).ready(), Done()
            speech = caller.session.say("one two", on_done=done)
            assert done.wait() == [speech]
            assert (speech.state, speech.spoken) == ("said", 2)
            assert caller.session.persona == FRIEND and not caller.session.closed
            caller.session.close()
            assert caller.ended(WAIT) is None
