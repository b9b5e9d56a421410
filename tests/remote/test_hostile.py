"""Servers that violate the protocol: one clear error, and the engine continues."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection

from pipecat_personaplex.errors import (
    EngineFailed,
    EngineUnreachable,
    PersonaPlexError,
    SessionFailed,
    SessionLost,
    SpeechTooLong,
)
from pipecat_personaplex.protocol.session_messages import MAX_MESSAGE_BYTES
from pipecat_personaplex.remote import RemoteEngine
from tests.remote.fakes import FakeServer, Script, output_frame, refuse, say
from tests.remote.helpers import Caller, tone

SILENCE = bytes(3840)


def then(*messages: str | bytes) -> Script:
    """Send ``ready``, and these messages after the caller's first frame."""

    async def talk(websocket: ServerConnection) -> None:
        await say(websocket, type="ready")
        await websocket.recv()
        for message in messages:
            await websocket.send(message)
        while '"close"' not in str(await websocket.recv()):
            pass

    return talk


def outcome(talk: Script) -> PersonaPlexError | None:
    with FakeServer(talk=talk) as server, RemoteEngine(server.url) as engine:
        caller = Caller(engine)
        caller.session.push(tone(0))
        error = caller.ended()
        assert engine.healthy
        return error


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([output_frame(1, SILENCE)], "frame 1 came where frame 0 was expected"),
        ([output_frame(0, SILENCE), output_frame(1, SILENCE)], "input frame that was not sent"),
        (
            [output_frame(0, SILENCE), output_frame(2, SILENCE)],
            "frame 2 came where frame 1 was expected",
        ),
        ([output_frame(0, b"short")], "3840 bytes"),
        ([b""], "header"),
        ([b"\x01\x02"], "header"),
        ([b"\x07" + bytes(100)], "not 7"),
        (["{"], "JSON"),
        (["null"], "object"),
        (['{"type": "resumed", "next_frame": 0, "ready": true}'], "'resumed' came"),
        (['{"type": "welcome"}'], "tag"),
        (['{"type": "stats"}'], "Field required"),
    ],
)
def test_protocol_violations_end_the_session(messages: list[str | bytes], reason: str) -> None:
    error = outcome(then(*messages))
    assert type(error) is SessionFailed
    assert "does not follow the protocol" in str(error) and reason in str(error)


def test_impossible_counters_are_harmless() -> None:
    stats = dict(type="stats", frames=0, late_frames=0, queued_frames=0)
    nonsense = [json.dumps({**stats, "dropped_frames": n}) for n in (-5, 0, 1 << 70)]
    with FakeServer(talk=then(*nonsense)) as server, RemoteEngine(server.url) as engine:
        caller = Caller(engine)
        caller.session.push(tone(0))
        caller.ready().session.close()
        assert caller.ended() is None
        assert 0 <= caller.session.stats().dropped_frames <= 1


@pytest.mark.parametrize(
    ("code", "close", "kind"),
    [
        ("engine_failed", 1011, EngineFailed),
        ("session_lost", 1008, SessionLost),
        ("no_such_code", 1008, SessionFailed),
    ],
)
def test_a_fatal_error_reaches_the_caller(code: str, close: int, kind: type) -> None:
    async def talk(websocket: ServerConnection) -> None:
        await refuse(websocket, code, close)

    error = outcome(talk)
    assert type(error) is kind and str(error) == f"it is {code}"


@pytest.mark.parametrize("details", [{"frames": "x", "limit": None}, {"self": 1}, {"known": 3}])
def test_invalid_error_details_are_harmless(details: dict[str, Any]) -> None:
    async def talk(websocket: ServerConnection) -> None:
        await say(
            websocket,
            type="error",
            code="prompt_too_long",
            message="it is long",
            fatal=True,
            details=details,
        )

    assert isinstance(outcome(talk), PersonaPlexError)


def test_a_non_fatal_error_does_not_change_the_session() -> None:
    with FakeServer() as server, RemoteEngine(server.url) as engine:

        async def talk(websocket: ServerConnection) -> None:
            parts = {"frames": 9, "limit": 3}
            await say(
                websocket,
                type="error",
                code="speech_too_long",
                message=str(SpeechTooLong(**parts)),
                fatal=False,
                details=parts,
            )
            await server._converse(websocket)

        server._talk = talk
        Caller(engine).ready().talk(0, 1)


