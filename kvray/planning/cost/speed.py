"""How fast a model of some size trains, reads and writes where nothing was measured: rough, to within a factor of two.

A GPU is counted in floating-point operations. Per token and weight that works, reading takes 2 of them, training 6, or
less where most weights are frozen; attention over a context of ``n`` tokens adds the share ``n / 12 d`` (``d``: hidden
size; Kaplan et al. 2020, arXiv 2001.08361, table 1), which is 8 % at 4K and half at 24K for a 7B model. Writing is
bound by memory: a token costs its part of one pass over the weights and over its own key-value cache, which at 4K is as
much again. The constants are those of an 80 GB A100 in bfloat16 (an H100 takes about half the time); on a CPU they are
what kvray-tiny took in the quickstart, two cores, and other sizes are scaled from it.
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kvray.models.reference import BUNDLED

Machine = Literal["cpu", "gpu"]

GPU_BYTES = 80e9
TRAIN_FLOPS, READ_FLOPS = 120e12, 150e12
"""Floating-point operations per second that a GPU does: 38 % and 48 % of an A100's peak."""
TRAIN_COSTS = {"full": 6.0, "attention": 4.4, "lora": 4.2}
"""Operations per token and weight: forward 2, back through activations 2, and 2 for every weight that trains, of which
a fifth of a Mistral's lie in its attention layers."""
RECOMPUTED = 2.0
"""Further ones with gradient checkpointing, which does the forward pass twice."""
WRITE_TOKENS_7B = 4_000.0
"""Tokens per second that a 7B model writes on one GPU, all requests together, over short contexts."""
CACHED_CONTEXT = 4_000.0
"""Context at which reading the key-value cache has doubled the time of a written token."""
ATTENTION_7B = 50_000.0
"""Context at which attention costs as much as the weights of a 7B model: 12 x 4,096. It grows with the hidden size."""
CPU_TRAIN, CPU_READ, CPU_WRITE, CPU_CONTEXT = 5_000.0, 40_000.0, 4_000.0, 800.0
"""Tokens per second of kvray-tiny, one finetune or engine, and the length of the rows at which they were seen."""
TINY, UNKNOWN = 1.0e6, 7.0e9
"""Weights assumed of a model whose name does not tell: on a CPU, on a GPU."""
API_STARTS, API_TRAIN, API_WRITE, API_ANSWER_S = 600.0, 2_000.0, 60.0, 1.0
"""Behind an API: seconds a training job waits, tokens per second it trains, tokens per second of a reply, latency."""

_EXPERTS = re.compile(r"(?<![\w.])(\d+)x(\d+(?:\.\d+)?)b(?![a-z])", re.IGNORECASE)
_PLAIN = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)([bm])(?![a-z\d])", re.IGNORECASE)
_ACTIVE = re.compile(r"(?<![a-z\d])a(\d+(?:\.\d+)?)b(?![a-z\d])", re.IGNORECASE)


def size_of(name: str) -> Size | None:
    """Return how many weights a model has: of a directory by its files, else by its name; None if neither tells.

    Mixtures of experts: ``8x7B`` is taken as Mixtral is, with 83 % of 8 times 7B in all, two of the experts at work;
    ``30B-A3B`` says it itself.
    """
    path = BUNDLED.get(name) or Path(os.path.expanduser(name))
    if path.is_dir():
        weights = sum(_weights(file) for file in sorted(path.glob("*.safetensors")))
        return Size(weights, weights) if weights else None
    model = name.rsplit("/", 1)[-1].replace("_", "-")
    if found := _EXPERTS.search(model):
        experts, each = int(found[1]), float(found[2]) * 1e9
        return Size(0.83 * experts * each, 1.85 * each)
    if found := _PLAIN.search(model):
        total = float(found[1]) * (1e9 if found[2] in "bB" else 1e6)
        active = _ACTIVE.search(model)
        return Size(total, float(active[1]) * 1e9 if active else total)
    return None


def _weights(safetensors: Path) -> float:
    with safetensors.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return float(sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__"))


@dataclass(frozen=True)
class Size:
    """Weights of a model; speeds are in tokens per second.

    Attributes:
        total: all of them.
        active: that a token passes through; fewer than all in a mixture of experts.
    """

    total: float
    active: float

    @property
    def text(self) -> str:
        """The size as people say it: ``7B``, ``1M``."""
        return f"{self.total / 1e9:.3g}B" if self.total >= 1e9 else f"{self.total / 1e6:.3g}M"

    def train(self, machine: Machine, devices: float, length: float, method: str, recompute: bool) -> float:
        """Return the speed of one finetune at rows of ``length`` tokens."""
        cost = TRAIN_COSTS.get(method, TRAIN_COSTS["full"]) + (RECOMPUTED if recompute else 0.0)
        if machine == "cpu":
            return self._on_cpu(CPU_TRAIN, length) * TRAIN_COSTS["lora"] / cost
        return devices * TRAIN_FLOPS / (cost * self.active * self._attention(length))

    def read(self, machine: Machine, devices: float, length: float) -> float:
        """Return the speed at which one engine reads prompts of ``length`` tokens."""
        if machine == "cpu":
            return self._on_cpu(CPU_READ, length)
        return devices * READ_FLOPS / (2 * self.active * self._attention(length))

    def write(self, machine: Machine, devices: float, length: float) -> float:
        """Return the speed at which one engine writes, all requests together, after ``length`` tokens each."""
        if machine == "cpu":
            return self._on_cpu(CPU_WRITE, length)
        return devices * WRITE_TOKENS_7B * 7e9 / self.active / (1 + length / CACHED_CONTEXT)

    def _on_cpu(self, tiny: float, length: float) -> float:
        return tiny * Size(TINY, TINY)._attention(CPU_CONTEXT) / (self.active / TINY * self._attention(length))

    def _attention(self, length: float) -> float:
        """Return the operations of a token as a multiple of those of the weights alone."""
        return 1 + length / (ATTENTION_7B * math.cbrt(self.active / 7e9))
