"""Several servers: the choice of one for a session, and failover when it refuses."""

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
    """Whether every server has been polled."""
    return all(server.reachable for server in engine.stats().servers)


async def greet(websocket: ServerConnection) -> str:
    """Send ``hello`` and return the client's first message."""
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
    def test_sessions_go_to_the_least_loaded_server(self) -> None:
        with FakeServer(max_sessions=2) as small, FakeServer(max_sessions=6) as large:
            with RemoteEngine([small.url, large.url]) as engine:
                until(lambda: known(engine))
                # All at once: sessions that are being opened count towards the load.
                callers = [Caller(engine) for _ in range(8)]
                for caller in callers:
                    caller.ready()
                assert sessions(small, large) == [2, 6]
                assert engine.max_sessions == 8
                assert [s.sessions for s in engine.stats().servers] == [2, 6]

    def test_sessions_of_other_clients_count(self) -> None:
        with FakeServer() as one, FakeServer() as two:
            with RemoteEngine(one.url) as other:
                for _ in range(3):
                    Caller(other).ready()
                with RemoteEngine([one.url, two.url]) as engine:
                    until(lambda: known(engine))
                    for _ in range(3):
                        Caller(engine).ready()
                    assert sessions(one, two) == [3, 3]

    def test_a_session_goes_to_a_server_with_its_voice(self) -> None:
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
    def test_a_full_server_fails_over(self) -> None:
        with FakeServer(max_sessions=8) as one, FakeServer(max_sessions=1) as two:
            with RemoteEngine([one.url, two.url]) as engine:
                until(lambda: known(engine))
                one.max_sessions = 0  # since the poll
                Caller(engine).ready().talk(0)
                assert sessions(one, two) == [0, 1]

    def test_a_draining_server_fails_over(self) -> None:
        with FakeServer(max_sessions=8) as one, FakeServer(max_sessions=2) as two:
            with RemoteEngine([one.url, two.url]) as engine:
                until(lambda: known(engine))
                one.draining = True
                for _ in range(2):
                    Caller(engine).ready()
                assert sessions(one, two) == [0, 2]

    def test_an_unreachable_server_fails_over_and_returns(self) -> None:
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

    def test_the_most_useful_refusal_reaches_the_caller(self) -> None:
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
    def test_refusals_of_one_server_fail_over(self, code: str) -> None:
        with FakeServer(refusing(code)) as bad, FakeServer() as good:
            with RemoteEngine([bad.url, good.url]) as engine:
                until(lambda: known(engine))
                Caller(engine).ready()
                assert sessions(good) == [1]

    def test_a_protocol_violation_fails_over(self) -> None:
        async def garbage(websocket: ServerConnection) -> None:
            await greet(websocket)
            await websocket.send("{}")
            await websocket.wait_closed()

        with FakeServer(garbage) as bad, FakeServer() as good:
            with RemoteEngine([bad.url, good.url]) as engine:
                until(lambda: known(engine))
                Caller(engine).ready()
                assert sessions(good) == [1]

    def test_an_invalid_session_does_not_fail_over(self) -> None:
        script = refusing("prompt_too_long", frames=9, limit=3)
        with FakeServer(script) as bad, FakeServer() as good:
            with RemoteEngine([bad.url, good.url]) as engine:
                until(lambda: known(engine))
                assert isinstance(Caller(engine).ended(), PromptTooLong)
                assert sessions(good) == [0]

    def test_no_reachable_server_is_an_error(self) -> None:
        server = FakeServer()
        with server, RemoteEngine(server.url) as engine:
            server.stop()
            error = Caller(engine).ended()
            assert isinstance(error, EngineUnreachable) and server.url in str(error)
            with pytest.raises(EngineUnreachable, match="no server of the engine"):
                Caller(engine)
            assert not engine.healthy and engine.voices == ["NATF2"]
            server.start()
            until(lambda: engine.healthy)
            Caller(engine).ready()


class TestRefusals:
    def test_engine_full_is_raised_at_once_if_certain(self) -> None:
        with FakeServer(max_sessions=1) as one, FakeServer(max_sessions=2) as two:
            with RemoteEngine([one.url, two.url]) as engine:
                until(lambda: known(engine))
                callers = [Caller(engine).ready() for _ in range(3)]
                with pytest.raises(EngineFull, match="all 3 sessions"):
                    Caller(engine)
                assert engine.stats().refused == 1
                callers[0].session.close()
                Caller(engine).ready()

    def test_a_closed_session_frees_its_slot_at_once(self) -> None:
        with FakeServer(max_sessions=1) as server, RemoteEngine(server.url) as engine:
            caller = Caller(engine).ready()
            for _ in range(20):
                caller.session.close()
                caller = Caller(engine).ready()

    def test_engine_draining_is_raised_if_all_servers_drain(self) -> None:
        with FakeServer() as server, RemoteEngine(server.url) as engine:
            server.draining = True
            until(lambda: engine.stats().servers[0].draining)
            with pytest.raises(EngineDraining):
                Caller(engine)

    def test_a_full_server_is_requested_once(self) -> None:
        openings = []

        async def full(websocket: ServerConnection) -> None:
            openings.append(await greet(websocket))
            await refuse(websocket, "engine_full", 1013, max_sessions=4)

        with FakeServer(full) as server, RemoteEngine(server.url) as engine:
            assert isinstance(Caller(engine).ended(), EngineFull)
            assert len(openings) == 1

    def test_a_server_that_no_longer_drains_takes_sessions(self) -> None:
        async def talk(websocket: ServerConnection) -> None:
            await say(websocket, type="draining", seconds=60)
            await server._converse(websocket)

        with FakeServer(talk=talk) as server, RemoteEngine(server.url) as engine:
            caller = Caller(engine).ready()
            assert engine.stats().servers[0].draining
            # Behind a load balancer, another server that does not drain may send the next hello.
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
