"""Several servers: which one gets a session, and what happens when it will not have it."""

from __future__ import annotations

import pytest
from websockets.asyncio.server import ServerConnection

from pipecat_personaplex.config import Persona
from pipecat_personaplex.errors import (
    EngineDraining,
    EngineFull,
    EngineUnreachable,
    PromptTooLong,
    SessionLost,
    VoiceNotFound,
)
from pipecat_personaplex.remote import RemoteEngine
from tests.remote.fakes import FakeServer, Script, refuse, say
from tests.remote.helpers import Caller, until


def sessions(*servers: FakeServer) -> list[int]:
    return [len(server.open) for server in servers]


def known(engine: RemoteEngine) -> bool:
    """Whether every server has been asked."""
    return all(server.reachable for server in engine.stats().servers)


async def greet(websocket: ServerConnection) -> str:
    """Say hello, and return what comes then."""
    await say(
        websocket,
        type="hello",
        version=1,
        model="m",
        voices=["NATF2"],
        sessions=0,
        max_sessions=1000,
        draining=False,
    )
    return str(await websocket.recv())


def refusing(code: str, **details: object) -> Script:
    async def script(websocket: ServerConnection) -> None:
        await greet(websocket)
        await refuse(websocket, code, 1008, **details)

    return script


class TestChoice:
    def test_sessions_go_where_there_is_most_room(self) -> None:
        with FakeServer(max_sessions=2) as small, FakeServer(max_sessions=6) as large:
            with RemoteEngine([small.url, large.url]) as engine:
                until(lambda: known(engine))
                # All at once: those on their way count as if they had arrived.
                callers = [Caller(engine) for _ in range(8)]
                for caller in callers:
                    caller.ready()
                assert sessions(small, large) == [2, 6]
                assert engine.max_sessions == 8
                assert [s.sessions for s in engine.stats().servers] == [2, 6]

    def test_other_clients_count(self) -> None:
        with FakeServer() as one, FakeServer() as two:
            with RemoteEngine(one.url) as other:
                for _ in range(3):
                    Caller(other).ready()
                with RemoteEngine([one.url, two.url]) as engine:
                    until(lambda: known(engine))
                    for _ in range(3):
                        Caller(engine).ready()
                    assert sessions(one, two) == [3, 3]

    def test_a_session_goes_where_its_voice_is(self) -> None:
        with FakeServer(voices=("NATF2",)) as one, FakeServer(voices=("NATM1", "NATF2")) as two:
            with RemoteEngine([one.url, two.url]) as engine:
                until(lambda: known(engine))
                assert engine.voices == ["NATF2", "NATM1"]
                for _ in range(3):
                    Caller(engine, Persona("NATM1")).ready()
                assert sessions(one, two) == [0, 3]
                with pytest.raises(VoiceNotFound, match="NATF2, NATM1"):
                    Caller(engine, Persona("NATX9"))


