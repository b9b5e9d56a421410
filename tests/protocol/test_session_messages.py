from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipecat_personaplex import errors
from pipecat_personaplex.config import SamplingParams
from pipecat_personaplex.errors import (
    BadMessage,
    ConfigError,
    EngineFull,
    PersonaPlexError,
    PromptTooLong,
    SessionFailed,
    SpeechTooLong,
    VoiceNotFound,
)
from pipecat_personaplex.protocol.session_messages import (
    AskStats,
    Draining,
    Error,
    Hello,
    Open,
    Opened,
    Resume,
    Update,
    error_message,
    parse_client,
    parse_server,
    rebuild_error,
)


def test_the_documented_open_message_parses() -> None:
    message = parse_client(
        '{"type": "open", "voice": "NATF2", "text_prompt": "You enjoy having a good conversation.",'
        ' "sampling": {"seed": 7, "temperature_audio": 0.8, "temperature_text": 0.7,'
        ' "top_k_audio": 250, "top_k_text": 25}, "audio": "pcm16"}'
    )
    assert message == Open(
        voice="NATF2",
        text_prompt="You enjoy having a good conversation.",
        sampling=SamplingParams(seed=7),
    )


def test_only_the_voice_is_required() -> None:
    message = parse_client('{"type": "open", "voice": "NATF2"}')
    assert message == Open(voice="NATF2", text_prompt="", sampling=SamplingParams(), audio="pcm16")


def test_names_left_out_of_an_update_take_their_defaults() -> None:
    message = parse_client('{"type": "update", "sampling": {"temperature_text": 0}}')
    assert message == Update(sampling=SamplingParams(temperature_text=0))


def test_stats_is_a_request_from_a_client_and_counters_from_a_server() -> None:
    assert parse_client('{"type": "stats"}') == AskStats()
    counters = {"frames": 812, "late_frames": 0, "dropped_frames": 0, "queued_frames": 1}
    parsed = parse_server(json.dumps({"type": "stats"} | counters))
    assert parsed.model_dump() == {"type": "stats"} | counters


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        '"open"',
        "{",
        "{}",
        '{"type": "opne"}',
        '{"type": ["open"]}',
        '{"type": "hello"}',
        '{"type": "open"}',
        '{"type": "open", "voice": 7}',
        '{"type": "open", "voice": null}',
        '{"type": "open", "voice": "NATF2", "audio": "mp3"}',
        '{"type": "open", "voice": "NATF2", "temprature": 1}',
        '{"type": "open", "voice": "NATF2", "sampling": {"temperature": 1}}',
        '{"type": "open", "voice": "NATF2", "sampling": {"seed": "7"}}',
        '{"type": "open", "voice": "NATF2", "sampling": {"seed": 7.5}}',
        '{"type": "open", "voice": "NATF2", "sampling": []}',
        '{"type": "resume", "session": "x"}',
        '{"type": "resume", "session": "x", "next_frame": -1}',
        '{"type": "resume", "session": "x", "next_frame": true}',
        '{"type": "say"}',
        '{"type": "close", "code": 1000}',
        "[" * 100_000,
        '{"type": ' * 5_000 + "1" + "}" * 5_000,
    ],
)
def test_invalid_messages_are_refused_with_one_line(text: str) -> None:
    with pytest.raises(BadMessage) as refused:
        parse_client(text)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "sampling",
    [
        '{"seed": -1}',
        '{"seed": 9223372036854775808}',
        '{"seed": 1' + "0" * 400 + "}",
        '{"temperature_audio": -0.1}',
        '{"temperature_audio": 1e999}',
        '{"temperature_text": NaN}',
        '{"top_k_text": 0}',
    ],
)
def test_invalid_sampling_is_refused(sampling: str) -> None:
    with pytest.raises((ConfigError, BadMessage)):
        parse_client(f'{{"type": "update", "sampling": {sampling}}}')


