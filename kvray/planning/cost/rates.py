"""How fast each artefact of a plan is made and on what: measured from the store's manifests, else a rough default.

Defaults are good to within a factor of two. A token takes 2 operations per weight it passes through to be read, and
more to be trained on; attention over a context of ``n`` tokens adds the share ``n / 12 d`` (``d``: hidden size; Kaplan
et al. 2020, arXiv 2001.08361, table 1). Writing on a GPU is bound by memory instead: by the passes over the weights and
over the key-value cache.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kvray.errors import InputError, first_line
from kvray.models.reference import API, BUNDLED
from kvray.planning.artefacts import Artefact, FinetuneJob, Kind, Plan, WritingJob
from kvray.store.manifest import Manifest, hardware

Where = Literal["cpu", "gpu", "api"]

OPERATIONS = {
    "gpu": {"train": 120e12, "read": 150e12, "write": 56e12},
    "cpu": {"train": 27.4e9, "read": 104.5e9, "write": 10.45e9},
}
"""Per second: of one 80 GB A100 in bfloat16 (an H100 does about twice as many; writing: 4,000 tokens of a 7B model, all
requests together), and of the two CPU cores on which kvray-tiny went through the quickstart."""
TRAINING = {"full": 6.0, "attention": 4.4, "lora": 4.2}
"""Operations per token and weight: forward 2, back through activations 2, and 2 for every weight that trains, of which
a fifth of a Mistral's lie in its attention layers."""
CHECKPOINTING = 2.0  # further ones with gradient checkpointing, which does the forward pass twice
ATTENTION_7B = 50_000.0
"""Context at which attention costs a 7B model as much as its weights: 12 x 4,096. It grows with the hidden size."""
CACHED_CONTEXT = 4_000.0  # context at which reading the key-value cache has doubled the time of a token a GPU writes
GENERATE = 100_000.0  # tokens of examples that one process makes per second, for tasks that tokenize every prompt
STARTS = {"cpu": {"finetune": 12.0, "engine": 20.0}, "gpu": {"finetune": 45.0, "engine": 90.0}}
"""Seconds until the first token: of each finetune's workers, of each engine."""
API_STARTS, API_TRAIN, API_WRITE, API_ANSWER_S = 600.0, 2_000.0, 60.0, 1.0
"""Behind an API: seconds a training job waits, tokens per second it trains, tokens per second of a reply, latency."""
_SMALL = 2e8  # weights up to which a model that lies on this machine is taken to run on its CPU

_WEIGHTS = re.compile(r"(?<![\w.])(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?![a-z\d])", re.IGNORECASE)
_ACTIVE = re.compile(r"(?<![a-z\d])a(\d+(?:\.\d+)?)b(?![a-z\d])", re.IGNORECASE)


class Size(NamedTuple):
    """Weights of a model: all of them, and those that a token passes through (fewer in a mixture of experts)."""

    total: float
    active: float

    def __str__(self) -> str:
        return f"{self.total / 1e9:.3g}B" if self.total >= 1e9 else f"{self.total / 1e6:.3g}M"


def size_of(name: str) -> Size | None:
    """Return how many weights a model has: of a directory by its files, else by its name; None if neither tells.

    Raises InputError if a safetensors file of the directory cannot be read.
    """
    path = BUNDLED.get(name) or Path(os.path.expanduser(name))
    if path.is_dir():
        weights = float(sum(_weights(file) for file in path.glob("*.safetensors")))
        return Size(weights, weights) if weights else None
    model = name.rsplit("/", 1)[-1].replace("_", "-")
    match, active = _WEIGHTS.search(model), _ACTIVE.search(model)
    if not match:
        return None
    each = float(match[2]) * (1e9 if match[3] in "bB" else 1e6)
    if match[1]:  # 8x7B is taken as Mixtral is: 83 % of 8 times 7B in all, two of the experts at work
        return Size(0.83 * int(match[1]) * each, 1.85 * each)
    return Size(each, float(active[1]) * 1e9 if active else each)  # 30B-A3B names its active weights


def _weights(file: Path) -> int:
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if size > file.stat().st_size:
                raise ValueError("the file ends before its header does")
            header = json.loads(stream.read(size))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise InputError(
            f"{file}: found no readable safetensors header ({first_line(error)}), expected one that lists every tensor "
            "with its shape; the file is damaged or of another format: copy or download it again"
        ) from error


_UNKNOWN = {"cpu": Size(1e6, 1e6), "gpu": Size(7e9, 7e9)}  # taken for a model whose size nothing tells


def default_speed(size: Size, on: str, what: str, length: float, devices: float = 1.0, cost: float = 2.0) -> float:
    """Return the tokens per second of one finetune or engine where nothing was measured.

    On "gpu" or "cpu" it does "train", "read" or "write" rows of ``length`` tokens, at ``cost`` operations per token and
    weight. ``devices`` are the GPUs that it holds; all CPU cores count as one.
    """
    context = ATTENTION_7B * math.cbrt(size.active / 7e9) if (on, what) != ("gpu", "write") else CACHED_CONTEXT
    operations = OPERATIONS[on][what] * (devices if on == "gpu" else 1)
    return operations / (cost * size.active * (1 + length / context))


def model_of(artefact: Artefact, planned: Plan) -> str:
    """Return the name of the model that makes an artefact."""
    return artefact.params.writer if isinstance(artefact.params, WritingJob) else planned.base_model


def measured_tokens(manifest: Manifest) -> int | None:
    """Return the tokens that a manifest counted, None if it has not."""
    tokens = manifest.measurements.get("trained_tokens" if manifest.kind == "finetune" else "prompt_tokens")
    return int(tokens) if isinstance(tokens, int | float) and tokens > 0 else None


