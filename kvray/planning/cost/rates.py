"""How fast each kind of work goes: measured from what the store's manifests tell, or a stated default."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kvray.models.reference import API, BUNDLED
from kvray.planning.artefacts import Artefact, FinetuneJob, Plan, WritingJob
from kvray.planning.cost.speed import API_ANSWER_S, API_STARTS, API_TRAIN, API_WRITE, TINY, UNKNOWN, Size, size_of
from kvray.store.manifest import Manifest
from kvray.store.provenance import hardware
from kvray.sweep.model import Runtime

Where = Literal["cpu", "gpu", "api"]

_MEASURED = {
    "writing": "prompt_tokens",
    "dataset": "prompt_tokens",
    "finetune": "trained_tokens",
    "predictions": "prompt_tokens",
}
"""The fact that counts a manifest's tokens, by kind."""
GENERATE = 100_000.0
"""Tokens of examples that one process makes per second, for tasks that tokenize every prompt."""
STARTS = {"cpu": {"finetune": 12.0, "engine": 20.0}, "gpu": {"finetune": 45.0, "engine": 90.0}}
"""Seconds until the first token: of each finetune's workers, of each engine."""
START_OF_RAY = 8.0
_SMALL = 2e8
"""Weights up to which a model that lies on this machine is taken to run on its CPU."""


def where(kind: str, model: str, runtime: Runtime) -> Where:
    """Return what a kind of work is to run on: told by the sweep or by this host, else assumed by the model.

    A plan is often made elsewhere than it is run. So a model of the hub, or one too large for a CPU, is taken to run
    on GPUs even if this host has none, unless the sweep asks for none.
    """
    if kind == "dataset":
        return "cpu"
    if model.startswith(API):
        return "api"
    asked = runtime.gpus_per_finetune if kind == "finetune" else runtime.gpus_per_engine
    if asked is not None:
        return "gpu" if asked > 0 else "cpu"
    if hardware()["gpus"] or runtime.gpus_per_finetune or runtime.gpus_per_engine:
        return "gpu"
    size = size_of(model)
    hub = model not in BUNDLED and "/" in model and not os.path.isdir(os.path.expanduser(model))
    return "gpu" if hub or (size is not None and size.total > _SMALL) else "cpu"


def devices(kind: str, on: Where, runtime: Runtime) -> float:
    """Return how many GPUs (on "gpu") or CPUs (on "cpu") one artefact of a kind, or one engine, holds."""
    if on == "api":
        return 0.0
    if kind == "dataset":
        return 1.0
    if kind == "finetune":
        each = (runtime.gpus_per_finetune or 1.0) if on == "gpu" else runtime.cpus_per_finetune
        return runtime.workers_per_finetune * each
    if on == "gpu":
        return runtime.gpus_per_engine or float(runtime.tensor_parallel)
    return runtime.cpus_per_engine or _cpus(runtime) / runtime.engines


def at_once(kind: str, on: Where, runtime: Runtime) -> int:
    """Return how many artefacts (datasets: shards) of a kind are about to run side by side.

    Of a cluster nothing is known before it is asked, nor of GPUs that this host has not: there one is assumed where the
    sweep does not say.
    """
    local = not (runtime.address or os.environ.get("RAY_ADDRESS"))
    if kind == "dataset":
        return _cpus(runtime) if local else 1
    if kind != "finetune":
        return runtime.engines if on != "api" else 1
    fit = 1
    if local and on == "cpu":
        fit = max(1, int(_cpus(runtime) / devices(kind, on, runtime)))
    elif local and on == "gpu" and hardware()["gpus"]:
        fit = max(1, int(len(hardware()["gpus"]) / devices(kind, on, runtime)))
    elif runtime.concurrent_finetunes:
        return runtime.concurrent_finetunes
    return min(fit, runtime.concurrent_finetunes or fit)


def model_of(artefact: Artefact, planned: Plan) -> str:
    """Return the name of the model that makes an artefact."""
    return artefact.params.writer if isinstance(artefact.params, WritingJob) else planned.base_model


@dataclass(frozen=True)
class Work:
    """What making an artefact takes of a model.

    Attributes:
        artefact: what.
        reads: tokens of prompts, or of training over all epochs.
        writes: tokens of replies.
        rows: prompts or rows, over all epochs.
    """

    artefact: Artefact
    reads: int
    writes: int
    rows: int


