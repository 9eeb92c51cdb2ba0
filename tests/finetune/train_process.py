"""Runs one finetune in a process of its own, for tests that kill it or need several: ``train_process.py JSON``."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from kvray.finetune import model as models
from kvray.finetune.encode import Encoded
from kvray.finetune.placement import Shape
from kvray.finetune.train import train
from kvray.models.reference import resolve
from kvray.sweep.model import Finetune, Runtime


def main() -> None:
    """Train as asked; with ``kill_at`` die by SIGKILL when the checkpoint of that step has been written."""
    asked = json.loads(sys.argv[1])
    runtime = Runtime(**asked["runtime"])
    out = Path(asked["out"]) / os.environ.get("RANK", "0")

    def on_checkpoint(path: Path, step: int) -> None:
        if step == asked.get("kill_at"):
            os.kill(os.getpid(), signal.SIGKILL)

    loaded = []
    load = models.load

    def noted(*args: Any, **options: Any) -> Any:
        model = load(*args, **options)
        loaded.append(any(bool(weight.any()) for weight in model.parameters()))
        return model

    models.load = noted  # type: ignore[assignment]
    with np.load(asked["rows"]) as arrays:
        rows = Encoded(np.split(arrays["ids"], np.cumsum(arrays["lengths"])[:-1]), arrays["answers"])
    done = train(
        resolve(asked["base"]),
        rows,
        Finetune(**asked["recipe"]),
        asked.get("seed", 0),
        out,
        shape=Shape(runtime.workers_per_finetune, cpus=1, gpus=0),
        runtime=runtime,
        resume_from=Path(asked["resume_from"]) if "resume_from" in asked else None,
        on_checkpoint=on_checkpoint,
    )
    out.mkdir(exist_ok=True)
    (out / "log.json").write_text(json.dumps(done.log))
    (out / "strategy.json").write_text(json.dumps(done.measurements["strategy"]))
    (out / "loaded.json").write_text(json.dumps(loaded == [True]))


if __name__ == "__main__":
    main()
