from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest
from starlette.requests import HTTPConnection

from pipecat_personaplex.errors import AccessDenied, ConfigError, EngineDraining, LimitReached
from pipecat_personaplex.server.admission import AdmissionController
from pipecat_personaplex.server.auth import ANONYMOUS, ApiClient, ApiKeys, new_key
from pipecat_personaplex.server.config import ServerConfig


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def connection(
    path: str = "/v1/session", query: str = "", *, host: str = "voice.example:8998", **headers: str
) -> HTTPConnection:
    named = {"host": host} | {name.replace("_", "-"): value for name, value in headers.items()}
    return HTTPConnection(
        {
            "type": "websocket",
            "scheme": "ws",
            "path": path,
            "query_string": query.encode(),
            "headers": [(n.lower().encode(), v.encode("latin-1")) for n, v in named.items()],
        }
    )


# Keys.


def test_without_keys_every_client_is_anonymous() -> None:
    assert AdmissionController(ServerConfig()).identify(connection()) == ANONYMOUS


def test_a_key_may_be_in_a_header_a_subprotocol_or_the_chat_query() -> None:
    key, line = new_key("bot", 2)
    admission = AdmissionController(ServerConfig(), ApiKeys([line]))
    for given in (
        connection(authorization=f"Bearer {key}"),
        connection(authorization=f"bearer  {key} "),
        connection(sec_websocket_protocol=f"personaplex.v1, bearer.{key}"),
        connection("/api/chat", f"voice_prompt=x&api_key={key}"),
        connection("/api/chat", authorization=f"Bearer {key}"),
    ):
        assert admission.identify(given) == ApiClient("bot", 2)
    assert not admission.refusals


@pytest.mark.parametrize(
    "given",
    [
        connection(),
        connection(authorization="Bearer"),
        connection(authorization="Bearer "),
        connection(authorization="Bearer nobody's"),
        connection(authorization="Basic Ym90OktFWQ=="),
        connection(authorization="Bearer ÿü"),
        connection(sec_websocket_protocol="bearer."),
        connection(sec_websocket_protocol="personaplex.v1"),
        connection("/api/chat", "api_key="),
        connection("/api/chat", "api_key=%00%ff"),
    ],
)
def test_a_wrong_key_is_refused(given: HTTPConnection) -> None:
    admission = AdmissionController(ServerConfig(), ApiKeys([new_key("bot")[1]]))
    with pytest.raises(AccessDenied):
        admission.identify(given)
    assert admission.refusals == {"access_denied": 1}


def test_a_key_in_the_url_is_accepted_only_at_api_chat() -> None:
    key, line = new_key("bot")
    admission = AdmissionController(ServerConfig(), ApiKeys([line]))
    with pytest.raises(AccessDenied):
        admission.identify(connection("/v1/session", f"api_key={key}"))


# Origins.


@pytest.mark.parametrize(
    ("origin", "allowed", "allowed_in"),
    [
        (None, (), True),
        ("http://voice.example:8998", (), True),
        ("https://VOICE.example:8998", (), True),
        ("http://voice.example", (), False),
        ("http://evil.example", (), False),
        ("null", (), False),
        ("", (), False),
        ("http://voice.example:8998.evil.example", (), False),
        ("http://voice.example:8998/", (), False),
        ("http://[", (), False),
        ("https://a.example", ("https://a.example",), True),
        ("https://a.example", ("https://a.example:443",), True),
        ("http://a.example", ("http://a.example:80",), True),
        ("https://a.example", ("https://a.example:80",), False),
        ("HTTPS://A.example", ("https://a.example",), True),
        ("http://a.example", ("https://a.example",), False),
        ("https://a.example:8443", ("https://a.example",), False),
        ("https://b.a.example", ("https://a.example",), False),
        ("null", ("*",), True),
        ("http://evil.example", ("*",), True),
    ],
)
def test_origins(origin: str | None, allowed: tuple[str, ...], allowed_in: bool) -> None:
    admission = AdmissionController(
        ServerConfig(allow_origins=allowed), ApiKeys([new_key("bot")[1]])
    )
    given = connection() if origin is None else connection(origin=origin)
    if allowed_in:
        admission.check_origin(given)
    else:
        with pytest.raises(AccessDenied):
            admission.check_origin(given)
    assert admission.refusals == ({} if allowed_in else {"origin_denied": 1})


