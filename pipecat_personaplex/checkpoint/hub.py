"""From what a user calls a model, a folder or a Hub repository, to a folder with its files."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from loguru import logger

from pipecat_personaplex.checkpoint.layout import MODEL_FILE, RELEASE_FILES
from pipecat_personaplex.config import AUTO_MODEL
from pipecat_personaplex.errors import DownloadError

NANO = "nano"
"""What the small model in this package is called; ``./nano`` is a folder."""
_NANO_FOLDER = Path(__file__).parents[1] / "nano"

# owner/name; neither part may start with a dot, and the Hub's own rules forbid ".." and "--".
_REPO_ID = re.compile(r"(?!.*(\.\.|--))[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def resolve(model: str, *, progress: bool, files: Sequence[str] = RELEASE_FILES) -> Path:
    """Find a checkpoint's folder, downloading it first where it is on the Hub.

    What the Hub's cache holds is not fetched again, and serves without a network.

    Args:
        model: An existing folder, a Hub repo id such as ``nvidia/personaplex-7b-v1``, or
            ``nano``, the small model in this package.
        progress: Whether to draw progress bars on stderr.
        files: The files that are needed; of a repository, no others are downloaded.

    Raises:
        DownloadError: There is no such folder, and the repository cannot be fetched.
    """
    if model == NANO:
        return _NANO_FOLDER
    if os.path.isdir(model):
        return Path(model)
    if not _REPO_ID.fullmatch(model):
        raise DownloadError(
            f"{model!r} is neither an existing folder nor a Hugging Face repo id like "
            "'nvidia/personaplex-7b-v1', nor nano"
        )
    logger.info("looking for {} in the Hub's cache and on the Hub", model)
    try:
        with _progress_bars(progress):
            return Path(snapshot_download(model, allow_patterns=list(files)))
    except Exception as error:
        # Its HTTP library, and so what a broken transfer raises, differs between the versions of
        # huggingface_hub. The text of the original may hold signed addresses: it is not shown.
        raise DownloadError(explain(model, error)) from None


@contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def explain(repo: str, error: BaseException) -> str:
    """One line: what went wrong, and what to do."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    status = _status(chain)
    if any(isinstance(link, GatedRepoError) for link in chain) or status == 403:
        return (
            f"{repo} is gated: accept its licence at https://huggingface.co/{repo}, then set "
            "HF_TOKEN to a token of that account or run `hf auth login`"
        )
    if any(isinstance(link, RepositoryNotFoundError) for link in chain):
        return (
            f"there is no folder {repo!r} and no repository of that name on the Hub; check the "
            "spelling, or, if it is private, set HF_TOKEN or run `hf auth login`"
        )
    if status == 401:
        return f"the Hub refused the token for {repo}; set HF_TOKEN or run `hf auth login` again"
    if status is not None:
        return f"the Hub answered {status} for {repo}; try again later"
    for link in chain:
        if isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT):
            return (
                f"no space is left for {repo}; free some, or set HF_HOME to a folder on a larger "
                "disk (the 7B takes 17 GB)"
            )
        if isinstance(link, PermissionError):
            return f"the Hub's cache cannot be written ({link.filename}); set HF_HOME to a folder"
    if any(isinstance(link, LocalEntryNotFoundError | OfflineModeIsEnabled) for link in chain):
        return (
            f"the Hub cannot be reached and {repo} is not, or not all, in its cache; check the "
            "network and HF_HUB_OFFLINE"
        )
    return (
        f"the transfer of {repo} broke off ({type(error).__name__}); run the same again, files "
        "that are complete are kept"
    )


def _status(chain: list[BaseException]) -> int | None:
    """Of the Hub's answer, where it did answer."""
    for link in chain:
        response = getattr(link, "response", None)
        if isinstance(link, HfHubHTTPError) and response is not None:
            return int(response.status_code)
    return None


RELEASE = "nvidia/personaplex-7b-v1"


def resolve_model(model: str, device: str) -> tuple[str, str | None]:
    """Settle what ``auto`` means on this machine.

    Args:
        model: What somebody asked for.
        device: As in ``EngineConfig``.

    Returns:
        The model, and, where it was chosen here, a line for a person that says which and why.
    """
    if model != AUTO_MODEL:
        return model, None
    reason = _why_not_the_release(device)
    if reason is None:
        return RELEASE, f"model: {RELEASE}"
    return NANO, (
        f"model: nano, a small demonstration ({reason}); it takes a restaurant's orders or is a "
        "teacher, and knows no more than it was trained on"
    )


def _why_not_the_release(device: str) -> str | None:
    import torch

    if device == "cpu":
        return "the 7B model is for a GPU, and the device is to be the CPU"
    if not torch.cuda.is_available():
        return "there is no CUDA GPU for the 7B model"
    if isinstance(try_to_load_from_cache(RELEASE, MODEL_FILE), str):
        return None
    try:
        HfApi().auth_check(RELEASE)
    except HfHubHTTPError as error:
        return explain(RELEASE, error)
    except Exception:  # of its HTTP library, which differs between the versions of huggingface_hub
        return (
            f"the Hub cannot be reached for {RELEASE}, which is not in its cache; check the "
            "network and HF_HUB_OFFLINE"
        )
    return None
