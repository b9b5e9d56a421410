"""Output files: checked before any work starts, and written completely or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipecat_personaplex.errors import UserError


def check_outputs(outputs: Mapping[str, Path], inputs: Sequence[Path]) -> None:
    """Check that all output files can be written, before anything is computed.

    Args:
        outputs: Path by name of the option that gives it.
        inputs: Files that must not be overwritten.

    Raises:
        UserError: An output is an input or another output, or cannot be written.
    """
    taken = {os.path.realpath(path): f"the input {path}" for path in inputs}
    for option, path in outputs.items():
        real = os.path.realpath(path)
        folder = os.path.dirname(real)
        if real in taken:
            raise UserError(f"{option} {path} would overwrite {taken[real]}; choose another name")
        if not os.path.isdir(folder):
            raise UserError(f"{option} {path}: there is no folder {folder}; create it first")
        if os.path.exists(real) and not os.path.isfile(real):
            raise UserError(f"{option} {path} is not a regular file; choose another name")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(
                f"{option} {path}: no permission to write to the folder {folder}; choose another"
            )
        try:
            os.stat(real)  # unlike os.path.exists, it reports a name that is too long
        except FileNotFoundError:
            pass
        except OSError as error:
            raise UserError(f"{option} {path}: {error.strerror}; choose another name") from None
        taken[real] = option


@contextmanager
def whole_files(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield temporary files that replace ``paths`` if the block succeeds; else delete them."""
    # Resolve links: the target of a link is replaced, not the link. Keep the suffix, which may
    # choose the format, but not the whole name: a longer one might be too long.
    targets = [Path(os.path.realpath(path)) for path in paths]
    temporary = [path.with_name(f".{secrets.token_hex(4)}.{path.name[-40:]}") for path in targets]
    try:
        yield temporary
        for written, target in zip(temporary, targets, strict=True):
            written.replace(target)
    except OSError as error:
        # A full disk names the temporary file, or none: then the folder says which disk it is.
        names = dict(zip(map(str, temporary), map(str, targets), strict=True))
        fallback = error.filename or (str(targets[0].parent) if targets else None)
        error.filename = names.get(error.filename, fallback)
        raise
    finally:
        for written in temporary:
            written.unlink(missing_ok=True)
