"""Clients that mean harm, or are broken: nobody else notices, and nothing is left of them."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from pipecat_personaplex import Engine
from pipecat_personaplex.protocol.chat import OggOpusWriter
from pipecat_personaplex.server import wire
from pipecat_personaplex.server.config import ServerConfig
from tests.helpers.servers import ServedFakeEngine
from tests.server.clients import SessionClient
from tests.server.live import LiveServer, open_files

CONFIG = ServerConfig(hello_seconds=2.0, idle_seconds=3.0, resume_seconds=0.2, max_unsent_frames=30)
REFUSED_SECONDS = 2.0
"""Far above what is measured, for a machine that does other things at the same time."""
MANY = settings(deadline=None, suppress_health_check=list(HealthCheck), database=None)
BURST = 1_000


@pytest.fixture(scope="module")
def victim() -> Iterator[LiveServer]:
    with LiveServer(ServedFakeEngine(max_sessions=64), CONFIG) as server:
        yield server


@pytest.fixture
def server(victim: LiveServer) -> Iterator[LiveServer]:
    """A server that is as it was, after the test: free slots, no file, no task, good service."""
    yield from unharmed(victim)


def unharmed(server: LiveServer) -> Iterator[LiveServer]:
    call(server)
    server.check_clean()
    before = open_files()
    yield server
    call(server)
    server.check_clean()
    server.wait_until(lambda: open_files() <= before)


def call(server: LiveServer) -> None:
    """A client that behaves."""
    with websocket(server, "/v1/session") as ws:
        json.loads(ws.recv(10))
        ws.send('{"type": "open", "voice": "NATF2"}')
        assert json.loads(ws.recv(10))["type"] == "opened"
        assert json.loads(ws.recv(10))["type"] == "ready"
        for sequence in range(3):
            ws.send(frame(sequence))
            assert ws.recv(10)[1:5] == sequence.to_bytes(4, "big")
        ws.send('{"type": "close"}')
        assert json.loads(ws.recv(10)) == {"type": "closed"}


def websocket(server: LiveServer, path: str) -> ClientConnection:
    return connect(
        server.ws_url + path, proxy=None, compression=None, max_size=None, close_timeout=1
    )


def frame(sequence: int, audio: bytes = bytes(3840)) -> bytes:
    return b"\x01" + sequence.to_bytes(4, "big") + audio


class Clock:
    """How long refusals take."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def report(self, what: str) -> None:
        worst, p99 = max(self.seconds), float(np.percentile(self.seconds, 99))
        print(
            f"\n{what}: {len(self.seconds)} refusals, p50 {np.median(self.seconds) * 1e3:.1f} ms, "
            f"p99 {p99 * 1e3:.1f} ms, worst {worst * 1e3:.1f} ms"
        )
        assert worst < REFUSED_SECONDS


def attack(
    server: LiveServer,
    path: str,
    messages: list[str | bytes],
    clock: Clock | None = None,
) -> int | None:
    """Connect, send these, and read until the server closes; its close code, None if it does not.

    With a clock, until it does.
    """
    started = time.monotonic()
    with websocket(server, path) as ws:
        try:
            if path.startswith("/v1"):
                ws.recv(10)
            for message in messages:
                ws.send(message)
            while True:
                answer = ws.recv(0.05 if clock is None else 10)
                check_answer(answer)
        except TimeoutError:
            return None
        except ConnectionClosed as closed:
            if clock is not None:
                clock.seconds.append(time.monotonic() - started)
            return closed.rcvd.code if closed.rcvd else 1006


def check_answer(answer: str | bytes) -> None:
    """Never a stack trace, never another caller's words."""
    text = answer if isinstance(answer, str) else answer[1:].decode(errors="replace")
    assert "Traceback" not in text
    assert 'File "' not in text


# Words where there should be messages.


