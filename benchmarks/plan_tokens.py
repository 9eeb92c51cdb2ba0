"""What a plan says of every mixture beside what the run makes: tokens of one epoch, planned and counted row by row.

The plan estimates large datasets by a sample of their rows. Here all rows are made, encoded as training encodes them
and mixed as a finetune mixes them; nothing is trained, and no Ray is started. Prints the ratio of each mixture's first
seed and the widest one. Mixtures whose data cannot be made here (a writer's model, a source out of reach) are named.

    python benchmarks/plan_tokens.py sweeps/quickstart.yaml
    NQ_OPEN=nq-open-oracle.jsonl.gz python benchmarks/plan_tokens.py sweeps/paper/*.yaml --base-model DIRECTORY
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

from kvray.driver.run import prepare
from kvray.errors import InputError, KvrayError
from kvray.finetune.encode import count
from kvray.models.chat import prompts_of
from kvray.models.reference import BaseModelRef, files_of, load_tokenizer
from kvray.models.tokenizer import token_counter
from kvray.planning.artefacts import FinetuneJob, Plan
from kvray.planning.mixture import mix
from kvray.tasks.base import Task

BLOCK = 64  # rows made at once


def trained_tokens(task: Task, base: BaseModelRef) -> NDArray[np.int64]:
    """Return the tokens of every row of a task as a finetune reads it, shape ``(rows,)``."""
    if task.writer():
        raise InputError(f"{task.writer()} writes a part of {task.task}")
    files, tokenizer = files_of(base), load_tokenizer(base)
    context = task.context(token_counter(base))
    rows = task.count(context)
    lengths = []
    for start in range(0, rows, BLOCK):
        table = task.build(start, min(start + BLOCK, rows), context)
        ends = files.end_ids if files else ()
        lengths.append(count(tokenizer, prompts_of(table), table["answer"].to_pylist(), end_ids=ends))
    return np.concatenate(lengths)


def compare(plan: Plan, base: BaseModelRef) -> list[float]:
    """Print planned and made tokens of every mixture's first finetune; return the ratios."""
    tasks = {each.id: each.params for each in plan.artefacts if isinstance(each.params, Task)}
    known: dict[str, NDArray[np.int64]] = {}
    seen, ratios = set(), []
    for artefact in plan.artefacts:
        job, name = artefact.params, artefact.labels.get("mixture")
        if not isinstance(job, FinetuneJob) or name in seen:
            continue
        seen.add(name)
        try:
            for data, _ in (*job.mixture, *job.budget):
                if data not in known:
                    known[data] = trained_tokens(tasks[data], base)
            made = mix(job, known.__getitem__).measurements()["tokens_per_epoch"] * job.finetune.epochs
        except KvrayError as error:
            print(f"  {name:24} planned {artefact.tokens:>11,}  not made: {error}", flush=True)
            continue
        ratios.append(artefact.tokens / made)
        print(f"  {name:24} planned {artefact.tokens:>11,}  made {made:>13,.0f}  ratio {ratios[-1]:.4f}", flush=True)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--base-model", help="a directory with the tokenizer and sizes, as for kvray plan")
    options = parser.parse_args()
    ratios = []
    for file in options.files:
        print(file, flush=True)
        try:
            ratios += compare(*prepare(file, base_model=options.base_model, offline=True))
        except InputError as error:
            print(f"  no plan: {error}", flush=True)
    if ratios:
        print(f"{len(ratios)} mixtures: planned / made from {min(ratios):.4f} to {max(ratios):.4f}")


if __name__ == "__main__":
    main()
