"""A finetune as files that transformers, peft and vLLM load: its adapter, or a whole model."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from kvray.driver.export.find import Found
from kvray.errors import DamagedArtefactError, InputError, KvrayError, disk_full, first_line
from kvray.models import changed, hub
from kvray.models.reference import API, BaseModelRef, load_tokenizer
from kvray.store.manifest import MANIFEST

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
BASE = "base"
"""Folder of the base model beside an adapter, where it is on no hub."""
_OF_A_MODEL = (".safetensors", ".json", ".jinja", ".model", ".txt", ".md", ".tiktoken")  # nothing pickled


@dataclass(frozen=True)
class Weights:
    """What was written: an adapter, an adapter merged into its base, or a whole model."""

    form: Literal["adapter", "merged", "whole"]
    base: str | None  # the hub id of the base model, as others find it; None: of a base that is on no hub
    beside: bool  # whether the base lies in BASE
    parameters: int  # of the adapter, or of the whole model


def check(found: Found) -> None:
    """Raise InputError if a finetune's weights are not here, but with the API that made it."""
    if not str(found.manifest.recipe["base"]).startswith(API):
        return
    model = found.manifest.measurements.get("model")
    raise InputError(
        f"{found.planned.id}: the weights of {model} stay with the API that made them, which is asked for it by that "
        "name; expected a finetune of a model whose weights are here"
    )


def write(found: Found, base: BaseModelRef, into: Path, merged: bool, base_id: str | None = None) -> Weights:
    """Write a finetune's weights, configuration and tokenizer into the directory ``into``.

    Args:
        found: a finetune.
        base: its base model (:func:`kvray.driver.export.find.base_of`).
        into: an empty directory.
        merged: add an adapter to its base's weights. Finetunes of attention or of all weights are whole models anyway.
        base_id: the base's hub id, where the sweep names a directory.

    Raises:
        InputError: the base model is not to be had, or packages are missing that it takes.
        DamagedArtefactError: the store's files do not match their manifest.
    """
    known = base_id or (base.location if base.revision is not None else None)
    with _files(found) as stored, _base_errors(base):
        if (stored / ADAPTER_CONFIG).is_file():
            if merged:
                _merge(base, stored, into)
                return Weights("merged", known, False, parameters(into))
            _adapter(base, stored, into, known)
            return Weights("adapter", known, known is None, parameters(into))
        if not any(stored.glob("*.safetensors")) or not (stored / "config.json").is_file():
            raise DamagedArtefactError(f"{found.planned.id} holds neither an adapter nor a model that can be loaded")
        if changed.is_changed(stored):
            changed.compose(base, stored, into)
            (into / "README.md").unlink(missing_ok=True)  # the base's
        else:
            for file in stored.iterdir():
                if file.is_file() and file.suffix in _OF_A_MODEL and file.name != MANIFEST:
                    shutil.copyfile(file, into / file.name)
    return Weights("whole", known, False, parameters(into))


def parameters(directory: Path) -> int:
    """Return how many numbers the safetensors files of a directory hold, by their headers."""
    from safetensors import safe_open

    total = 0
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118  # no mapping
                count = 1
                for size in file.get_slice(name).get_shape():
                    count *= size
                total += count
    return total


@contextmanager
def _base_errors(base: BaseModelRef) -> Iterator[None]:
    """Say in a sentence that the base model is not to be had; transformers and the hub raise OSError for that."""
    try:
        yield
    except OSError as error:
        if base.revision is None or disk_full(error) or isinstance(error, KvrayError):
            raise
        raise InputError(
            f"base_model: {base.location} at {base.revision} is not to be had ({first_line(error)}); type hf download "
            f"{base.location} --revision {base.revision} where there is a hub, copy that cache here, and set HF_HOME"
        ) from error


@contextmanager
def _files(found: Found) -> Iterator[Path]:
    """Yield a local directory with the finetune's files, verified; it is not to be written to."""
    with TemporaryDirectory(prefix="kvray-export-") as scratch:
        yield found.store.fetch(found.planned.id, Path(scratch))


def _adapter(base: BaseModelRef, stored: Path, into: Path, known: str | None) -> None:
    shutil.copyfile(stored / ADAPTER, into / ADAPTER)
    config = json.loads((stored / ADAPTER_CONFIG).read_text())
    config["base_model_name_or_path"] = known or BASE
    if known is not None and base.revision is not None and known == base.location:
        config["revision"] = base.revision
    (into / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    load_tokenizer(base).save_pretrained(into)
    if known is None:
        (into / BASE).mkdir()
        for file in sorted(Path(base.here().location).iterdir()):
            code = file.suffix == ".py" and base.trust_remote_code
            if file.is_file() and (file.suffix in _OF_A_MODEL or code or file.name.startswith(("LICENSE", "NOTICE"))):
                shutil.copyfile(file, into / BASE / file.name)


def _merge(base: BaseModelRef, stored: Path, into: Path) -> None:
    """Write base and adapter as one model, in the base's own type."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    here = base.here()
    options: dict[str, Any] = {"revision": here.revision, "trust_remote_code": here.trust_remote_code}
    model = hub.download(lambda: AutoModelForCausalLM.from_pretrained(here.location, dtype="auto", **options))
    whole = PeftModel.from_pretrained(model, str(stored)).merge_and_unload(safe_merge=True)
    whole.save_pretrained(into)
    load_tokenizer(base).save_pretrained(into)
