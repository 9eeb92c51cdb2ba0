"""The labels of artefacts: the names of the sweep's file, with what its grid varies of them behind. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvray.sweep.load import Variant, show_value


def suffix(changes: Sequence[tuple[str, Any]]) -> str:
    """Return what is varied as it stands behind a name: ``[epochs=2,learning_rate=1e-05]``."""
    return f"[{','.join(f'{key}={show_value(value)}' for key, value in changes)}]" if changes else ""


def finetune_label(variant: Variant, api: bool) -> str:
    """Return the method and what is varied of it, leaving out what the method does not use."""
    finetune = variant.sweep.finetune
    used = finetune.api_recipe() if api else finetune.recipe()
    changes = [
        (str(path[1]), value)
        for path, value in variant.changes
        if path[0] == "finetune" and path[1] != "method" and path[1] in used
    ]
    return ("api" if api else finetune.method) + suffix(changes)


def block_changes(variant: Variant, section: str, name: str) -> list[tuple[str, Any]]:
    """Return what is varied of one block of a section."""
    return [(str(path[-1]), value) for path, value in variant.changes if path[:2] == (section, name)]


def data_label(variant: Variant, name: str, seed: int) -> str:
    """Return a dataset's name and what is varied of it, a seed that the finetune's adds among it."""
    changes = block_changes(variant, "datasets", name)
    return name + suffix([*changes, ("seed", variant.sweep.datasets[name].seed + seed)] if seed else changes)


def mixture_label(variant: Variant, mixture: str, matched: bool) -> str:
    """Return the mixture's name and what is varied of its weights and its datasets.

    Of a mixture that is matched to the sweep's first one in tokens, what is varied of that one is varied too.
    """
    sweep, first = variant.sweep, next(iter(variant.sweep.mixtures))
    changes = block_changes(variant, "mixtures", mixture)
    datasets = sweep.mixtures[mixture]
    for name in datasets:
        inner = block_changes(variant, "datasets", name)
        changes += inner if len(datasets) == 1 else [(f"{name}.{key}", value) for key, value in inner]
    if matched and mixture != first:
        changes += [(f"{first}.{key}", value) for key, value in block_changes(variant, "mixtures", first)]
        others = [name for name in sweep.mixtures[first] if name not in datasets]
        changes += [
            (f"{name}.{key}", value) for name in others for key, value in block_changes(variant, "datasets", name)
        ]
    return mixture + suffix(changes)
