"""How fast each kind of work goes: measured from what the store's manifests tell, or a stated default."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kvray.artefact import Artefact
from kvray.config import Runtime
from kvray.manifest import Manifest, hardware

_MEASURED = {"dataset": "prompt_tokens", "finetune": "trained_tokens", "predictions": "prompt_tokens"}
"""The fact that counts a manifest's tokens, by kind."""
DEFAULTS: dict[str, dict[str, float]] = {
    "cpu": {"dataset": 100_000, "finetune": 4_000, "predictions": 6_000},
    "gpu": {"dataset": 100_000, "finetune": 4_000, "predictions": 15_000},
}
"""Tokens per second where nothing is measured: kvray-tiny on one CPU core, a 7B model on one 80 GB GPU. Rough."""
STARTS: dict[str, dict[str, float]] = {
    "cpu": {"dataset": 0, "finetune": 12, "predictions": 20},
    "gpu": {"dataset": 0, "finetune": 45, "predictions": 90},
}
"""Seconds until the first token: of each finetune's workers, of each engine."""
START_OF_RAY = 8.0


def machine(runtime: Runtime) -> str:
    """Return "gpu" where the work is to run on GPUs, else "cpu": told by the sweep, or by this host."""
    asked = (runtime.gpus_per_finetune or 0) + (runtime.gpus_per_engine or 0) > 0
    return "gpu" if asked or hardware()["gpus"] else "cpu"


def at_once(kind: str, runtime: Runtime) -> int:
    """Return how many artefacts (datasets: shards) of a kind are about to run side by side.

    Of a cluster nothing is known before it is asked, so there one is assumed where the sweep does not say.
    """
    local = not (runtime.address or os.environ.get("RAY_ADDRESS"))
    cpus = (runtime.num_cpus or os.cpu_count() or 1) if local else 1
    if kind == "dataset":
        return cpus
    if kind == "predictions":
        return runtime.engines
    fit = max(1, int(cpus / (runtime.workers_per_finetune * runtime.cpus_per_finetune)))
    if local and machine(runtime) == "gpu":
        fit = max(1, len(hardware()["gpus"]) // runtime.workers_per_finetune)
    return min(fit, runtime.concurrent_finetunes or fit) if local else (runtime.concurrent_finetunes or 1)


@dataclass(frozen=True)
class Rate:
    """Tokens per second of one artefact of a kind.

    Attributes:
        tokens_per_second: of one process (dataset), one finetune, one engine.
        measured: how many manifests it comes from; 0 is a default.
        basis: the same in words.
    """

    tokens_per_second: float
    measured: int
    basis: str


class Rates:
    """Rates by what an artefact is: of its like first, then of its kind on the same base model, then a default."""

    def __init__(self, manifests: Iterable[Manifest], base: str, runtime: Runtime) -> None:
        """Take the store's manifests, and the identity of the base model."""
        self.machine = machine(runtime)
        self.seen: dict[tuple[str, ...], tuple[float, float, int]] = {}
        for manifest in manifests:
            if _base(manifest.recipe) != base:
                continue
            tokens = manifest.facts.get(_MEASURED[manifest.kind])
            seconds = manifest.facts.get("seconds")
            if not isinstance(tokens, int | float) or not isinstance(seconds, int | float) or seconds <= 0:
                continue
            for key in {(manifest.kind,), (manifest.kind, _like(manifest.recipe))}:
                before = self.seen.get(key, (0.0, 0.0, 0))
                self.seen[key] = (before[0] + tokens, before[1] + seconds, before[2] + 1)

    def of(self, artefact: Artefact) -> Rate:
        """Return the rate for an artefact."""
        for key in ((artefact.kind, _like(artefact.recipe)), (artefact.kind,)):
            tokens, seconds, number = self.seen.get(key, (0.0, 0.0, 0))
            if tokens > 0:
                what = " ".join(reversed(key)) if len(key) > 1 else artefact.kind
                rate = tokens / seconds
                return Rate(rate, number, f"{rate:,.0f} tokens/s, measured over {number} {what} in this store")
        rate = DEFAULTS[self.machine][artefact.kind]
        whose = "kvray-tiny on one CPU core" if self.machine == "cpu" else "a 7B model on one 80 GB GPU"
        return Rate(rate, 0, f"{rate:,.0f} tokens/s, a rough default ({whose}); nothing measured in this store yet")

    def start(self, kind: str) -> float:
        """Return the seconds until the first token of one artefact or engine of a kind."""
        return STARTS[self.machine][kind]


def measured_tokens(manifest: Manifest) -> int | None:
    """Return the tokens that a manifest counted, None if it has not."""
    tokens = manifest.facts.get(_MEASURED[manifest.kind])
    return int(tokens) if isinstance(tokens, int | float) and tokens > 0 else None


def _base(recipe: Mapping[str, Any]) -> Any:
    return recipe.get("base", recipe.get("tokenizer"))


def _like(recipe: Mapping[str, Any]) -> str:
    """Return what sets the pace within a kind: the task, or the method."""
    inner = recipe.get("task") or recipe.get("scorer") or {}
    finetune = recipe.get("finetune") or {}
    return str(inner.get("task") or finetune.get("method") or "")