@pytest.mark.parametrize("code", [1003, 1007, 1008, 1009])
def test_a_close_code_about_the_messages_is_not_resumed(code: int) -> None:
    async def talk(websocket: ServerConnection) -> None:
        await websocket.close(code, "that will not do")

    error = outcome(talk)
    assert type(error) is SessionFailed and "that will not do" in str(error)


def test_a_session_resumed_by_another_client_is_lost() -> None:
    async def talk(websocket: ServerConnection) -> None:
        await websocket.close(4001)

    with FakeServer(talk=talk) as server:
        with RemoteEngine(server.url) as engine:
            caller = Caller(engine)
            caller.session.push(tone(0))
            error = caller.ended()
            assert engine.healthy
            assert type(error) is SessionLost and "another client" in str(error)
        # The engine has ended all that it had to say.
        assert server.resumed == 0, "the session is not taken back"


def test_a_message_over_the_size_limit_ends_the_session() -> None:
    error = outcome(then(bytes(32 * MAX_MESSAGE_BYTES)))
    assert type(error) is SessionFailed and "too big" in str(error)


def resuming(respond: Callable[[ServerConnection], Awaitable[object]]) -> PersonaPlexError | None:
    """Resume a session whose server responds by ``respond``, and return the error of its end."""
    with FakeServer() as server, RemoteEngine(server.url) as engine:

        async def resume(websocket: ServerConnection, message: dict[str, Any]) -> None:
            await respond(websocket)
            while '"close"' not in str(await websocket.recv()):
                pass

        server._resume = resume  # type: ignore[method-assign]
        caller = Caller(engine).ready()
        caller.talk(0, 1)
        server.cut()
        return caller.ended()


@pytest.mark.parametrize("wanted", [0, 1, 3, 1 << 40])
def test_resumed_with_an_impossible_frame_ends_the_session(wanted: int) -> None:
    error = resuming(lambda ws: say(ws, type="resumed", next_frame=wanted, ready=True))
    assert type(error) is SessionFailed and f"wants frame {wanted}" in str(error)


def test_another_message_instead_of_resumed_ends_the_session() -> None:
    error = resuming(lambda ws: say(ws, type="ready"))
    assert type(error) is SessionFailed and "'ready' came where 'resumed' was expected" in str(
        error
    )


def test_resume_is_retried_until_the_time_limit() -> None:
    error = resuming(lambda ws: ws.close(1011))
    assert type(error) is SessionLost and "within 3 s" in str(error)


@pytest.mark.parametrize("opened", ["{", '{"type": "ready"}', b"\x01"])
def test_another_message_instead_of_opened_ends_the_session(opened: str | bytes) -> None:
    async def connected(websocket: ServerConnection) -> None:
        await say(
            websocket,
            type="hello",
            version=1,
            model="m",
            voices=["NATF2"],
            sessions=0,
            max_sessions=1,
            draining=False,
        )
        await websocket.recv()
        await websocket.send(opened)
        await websocket.recv()

    with FakeServer(connected) as server, RemoteEngine(server.url) as engine:
        error = Caller(engine).ended()
        assert type(error) is SessionFailed and "protocol" in str(error)


def test_a_truncated_hello_is_refused() -> None:
    async def connected(websocket: ServerConnection) -> None:
        websocket.transport.write(b"\x81\x7e\xff")
        websocket.transport.abort()

    with FakeServer(connected) as server, pytest.raises(EngineUnreachable, match="failed"):
        RemoteEngine(server.url, start_seconds=0.5).start()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    messages=st.lists(
        st.one_of(
            st.binary(max_size=200),
            st.text(max_size=50),
            st.binary(max_size=60).map(lambda tail: b"\x01" + bytes(4) + tail),
            st.sampled_from(
                ["opened", "ready", "resumed", "stats", "draining", "closed", "error"]
            ).map(lambda kind: json.dumps({"type": kind})),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_random_messages_end_the_session(
    garbled: tuple[FakeServer, RemoteEngine], messages: list[str | bytes]
) -> None:
    server, engine = garbled
    server._talk = then(*messages)
    caller = Caller(engine)
    caller.session.push(tone(0))
    caller.ready()
    if all(message == '{"type": "ready"}' for message in messages):  # not a violation
        caller.session.close()
    error = caller.ended()
    assert error is None or isinstance(error, SessionFailed)


@pytest.fixture
def garbled() -> Any:
    with FakeServer(max_sessions=1000) as server, RemoteEngine(server.url) as engine:
        yield server, engine
