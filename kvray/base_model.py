"""Where a base model is and what identifies it: the bundled one, a directory, a hub id, or ``openai:<name>``."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvray.errors import InputError, Problem, SourceUnreachableError

BUNDLED = {"kvray-tiny": Path(__file__).parent / "tiny" / "kvray-tiny"}
API = "openai:"
"""Prefix of the name of a model behind an OpenAI-compatible API."""
API_TOKENIZER = "Xenova/gpt-3.5-turbo"
"""Whose tokenizer counts for a model behind an API where the sweep names none: a hub copy of its cl100k_base."""
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
        tokenizer: the model whose tokenizer counts tokens in its place; None for its own.
    """

    name: str
    location: str
    revision: str | None
    identity: str
    trust_remote_code: bool = False
    tokenizer: BaseModelRef | None = None

    @property
    def api(self) -> bool:
        """Whether the model is behind an OpenAI-compatible API; ``location`` is then its name there."""
        return self.name.startswith(API)

    @property
    def token_identity(self) -> str:
        """What identifies the tokenizer that counts: part of every dataset's identity."""
        return (self.tokenizer or self).identity


def resolve(name: str, tokenizer: str | None = None) -> BaseModelRef:
    """Find a base model.

    Args:
        name: a bundled model, a directory, a hub id, or ``openai:<name>``.
        tokenizer: a model (not behind an API) whose tokenizer counts tokens; default the model's own, and
            :data:`API_TOKENIZER` for one behind an API.

    Raises:
        SourceUnreachableError: the hub does not answer.
        InputError: nothing by that name is bundled, on disk, or on the hub.
    """
    counting = (
        _find(tokenizer or API_TOKENIZER, "tokenizer" if tokenizer else "base_model")
        if tokenizer or name.startswith(API)
        else None
    )
    return replace(_find(name), tokenizer=counting)


def unresolved(name: str, tokenizer: str | None = None) -> BaseModelRef:
    """Return a reference to a model that cannot be looked at now; enough to plan with, and it matches no artefact."""
    counting = BaseModelRef(tokenizer, tokenizer, None, f"unresolved:{tokenizer}") if tokenizer else None
    return BaseModelRef(name, name.removeprefix(API), None, f"unresolved:{name}", tokenizer=counting)


def _find(name: str, field: str = "base_model") -> BaseModelRef:
    """Find a model; ``field`` is what of a sweep names it, for the messages."""
    if name.startswith(API):
        model = name.removeprefix(API)
        if not model.strip():
            raise InputError(Problem((field,), f"found {name!r}; expected openai:NAME, openai:gpt-3.5-turbo-1106 say"))
        return BaseModelRef(name, model, None, name)
    path = BUNDLED.get(name) or Path(os.path.expanduser(name))
    if path.is_dir():
        if not (path / "config.json").is_file():
            text = f"{name} is a directory without config.json, so not a transformers model"
            raise InputError(Problem((field,), text))
        return BaseModelRef(name, str(path.resolve()), None, f"sha256:{_directory_sha256(path)}")
    if "/" not in name or name.startswith((".", "/", "~")):
        known = ", ".join(sorted(BUNDLED))
        text = f"{name!r} is no bundled model ({known}), directory, hub id like org/name, or openai:NAME"
        raise InputError(Problem((field,), text))
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        revision = HfApi().model_info(name).sha
    except HfHubHTTPError as error:
        # Missing, gated and forbidden models: the hub did answer.
        text = f"{name} could not be resolved on the Hugging Face hub: {_one_line(error)}"
        raise InputError(Problem((field,), text)) from error
    except Exception as error:
        # The client lets through whatever its HTTP library raises when there is no way to the hub.
        text = f"the Hugging Face hub does not answer for {name}: {_one_line(error)}"
        raise SourceUnreachableError(Problem((field,), text)) from error
    return BaseModelRef(name, name, revision, f"hub:{name}@{revision}")


def load_tokenizer(ref: BaseModelRef, trust_remote_code: bool = False) -> Any:
    """Return the transformers tokenizer of a base model (heavy import), not of ``ref.tokenizer``, which counts."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        ref.location, revision=ref.revision, trust_remote_code=trust_remote_code or ref.trust_remote_code
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _directory_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(p for p in path.iterdir() if p.suffix in _CONTENT):
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
