"""Base models by name: bundled, a directory, an id on the Hugging Face hub, or ``openai:<name>``."""

from __future__ import annotations

import difflib
import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvray.errors import InputError, Problem, SourceUnreachableError, first_line, need, status_passes
from kvray.models import files, hub
from kvray.models.digests import sha256

BUNDLED = {"kvray-tiny": Path(__file__).parent / "kvray-tiny"}
API = "openai:"  # prefix of the name of a model behind an OpenAI-compatible API
API_TOKENIZER = "Xenova/gpt-3.5-turbo"  # counts for such a model by default: a hub copy of cl100k_base
HUB_TIMEOUT_S = 20
_CONTENT = (".safetensors", ".json", ".jinja", ".model", ".txt")


@dataclass(frozen=True)
class BaseModelRef:
    """A base model that can be loaded."""

    name: str  # as the user wrote it; the base_model column of the results
    location: str  # a directory, or a hub id
    revision: str | None  # hub commit; None for a directory
    identity: str  # part of fingerprints: a sha256 over the files' content, or the hub id and commit
    trust_remote_code: bool = False  # whether the model's own Python code may run (a setting of the sweep)
    tokenizer: BaseModelRef | None = None  # the model whose tokenizer counts tokens in its place; None for its own
    cached: bool = False  # resolved from the hub's cache on this machine, because the hub did not answer

    @property
    def api(self) -> bool:
        """Whether the model is behind an OpenAI-compatible API; ``location`` is then its name there."""
        return self.name.startswith(API)

    @property
    def token_identity(self) -> str:
        """Identity of the tokenizer that counts; part of every dataset's identity."""
        return (self.tokenizer or self).identity

    def here(self) -> BaseModelRef:
        """Return the model at its place on this machine: in the installed kvray or, if it is there, the hub's cache."""
        if self.name in BUNDLED:
            return replace(self, location=str(BUNDLED[self.name]))
        if not self.cached or self.revision is None:
            return self
        held = snapshot(self.location, self.revision)
        return self if held is None else replace(self, location=str(held), revision=None, cached=False)


def resolve(name: str, tokenizer: str | None = None) -> BaseModelRef:
    """Find a base model: bundled, a directory, a hub id, or ``openai:<name>``.

    ``tokenizer`` is a model (not behind an API) whose tokenizer counts; default the model's own, or
    :data:`API_TOKENIZER` for one behind an API. Raises SourceUnreachableError if the hub does not answer, InputError if
    no model of that name is bundled, on disk, or on the hub.
    """
    counting = None
    if tokenizer or name.startswith(API):
        counting = find(tokenizer or API_TOKENIZER, "tokenizer" if tokenizer else "base_model", weights=False)
    return replace(find(name), tokenizer=counting)


def unresolved(name: str, tokenizer: str | None = None) -> BaseModelRef:
    """Return a reference to a model that is out of reach: enough for a plan, but no artefact matches it."""
    counting = BaseModelRef(tokenizer, tokenizer, None, f"unresolved:{tokenizer}") if tokenizer else None
    return BaseModelRef(name, name.removeprefix(API), None, f"unresolved:{name}", tokenizer=counting)