NASTY = st.sampled_from(
    [
        "../../../../etc/passwd",
        "..\\..\\windows",
        "NATF2\0.pt",
        "\0",
        "%00",
        "${jndi:ldap://x}",
        "{{7*7}}",
        "' OR 1=1 --",
        "\ud7ff\uffff\U0010ffff",
        "\u202e\u200b",
        "A" * 2_000,
        "-1",
        "NaN",
        "",
    ]
)
NUMBERS = st.sampled_from(
    [-1, 0, 1, 2**31, 2**32, 2**53 + 1, 2**63, 10**300, -(10**300), 0.1, float("nan"), float("inf")]
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | NASTY | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NASTY, inner, max_size=3),
    max_leaves=8,
)
VALUES = NASTY | NUMBERS | JSON | st.text(max_size=50)
SAMPLING = st.dictionaries(
    st.sampled_from(["seed", "temperature_audio", "temperature_text", "top_k_audio", "top_k_text"]),
    VALUES,
    max_size=3,
)
CONTROL = st.one_of(
    st.builds(
        lambda voice, prompt, sampling, audio: {
            "type": "open",
            "voice": voice,
            "text_prompt": prompt,
            "sampling": sampling,
            "audio": audio,
        },
        VALUES | st.just("NATF2"),
        VALUES,
        SAMPLING | VALUES,
        st.sampled_from(["pcm16", "opus"]) | VALUES,
    ),
    st.builds(lambda s, n: {"type": "resume", "session": s, "next_frame": n}, VALUES, VALUES),
    st.builds(lambda text: {"type": "say", "text": text}, VALUES),
    st.builds(lambda sampling: {"type": "update", "sampling": sampling}, SAMPLING | VALUES),
    st.builds(lambda kind, more: {"type": kind, "more": more}, VALUES, VALUES),
    JSON,
).map(json.dumps)
FRAMES = st.builds(
    lambda sequence, audio: frame(sequence, audio),
    st.integers(0, 3) | st.sampled_from([2**31, 2**32 - 1]),
    st.binary(max_size=64) | st.just(bytes(3840)),
)
RUBBISH = st.text(max_size=200) | st.binary(max_size=200) | CONTROL | FRAMES
OPEN = '{"type": "open", "voice": "NATF2"}'


def test_first_messages(server: LiveServer) -> None:
    clock = Clock()

    @settings(MANY, max_examples=60)
    @given(st.text(max_size=300) | st.binary(max_size=300) | JSON.map(json.dumps))
    def case(message: str | bytes) -> None:
        assert attack(server, "/v1/session", [message], clock) in (1003, 1008)

    case()
    clock.report("first messages")


def test_messages_of_a_session(server: LiveServer) -> None:
    @settings(MANY, max_examples=60)
    @given(st.lists(RUBBISH, min_size=1, max_size=5), st.sampled_from(["pcm16", "opus"]))
    def case(messages: list[str | bytes], audio: str) -> None:
        opening = json.dumps({"type": "open", "voice": "NATF2", "audio": audio})
        assert attack(server, "/v1/session", [opening, *messages]) in (None, 1008)

    case()


def test_fields_with_the_engine_itself(engine: Engine) -> None:
    @settings(MANY, max_examples=40)
    @given(VALUES.filter(lambda v: isinstance(v, str)), st.lists(CONTROL, max_size=3))
    def case(prompt: str, messages: list[str]) -> None:
        opening = json.dumps({"type": "open", "voice": "NATF2", "text_prompt": prompt})
        assert attack(server, "/v1/session", [opening, *messages]) in (None, 1008)

    with LiveServer(engine, CONFIG) as server:
        checks = unharmed(server)
        next(checks)
        case()
        next(checks, None)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 60_000,
        '{"a":' * 10_000,
        '{"type": "open", "voice": ' + "[" * 20_000 + "]" * 20_000 + "}",
    ],
)
def test_deep_json(server: LiveServer, text: str) -> None:
    assert attack(server, "/v1/session", [text], Clock()) == 1008
    assert attack(server, "/v1/session", [OPEN, text], Clock()) == 1008


# Queries and Ogg.


def test_queries(server: LiveServer) -> None:
    names = st.sampled_from(
        ["voice_prompt", "text_prompt", "seed", "audio_temperature", "text_topk", "x", ""]
    )
    plain = st.dictionaries(names, (NASTY | NUMBERS | st.text(max_size=50)).map(str), max_size=4)
    query = plain.map(lambda q: urlencode(q, errors="replace")) | st.binary(max_size=60).map(quote)

    @settings(MANY, max_examples=60)
    @given(query)
    def case(text: str) -> None:
        with suppress(InvalidHandshake):  # longer than a request may be
            assert attack(server, "/api/chat?" + text, []) in (None, 1008)

    case()


def test_queries_with_the_engine_itself(engine: Engine) -> None:
    @settings(MANY, max_examples=20)
    @given(NASTY | st.text(max_size=100))
    def case(prompt: str) -> None:
        query = urlencode({"text_prompt": prompt}, errors="replace")
        with suppress(InvalidHandshake):
            assert attack(server, f"/api/chat?{query}", []) in (None, 1008)

    with LiveServer(engine, CONFIG) as server:
        checks = unharmed(server)
        next(checks)
        case()
        next(checks, None)


