"""Model names: which model ``auto`` stands for, and the folder that holds a model's files.

A model name is an existing folder, a Hugging Face Hub repo id, ``nano`` or ``auto``.
``resolve_model`` replaces ``auto`` by one of the others; ``resolve_folder`` turns those into a
folder and downloads what is missing.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from loguru import logger

from pipecat_personaplex.checkpoint.config_file import file_names, model_type, read_json
from pipecat_personaplex.checkpoint.file_names import (
    ADAPTER_FILE,
    CONFIG_FILE,
    MIMI_FILE,
    MODEL_FILE,
    RELEASE_FILES,
    TOKENIZER_FILE,
    VOICES_FILE,
)
from pipecat_personaplex.checkpoint.progress_bars import download_bars
from pipecat_personaplex.config import AUTO_MODEL
from pipecat_personaplex.errors import DownloadError

RELEASE = "nvidia/personaplex-7b-v1"
"""Repo id of the released 7B model."""
NANO = "nano"
"""Name of the small model in this package. A folder is ``./nano``."""
_NANO_FOLDER = Path(__file__).parents[1] / "nano"

# owner/name or owner/name@revision; neither part starts with a dot, and the Hub forbids ".." and
# "--".
_HUB = "hf://"
_REPO_ID = re.compile(
    r"(?!.*(\.\.|--))([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([A-Za-z0-9][\w./-]{0,99}))?",
    re.ASCII,
)


def resolve_model(model: str, device: str) -> tuple[str, str | None]:
    """Replace ``auto`` by the best model for this machine.

    That is the released 7B if the machine has a CUDA GPU and the files are cached or may be
    downloaded, else ``nano``.

    Args:
        model: A model name.
        device: As in ``EngineConfig``.

    Returns:
        The model name, and one line for the user that gives the choice and its reason; None if
        ``model`` was not ``auto``.
    """
    if model != AUTO_MODEL:
        return model, None
    obstacle = _obstacle_to_release(device)
    if obstacle is None:
        return RELEASE, f"model: {RELEASE}"
    return NANO, (
        f"model: nano, a small demonstration ({obstacle}); it takes a restaurant's orders or is a "
        "teacher, and knows no more than it was trained on"
    )


def _obstacle_to_release(device: str) -> str | None:
    """Why this machine cannot run the released 7B; None if it can."""
    import torch

    if device == "cpu":
        return "the 7B model needs a GPU, and the requested device is the CPU"
    if not torch.cuda.is_available():
        return "there is no CUDA GPU for the 7B model"
    if isinstance(try_to_load_from_cache(RELEASE, MODEL_FILE), str):
        return None
    return obstacle_to_download(RELEASE)


def obstacle_to_download(repo: str) -> str | None:
    """Ask the Hub for access to a repository; return None, or why it refuses and the cure."""
    try:
        HfApi().auth_check(repo)
    except HfHubHTTPError as error:
        return _explain(repo, error)
    except Exception:  # network errors: their types depend on the version of huggingface_hub
        return (
            f"the Hub cannot be reached for {repo}, which is not in its cache; check the "
            "network and HF_HUB_OFFLINE"
        )
    return None


def resolve_folder(model: str, *, progress: bool, files: Sequence[str] = RELEASE_FILES) -> Path:
    """Find the folder with a model's files; download those that the Hub's cache lacks.

    Cached files are not downloaded again, and need no network.

    Args:
        model: An existing folder, a Hub repo id such as ``nvidia/personaplex-7b-v1``, which may
            end in ``@`` and a branch, a tag or a commit, or ``nano``.
        progress: Whether to draw progress bars of the download on stderr.
        files: The files to download from a repository; no others are.

    Raises:
        DownloadError: There is no such folder, and the repository cannot be downloaded.
    """
    if model == NANO:
        return _NANO_FOLDER
    if os.path.isdir(model):
        return Path(model)
    if not is_repo_id(model):
        raise DownloadError(
            f"{model!r} is neither an existing folder nor a Hugging Face repo id like "
            "'nvidia/personaplex-7b-v1' (or owner/name@revision), nor nano"
        )
    if MODEL_FILE not in files:
        return _download(model, files, progress=progress)
    # config.json may give the files other names: read it first.
    return _download(model, _named(_config_folder(model), files), progress=progress)


def resolve_adapter_folder(repo: str, *, progress: bool) -> Path:
    """Find the folder with a LoRA adapter of a Hub repository; download it if it is not cached.

    Args:
        repo: A Hub repo id, which may end in ``@`` and a branch, a tag or a commit.
        progress: Whether to draw progress bars of the download on stderr.

    Raises:
        DownloadError: The repository cannot be downloaded.
        ConfigError: Its ``config.json`` is invalid.
    """
    config = read_json(_config_folder(repo) / CONFIG_FILE)
    name = file_names(config).adapter or ADAPTER_FILE
    files = [CONFIG_FILE] if is_hub_file(name) else [CONFIG_FILE, name]
    return _download(repo, files, progress=progress)


def is_hub_file(name: str) -> bool:
    """Whether a ``config.json`` names a file on the Hub, not one beside itself."""
    return name.startswith(_HUB)


def named_file(folder: Path, name: str) -> Path:
    """The file that a folder's ``config.json`` names; one on the Hub is downloaded.

    Raises:
        DownloadError: The file cannot be downloaded.
    """
    return _resolve_hub_file(name) if is_hub_file(name) else folder / name


def _resolve_hub_file(name: str) -> Path:
    """Find a file that a ``config.json`` names on the Hub; download it if it is not cached.

    Args:
        name: ``hf://owner/name/file``.

    Raises:
        DownloadError: The file cannot be downloaded.
    """
    owner, repo, file = name.removeprefix(_HUB).split("/", 2)
    path = _download(f"{owner}/{repo}", [file], progress=False) / file
    if not path.is_file():
        raise DownloadError(f"config.json names {name}, and the repository has no such file")
    return path


def is_repo_id(name: str) -> bool:
    """Whether a name may be that of a Hub repository, with or without a revision."""
    return _REPO_ID.fullmatch(name) is not None


def _named(folder: Path, files: Sequence[str]) -> list[str]:
    """The release's files under the names that the folder's ``config.json`` gives them."""
    names = file_names(read_json(folder / CONFIG_FILE))
    renamed = {MODEL_FILE: names.model, MIMI_FILE: names.mimi, TOKENIZER_FILE: names.tokenizer}
    wanted = [renamed.get(name, name) for name in files]
    wanted += [name for name in (names.mimi_config, names.adapter) if name is not None]
    return [name for name in wanted if not is_hub_file(name)]


def _config_folder(model: str) -> Path:
    """The folder with a repository's ``config.json``, if it has one."""
    return _download(model, [CONFIG_FILE], progress=False, warn=False)


