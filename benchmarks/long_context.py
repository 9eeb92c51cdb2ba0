"""What a longer context costs: CPU time, tokens per second and peak memory of finetune and evaluate, by length.

Each length runs in a process of its own, whose start is left out. Time is CPU time of all threads, so that a busy
machine matters little. Finetune: one optimizer step on one row, LoRA, gradient checkpointing. Evaluate: three prompts
in one vLLM engine that has room for an adapter, read in chunks of 4,096 tokens; its key-value cache is held from the
start. Every figure also stands as a ratio to that of the first length in the same run: what a token costs more in a
longer context is attention; its memory should not grow.

    python benchmarks/long_context.py               4K to 32K tokens, about five minutes on two cores
    python benchmarks/long_context.py --lengths 4096 8192
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LENGTHS = (4096, 8192, 16384, 24576, 32640)
"""Tokens; the longest leaves kvray-tiny's 32,768 room for an answer."""
PROMPTS = 3


def peak() -> float:
    """Return the most memory that this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def finetune(model: str, length: int) -> dict[str, float]:
    """Train one step on one row of random tokens."""
    import numpy as np

    from kvray.finetune.encode import Encoded
    from kvray.finetune.placement import Shape
    from kvray.finetune.train import train
    from kvray.models.reference import resolve
    from kvray.sweep.model import Finetune, Runtime

    shape = Shape(workers=1, cpus=os.cpu_count() or 1, gpus=0)
    runtime = Runtime(per_device_batch_size=1, gradient_checkpointing=True)

    def step(tokens: int) -> float:
        started = time.process_time()
        ids = np.random.default_rng(tokens).integers(3, 1000, tokens).astype(np.int32)
        row = Encoded([ids], np.array([32], np.int32))
        with tempfile.TemporaryDirectory() as folder:
            recipe = Finetune(batch_size=1, epochs=1)
            train(resolve(model), row, recipe, 0, Path(folder), shape=shape, runtime=runtime)
        return time.process_time() - started

    step(64)  # imports, first use of every kernel
    around = step(64)
    before = peak()
    return {"tokens": length, "seconds": step(length) - around, "before": before, "peak": peak()}


def evaluate(model: str, length: int) -> dict[str, float]:
    """Answer prompts that share nothing."""
    import numpy as np

    from kvray.evaluate.engines.base import Request, Serving
    from kvray.evaluate.engines.vllm import VllmEngine
    from kvray.models.reference import resolve
    from kvray.sweep.model import Runtime

    drawn = np.random.default_rng(length).integers(3, 1000, (PROMPTS, length - 64)).astype(np.int32)
    VllmEngine.prepare(gpus=0, cpus=2)
    engine = VllmEngine(Serving(resolve(model), None, Runtime()))
    engine.start(length)
    list(engine.answer([(0, Request(drawn[0][:64], max_tokens=8))]))
    before, started = peak(), time.process_time()
    list(engine.answer((i, Request(prompt, max_tokens=32)) for i, prompt in enumerate(drawn)))
    seconds = time.process_time() - started
    return {"tokens": drawn.size, "seconds": seconds, "before": before, "peak": peak()}


def table(stage: str, model: str, lengths: list[int]) -> None:
    """Run a stage at every length and print its table."""
    print(f"\n{stage}, {model}; of the peak: what the length adds to the start")
    print(f"{'tokens':>8}  {'CPU s':>8} {'x':>6}  {'tokens/s':>9} {'x':>5}  {'peak MiB':>9} {'of these':>11} {'x':>6}")
    first: dict[str, float] = {}
    for length in lengths:
        asked = [sys.executable, __file__, "--stage", stage, "--base-model", model, "--lengths", str(length)]
        # Threads that wait for each other sleep: spinning would count as work.
        env = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        done = subprocess.run(asked, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env)
        found = json.loads(done.stdout.strip().splitlines()[-1])
        seconds, rate = found["seconds"], found["tokens"] / found["seconds"]
        grown = found["peak"] - found["before"]
        first = first or {"seconds": seconds, "rate": rate, "grown": grown}
        print(
            f"{length:>8,}  {seconds:>8.1f} {seconds / first['seconds']:>6.1f}  {rate:>9,.0f} "
            f"{rate / first['rate']:>5.2f}  {found['peak']:>9,.0f} {grown:>11,.0f} {grown / first['grown']:>6.1f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model", default="kvray-tiny")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--stage", choices=["finetune", "evaluate"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stage:
        stage = finetune if given.stage == "finetune" else evaluate
        print(json.dumps(stage(given.base_model, given.lengths[0])))
        return
    for stage_name in ("finetune", "evaluate"):
        table(stage_name, given.base_model, given.lengths)


if __name__ == "__main__":
    main()