def find(name: str, field: str = "base_model", weights: bool = True) -> BaseModelRef:
    """Find a model, as :func:`resolve`; messages name the ``field``; without ``weights`` a tokenizer is enough."""
    if name.startswith(API):
        model = name.removeprefix(API)
        if not model.strip():
            raise InputError(Problem((field,), f"found {name!r}; expected openai:NAME, openai:gpt-3.5-turbo-1106 say"))
        return BaseModelRef(name, model, None, name)
    path = BUNDLED.get(name) or Path(os.path.expanduser(name))
    if path.is_dir():
        _check(name, path, field, weights)
        return BaseModelRef(name, str(path.resolve()), None, f"sha256:{_directory_sha256(path)}")
    if name.startswith((".", "/", "~")):
        text = f"{name!r} is no directory; expected one with config.json, a tokenizer and weights"
        raise InputError(Problem((field,), text))
    if "/" not in name:
        near = difflib.get_close_matches(name.lower(), BUNDLED, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        known = ", ".join(sorted(BUNDLED))
        text = f"{name!r} is no bundled model ({known}), directory, hub id like org/name, or openai:NAME{hint}"
        raise InputError(Problem((field,), text))
    return _on_hub(name, field, weights)


def _check(name: str, directory: Path, field: str, weights: bool) -> None:
    wrong = files.problems(directory, weights)
    if wrong:
        raise InputError([Problem((field,), f"{name} {problem}") for problem in wrong])


def _on_hub(name: str, field: str, weights: bool) -> BaseModelRef:
    """Find a model on the hub or, if that does not answer, in its cache on this machine."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        revision = hub.look(lambda: HfApi().model_info(name, timeout=HUB_TIMEOUT_S).sha)
    except HFValidationError as error:
        text = f"{name!r} is neither a directory nor a hub id, which is org/name of letters, digits and - _ ."
        raise InputError(Problem((field,), f"{text} ({first_line(error).partition(': ')[0]})")) from error
    except Exception as error:
        if isinstance(error, HfHubHTTPError) and not status_passes(error.response.status_code):
            # A missing, gated or forbidden model: the hub did answer.
            text = f"{name} could not be resolved on the Hugging Face hub: {first_line(error)}"
            raise InputError(Problem((field,), text)) from error
        # The client passes on whatever its HTTP library raises when the hub is out of reach.
        return _in_cache(name, field, weights, error)
    return BaseModelRef(name, name, revision, f"hub:{name}@{revision}")


def _in_cache(name: str, field: str, weights: bool, unreachable: Exception) -> BaseModelRef:
    """Find a model in the hub's cache: the commit last requested by name, or the only one."""
    held = snapshot(name, None)
    if held is None:
        from huggingface_hub import constants

        text = (
            f"{name} is no directory here, the Hugging Face hub does not answer for it "
            f"({first_line(unreachable)}), and the hub's cache {constants.HF_HUB_CACHE} has not got it. "
            f"Two ways need no hub: give a directory; or type hf download {name} where there is a hub, copy its "
            "cache here, and set HF_HOME to the directory above it"
        )
        raise SourceUnreachableError(Problem((field,), text)) from unreachable
    _check(f"{name}, in the hub's cache at {held},", held, field, weights)
    return BaseModelRef(name, name, held.name, f"hub:{name}@{held.name}", cached=True)


def snapshot(name: str, revision: str | None) -> Path | None:
    """Return the directory of a commit in the hub's cache on this machine, without asking the hub."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError
    from huggingface_hub.file_download import repo_folder_name

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except IncompleteSnapshotError as error:
        # It may only lack weights in a second format; the needed files are checked by name.
        return Path(error.snapshot_path)
    except LocalEntryNotFoundError:
        # Files requested by commit, as kvray does online, leave no branch in the cache.
        folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model") / "snapshots"
        commits = [path for path in folder.glob("*") if path.is_dir()] if revision is None else []
        return commits[0] if len(commits) == 1 else None


def files_of(ref: BaseModelRef) -> files.ModelFiles | None:
    """Return a model's files (on the hub, all but its weights), None if unavailable now; InputError if refused."""
    ref = ref.here()
    if ref.api or ref.identity.startswith("unresolved:"):
        return None
    if ref.revision is None:
        return files.ModelFiles(Path(ref.location)) if Path(ref.location).is_dir() else None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        small = list(files.SMALL_FILES)
        directory = Path(hub.look(lambda: snapshot_download(ref.location, revision=ref.revision, allow_patterns=small)))
    except Exception as error:
        if isinstance(error, HfHubHTTPError) and not status_passes(error.response.status_code):
            text = f"{ref.name}: the hub refuses its files: {first_line(error)}"
            raise InputError(Problem(("base_model",), text)) from error
        return None  # as in _on_hub; the plan then estimates, and its warnings say so
    return files.ModelFiles(directory)


def tokenizer_place(ref: BaseModelRef) -> str:
    """Return where another library finds the tokenizer that counts for a model: a directory, else a hub id.

    The directory holds no Python, unless the sweep trusts the model's.
    """
    ref = ref.tokenizer or ref if ref.api else ref
    held = None if ref.trust_remote_code else files_of(ref)
    return str(held.directory) if held else ref.here().location


def tensor_names(ref: BaseModelRef) -> frozenset[str]:
    """Return the names of a model's weights, of one on the hub by its files' headers alone; empty if pickled or moot.

    They are the same on every machine that can train the model. SourceUnreachableError if the hub does not answer.
    """
    found = files_of(ref)
    names = found.tensor_names() if found else frozenset()
    if names or (found and found.weights) or ref.revision is None:
        return names
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, NotASafetensorsRepoError, SafetensorsParsingError

    try:
        metadata = hub.look(lambda: HfApi().get_safetensors_metadata(ref.location, revision=ref.revision))
        return frozenset(metadata.weight_map)
    except (NotASafetensorsRepoError, SafetensorsParsingError):
        return frozenset()
    except Exception as error:
        if isinstance(error, HfHubHTTPError) and not status_passes(error.response.status_code):
            return frozenset()  # gated: whatever needs its weights says so
        text = f"the hub does not answer for the weights of {ref.name} ({first_line(error)})"
        raise SourceUnreachableError(Problem(("base_model",), text)) from error


def load_tokenizer(ref: BaseModelRef, trust_remote_code: bool = False) -> Any:
    """Return the transformers tokenizer of the base model itself, not of ``ref.tokenizer`` (heavy import).

    Raises InputError if transformers is not installed.
    """
    need(f"the tokenizer of {ref.name}", "transformers", extra="run")
    from transformers import AutoTokenizer

    ref = ref.here()
    return AutoTokenizer.from_pretrained(
        ref.location, revision=ref.revision, trust_remote_code=trust_remote_code or ref.trust_remote_code
    )


def _directory_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(p for p in path.iterdir() if p.suffix in _CONTENT):
        digest.update(file.name.encode() + b"\0")
        digest.update(sha256(file))
    return digest.hexdigest()