class Rates:
    """Throughput: measured for a model's same task or method, else its same kind of artefact, else a default."""

    def __init__(self, manifests: Iterable[Manifest], planned: Plan) -> None:
        self.planned, self.runtime = planned, planned.sweep.runtime
        self.cpus = self.runtime.num_cpus or os.cpu_count() or 1
        self.sizes = {name: size_of(name) for name in {model_of(each, planned) for each in planned.artefacts}}
        self._measured: dict[tuple[str, ...], list[tuple[float, float]]] = {}
        for manifest in manifests:
            tokens, seconds = measured_tokens(manifest), manifest.measurements.get("seconds")
            if tokens and isinstance(seconds, int | float) and seconds > 0:
                for key in keys(manifest.kind, manifest.recipe):
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
        size = self.sizes[model]
        hub = model not in BUNDLED and "/" in model and not os.path.isdir(os.path.expanduser(model))
        has_gpus = hardware()["gpus"] or runtime.gpus_per_finetune or runtime.gpus_per_engine
        return "gpu" if has_gpus or hub or (size and size.total > _SMALL) else "cpu"

    def room(self, kind: Kind, on: Where) -> tuple[float, int]:
        """Return how many GPUs or CPUs one artefact or engine holds, and how many (datasets: shards) run side by side.

        Of a cluster nothing is known before it is asked, nor of GPUs that this host has not: there one is assumed where
        the sweep does not say.
        """
        runtime, gpu = self.runtime, on == "gpu"
        local = not (runtime.address or os.environ.get("RAY_ADDRESS"))
        if kind == "dataset":
            return 1.0, self.cpus if local else 1
        if on == "api":
            return 0.0, (runtime.concurrent_finetunes or 1) if kind == "finetune" else 1
        if kind != "finetune":
            gpus, cpus = runtime.gpus_per_engine or runtime.tensor_parallel, runtime.cpus_per_engine
            return float(gpus if gpu else cpus or self.cpus / runtime.engines), runtime.engines
        each = (runtime.gpus_per_finetune or 1.0) if gpu else runtime.cpus_per_finetune
        held, known = runtime.workers_per_finetune * each, len(hardware()["gpus"]) if gpu else self.cpus
        fit = max(1, int(known / held)) if local and known else runtime.concurrent_finetunes or 1
        return held, min(fit, runtime.concurrent_finetunes or fit)

    def seconds(self, artefact: Artefact, reads: int, writes: int, rows: int) -> tuple[float | None, str]:
        """Return the seconds of making an artefact alone, None if its size is unknown, and what they rest on.

        Reads, writes and rows as in :class:`~kvray.planning.cost.estimate.Item`. A finetune's seconds include starting
        its workers; an engine is started once for all its cells.
        """
        on = self.where(artefact)
        measured = (key for key in keys(artefact.kind, artefact.recipe) if key in self._measured)
        if key := next(measured, None):
            tokens, spent = (sum(each) for each in zip(*self._measured[key], strict=True))
            seconds, count, what = reads / tokens * spent, len(self._measured[key]), " ".join([*key[2:], key[0]])
            basis = f"{tokens / spent:,.0f} tokens/s, measured over {count} {what} in this store"
        else:
            seconds, basis = self._default(artefact, on, reads, writes, max(1, rows))
            basis += "; nothing measured in this store yet"
        if artefact.kind == "finetune" and on != "api":
            seconds += STARTS[on]["finetune"]
        return (seconds if reads else None), basis

    def _default(self, artefact: Artefact, on: Where, reads: int, writes: int, rows: int) -> tuple[float, str]:
        if artefact.kind == "dataset":
            return reads / GENERATE, f"{GENERATE:,.0f} tokens/s, a rough default (one CPU core)"
        if on == "api" and artefact.kind == "finetune":
            basis = f"{API_TRAIN:,.0f} tokens/s after {API_STARTS / 60:.0f} min in a queue, a rough default for an API"
            return API_STARTS + reads / API_TRAIN, basis
        if on == "api":
            reply, at_once = API_ANSWER_S + writes / rows / API_WRITE, self.runtime.api_concurrency
            return rows * reply / at_once, f"{reply:.1f} s a reply, {at_once} at a time, a rough default for an API"
        job, name, number = artefact.params, model_of(artefact, self.planned), self.room(artefact.kind, on)[0]
        size = self.sizes[name] or _UNKNOWN[on]
        weights = f"{size} weights" if self.sizes[name] else f"{name} taken as {size} weights"
        held = f"assuming {'one 80 GB GPU' if number == 1 else f'{number:g} 80 GB GPUs'} each"
        source = f"a rough default ({weights}, {held if on == 'gpu' else 'on CPU cores'})"
        if isinstance(job, FinetuneJob):
            cost = TRAINING.get(job.finetune.method, TRAINING["full"])
            cost += CHECKPOINTING if self.runtime.gradient_checkpointing else 0
            train = default_speed(size, on, "train", reads / rows, number, cost)
            return reads / train, f"{train:,.0f} tokens/s, {source}"
        read, write = (default_speed(size, on, what, reads / rows, number) for what in ("read", "write"))
        return reads / read + writes / write, f"{read:,.0f} tokens/s read and {write:,.0f} written, {source}"


def keys(kind: str, recipe: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return what rates are kept under, the closest first: kind, model, and the task or method that sets the pace."""
    model = str(recipe.get("writer") or recipe.get("base") or recipe.get("tokenizer"))
    inner, finetune = recipe.get("task") or recipe.get("scorer") or {}, recipe.get("finetune") or {}
    like = str(inner.get("benchmark") or inner.get("task") or finetune.get("method") or "")
    return [(kind, model, like), (kind, model)] if like else [(kind, model)]
