"""``personaplex offline --script``: the file, its errors, and when each action happens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipecat_personaplex.cli import main
from pipecat_personaplex.cli.call_script import CallScript
from pipecat_personaplex.config import Persona
from pipecat_personaplex.errors import ConfigError, PersonaPlexError, SessionFailed, UserError
from pipecat_personaplex.interface import Speech
from tests.helpers.commands import offline, one_line, tokens

PERSONA = Persona("NATF2", "You are a waiter.")


class FakeSession:
    """Notes what is called; a prompt is in effect at once, or fails."""

    def __init__(self, error: PersonaPlexError | None = None) -> None:
        self.calls: list[object] = []
        self._error = error

    def say(self, text: str, *, when: str) -> Speech:
        self.calls.append(("say", text, when))
        if text == "wrong":
            raise ConfigError("the text to say is wrong")
        return Speech(text, 2, spoken=1, state="cut")

    def hush(self) -> list[Speech]:
        self.calls.append("hush")
        return [Speech("one two", 2)]

    def hold(self, seconds: float) -> None:
        self.calls.append(("hold", seconds))

    def release(self) -> None:
        self.calls.append("release")

    def update_prompt(
        self, persona: Persona, *, on_done: Callable[[PersonaPlexError | None], object]
    ) -> None:
        self.calls.append(persona)
        on_done(self._error)


def script(folder: Path, text: str) -> CallScript:
    path = folder / "script.txt"
    path.write_text(text, encoding="utf-8")
    return CallScript(path)


def run(script: CallScript, session: FakeSession) -> dict[int, list[object]]:
    """Run all actions; returns the calls of each frame."""
    calls = {}
    for frame, action in script.actions(PERSONA).items():
        session.calls = []
        action(session)  # type: ignore[arg-type]
        calls[frame] = session.calls
    return calls


def test_every_action_runs_at_its_frame_in_order(tmp_path: Path) -> None:
    lines = """
    # a comment
    2.0 say "One moment, I'm here."
    0.24 hold 1.5
    0.25 release
    2.0 hush
    3   say 'Now.' now
    4 prompt "You bake." voice=NATM1
    5 prompt "You sell."
    """
    parsed = script(tmp_path, lines)
    assert run(parsed, FakeSession()) == {
        3: [("hold", 1.5)],
        4: ["release"],
        25: [("say", "One moment, I'm here.", "pause"), "hush"],
        38: [("say", "Now.", "now")],
        50: [Persona("NATM1", "You bake.")],
        63: [Persona("NATM1", "You sell.")],
    }
    assert parsed.results()[2:4] == [
        {
            "time": 2.0,
            "frame": 25,
            "action": "say",
            "text": "One moment, I'm here.",
            "when": "pause",
            "state": "cut",
            "words": 2,
            "spoken": 1,
        },
        {"time": 2.0, "frame": 25, "action": "hush", "cut": ["one two"]},
    ]
    assert parsed.results()[-1]["voice"] == "NATM1"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("say hello", "a line starts with a time in seconds, 0 or later, not 'say'"),
        ("-1 hush", "0 or later, not '-1'"),
        ("nan hush", "0 or later, not 'nan'"),
        ("1e999 hush", "0 or later, not '1e999'"),
        ("1", "the action must be one of say, hush, hold, release, prompt, not ''"),
        ("1 shout hello", "not 'shout'"),
        ('1 say "hello', "a quotation mark is not closed"),
        ("1 say don't", "a quotation mark is not closed"),
        ("1 say good morning", 'write the action as: say "TEXT"'),
        ('1 say " "', 'write the action as: say "TEXT"'),
        ("1 hush now", "write the action as: hush"),
        ("1 hold", "write the action as: hold SECONDS"),
        ("1 hold long", "write the action as: hold SECONDS"),
        ("1 hold 31", "a hold takes from 0 to 30 seconds, not 31"),
        ("1 hold nan", "a hold takes from 0 to 30 seconds, not nan"),
        ("1 prompt", 'write the action as: prompt "TEXT"'),
        ('1 prompt "a" NATF2', 'write the action as: prompt "TEXT"'),
    ],
)
def test_an_invalid_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        script(tmp_path, f"# a comment\n\n{line}\n")
    assert str(caught.value).startswith(f"--script {tmp_path / 'script.txt'}, line 3: ")
    assert message in str(caught.value)


def test_what_the_session_refuses_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"script.txt, line 2: the text to say is wrong"):
        run(script(tmp_path, "1 hush\n2 say wrong"), FakeSession())
    with pytest.raises(UserError, match=r"script.txt, line 1: the prompt is too long"):
        run(script(tmp_path, '1 prompt ""'), FakeSession(UserError("the prompt is too long")))
    with pytest.raises(SessionFailed, match="over"):
        run(script(tmp_path, '1 prompt ""'), FakeSession(SessionFailed("over")))


@pytest.mark.parametrize("content", [None, b"\xff\xfe1 hush"])
def test_an_unreadable_file_is_one_line(
    callers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    path = tmp_path / "script.txt"
    if content is not None:
        path.write_bytes(content)
    arguments = offline(callers / "short.wav", tmp_path, "--script", path)
    assert main(arguments) == 2
    error = one_line(capsys.readouterr().err)
    assert "--script" in error and "cannot be read" in error


def test_an_action_after_the_recording_is_refused_before_the_model_is_loaded(
    callers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "script.txt").write_text("0.4 hush\n1 hush\n")
    arguments = offline(callers / "short.wav", tmp_path, "--script", tmp_path / "script.txt")
    assert main(arguments) == 2
    error = one_line(capsys.readouterr().err)
    assert "line 2: 1 s is after the end of the recording (0.48 s)" in error


def test_a_script_gives_the_same_conversation_in_every_run(callers: Path, tmp_path: Path) -> None:
    path = tmp_path / "script.txt"
    path.write_text(
        '0.5 say "a b" now\n1 hold 0.8\n1.2 say "the end" now\n3.9 say "not any more"\n'
    )
    arguments = offline(callers / "friend.wav", tmp_path, "--script", path, greedy=False)
    runs = []
    for _ in range(2):
        assert main(arguments) == 0
        runs.append((tokens(tmp_path)["text_tokens"].tolist(), (tmp_path / "out.json").read_text()))
    assert runs[0] == runs[1]
    written = json.loads(runs[0][1])
    results = written["script"]
    assert [each["frame"] for each in results] == [7, 13, 15, 49]
    assert [each.get("state") for each in results] == ["said", None, "said", "cut"]
    assert "a b" in "".join(written["pieces"][:15])
    assert "the end" in "".join(written["pieces"][15:])
