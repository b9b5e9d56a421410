"""Hostile and broken messages: other clients are not affected, and nothing is left over."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from pipecat_personaplex import Engine
from pipecat_personaplex.protocol.moshi import OggOpusWriter
from tests.server.live import IMPATIENT, MANY, OPEN, LiveServer, frame, unharmed, websocket

pytestmark = pytest.mark.realtime

REFUSED_SECONDS = 2.0
"""Far above the measured times, because the machine may be busy."""


@pytest.fixture
def server(victim: LiveServer) -> Iterator[LiveServer]:
    yield from unharmed(victim)


class Clock:
    """Measures how long refusals take."""

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
    """Connect, send messages and read; return the server's close code.

    Without a clock, reading stops after 50 ms of silence, and None is returned.
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
    """A response must not contain a traceback."""
    text = answer if isinstance(answer, str) else answer[1:].decode(errors="replace")
    assert "Traceback" not in text


# Control messages.


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
    st.builds(
        lambda text, id, when: {"type": "say", "text": text, "id": id, "when": when},
        *(st.just("Hi") | VALUES, st.integers(0, 3) | VALUES, st.just("now") | VALUES),
    ),
    st.builds(lambda id: {"type": "hush", "id": id}, st.integers(0, 3) | VALUES),
    st.builds(lambda seconds: {"type": "hold", "seconds": seconds}, VALUES),
    st.sampled_from([{"type": "hush"}, {"type": "release"}]),
    st.builds(
        lambda voice, prompt, history: {
            "type": "prompt",
            "voice": voice,
            "text_prompt": prompt,
            "history": history,
        },
        VALUES | st.just("NATM1"),
        VALUES,
        VALUES | st.none(),
    ),
    st.builds(
        lambda frames, audio: {
            "type": "open",
            "voice": "NATF2",
            "history": frames,
            "history_audio": audio,
        },
        st.integers(1, 2) | VALUES,
        st.integers(0, 1) | VALUES,
    ),
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

    with LiveServer(engine, IMPATIENT) as server:
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

    with LiveServer(engine, IMPATIENT) as server:
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


def test_tiny_pages_that_decode_to_long_audio(server: LiveServer) -> None:
    # Ogg pages with one empty packet each: the decoder makes five seconds of every one.
    headers = speech()[: speech().index(b"OggS", 100)]
    page = b"OggS\0\0" + struct.pack("<qIII", 0, 42, 2, 0) + b"\x01\x00"
    for count in (1, 2_000):  # in a message
        message = b"\x01" + page * count
        assert attack(server, "/api/chat", [b"\x01" + headers, message], Clock()) == 1008


# How long a refusal takes.


def test_refusals_are_quick(server: LiveServer) -> None:
    """One connection after another."""
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