@given(st.text() | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_random_text_is_refused(text: str) -> None:
    with pytest.raises(BadMessage):
        parse_client(text)


@given(st.builds(Resume, session=st.text(), next_frame=st.integers(min_value=0)))
def test_messages_round_trip(message: Resume) -> None:
    assert parse_client(message.model_dump_json()) == message


def test_opened_carries_the_public_id_of_newer_servers() -> None:
    opened = Opened(session="secret", resume_seconds=10.0, id="3f9a1c07")
    assert parse_server(opened.model_dump_json()) == opened
    older = parse_server('{"type": "opened", "session": "secret", "resume_seconds": 10.0}')
    assert older == Opened(session="secret", resume_seconds=10.0, id="")


@pytest.mark.parametrize("public_id", ["a b", "a\nb", "a\n", "x" * 65, "<red>", "\N{CAT FACE}"])
def test_public_ids_that_would_garble_a_log_are_refused(public_id: str) -> None:
    message = {"type": "opened", "session": "s", "resume_seconds": 1.0, "id": public_id}
    with pytest.raises(BadMessage, match="id"):
        parse_server(json.dumps(message))


def test_hello_round_trips() -> None:
    hello = Hello(model="m", voices=["A"], sessions=1, max_sessions=8, draining=False)
    assert parse_server(hello.model_dump_json()) == hello


@pytest.mark.parametrize("count", [-1, 10**400], ids=["negative", "huge"])
def test_impossible_counts_are_refused(count: int) -> None:
    hello = dict(type="hello", model="m", voices=[], sessions=0, max_sessions=8, draining=False)
    for name in ("sessions", "max_sessions"):
        with pytest.raises(BadMessage, match=name):
            parse_server(json.dumps({**hello, name: count}))


@pytest.mark.parametrize(
    ("error", "code", "details"),
    [
        (EngineFull(8), "engine_full", {"max_sessions": 8}),
        (VoiceNotFound("X", ["B", "A"]), "voice_not_found", {"name": "X", "known": ["A", "B"]}),
        (PromptTooLong(3_000, 2_999), "prompt_too_long", {"frames": 3_000, "limit": 2_999}),
        (SpeechTooLong(1_600, 1_500), "speech_too_long", {"frames": 1_600, "limit": 1_500}),
        (BadMessage("no"), "bad_message", {}),
    ],
)
def test_errors_with_details_round_trip(
    error: PersonaPlexError, code: str, details: dict[str, object]
) -> None:
    message = error_message(error, fatal=True)
    assert (message.code, message.details, message.message) == (code, details, str(error))
    back = rebuild_error(Error.model_validate_json(message.model_dump_json()))
    assert type(back) is type(error)
    assert str(back) == str(error)


def test_every_error_code_rebuilds_its_class() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        if kind.__init__ in (PersonaPlexError.__init__, UserWarning.__init__):
            message = error_message(kind("why"), fatal=True)
            assert type(rebuild_error(message)) is kind


@pytest.mark.parametrize(
    "message",
    [
        Error(code="quantum_failure", message="of a later version", fatal=True),
        Error(code="engine_full", message="full", fatal=True, details={"rooms": 3}),
        Error(code="engine_full", message="full", fatal=True),
        Error(code="engine_full", message="full", fatal=True, details={"max_sessions": "8"}),
        Error(code="engine_full", message="full", fatal=True, details={"max_sessions": 10**9}),
        Error(code="voice_not_found", message="no", fatal=True, details={"name": "X", "known": 3}),
        Error(code="prompt_too_long", message="long", fatal=True, details={"frames": -1}),
    ],
)
def test_unknown_errors_become_session_failed(message: Error) -> None:
    back = rebuild_error(message)
    assert type(back) is SessionFailed
    assert str(back) == message.message


def test_a_client_ignores_unknown_fields_and_a_server_does_not() -> None:
    message = parse_server('{"type": "draining", "seconds": 3, "reason": "upgrade"}')
    assert message == Draining(seconds=3)
    with pytest.raises(BadMessage, match="reason"):
        parse_client('{"type": "close", "reason": "bored"}')


def test_no_text_of_a_message_is_kept() -> None:
    """A cache of strings would hold secrets of sessions that are over, and grow for hours."""
    text = '{"type": "resume", "session": "a-secret-of-a-session", "next_frame": 1}'
    one, other = parse_client(text), parse_client(text)
    assert isinstance(one, Resume) and isinstance(other, Resume)
    assert one.session is not other.session