def speech() -> bytes:
    writer, noise = OggOpusWriter(), np.random.default_rng(0)
    sound = 0.1 * noise.standard_normal((5, 1920))
    return b"".join(writer.encode(part.astype(np.float32)) for part in sound)


def test_ogg(server: LiveServer) -> None:
    stream = speech()

    @settings(MANY, max_examples=60)
    @given(st.data())
    def case(data: st.DataObject) -> None:
        damaged = bytearray(stream[: data.draw(st.integers(0, len(stream)))])
        for _ in range(data.draw(st.integers(0, 8)) if damaged else 0):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        tail = data.draw(st.binary(max_size=100) | st.just(stream))
        cut = data.draw(st.integers(0, len(damaged)))
        parts = [bytes(damaged[:cut]), bytes(damaged[cut:]), tail]
        messages: list[str | bytes] = [b"\x01" + part for part in parts]
        assert attack(server, "/api/chat", messages) in (None, 1008)

    case()


def test_messages_of_a_chat(server: LiveServer) -> None:
    clock = Clock()

    @settings(MANY, max_examples=40)
    @given(
        st.text(max_size=100) | st.binary(max_size=200).filter(lambda b: b[:1] > b"\x06" or not b)
    )
    def case(message: str | bytes) -> None:
        expected = 1003 if isinstance(message, str) else 1008
        assert attack(server, "/api/chat", [message], clock) == expected

    case()
    clock.report("chat messages")


def test_five_seconds_out_of_nothing(server: LiveServer) -> None:
    # Ogg pages with one empty packet each: the decoder makes five seconds of every one.
    headers = speech()[: speech().index(b"OggS", 100)]
    page = b"OggS\0\0" + struct.pack("<qIII", 0, 42, 2, 0) + b"\x01\x00"
    message = b"\x01" + page * 2_000
    assert attack(server, "/api/chat", [b"\x01" + headers, message], Clock()) == 1008


# Size, and floods.


@pytest.mark.parametrize("path", ["/v1/session", "/api/chat"])
@pytest.mark.parametrize("message", ["x" * 10_000_000, bytes(10_000_000)], ids=["text", "binary"])
def test_ten_megabytes(server: LiveServer, path: str, message: str | bytes) -> None:
    with websocket(server, path) as ws:
        with suppress(ConnectionClosed, OSError):
            ws.send(message)
        with suppress(TimeoutError, ConnectionClosed):
            while True:
                ws.recv(5)
        # The server hangs up in the middle: its code may be lost with the rest.
        assert ws.close_code in (1009, 1006)


def test_a_flood_delays_nobody_else(server: LiveServer) -> None:
    """Small messages as fast as they go, from one client, while another talks."""
    with websocket(server, "/v1/session") as flood:
        flood.recv(10)
        flood.send(OPEN)
        sock = flood.socket
        flood_of_them = client_frame(b'{"type":"stats"}', text=True) * 4_000
        sock.setblocking(False)
        with suppress(OSError):  # the network is full, or the server has had enough
            while True:
                sock.send(flood_of_them)
        slowest = 0.0
        for _ in range(5):
            started = time.monotonic()
            call(server)
            slowest = max(slowest, time.monotonic() - started)
        print(f"\na call beside a flood: {slowest * 1e3:.0f} ms at most")
        assert slowest < 5
        with suppress(OSError):  # it is closed by now
            sock.setblocking(True)
        sock.close()


def client_frame(payload: bytes, *, text: bool = False) -> bytes:
    """A WebSocket frame by hand, masked with zeros."""
    size = struct.pack(">H", len(payload))
    return bytes([0x81 if text else 0x82, 0x80 | 126]) + size + bytes(4) + payload


# Connections that stop half way.


def raw(server: LiveServer, data: bytes = b"", *, window: int = 0) -> socket.socket:
    """A connection; an upgrade is waited for before more is sent, as the server wants it."""
    sock = socket.socket()
    if window:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    sock.settimeout(20)
    sock.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
    request, end, rest = data.partition(b"\r\n\r\n")
    sock.sendall(request + end)
    if rest:
        assert sock.recv(12) == b"HTTP/1.1 101"
        sock.sendall(rest)
    return sock


