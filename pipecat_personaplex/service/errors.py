"""Errors in the terms that Pipecat uses."""

from __future__ import annotations

from pipecat.utils.errors import ErrorCategory

from pipecat_personaplex.errors import EngineFull, PersonaPlexError, SessionFailed, UserError


def as_personaplex_error(error: Exception) -> PersonaPlexError:
    """Return the error itself if it is a ``PersonaPlexError``, else one that describes it."""
    if isinstance(error, PersonaPlexError):
        return error
    failure = SessionFailed(f"the call failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def category_of(error: Exception) -> ErrorCategory | None:
    """Pipecat's category of a ``PersonaPlexError``; None for any other error."""
    if isinstance(error, EngineFull):
        return ErrorCategory.RATE_LIMIT
    if isinstance(error, UserError):
        return ErrorCategory.INVALID_REQUEST
    return ErrorCategory.SERVER if isinstance(error, PersonaPlexError) else None