@pytest.mark.parametrize(
    ("host", "allowed_in"),
    [
        ("127.0.0.1:8998", True),
        ("192.168.1.7", True),
        ("[::1]:8998", True),
        ("localhost:8998", True),
        ("LOCALHOST", True),
        ("evil.example:8998", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("[", False),
    ],
)
def test_without_keys_a_host_name_is_not_an_own_origin(host: str, allowed_in: bool) -> None:
    """DNS rebinding: the owner of a name can point it at the server and have its origin."""
    admission, given = (
        AdmissionController(ServerConfig()),
        connection(host=host, origin=f"http://{host}"),
    )
    if allowed_in:
        admission.check_origin(given)
    else:
        with pytest.raises(AccessDenied, match="--allow-origin"):
            admission.check_origin(given)


@pytest.mark.parametrize("origin", ["", "null", "http://", "http://x"])
def test_a_request_without_a_host_has_no_own_origin(origin: str) -> None:
    with pytest.raises(AccessDenied):
        AdmissionController(ServerConfig()).check_origin(connection(host="", origin=origin))


# Counts.


def test_connections_are_counted() -> None:
    admission = AdmissionController(ServerConfig(max_connections=2))
    with admission.connection(), admission.connection():
        assert admission.connections == 2
        with pytest.raises(LimitReached, match="2 connections"), admission.connection():
            pass
        assert admission.connections == 2
    assert admission.connections == 0
    assert admission.refusals == {"too_many_connections": 1}


def test_a_key_with_a_session_limit_has_a_connection_limit() -> None:
    admission, client = AdmissionController(ServerConfig()), ApiClient("a", 1)
    with ExitStack() as counted:
        for _ in range(10):
            counted.enter_context(admission.connection_of(client))
        with pytest.raises(LimitReached, match="10 connections"), admission.connection_of(client):
            pass
        for other in (ApiClient("b", 1), ANONYMOUS):
            with admission.connection_of(other):
                pass
    with admission.connection_of(client):
        pass
    assert admission.refusals == {"key_connections": 1}


def test_a_key_has_a_session_limit() -> None:
    admission = AdmissionController(ServerConfig())
    first, second = admission.admit(ApiClient("a", 2)), admission.admit(ApiClient("a", 2))
    with pytest.raises(LimitReached, match="2 sessions"):
        admission.admit(ApiClient("a", 2))
    other = admission.admit(ApiClient("b", 1))
    assert admission.sessions == 3
    first.release()
    first.release()
    assert admission.sessions == 2
    # The key file was read again with a higher limit.
    third = admission.admit(ApiClient("a", 3))
    for permit in (second, third, other):
        permit.release()
    assert admission.sessions == 0
    assert admission.refusals == {"key_limit": 1}


# Draining.


async def test_draining_notifies_all_sessions_and_waits() -> None:
    clock = Clock()
    admission = AdmissionController(ServerConfig(drain_seconds=30), clock=clock)
    notified: list[float] = []

    def fail(seconds: float) -> None:
        raise ZeroDivisionError

    permits = [
        admission.admit(ANONYMOUS, on_drain=fail),
        admission.admit(ANONYMOUS, on_drain=notified.append),
    ]
    assert (admission.draining, admission.seconds_left) == (False, 30)
    draining = asyncio.create_task(admission.drain())
    await asyncio.sleep(0)
    assert notified == [30]
    clock.now += 12
    assert (admission.draining, admission.seconds_left) == (True, 18)
    with pytest.raises(EngineDraining):
        admission.admit(ANONYMOUS)
    admission.start_draining()
    assert notified == [30]
    permits[0].release()
    await asyncio.sleep(0)
    assert not draining.done()
    permits[1].release()
    async with asyncio.timeout(10):
        await draining


async def test_the_deadline_ends_the_remaining_sessions() -> None:
    admission = AdmissionController(ServerConfig(drain_seconds=0))
    ended: list[str] = []
    one = admission.admit(ANONYMOUS)
    other = admission.admit(ANONYMOUS, on_deadline=lambda: (ended.append("other"), other.release()))

    def end() -> None:
        ended.append("one")
        one.release()

    one.on_deadline = end
    async with asyncio.timeout(10):
        await admission.drain()
    assert sorted(ended) == ["one", "other"]
    assert (admission.sessions, admission.seconds_left) == (0, 0)


async def test_draining_waits_for_connections_after_the_last_session() -> None:
    admission = AdmissionController(ServerConfig())
    with admission.connection():
        permit = admission.admit(ANONYMOUS)
        draining = asyncio.create_task(admission.drain())
        await asyncio.sleep(0)
        permit.release()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not draining.done()
    async with asyncio.timeout(1):
        await draining


# Invalid limits.


@pytest.mark.parametrize(
    "values",
    [
        {"max_connections": 0},
        {"max_connections": True},
        {"max_prompt_chars": -1},
        {"max_unsent_frames": 1.5},
        {"idle_seconds": 0},
        {"idle_seconds": float("inf")},
        {"hello_seconds": float("nan")},
        {"hello_seconds": "1"},
        {"drain_seconds": -1},
        {"resume_seconds": True},
        {"resume_seconds": 300.5},
        {"max_speed": 0.5},
        {"max_speed": True},
        {"max_speed": float("inf")},
        {"max_session_seconds": -0.1},
        {"allow_origins": ("example.com",)},
        {"allow_origins": ("https://example.com/",)},
        {"allow_origins": ("https://Example.com",)},
        {"allow_origins": ("https://a@example.com",)},
        {"allow_origins": ("https://*.example.com",)},
        {"allow_origins": ("https://example.com:99999",)},
    ],
)
def test_an_invalid_limit_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        ServerConfig(**values)  # type: ignore[arg-type]


def test_valid_limits() -> None:
    ServerConfig(
        max_prompt_chars=0,
        max_session_seconds=0,
        resume_seconds=0,
        drain_seconds=0,
        max_speed=0,
        allow_origins=("*", "https://example.com", "http://localhost:8080", "http://[::1]:1"),
    )