def upgrade(path: str) -> bytes:
    return (
        f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()


def test_half_open_connections(server: LiveServer) -> None:
    before = open_files()
    chat, session = upgrade("/api/chat"), upgrade("/v1/session")
    opening = client_frame(OPEN.encode(), text=True)
    beginnings = [b"", b"G", session[:40], session, session + opening[:3], session + opening]
    beginnings += [chat, chat + opening[:3], chat + client_frame(b"\x01OggS")]
    socks = [raw(server, beginning) for beginning in beginnings for _ in range(5)]
    call(server)
    # They never read, never answer a ping or a close, and stay: the server lets go of all.
    server.check_clean()
    server.wait_until(lambda: open_files() <= before + len(socks))
    for sock in socks:
        sock.close()


def test_requests_that_are_none(server: LiveServer) -> None:
    request = upgrade("/v1/session")

    @settings(MANY, max_examples=40)
    @given(st.data())
    def case(data: st.DataObject) -> None:
        spoilt = bytearray(request)
        for _ in range(data.draw(st.integers(0, 5))):
            spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
        rest = data.draw(st.binary(max_size=200))
        with raw(server) as sock, suppress(OSError):
            sock.sendall(bytes(spoilt) + rest)
            sock.settimeout(0.02)
            sock.recv(4_096)

    case()


def test_slow_readers(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_SEND_SECONDS", 1.0)
    before = open_files()
    opening = upgrade("/v1/session") + client_frame(OPEN.encode(), text=True)
    socks = [raw(server, opening, window=4_096) for _ in range(10)]
    server.wait_until(lambda: server.sessions == 10)
    for sequence in range(5_000):
        # Faster than the network holds, as fast as the engine answers.
        for sock in socks:
            with suppress(OSError):
                sock.sendall(client_frame(frame(sequence)))
        if not server.sessions:
            break
    assert server.sessions == 0
    call(server)
    server.check_clean()
    server.wait_until(lambda: open_files() <= before + len(socks))
    for sock in socks:
        sock.close()


# All at once.


async def arrive(server: LiveServer, path: str) -> tuple[float, bytes]:
    """Connect; how long until the server's first word, and what it was."""
    port = int(server.url.rpartition(":")[2])
    started = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(upgrade(path))
        answer = await reader.readuntil(b"\r\n\r\n")
        return time.monotonic() - started, answer[:12]
    finally:
        writer.transport.abort()


def many_files() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * BURST if hard == resource.RLIM_INFINITY else min(4 * BURST, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@pytest.mark.parametrize("max_connections", [2 * BURST, 50])
async def test_a_thousand_connects_in_a_burst(max_connections: int) -> None:
    many_files()
    config = ServerConfig(max_connections=max_connections, resume_seconds=0.2)
    with LiveServer(ServedFakeEngine(max_sessions=4), config) as server:
        before = open_files()
        async with SessionClient.opened(server.ws_url) as caller:
            burst = asyncio.gather(*(arrive(server, "/v1/session") for _ in range(BURST)))
            waits = []
            while not burst.done():
                started = time.monotonic()
                await caller.push()
                await caller.frame()
                waits.append(time.monotonic() - started)
                await asyncio.sleep(0.05)
            arrivals = await burst
            await caller.say("close")
            await caller.ended()
        seconds = [wait for wait, _ in arrivals]
        words = {word: sum(got == word for _, got in arrivals) for _, word in arrivals}
        print(
            f"\n{BURST} connects, room for {max_connections}: {words}, first word after p50 "
            f"{np.median(seconds):.2f} s, p99 {np.percentile(seconds, 99):.2f} s; "
            f"a caller's frame took {max(waits) * 1e3:.0f} ms at most"
        )
        assert set(words) <= {b"HTTP/1.1 101", b"HTTP/1.1 503"}
        assert (b"HTTP/1.1 503" in words) == (max_connections < BURST)
        server.check_clean()
        server.wait_until(lambda: open_files() <= before)


def test_refusals_are_quick(server: LiveServer) -> None:
    """One after another, as a client that has no luck would."""
    tries: dict[str, Callable[[], Any]] = {
        "bad JSON": lambda: attack(server, "/v1/session", ["{"], clock),
        "unknown voice": lambda: attack(
            server, "/v1/session", ['{"type": "open", "voice": "X"}'], clock
        ),
        "unknown session": lambda: attack(
            server, "/v1/session", ['{"type": "resume", "session": "x", "next_frame": 0}'], clock
        ),
        "no such voice for a chat": lambda: attack(server, "/api/chat?voice_prompt=X", [], clock),
    }
    for what, attempt in tries.items():
        clock = Clock()
        for _ in range(30):
            attempt()
        clock.report(what)
