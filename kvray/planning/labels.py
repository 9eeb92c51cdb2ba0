"""Labels of artefacts: their names in the sweep, followed by what its grid varies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvray.sweep.grid import Variant, show_value


def suffix(changes: Sequence[tuple[str, Any]]) -> str:
    """Format varied values for a label: ``[epochs=2,learning_rate=1e-05]``."""
    return f"[{','.join(f'{key}={show_value(value)}' for key, value in changes)}]" if changes else ""


def finetune_label(variant: Variant, api: bool) -> str:
    """Return the method and its varied hyperparameters, without those that it does not use."""
    finetune = variant.sweep.finetune
    used = (finetune.api_recipe() if api else finetune.recipe()).keys() - {"method"}
    changes = [(str(key), value) for (section, key, *_), value in variant.changes if section == "finetune"]
    return ("api" if api else finetune.method) + suffix([change for change in changes if change[0] in used])


def evaluation_label(variant: Variant, name: str) -> str:
    """Return an evaluation's name and varied values."""
    return name + suffix(_block_changes(variant, "evaluate", name))


def data_label(variant: Variant, name: str, seed: int) -> str:
    """Return a dataset's name and varied values; ``seed`` is what the finetune adds to its own."""
    own = [("seed", variant.sweep.datasets[name].seed + seed)] if seed else []
    return name + suffix(_block_changes(variant, "datasets", name) + own)


def mixture_label(variant: Variant, mixture: str, matched: bool) -> str:
    """Return a mixture's name and varied values; if ``matched`` to the first mixture's tokens, that one's as well."""
    sweep, first = variant.sweep, next(iter(variant.sweep.mixtures))
    datasets = sweep.mixtures[mixture]
    changes = _block_changes(variant, "mixtures", mixture)
    for name in datasets:
        changes += _block_changes(variant, "datasets", name, "" if len(datasets) == 1 else f"{name}.")
    if matched and mixture != first:
        changes += _block_changes(variant, "mixtures", first, f"{first}.")
        for name in (name for name in sweep.mixtures[first] if name not in datasets):
            changes += _block_changes(variant, "datasets", name, f"{name}.")
    return mixture + suffix(changes)


def _block_changes(variant: Variant, section: str, name: str, prefix: str = "") -> list[tuple[str, Any]]:
    return [(f"{prefix}{path[-1]}", value) for path, value in variant.changes if path[:2] == (section, name)]
