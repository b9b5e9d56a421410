"""Calls that ``personaplex offline`` saves and continues: options, reading, writing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipecat_personaplex.errors import UserError

if TYPE_CHECKING:
    from pipecat_personaplex.protocol.call_file import SavedCall
    from pipecat_personaplex.session import Session

SaveCall = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.call",
        help="Also write the call as it is at its end: the persona, the tokens of the newest "
        "frames, and the newest 2.6 s of the recording. [bold]--continue[/bold] goes on from it.",
        rich_help_panel="Conversation",
    ),
]
ContinueCall = Annotated[
    Path | None,
    typer.Option(
        "--continue",
        metavar="FILE.call",
        help="Go on from a call that [bold]--save-call[/bold] has written with the same model. The "
        "agent remembers that call. Without --voice and --text-prompt it keeps its persona; if its "
        "voice was a file, give that again with --voice. The outputs contain the new part only.",
        rich_help_panel="Conversation",
    ),
]


def read_saved_call(path: Path) -> SavedCall:
    """Read the file of ``--continue``.

    Raises:
        UserError: It cannot be read, or is not a saved call.
    """
    from pipecat_personaplex.protocol.call_file import read_call  # imports NumPy; --help must not

    try:
        return read_call(path)
    except UserError as error:
        raise UserError(f"--continue {error}") from None


class CallEnd:
    """The state of a call at its end, for the file of ``--save-call``.

    Args:
        model: Name or folder of the model.

    Example::

        end = CallEnd("nano")
        engine.converse(persona, pcm, actions={frames: end.note})
        end.write(Path("anna.call"))
    """

    def __init__(self, model: str):
        self._model = model
        self._call: SavedCall | None = None

    def note(self, session: Session) -> None:
        """Copy the state of the session; an action of ``Engine.converse``, after the last frame."""
        from pipecat_personaplex.protocol.call_file import SavedCall

        self._call = SavedCall(self._model, session.persona, session.history())

    def write(self, path: Path) -> None:
        """Write the noted call.

        Raises:
            UserError: The text prompt is too long for the file.
        """
        from pipecat_personaplex.protocol.call_file import write_call

        assert self._call is not None, "the call has ended"
        write_call(path, self._call)
