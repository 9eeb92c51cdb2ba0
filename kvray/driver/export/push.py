"""Upload a folder to the Hugging Face hub."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from kvray.errors import InputError, KvrayError, first_line, passes, status_passes

_Result = TypeVar("_Result")
RepoType = Literal["model", "dataset"]


def check(name: str) -> None:
    """Refuse, before anything is made, what the hub could not take: a wrong name, no token, or no hub."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # it is exported lazily

    try:
        validate_repo_id(name)
        named = name.count("/") == 1
    except HFValidationError:
        named = False
    if not named:
        raise InputError(f"--push: found {name!r}; expected ORG/NAME of letters, digits and - _ .")
    if constants.is_offline_mode():
        raise InputError("--push: found HF_HUB_OFFLINE=1, so that nothing may be sent; unset it")
    if not get_token():
        raise InputError(
            "--push: found no token of the hub; set HF_TOKEN to one that may write, or type hf auth login first"
        )


def push(folder: Path, name: str, kind: RepoType, public: bool, message: str) -> str:
    """Upload a folder as one commit to a repository, made if it is missing, and return its address.

    A repository is made private unless ``public``. Raises InputError if the hub refuses (token, rights, a public
    repository that was not meant), KvrayError if it does not answer; the folder stays as it is.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="kvray")
    made = _told(name, lambda: api.create_repo(name, repo_type=kind, private=not public, exist_ok=True))
    if not public and not _told(name, lambda: api.repo_info(name, repo_type=kind)).private:
        raise InputError(f"--push: {name} is public already; --public says that this is meant")
    _told(name, lambda: api.upload_folder(repo_id=name, folder_path=folder, repo_type=kind, commit_message=message))
    return str(made)


def _told(name: str, call: Callable[[], _Result]) -> _Result:
    """Return what a call to the hub returns; its errors become a sentence."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return call()
    except Exception as error:  # the client passes on whatever its HTTP library raises
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status is not None and not status_passes(status):
            why = {401: "the token is not valid", 403: f"the token may not write to {name}"}.get(status)
            text = f"--push: the hub refuses {name} ({status}): {why or first_line(error)}; what was exported stays"
            raise InputError(text) from error
        if status is None and not passes(error):
            raise
        raise KvrayError(
            f"--push: the hub does not answer ({first_line(error)}); what was exported stays: with --force the same "
            "command tries again"
        ) from error
