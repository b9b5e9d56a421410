"""A script of ``personaplex offline``: what the session does at which time of the recording."""

from __future__ import annotations

import math
import queue
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from pipecat_personaplex.config import Persona
from pipecat_personaplex.constants import FRAME_SECONDS
from pipecat_personaplex.errors import PersonaPlexError, UserError

if TYPE_CHECKING:
    from pipecat_personaplex.interface import SessionLike, Speech

SCRIPT_HELP = """A file of what happens when, one line each: the time in seconds, the action, and \
its text in quotes. Empty lines and lines that start with # are ignored. The actions are \
[bold]say "TEXT"[/bold] (with [bold]now[/bold] behind it: without waiting for a pause), \
[bold]hush[/bold] (drop the words that have not begun), [bold]hold SECONDS[/bold] (keep the agent \
silent), [bold]release[/bold] (end the hold), and [bold]prompt "TEXT"[/bold] (a new text prompt; \
with [bold]voice=NAME[/bold] behind it also a new voice). Each action takes effect at the first \
frame that starts at or after its time, in every run. --output-text shows what was said."""

_Action = Literal["say", "hush", "hold", "release", "prompt"]
_USAGE: dict[_Action, str] = {
    "say": 'say "TEXT", or say "TEXT" now',
    "hush": "hush",
    "hold": "hold SECONDS",
    "release": "release",
    "prompt": 'prompt "TEXT", or prompt "TEXT" voice=NAME',
}


@dataclass
class ScriptLine:
    """One action of a script.

    Attributes:
        number: Line in the file, from 1.
        time: When, in seconds from the start of the recording.
        action: What to do.
        options: Its arguments, as written to the JSON file.
        speech: The handle of ``say``, once it was called.
        cut: The texts that ``hush`` has cut.
    """

    number: int
    time: float
    action: _Action
    options: dict[str, Any]
    speech: Speech | None = None
    cut: list[str] = field(default_factory=list)

    @property
    def frame(self) -> int:
        """The first frame that starts at or after the time."""
        # Rounded first: 0.24 / 0.08 is 2.9999999999999996.
        return math.ceil(round(self.time / FRAME_SECONDS, 6))

    def result(self) -> dict[str, Any]:
        """The action and what came of it, for the JSON file."""
        result = {"time": self.time, "frame": self.frame, "action": self.action} | self.options
        if self.speech is not None:
            speech = self.speech
            result |= {"state": speech.state, "words": speech.words, "spoken": speech.spoken}
        if self.action == "hush":
            result["cut"] = self.cut
        return result


class CallScript:
    """The actions of a file, in the order of their times.

    Args:
        path: The file.

    Raises:
        UserError: The file cannot be read, or a line is invalid.

    Example::

        script = CallScript(Path("script.txt"))
        conversation = engine.converse(persona, pcm, actions=script.actions(persona))
        print(script.results())
    """

    def __init__(self, path: Path):
        self._path = path
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise UserError(f"--script {path}: the file cannot be read: {reason}") from None
        self._lines = sorted(
            (
                self._parse(number, line)
                for number, line in enumerate(text.splitlines(), start=1)
                if line.strip() and not line.lstrip().startswith("#")
            ),
            key=lambda line: line.time,
        )

    def check_times(self, frames: int) -> None:
        """Raise UserError if an action comes after the last of ``frames`` frames."""
        for line in self._lines:
            if line.frame >= frames:
                end = frames * FRAME_SECONDS
                raise self._error(
                    line.number, f"{line.time:g} s is after the end of the recording ({end:.2f} s)"
                )

    def actions(self, persona: Persona) -> dict[int, Callable[[SessionLike], None]]:
        """The actions by frame, for ``Engine.converse``.

        Args:
            persona: The persona at the start; its voice is that of prompts without one.
        """
        by_frame: dict[int, list[ScriptLine]] = {}
        for line in self._lines:
            by_frame.setdefault(line.frame, []).append(line)
            if line.action == "prompt":
                persona = Persona(line.options.get("voice", persona.voice), line.options["text"])
                line.options = {"text": persona.text_prompt, "voice": persona.voice}
        return {frame: partial(self._run, lines) for frame, lines in by_frame.items()}

    def results(self) -> list[dict[str, Any]]:
        """Every action with what came of it, for the JSON file."""
        return [line.result() for line in self._lines]

    # Running.

    def _run(self, lines: list[ScriptLine], session: SessionLike) -> None:
        for line in lines:
            try:
                _act(line, session)
            except UserError as error:
                raise self._error(line.number, str(error)) from error

    # Parsing.

    def _error(self, number: int, message: str) -> UserError:
        return UserError(f"--script {self._path}, line {number}: {message}")

    def _parse(self, number: int, line: str) -> ScriptLine:
        try:
            words = shlex.split(line)
        except ValueError:
            raise self._error(number, "a quotation mark is not closed") from None
        try:
            time = float(words[0])
        except ValueError:
            time = math.nan
        if not 0 <= time < math.inf:
            message = f"a line starts with a time in seconds, 0 or later, not {words[0]!r}"
            raise self._error(number, message)
        action = words[1] if len(words) > 1 else ""
        if action not in get_args(_Action):
            known = ", ".join(get_args(_Action))
            raise self._error(number, f"the action must be one of {known}, not {action!r}")
        action = cast(_Action, action)
        options = _options(action, words[2:])
        if options is None:
            raise self._error(number, f"write the action as: {_USAGE[action]}")
        from pipecat_personaplex.interface import MAX_HOLD_SECONDS  # imports NumPy; --help must not

        if action == "hold" and not 0 <= options["seconds"] <= MAX_HOLD_SECONDS:
            message = f"a hold takes from 0 to {MAX_HOLD_SECONDS:g} seconds, not {words[2]}"
            raise self._error(number, message)
        return ScriptLine(number, time, action, options)


def _options(action: _Action, words: list[str]) -> dict[str, Any] | None:
    """The arguments of an action by name; None if there are too few, too many or other ones."""
    match action, words:
        case (("hush" | "release"), []):
            return {}
        case "hold", [seconds]:
            try:
                return {"seconds": float(seconds)}
            except ValueError:
                return None
        case "say", [text] if text.strip():
            return {"text": text, "when": "pause"}
        case "say", [text, "now"] if text.strip():
            return {"text": text, "when": "now"}
        case "prompt", [text]:
            return {"text": text}
        case "prompt", [text, voice] if voice.startswith("voice=") and voice != "voice=":
            return {"text": text, "voice": voice.removeprefix("voice=")}
    return None


def _act(line: ScriptLine, session: SessionLike) -> None:
    options = line.options
    match line.action:
        case "say":
            line.speech = session.say(options["text"], when=options["when"])
        case "hush":
            line.cut = [speech.text for speech in session.hush()]
        case "hold":
            session.hold(options["seconds"])
        case "release":
            session.release()
        case "prompt":
            # Wait until the prompt is in effect: then it is at the same frame in every run.
            done: queue.SimpleQueue[PersonaPlexError | None] = queue.SimpleQueue()
            session.update_prompt(Persona(options["voice"], options["text"]), on_done=done.put)
            error = done.get()
            if error is not None:
                raise error
