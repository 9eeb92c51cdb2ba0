"""What each kind of work runs on and how fast it goes: measured from the store's manifests, or a stated default."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from kvray.models.reference import API, BUNDLED
from kvray.planning.artefacts import Artefact, FinetuneJob, Kind, Plan, WritingJob
from kvray.planning.cost.speed import API_ANSWER_S, API_STARTS, API_TRAIN, API_WRITE, TINY, UNKNOWN, Size, size_of
from kvray.store.manifest import Manifest
from kvray.store.provenance import hardware

Where = Literal["cpu", "gpu", "api"]

GENERATE = 100_000.0
"""Tokens of examples that one process makes per second, for tasks that tokenize every prompt."""
STARTS = {"cpu": {"finetune": 12.0, "engine": 20.0}, "gpu": {"finetune": 45.0, "engine": 90.0}}
"""Seconds until the first token: of each finetune's workers, of each engine."""
_SMALL = 2e8
"""Weights up to which a model that lies on this machine is taken to run on its CPU."""


def model_of(artefact: Artefact, planned: Plan) -> str:
    """Return the name of the model that makes an artefact."""
    return artefact.params.writer if isinstance(artefact.params, WritingJob) else planned.base_model


def measured_tokens(manifest: Manifest) -> int | None:
    """Return the tokens that a manifest counted, None if it has not."""
    tokens = manifest.measurements.get("trained_tokens" if manifest.kind == "finetune" else "prompt_tokens")
    return int(tokens) if isinstance(tokens, int | float) and tokens > 0 else None