def _download(model: str, files: Sequence[str], *, progress: bool, warn: bool = True) -> Path:
    """Download files of a repository that the cache lacks; return the folder of the snapshot.

    Args:
        model: A repo id, with or without a revision.
        files: The files to download, if the repository has them.
        progress: Whether to draw progress bars on stderr.
        warn: Whether to log that the cache is used because the Hub cannot be.
    """
    repo_id = _REPO_ID.fullmatch(model)
    assert repo_id is not None, "callers check the name"
    repo, revision = repo_id[2], repo_id[3]
    if warn:
        logger.info("looking for {} in the Hub's cache and on the Hub", model)
    try:
        with download_bars(progress):
            return Path(snapshot_download(repo, revision=revision, allow_patterns=list(files)))
    except Exception as error:
        cached = _cached_snapshot(repo, revision, files)
        if cached is not None and not _is_answer(error):
            if warn:
                logger.warning(
                    "{}; the complete snapshot {} of the cache is used",
                    _explain(model, error),
                    cached.name,
                )
            return cached
        # The exception of a failed transfer depends on the version of huggingface_hub. Its text
        # may contain signed addresses, so it is not shown.
        raise DownloadError(_explain(model, error)) from None


def _cached_snapshot(repo: str, revision: str | None, files: Sequence[str]) -> Path | None:
    """The snapshot of the latest download, if the cache has all these files of it."""
    try:
        folder = Path(
            snapshot_download(
                repo, revision=revision, allow_patterns=list(files), local_files_only=True
            )
        )
    except Exception:  # no complete snapshot; the types depend on the version of huggingface_hub
        return None
    optional = {CONFIG_FILE}
    if model_type(read_json(folder / CONFIG_FILE)) == "moshi":
        optional.add(VOICES_FILE)
    complete = all((folder / name).is_file() for name in files if name not in optional)
    return folder if complete else None


def _is_answer(error: BaseException) -> bool:
    """Whether the Hub itself has refused the repository."""
    chain = _chain(error)
    refused = any(isinstance(link, GatedRepoError | RepositoryNotFoundError) for link in chain)
    return refused or _http_status(chain) is not None


def _chain(error: BaseException) -> list[BaseException]:
    """An error and its causes."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    return chain


def _explain(repo: str, error: BaseException) -> str:
    """One line for the user: what went wrong with a repository, and what to do."""
    chain = _chain(error)
    status = _http_status(chain)
    name, _, revision = repo.partition("@")
    if any(isinstance(link, RevisionNotFoundError) for link in chain):
        return f"{name} has no revision {revision!r} on the Hub; check the spelling"
    if any(isinstance(link, GatedRepoError) for link in chain) or status == 403:
        return (
            f"{repo} is gated: accept its licence at https://huggingface.co/{name}, then set "
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
        if isinstance(link, OSError) and link.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return (
                f"the Hub's cache is read-only ({link.filename}) and not up to date; set HF_HOME "
                "to a folder that can be written, or name the cached revision: owner/name@revision"
            )
    if any(isinstance(link, LocalEntryNotFoundError | OfflineModeIsEnabled) for link in chain):
        return (
            f"the Hub cannot be reached and {repo} is not, or not all, in its cache; check the "
            "network and HF_HUB_OFFLINE"
        )
    return (
        f"the download of {repo} broke off ({type(error).__name__}); run the same command again: "
        "complete files are not downloaded again"
    )


def _http_status(chain: list[BaseException]) -> int | None:
    """HTTP status of the Hub's response, if there was one."""
    for link in chain:
        response = getattr(link, "response", None)
        if isinstance(link, HfHubHTTPError) and response is not None:
            return int(response.status_code)
    return None
