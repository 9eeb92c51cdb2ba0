"""Where a base model is and what identifies it: the bundled one, a directory, or a Hugging Face id."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvray.errors import InputError

BUNDLED = {"kvray-tiny": Path(__file__).parent / "tiny" / "kvray-tiny"}
_CONTENT = (".safetensors", ".json", ".jinja", ".model", ".txt")


@dataclass(frozen=True)
class BaseModelRef:
    """A base model that can be loaded.

    Attributes:
        name: as the user wrote it; the ``base_model`` column of the results.
        location: a directory, or a hub id.
        revision: hub commit, None for a directory.
        identity: what fingerprints cover: a sha256 over the files' content, or the hub id and commit.
        trust_remote_code: whether the model's own Python code may run; the sweep says so.
    """

    name: str
    location: str
    revision: str | None
    identity: str
    trust_remote_code: bool = False


def resolve(name: str) -> BaseModelRef:
    """Find a base model.

    Raises:
        InputError: nothing by that name is bundled, on disk, or on the hub.
    """
    path = BUNDLED.get(name) or Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"base_model: {name} is a directory without config.json, so not a transformers model")
        return BaseModelRef(name, str(path.resolve()), None, f"sha256:{_directory_sha256(path)}")
    if "/" not in name or name.startswith((".", "/", "~")):
        known = ", ".join(sorted(BUNDLED))
        raise InputError(f"base_model: {name!r} is no bundled model ({known}), directory, or hub id like org/name")
    try:
        from huggingface_hub import HfApi

        revision = HfApi().model_info(name).sha
    except Exception as error:
        # The hub client raises a dozen kinds (network, auth, missing); all mean the same to the user.
        raise InputError(f"base_model: {name} could not be resolved on the Hugging Face hub: {error}") from error
    return BaseModelRef(name, name, revision, f"hub:{name}@{revision}")


def load_tokenizer(ref: BaseModelRef, trust_remote_code: bool = False) -> Any:
    """Return the transformers tokenizer of a base model (heavy import)."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        ref.location, revision=ref.revision, trust_remote_code=trust_remote_code or ref.trust_remote_code
    )


def _directory_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(p for p in path.iterdir() if p.suffix in _CONTENT):
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