class Rates:
    """Rates by what an artefact is: of its like first, then of its kind on the same model, then a default."""

    def __init__(self, manifests: Iterable[Manifest], planned: Plan) -> None:
        """Take the store's manifests and the plan whose sweep says where it runs."""
        self.planned = planned
        self.runtime = planned.sweep.runtime
        self._sizes: dict[str, Size | None] = {}
        self._seen: dict[tuple[str, ...], tuple[float, float, int]] = {}
        for manifest in manifests:
            tokens = manifest.measurements.get(_MEASURED.get(manifest.kind, ""))
            seconds = manifest.measurements.get("seconds")
            if not isinstance(tokens, int | float) or not isinstance(seconds, int | float) or seconds <= 0:
                continue
            for key in _keys(manifest.kind, manifest.recipe):
                before = self._seen.get(key, (0.0, 0.0, 0))
                self._seen[key] = (before[0] + tokens, before[1] + seconds, before[2] + 1)

    def where(self, artefact: Artefact) -> Where:
        """Return what an artefact is to be made on."""
        return where(artefact.kind, model_of(artefact, self.planned), self.runtime)

    def devices(self, artefact: Artefact) -> float:
        """Return how many GPUs or CPUs an artefact holds while it is made."""
        return devices(artefact.kind, self.where(artefact), self.runtime)

    def seconds(self, work: Work) -> tuple[float | None, str]:
        """Return the seconds of making an artefact alone, None if its size is unknown, and what they rest on.

        A finetune's include starting its workers; an engine is started once for all its cells (:meth:`start`).
        """
        artefact = work.artefact
        own = self.start("finetune", artefact) if artefact.kind == "finetune" else 0.0
        for key in _keys(artefact.kind, artefact.recipe):
            tokens, seconds, number = self._seen.get(key, (0.0, 0.0, 0))
            if tokens > 0:
                what = f"{key[2]} {key[0]}" if len(key) > 2 else key[0]
                basis = f"{tokens / seconds:,.0f} tokens/s, measured over {number} {what} in this store"
                return (own + work.reads / tokens * seconds if work.reads else None), basis
        spent, basis = self._default(work)
        return (own + spent if work.reads else None), f"{basis}; nothing measured in this store yet"

    def start(self, what: str, artefact: Artefact) -> float:
        """Return the seconds until the first token of one "finetune" or "engine"."""
        on = self.where(artefact)
        return 0.0 if on == "api" else STARTS[on][what]

    def _default(self, work: Work) -> tuple[float, str]:
        """Return the seconds by :mod:`kvray.planning.cost.speed`, and the words for it."""
        artefact, on, number = work.artefact, self.where(work.artefact), self.devices(work.artefact)
        if artefact.kind == "dataset":
            return work.reads / GENERATE, f"{GENERATE:,.0f} tokens/s, a rough default (one CPU core)"
        if on == "api":
            return self._behind_api(work)
        name = model_of(artefact, self.planned)
        size = self.size(name)
        known = f"{size.text} weights" if size else f"{name} taken as {UNKNOWN / 1e9:.0f}B weights"
        if size is None:
            size = Size(UNKNOWN, UNKNOWN) if on == "gpu" else Size(TINY, TINY)
            known = known if on == "gpu" else "taken as small as kvray-tiny"
        length = work.reads / max(1, work.rows)
        machine = f"assuming {number:g} 80 GB GPU{'s' * (number != 1)} each" if on == "gpu" else "on CPU cores"
        if number == 1 and on == "gpu":
            machine = "assuming one 80 GB GPU each"
        job = artefact.params
        if isinstance(job, FinetuneJob):
            recompute = self.runtime.gradient_checkpointing
            rate = size.train(on, number, length, job.finetune.method, recompute)
            return work.reads / rate, f"{rate:,.0f} tokens/s, a rough default ({known}, {machine})"
        read, write = size.read(on, number, length), size.write(on, number, length)
        basis = f"{read:,.0f} tokens/s read and {write:,.0f} written, a rough default ({known}, {machine})"
        return work.reads / read + work.writes / write, basis

    def _behind_api(self, work: Work) -> tuple[float, str]:
        if work.artefact.kind == "finetune":
            basis = f"{API_TRAIN:,.0f} tokens/s after {API_STARTS / 60:.0f} min in a queue, a rough default for an API"
            return API_STARTS + work.reads / API_TRAIN, basis
        each = API_ANSWER_S + work.writes / max(1, work.rows) / API_WRITE
        basis = f"{each:.1f} s a reply, {self.runtime.api_concurrency} at a time, a rough default for an API"
        return work.rows * each / self.runtime.api_concurrency, basis

    def size(self, model: str) -> Size | None:
        """Return :func:`kvray.planning.cost.speed.size_of` a model, looked at once."""
        if model not in self._sizes:
            self._sizes[model] = size_of(model)
        return self._sizes[model]


def measured_tokens(manifest: Manifest) -> int | None:
    """Return the tokens that a manifest counted, None if it has not."""
    tokens = manifest.measurements.get(_MEASURED.get(manifest.kind, ""))
    return int(tokens) if isinstance(tokens, int | float) and tokens > 0 else None


def _cpus(runtime: Runtime) -> int:
    return runtime.num_cpus or os.cpu_count() or 1


def _keys(kind: str, recipe: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return what rates are kept under, the closest first: kind, model, and the task or method that sets the pace."""
    model = str(recipe.get("writer") or recipe.get("base") or recipe.get("tokenizer"))
    inner = recipe.get("task") or recipe.get("scorer") or {}
    finetune = recipe.get("finetune") or {}
    like = str(inner.get("benchmark") or inner.get("task") or finetune.get("method") or "")
    return [(kind, model, like), (kind, model)] if like else [(kind, model)]