class TestFailOver:
    def test_a_full_server_hands_on(self) -> None:
        with FakeServer(max_sessions=8) as one, FakeServer(max_sessions=1) as two:
            with RemoteEngine([one.url, two.url]) as engine:
                until(lambda: known(engine))
                one.max_sessions = 0  # since it was asked
                Caller(engine).ready().talk(0)
                assert sessions(one, two) == [0, 1]

    def test_a_draining_server_hands_on(self) -> None:
        with FakeServer(max_sessions=8) as one, FakeServer(max_sessions=2) as two:
            with RemoteEngine([one.url, two.url]) as engine:
                until(lambda: known(engine))
                one.draining = True
                for _ in range(2):
                    Caller(engine).ready()
                assert sessions(one, two) == [0, 2]

    def test_a_server_that_is_gone_hands_on_and_comes_back(self) -> None:
        with FakeServer(max_sessions=2) as stays:
            goes = FakeServer(max_sessions=8)
            with goes, RemoteEngine([goes.url, stays.url]) as engine:
                until(lambda: known(engine))
                goes.stop()
                Caller(engine).ready().talk(0)
                assert not engine.stats().servers[0].reachable and engine.healthy
                goes.start()
                until(lambda: known(engine))
                for _ in range(3):
                    Caller(engine).ready()
                assert sessions(goes, stays) == [3, 1]

    def test_the_most_telling_refusal_is_the_caller_s(self) -> None:
        with FakeServer() as full, FakeServer() as draining:
            with RemoteEngine([full.url, draining.url]) as engine:
                until(lambda: known(engine))
                full.max_sessions, draining.draining = 0, True
                caller = Caller(engine)
                assert isinstance(caller.ended(), EngineFull)
                assert engine.stats().refused == 1
                full.max_sessions, full.draining = 4, True
                assert isinstance(Caller(engine).ended(), EngineDraining)

    @pytest.mark.parametrize(
        "code",
        ["engine_failed", "engine_stopped", "limit_reached", "session_failed", "voice_not_found"],
    )
    def test_whatever_a_server_refuses_with_another_is_asked(self, code: str) -> None:
        with FakeServer(refusing(code)) as bad, FakeServer() as good:
            with RemoteEngine([bad.url, good.url]) as engine:
                until(lambda: known(engine))
                Caller(engine).ready()
                assert sessions(good) == [1]

    def test_garbage_is_not_the_end(self) -> None:
        async def garbage(websocket: ServerConnection) -> None:
            await greet(websocket)
            await websocket.send("{}")
            await websocket.wait_closed()

        with FakeServer(garbage) as bad, FakeServer() as good:
            with RemoteEngine([bad.url, good.url]) as engine:
                until(lambda: known(engine))
                Caller(engine).ready()
                assert sessions(good) == [1]

    def test_what_is_wrong_with_the_session_is_the_end(self) -> None:
        script = refusing("prompt_too_long", frames=9, limit=3)
        with FakeServer(script) as bad, FakeServer() as good:
            with RemoteEngine([bad.url, good.url]) as engine:
                until(lambda: known(engine))
                assert isinstance(Caller(engine).ended(), PromptTooLong)
                assert sessions(good) == [0]

    def test_nobody_is_left(self) -> None:
        server = FakeServer()
        with server, RemoteEngine(server.url) as engine:
            server.stop()
            error = Caller(engine).ended()
            assert isinstance(error, EngineUnreachable) and server.url in str(error)
            with pytest.raises(EngineUnreachable, match="no engine's server"):
                Caller(engine)
            assert not engine.healthy and engine.voices == ["NATF2"]
            server.start()
            until(lambda: engine.healthy)
            Caller(engine).ready()


class TestRefusals:
    def test_full_is_said_at_once_where_it_is_certain(self) -> None:
        with FakeServer(max_sessions=1) as one, FakeServer(max_sessions=2) as two:
            with RemoteEngine([one.url, two.url]) as engine:
                until(lambda: known(engine))
                callers = [Caller(engine).ready() for _ in range(3)]
                with pytest.raises(EngineFull, match="all 3 sessions"):
                    Caller(engine)
                assert engine.stats().refused == 1
                callers[0].session.close()
                Caller(engine).ready()

    def test_a_slot_is_free_as_soon_as_its_session_is_closed(self) -> None:
        with FakeServer(max_sessions=1) as server, RemoteEngine(server.url) as engine:
            caller = Caller(engine).ready()
            for _ in range(20):
                caller.session.close()
                caller = Caller(engine).ready()

    def test_stopping_servers_are_said_to_be(self) -> None:
        with FakeServer() as server, RemoteEngine(server.url) as engine:
            server.draining = True
            until(lambda: engine.stats().servers[0].draining)
            with pytest.raises(EngineDraining):
                Caller(engine)

    def test_a_full_server_is_asked_once(self) -> None:
        asked = []

        async def full(websocket: ServerConnection) -> None:
            asked.append(await greet(websocket))
            await refuse(websocket, "engine_full", 1013, max_sessions=4)

        with FakeServer(full) as server, RemoteEngine(server.url) as engine:
            assert isinstance(Caller(engine).ended(), EngineFull)
            assert len(asked) == 1

    def test_one_that_drains_no_more_takes_sessions(self) -> None:
        async def talk(websocket: ServerConnection) -> None:
            await say(websocket, type="draining", seconds=60)
            await server._converse(websocket)

        with FakeServer(talk=talk) as server, RemoteEngine(server.url) as engine:
            caller = Caller(engine).ready()
            assert engine.stats().servers[0].draining
            # As one of several behind a balancer says it, and the next hello comes from another.
            until(lambda: not engine.stats().servers[0].draining)
            caller.talk(0, 1)
            Caller(engine)

    def test_a_restarted_server_has_lost_its_sessions(self) -> None:
        with FakeServer() as server, RemoteEngine(server.url) as engine:
            caller = Caller(engine).ready()
            caller.talk(0, 1)
            server.conversations.clear()
            server.cut()
            error = caller.ended()
            assert isinstance(error, SessionLost)
            assert [frame.index for frame in caller.frames] == [0, 1]
            Caller(engine).ready().talk(0)
