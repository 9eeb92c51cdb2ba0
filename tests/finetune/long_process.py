"""Trains on one row, then on a longer one, and writes what that took: ``long_process.py JSON``."""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

import numpy as np

from kvray.finetune.encode import Encoded
from kvray.finetune.placement import Shape
from kvray.finetune.train import train
from kvray.models.reference import resolve
from kvray.sweep.model import Finetune, Runtime

ANSWER = 16


def rows_of(length: int, count: int) -> Encoded:
    """Return rows of random tokens, the last :data:`ANSWER` of each the answer."""
    ids = np.random.default_rng(length).integers(3, 1000, count * length).astype(np.int32)
    return Encoded(np.split(ids, count), np.full(count, ANSWER, np.int32))


def main() -> None:
    """Train one step on two rows of each length; write the losses and the peak memory (MiB) after each."""
    asked = json.loads(sys.argv[1])
    out = Path(asked["out"]) / os.environ.get("RANK", "0")
    runtime = Runtime(per_device_batch_size=1, **asked["runtime"])
    found = {}
    for length in asked["lengths"]:
        done = train(
            resolve(asked["base"]),
            rows_of(length, 2),
            Finetune(batch_size=2, epochs=1, learning_rate=1e-3),
            0,
            out / str(length),
            shape=Shape(runtime.workers_per_finetune, cpus=1, gpus=0),
            runtime=runtime,
        )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found[length] = {"loss": done.log[0]["loss"], "norm": done.log[0]["grad_norm"], "peak": peak}
        found[length]["strategy"] = done.measurements["strategy"]
    out.mkdir(exist_ok=True)
    (out / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