class Rates:
    """Estimates throughput from manifests of the same task or method on the same model, else of the same kind of
    artefact on that model, else from defaults.
    """  # noqa: D205

    def __init__(self, manifests: Iterable[Manifest], planned: Plan) -> None:
        """Take the store's manifests and the plan whose sweep says where it runs."""
        self.planned = planned
        self.runtime = planned.sweep.runtime
        self.size = functools.cache(size_of)
        self._measured: dict[tuple[str, ...], list[tuple[float, float]]] = {}
        for manifest in manifests:
            tokens, seconds = measured_tokens(manifest), manifest.measurements.get("seconds")
            if tokens and isinstance(seconds, int | float) and seconds > 0:
                for key in _keys(manifest.kind, manifest.recipe):
                    self._measured.setdefault(key, []).append((tokens, seconds))

    def where(self, artefact: Artefact) -> Where:
        """Return what an artefact is to be made on: as the sweep or this host says, else assumed by the model.

        A plan is often made elsewhere than it is run. So a model of the hub, or one too large for a CPU, is taken to
        run on GPUs even if this host has none, unless the sweep asks for none.
        """
        model, runtime = model_of(artefact, self.planned), self.runtime
        if artefact.kind == "dataset":
            return "cpu"
        if model.startswith(API):
            return "api"
        asked = runtime.gpus_per_finetune if artefact.kind == "finetune" else runtime.gpus_per_engine
        if asked is not None:
            return "gpu" if asked > 0 else "cpu"
        if hardware()["gpus"] or runtime.gpus_per_finetune or runtime.gpus_per_engine:
            return "gpu"
        size = self.size(model)
        hub = model not in BUNDLED and "/" in model and not os.path.isdir(os.path.expanduser(model))
        return "gpu" if hub or (size is not None and size.total > _SMALL) else "cpu"

    def devices(self, kind: Kind, on: Where) -> float:
        """Return how many GPUs (on "gpu") or CPUs (on "cpu") one artefact of a kind, or one engine, holds."""
        runtime = self.runtime
        if on == "api":
            return 0.0
        if kind == "dataset":
            return 1.0
        if kind == "finetune":
            each = (runtime.gpus_per_finetune or 1.0) if on == "gpu" else runtime.cpus_per_finetune
            return runtime.workers_per_finetune * each
        if on == "gpu":
            return runtime.gpus_per_engine or float(runtime.tensor_parallel)
        return runtime.cpus_per_engine or self._cpus / runtime.engines

    def at_once(self, kind: Kind, on: Where) -> int:
        """Return how many artefacts (datasets: shards) of a kind are about to run side by side.

        Of a cluster nothing is known before it is asked, nor of GPUs that this host has not: there one is assumed where
        the sweep does not say.
        """
        runtime, gpus = self.runtime, len(hardware()["gpus"])
        local = not (runtime.address or os.environ.get("RAY_ADDRESS"))
        if kind == "dataset":
            return self._cpus if local else 1
        if kind != "finetune":
            return runtime.engines if on != "api" else 1
        known = self._cpus if on == "cpu" else gpus if on == "gpu" else 0
        if not local or not known:
            return runtime.concurrent_finetunes or 1
        fit = max(1, int(known / self.devices(kind, on)))
        return min(fit, runtime.concurrent_finetunes or fit)

    def start(self, what: Literal["finetune", "engine"], on: Where) -> float:
        """Return the seconds until the first token of one finetune or engine."""
        return 0.0 if on == "api" else STARTS[on][what]

    def seconds(self, artefact: Artefact, reads: int, writes: int, rows: int) -> tuple[float | None, str]:
        """Return the seconds of making an artefact alone, None if its size is unknown, and what they rest on.

        A finetune's include starting its workers; an engine is started once for all its cells.

        Args:
            artefact: what is made.
            reads: tokens of prompts, or of training over all epochs; 0 if unknown.
            writes: tokens of replies.
            rows: prompts or rows, over all epochs.
        """
        for key in _keys(artefact.kind, artefact.recipe):
            if key in self._measured:
                tokens, spent = (sum(each) for each in zip(*self._measured[key], strict=True))
                seconds, what = reads / tokens * spent, f"{key[2]} {key[0]}" if len(key) > 2 else key[0]
                basis = f"{tokens / spent:,.0f} tokens/s, measured over {len(self._measured[key])} {what} in this store"
                break
        else:
            seconds, basis = self._default(artefact, reads, writes, rows)
            basis += "; nothing measured in this store yet"
        starts = self.start("finetune", self.where(artefact)) if artefact.kind == "finetune" else 0.0
        return (starts + seconds if reads else None), basis

    def _default(self, artefact: Artefact, reads: int, writes: int, rows: int) -> tuple[float, str]:
        on, job, each = self.where(artefact), artefact.params, max(1, rows)
        if artefact.kind == "dataset":
            return reads / GENERATE, f"{GENERATE:,.0f} tokens/s, a rough default (one CPU core)"
        if on == "api" and artefact.kind == "finetune":
            basis = f"{API_TRAIN:,.0f} tokens/s after {API_STARTS / 60:.0f} min in a queue, a rough default for an API"
            return API_STARTS + reads / API_TRAIN, basis
        if on == "api":
            reply, at_once = API_ANSWER_S + writes / each / API_WRITE, self.runtime.api_concurrency
            return rows * reply / at_once, f"{reply:.1f} s a reply, {at_once} at a time, a rough default for an API"
        number, name = self.devices(artefact.kind, on), model_of(artefact, self.planned)
        machine = "on CPU cores"
        if on == "gpu":
            machine = f"assuming {number:g} 80 GB GPUs each" if number != 1 else "assuming one 80 GB GPU each"
        if size := self.size(name):
            known = f"{size.text} weights"
        elif on == "gpu":
            size, known = Size(UNKNOWN, UNKNOWN), f"{name} taken as {UNKNOWN / 1e9:.0f}B weights"
        else:
            size, known = Size(TINY, TINY), "taken as small as kvray-tiny"
        if isinstance(job, FinetuneJob):
            train = size.train(on, number, reads / each, job.finetune.method, self.runtime.gradient_checkpointing)
            return reads / train, f"{train:,.0f} tokens/s, a rough default ({known}, {machine})"
        read, write = size.read(on, number, reads / each), size.write(on, number, reads / each)
        basis = f"{read:,.0f} tokens/s read and {write:,.0f} written, a rough default ({known}, {machine})"
        return reads / read + writes / write, basis

    @property
    def _cpus(self) -> int:
        return self.runtime.num_cpus or os.cpu_count() or 1


def _keys(kind: str, recipe: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return what rates are kept under, the closest first: kind, model, and the task or method that sets the pace."""
    model = str(recipe.get("writer") or recipe.get("base") or recipe.get("tokenizer"))
    inner = recipe.get("task") or recipe.get("scorer") or {}
    finetune = recipe.get("finetune") or {}
    like = str(inner.get("benchmark") or inner.get("task") or finetune.get("method") or "")
    return [(kind, model, like), (kind, model)] if like else [(kind, model)]
