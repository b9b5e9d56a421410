"""How Pipecat is told that something went wrong."""

from __future__ import annotations

from pipecat.utils.errors import ErrorCategory

from pipecat_personaplex.errors import EngineFull, PersonaPlexError, SessionFailed, UserError


def as_personaplex_error(error: Exception) -> PersonaPlexError:
    """The error itself if it is one of ours, else one that says what happened."""
    if isinstance(error, PersonaPlexError):
        return error
    failure = SessionFailed(f"the call failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def category_of(error: Exception) -> ErrorCategory | None:
    """Whose fault it is; None where the error is not ours."""
    if isinstance(error, EngineFull):
        return ErrorCategory.RATE_LIMIT
    if isinstance(error, UserError):
        return ErrorCategory.INVALID_REQUEST
    return ErrorCategory.SERVER if isinstance(error, PersonaPlexError) else None
