"""What the next request tells the backend about its earlier messages."""

from __future__ import annotations

from collections.abc import Sequence


class Untold:
    """Collects what the backend has to know: its model takes what it wrote for told."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def take(self) -> str:
        """All that was collected since the last time, a line each; empty for nothing."""
        lines, self._lines = self._lines, []
        return "\n".join(f"({line})" for line in lines)

    def stale(self, text: str) -> None:
        """The caller spoke again before this text arrived."""
        self._lines.append(f'Not told to the user, who has spoken since: "{text}"')

    def torn(self, text: str) -> None:
        """The model failed within this text."""
        self._lines.append(f'Not told to the user, for it broke off: "{text}"')

    def too_long(self, rest: str) -> None:
        """The end of a text was too much to speak."""
        self._lines.append(f'Not told to the user, for it was too long: "{rest}"')

    def cut(self, text: str, heard: Sequence[str] = ()) -> None:
        """A text was not spoken, or only these words of it."""
        self._lines.append(
            f'The user interrupted "{text}" after: "{" ".join(heard)}"'
            if heard
            else f'Not told to the user: "{text}"'
        )

    def silent(self) -> None:
        """No message and no tool call followed the last request."""
        self._lines.append(
            "Neither a message nor a valid tool call of yours has arrived. Act on the last request "
            "again, or write only: nothing"
        )
