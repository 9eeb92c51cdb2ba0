"""Rows per second and core of simple_kv at the paper's size, Parquet write included, beside plain Python.

The reference makes the same law row by row with the standard library, counts the tokens of each prompt with the
tokenizer (twice, as the paper's law asks: gold dictionary first, and as emitted) and writes the same Parquet. Both run
on one core, in turns, in the same process. Rows are per second of CPU time, so that a busy machine matters little.

    python benchmarks/generate.py                   the table
    python benchmarks/generate.py --rows 1000000    one big dataset: seconds and peak memory
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core for both

import pyarrow as pa

from kvray.cli.export import make
from kvray.generate.job import ROWS_PER_SHARD, build, context_of
from kvray.models.reference import BaseModelRef, resolve
from kvray.store.schemas import EXAMPLE_SCHEMA
from kvray.store.store import Store
from kvray.tasks.base import CountTokens
from kvray.tasks.kv.simple import SimpleKV
from kvray.tasks.prompts import KV_ANSWER, KV_HEAD, KV_TAIL, KV_TEMPLATE


def integer(rng: random.Random) -> int:
    digits = rng.randint(3, 4)
    return rng.randint(10 ** (digits - 1), 10**digits - 1)


def prompt(dictionaries: list[dict[int, int]], key: int) -> str:
    lines = "\n".join(f"Dictionary [{number}] {dictionary}" for number, dictionary in enumerate(dictionaries, 1))
    return KV_HEAD + lines + (KV_TAIL + KV_TEMPLATE).format(key=key)


def pair(rng: random.Random, key: int, value: int) -> tuple[int, int]:
    while True:
        drawn = integer(rng), integer(rng)
        if drawn[0] != key and drawn[1] != value:
            return drawn


def plain_row(row: int, task: SimpleKV, count_tokens: CountTokens) -> dict[str, object]:
    """Make one row of law paper the plain way. Positions are uniform: forcing some costs nothing."""
    rng = random.Random(f"{task.seed}/{row}")
    position = rng.randrange(task.dictionaries)
    for _ in range(1001):
        key, value = integer(rng), integer(rng)
        pairs = [pair(rng, key, value) for _ in range(2)]
        pairs.insert(rng.randrange(3), (key, value))
        others = [dict(pair(rng, key, value) for _ in range(rng.randint(3, 4))) for _ in range(task.dictionaries - 1)]
        if count_tokens([prompt([dict(pairs), *others], key)])[0] >= task.max_tokens - 100:
            continue
        text = prompt([*others[:position], dict(pairs), *others[position:]], key)
        tokens = int(count_tokens([text])[0])
        if tokens < task.max_tokens - 30:
            answer = KV_ANSWER.format(key=key, value=value, dictionary=position + 1)
            return {
                **{"example_id": f"row-{row}", "question_id": f"row-{row}", "position": position + 1},
                **{"units": task.dictionaries, "length": None, "prompt": text, "answer": answer},
                **{"references": [answer], "prompt_tokens": tokens},
            }
    raise RuntimeError(f"row {row} does not fit")


def rate(work: Callable[[range], object], rows: range, step: int) -> float:
    """Return rows per second of CPU time, so that a busy machine does not matter."""
    started = time.process_time()
    for at in range(rows.start, rows.stop, step):
        work(range(at, min(at + step, rows.stop)))
    return len(rows) / (time.process_time() - started)


def table(base: BaseModelRef) -> None:
    ratios = []
    print(f"simple_kv, 85 dictionaries, 4,096 tokens, law paper; tokenizer of {base.name}; one core, rows per second")
    print(f"{'round':>5}  {'kvray':>10}  {'plain Python':>12}  {'ratio':>6}")
    with tempfile.TemporaryDirectory() as folder:
        store, task = Store(folder), SimpleKV(rows=100_000)
        count_tokens = context_of(task, base).count_tokens
        name = "datasets/benchmark-{}"

        def ours(rows: range) -> None:
            store.write(name.format("ours"), f"{rows.start}.parquet", build(task, base, rows))

        def plain(rows: range) -> None:
            made = pa.Table.from_pylist([plain_row(row, task, count_tokens) for row in rows], EXAMPLE_SCHEMA)
            store.write(name.format("plain"), f"{rows.start}.parquet", made)

        ours(range(16))
        for turn in range(3):
            fast = rate(ours, range(turn * 8, turn * 8 + 8 * ROWS_PER_SHARD), ROWS_PER_SHARD)
            slow = rate(plain, range(turn * 200, turn * 200 + 200), 200)
            ratios.append(fast / slow)
            print(f"{turn + 1:>5}  {fast:>10,.0f}  {slow:>12,.0f}  {fast / slow:>6.0f}")
    print(f"median ratio: {statistics.median(ratios):.0f} x")


def big(base: BaseModelRef, rows: int, workers: int) -> None:
    """Make one dataset as one Parquet file and print what it took."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        made = make(SimpleKV(rows=rows), base, Path(folder) / "data.parquet", "parquet", workers)
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{rows:,} rows, {made.prompt_tokens:,} prompt tokens, {made.bytes / 1e6:,.0f} MB in {seconds:,.1f} s with "
        f"{workers} worker(s): {rows / seconds:,.0f} rows/s; peak memory of this process {peak:,.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model", default="kvray-tiny")
    parser.add_argument("--rows", type=int, help="make this many rows as one file instead of the table")
    parser.add_argument("--workers", type=int, default=1, help="with --rows; more than 1 uses Ray")
    given = parser.parse_args()
    base = resolve(given.base_model)
    if given.rows:
        big(base, given.rows, given.workers)
    else:
        table(base)


if __name__ == "__main__":
    main()
