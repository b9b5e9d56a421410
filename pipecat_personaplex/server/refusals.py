"""Log lines about refused connections, sessions and messages."""

from __future__ import annotations

import asyncio
from collections import Counter

from loguru import logger

from pipecat_personaplex.errors import PersonaPlexError
from pipecat_personaplex.protocol.session_messages import error_message

_WINDOW_SECONDS = 1.0
_LINES_PER_WINDOW = 3
"""Lines for each error code in a window; further refusals are counted in one line at its end."""
_MAX_REASON_CHARS = 200


def describe_error(error: PersonaPlexError) -> str:
    """Return an error's protocol code and text as one short line for the log.

    The text may quote the client: it is cut, and characters that do not print are replaced, so
    that a client cannot write log lines of its own.
    """
    text = "".join(c if c.isprintable() else " " for c in str(error)[:_MAX_REASON_CHARS])
    return f"{error_message(error, fatal=True).code}: {text}"


class RefusalLog:
    """Logs each refusal with its client and reason, a few lines a second for each error code.

    ``record`` must be called on the event loop.

    Example::

        refusals = RefusalLog()
        try:
            client = admission.identify(websocket)
        except AccessDenied as error:
            refusals.record(error, client=address_of(websocket))
    """

    def __init__(self) -> None:
        # Refusals in the current window of each error code; a code without refusals has none.
        self._windows: Counter[str] = Counter()

    def record(self, error: PersonaPlexError, *, client: str, session: str = "") -> None:
        """Log a refusal.

        Args:
            error: Why the server refused.
            client: Name of the client's key, or its address.
            session: Public id of the session that goes on, if the refusal is about a message.
        """
        code = error_message(error, fatal=True).code
        if code not in self._windows:
            loop = asyncio.get_running_loop()
            loop.call_later(_WINDOW_SECONDS, self._close_window, code)
        self._windows[code] += 1
        if self._windows[code] <= _LINES_PER_WINDOW:
            log = logger.bind(session=session, client=client)
            log.warning("refused {}: {}", client, describe_error(error))

    def _close_window(self, code: str) -> None:
        left_out = self._windows.pop(code) - _LINES_PER_WINDOW
        if left_out > 0:
            logger.warning("refused {} more with {}, not logged one by one", left_out, code)
