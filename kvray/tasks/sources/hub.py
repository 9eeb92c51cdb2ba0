"""Datasets of the Hugging Face hub: which commit, which files, and the files on this machine.

Named ``hf://datasets/<org>/<name>[@revision][/file or folder in it]``, as in huggingface_hub's file system; a ``/``
within a revision is written ``%2F`` (``refs%2Fconvert%2Fparquet``). Gated and private datasets need the hub's own
log-in (``hf auth login`` or ``HF_TOKEN``).
"""

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from kvray.errors import InputError, SourceUnreachableError, first_line, status_passes
from kvray.models.hub import download as fetched
from kvray.models.hub import look

TIMEOUT_S = 60
_NAME = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?(?:/(?P<path>.*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def digest(source: str) -> str:
    """Return ``<org>/<name>@<commit>[/<path>]``, which identifies a dataset's content; nothing is downloaded.

    Raises SourceUnreachableError if the hub does not answer, InputError if it has no such dataset for this user.
    """
    repo, _, path = _parts(source)
    return f"{repo}@{_commit(source)}" + (f"/{path}" if path else "")


def download(source: str, kinds: tuple[str, ...], is_data: Callable[[str], bool]) -> Path | dict[str, Path]:
    """Return the files that a source (a file, a folder or a dataset) names, in the hub's cache on this machine.

    A file's path; or paths by name in the dataset, sorted, of those files of a folder that end in one of ``kinds`` and
    that ``is_data`` accepts by name.

    Raises:
        SourceUnreachableError: the hub does not answer and its cache lacks a file.
        InputError: the hub has no such dataset or file, or not for this user.
    """
    path, commit = _parts(source)[2], _commit(source)
    if path.endswith(kinds):
        return _file(source, commit, path)
    names = _listing(source)[1]
    inside = [name for name in names if not path or name.startswith(f"{path}/")]
    wanted = [name for name in inside if name.endswith(kinds) and is_data(name)]
    if not wanted:
        raise InputError(
            f"{source}: no {', '.join(kinds)} there; the dataset has {', '.join(names[:20]) or 'no files'}"
        )
    return {name: _file(source, commit, name) for name in wanted}


def _parts(source: str) -> tuple[str, str | None, str]:
    """Return (repository, revision or None, path in it or "")."""
    match = _NAME.fullmatch(source)
    if match is None:
        raise InputError(f"source: found {source!r}; expected hf://datasets/ORG/NAME[@REVISION][/FILE OR FOLDER]")
    revision = match["revision"]
    return match["repo"], unquote(revision) if revision else None, (match["path"] or "").strip("/")


def _commit(source: str) -> str:
    # A commit names itself, so that files in the hub's cache need no hub.
    revision = _parts(source)[1]
    if revision and _COMMIT.fullmatch(revision):
        return revision
    try:
        return _listing(source)[0]
    except SourceUnreachableError:
        # Enough for one file, whose name is known without a listing.
        commit, _ = _cached(source)
        if commit is None:
            raise
        return commit


@lru_cache(maxsize=64)
def _listing(source: str) -> tuple[str, list[str]]:
    """Return (commit, names of all files); asked once per process, so that a dataset stays one commit throughout."""
    from huggingface_hub import HfApi

    repo, revision, _ = _parts(source)
    try:
        info = look(lambda: HfApi().dataset_info(repo, revision=revision, timeout=TIMEOUT_S))
    except Exception as error:
        reason = _reason(source, error)
        commit, names = _cached(source) if isinstance(reason, SourceUnreachableError) else (None, None)
        if commit is None or names is None:
            raise reason from error
        return commit, names
    return str(info.sha), sorted(file.rfilename for file in info.siblings or ())


def _cached(source: str) -> tuple[str | None, list[str] | None]:
    """Return what the hub's cache on this machine knows: the commit when last asked for, and the names of all files."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, IncompleteSnapshotError, LocalEntryNotFoundError

    repo, revision, _ = _parts(source)
    try:
        commit = Path(snapshot_download(repo, repo_type="dataset", revision=revision, local_files_only=True)).name
    except IncompleteSnapshotError as error:
        commit = Path(error.snapshot_path).name
    except LocalEntryNotFoundError:
        return None, None
    try:
        files = get_cached_repo_tree(repo, repo_type="dataset", revision=revision)
    except CachedRepoTreeNotFoundError:
        return commit, None
    return commit, sorted(file.path for file in files)


def _file(source: str, commit: str, name: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        repo = _parts(source)[0]
        return Path(fetched(lambda: hf_hub_download(repo, name, repo_type="dataset", revision=commit)))
    except Exception as error:
        raise _reason(f"{source} ({name})", error) from error


def _reason(source: str, error: Exception) -> InputError:
    # The hub's client lets through whatever its HTTP library raises when there is no way to it.
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if isinstance(error, HfHubHTTPError):
        refused = not status_passes(error.response.status_code)
    else:
        refused = isinstance(error, HFValidationError)
    if refused:
        return InputError(f"source: {source} cannot be read from the Hugging Face hub: {error}")
    return SourceUnreachableError(
        f"source: the Hugging Face hub does not answer for {source} ({first_line(error)}), and its cache on this "
        f"machine has not got it whole; type hf download --repo-type dataset {_parts(source)[0]} where there is a hub, "
        "copy its cache here, and set HF_HOME; or give a path"
    )
