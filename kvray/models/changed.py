"""Finetunes that are stored as the tensors that changed: over the base model's, they make the whole model.

``changed.safetensors`` has them under the names and in the type of the base's own files; ``config.json`` beside it says
of which base they are. An attention finetune of a 7B takes 2.7 GB so, its whole model 14.5 GB.
"""

import json
import shutil
from pathlib import Path

from kvray.errors import InputError, need
from kvray.models import hub
from kvray.models.files import ModelFiles
from kvray.models.reference import BaseModelRef, snapshot

CHANGED = "changed.safetensors"
CONFIG = "config.json"
_WHOLE = "model.safetensors"


def is_changed(directory: Path) -> bool:
    """Return whether a finetune's directory holds changed tensors alone, so that its base model is needed too."""
    return (directory / CHANGED).is_file()


def describe(directory: Path, base: BaseModelRef, method: str) -> bool:
    """Turn ``model.safetensors`` of a directory, a part of a model, into changed tensors of ``base``.

    Returns False, and leaves the directory as it is, unless the base model's files on this machine have tensors of all
    these names (pickled ones do not tell).
    """
    from safetensors import safe_open

    held = _directory(base)
    with safe_open(directory / _WHOLE, "np") as file:
        names = set(file.keys())
    if held is None or not names <= ModelFiles(held).tensor_names():
        return False
    (directory / _WHOLE).rename(directory / CHANGED)
    config = {
        "base_model_name_or_path": base.name,
        "base_model_identity": base.identity,
        "method": method,
        "tensors": len(names),
        "weights": f"{CHANGED}: tensors that take the place of the base model's; kvray.models.changed.compose does it",
    }
    (directory / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (directory / "generation_config.json").unlink(missing_ok=True)
    return True


def compose(base: BaseModelRef, changed: Path, out: Path) -> Path:
    """Write the whole model of a finetune to the directory ``out``, as transformers and vLLM load it; return ``out``.

    ``changed`` is the directory of a finetune (``Store.fetch``) whose :func:`is_changed` holds. One file of the base
    model is in memory at a time. Raises InputError if the changed tensors are of another base model, or torch is not
    installed.
    """
    need("the whole weights of a finetune", "torch")
    from safetensors import safe_open
    from safetensors.torch import save_file

    identity = json.loads((changed / CONFIG).read_text())["base_model_identity"]
    if identity != base.identity:
        raise InputError(
            f"base_model: found {base.name} ({base.identity}); {changed} holds changed tensors of {identity}"
        )
    home = _directory(base, fetch=True)
    if home is None:
        raise InputError(f"base_model: {base.location} is not on this machine; expected the directory of {base.name}")
    out.mkdir(parents=True, exist_ok=True)
    for file in home.iterdir():
        if file.is_file() and file.suffix not in (".safetensors", ".bin", ".pt", ".pth", ".gguf"):
            shutil.copyfile(file, out / file.name)
    with safe_open(changed / CHANGED, "pt") as new:
        left = set(new.keys())
        for file in sorted(home.glob("*.safetensors")):
            with safe_open(file, "pt") as old:
                names = set(old.keys())
                tensors = {name: new.get_tensor(name) if name in left else old.get_tensor(name) for name in names}
                save_file(tensors, out / file.name, metadata=old.metadata())
            left -= names
    if left:
        raise InputError(f"base_model: the files of {base.name} lack {len(left)} of the changed tensors: {min(left)} …")
    return out


def _directory(base: BaseModelRef, fetch: bool = False) -> Path | None:
    """Return the directory with a base model's weights, None if it is not here; ``fetch`` gets it from the hub."""
    here = base.here()
    if here.revision is None:
        return Path(here.location) if Path(here.location).is_dir() else None
    if not fetch:
        return snapshot(here.location, here.revision)
    from huggingface_hub import snapshot_download

    kinds = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py"]
    fetched = hub.download(lambda: snapshot_download(here.location, revision=here.revision, allow_patterns=kinds))
    return Path(fetched)
