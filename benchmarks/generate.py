"""Rows per second and core of simple_kv at the paper's size, Parquet write included, beside two other ways to it.

All make the same law, count each prompt's tokens twice (as the law asks: gold dictionary first, and as emitted) and
run on one core, in turns, in one process. Rows are per second of CPU time, so that a busy machine matters little.

* *plain Python*: row by row with the standard library and the bare tokenizer, into the same Parquet.
* *published*: as the paper's scripts go about it (``data-generation/scripts`` of edixiong/artificial-needles, written
  anew from what they do): a key is a list of one integer made a tuple, so that a dictionary is printed and its brackets
  are taken out again; all dictionaries are copied deeply after they are drawn, for the draft's count, for the prompt
  and for the answer; prompt and answer templates are read from files each time; transformers tokenizes one text a call;
  rows go to JSON lines one by one. Left out, in the scripts' favour: they load a tokenizer for every row, a slow one of
  their time, and pickle every row with its tokenizer besides.
* *Parquet alone*: finished rows from Arrow to a file of the store, the part that no faster generator makes faster.

    python benchmarks/generate.py                   the table
    python benchmarks/generate.py --rows 1000000    one big dataset: seconds and peak memory
"""

from __future__ import annotations

import argparse
import copy
import json
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

from kvray.driver.export.files import make
from kvray.generate.job import ROWS_PER_SHARD, build, context_of
from kvray.models.reference import BaseModelRef, load_tokenizer, resolve
from kvray.store.schemas import EXAMPLE_SCHEMA
from kvray.store.store import Store
from kvray.tasks.base import CountTokens
from kvray.tasks.kv.simple import SimpleKV
from kvray.tasks.prompts import KV_ANSWER, KV_HEAD, KV_TAIL, KV_TEMPLATE

Dictionary = dict[tuple[int, ...], int]
ROUNDS = 5


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


class Published:
    """One row after the other as the paper's scripts make them, into a file of JSON lines in ``folder``."""

    def __init__(self, task: SimpleKV, base: BaseModelRef, folder: Path) -> None:
        self.task, self.tokenizer, self.file = task, load_tokenizer(base), folder / "published.jsonl"
        self.templates = {"prompt": folder / "prompt", "answer": folder / "answer"}
        self.templates["prompt"].write_text(KV_HEAD + "{dictionaries}" + KV_TAIL + KV_TEMPLATE)
        self.templates["answer"].write_text(KV_ANSWER)

    def __call__(self, rows: range) -> None:
        with self.file.open("w") as file:
            for row in rows:
                json.dump({"messages": self.messages(random.Random(f"{self.task.seed}/{row}"))}, file)
                file.write("\n")

    def messages(self, rng: random.Random) -> list[dict[str, str]]:
        position = rng.randrange(self.task.dictionaries)
        for _ in range(1000):
            gold, others, key, value = self.drawn(rng)
            if self.tokens(self.prompt(gold, others, 0, key)) < self.task.max_tokens - 100:
                break
        else:
            raise RuntimeError("no draft fits")
        text = self.prompt(gold, others, position, key)
        if self.tokens(text) >= self.task.max_tokens - 30:
            raise RuntimeError("the prompt does not fit")
        copy.deepcopy(others).insert(position, copy.deepcopy(gold))  # get_answer places the gold dictionary anew
        answer = self.template("answer").format(key=bare(str(key)), value=value, dictionary=position + 1)
        return [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]

    def drawn(self, rng: random.Random) -> tuple[Dictionary, list[Dictionary], tuple[int, ...], int]:
        slot, key, value = rng.randint(0, 2), published_key(rng), integer(rng)
        gold = dict((key, value) if at == slot else published_pair(rng, key, value) for at in range(3))
        others = [
            dict(published_pair(rng, key, value) for _ in range(rng.randint(3, 4)))
            for _ in range(self.task.dictionaries - 1)
        ]
        return gold, copy.deepcopy(others), key, value

    def prompt(self, gold: Dictionary, others: list[Dictionary], position: int, key: tuple[int, ...]) -> str:
        dictionaries = copy.deepcopy(others)
        dictionaries.insert(position, copy.deepcopy(gold))
        lines = [f"Dictionary [{number}] {bare(str(each))}" for number, each in enumerate(dictionaries, 1)]
        return self.template("prompt").format(dictionaries="\n".join(lines), key=bare(str(key)))

    def template(self, name: str) -> str:
        with self.templates[name].open() as file:
            return file.read().rstrip("\n")

    def tokens(self, text: str) -> int:
        return len(self.tokenizer(text)["input_ids"])


def bare(text: str) -> str:
    return text.replace("(", "").replace(",)", "")


def published_key(rng: random.Random) -> tuple[int, ...]:
    """Return a key of one subkey. The scripts' function serves keys of several, some shared: hence the idle draws."""
    subkeys: list[int] = []
    if rng.random() < 1:
        subkeys.insert(rng.randint(0, len(subkeys)), integer(rng))
    return tuple(subkeys)


def published_pair(rng: random.Random, key: tuple[int, ...], value: int) -> tuple[tuple[int, ...], int]:
    rng.randint(1, 1)  # how many subkeys
    while True:
        drawn = published_key(rng), integer(rng)
        if drawn[0] != key and drawn[1] != value:
            return drawn


def rate(work: Callable[[range], object], rows: range, step: int) -> float:
    """Return rows per second of CPU time, so that a busy machine does not matter."""
    started = time.process_time()
    for at in range(rows.start, rows.stop, step):
        work(range(at, min(at + step, rows.stop)))
    return len(rows) / (time.process_time() - started)


def table(base: BaseModelRef) -> None:
    print(f"simple_kv, 85 dictionaries, 4,096 tokens, law paper; tokenizer of {base.name}; one core, rows per second")
    print(f"{'round':>5}  {'kvray':>8}  {'plain Python':>12}  {'published':>9}  {'Parquet alone':>13}")
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        store, task = Store(folder), SimpleKV(rows=100_000)
        count_tokens = context_of(task, base).count_tokens
        made = build(task, base, range(ROWS_PER_SHARD))

        def write(way: str, rows: range, table: pa.Table) -> None:
            store.write(f"datasets/benchmark-{way}", f"{rows.start}.parquet", table)

        def plain(rows: range) -> None:
            made = [plain_row(row, task, count_tokens) for row in rows]
            write("plain", rows, pa.Table.from_pylist(made, EXAMPLE_SCHEMA))

        ways: list[tuple[Callable[[range], object], int, int]] = [
            (lambda rows: write("kvray", rows, build(task, base, rows)), 8 * ROWS_PER_SHARD, ROWS_PER_SHARD),
            (plain, 100, 100),
            (Published(task, base, Path(folder)), 100, 100),
            (lambda rows: write("ready", rows, made), 8 * ROWS_PER_SHARD, ROWS_PER_SHARD),
        ]
        for turn in range(ROUNDS):
            rounds.append([rate(work, range(turn * rows, (turn + 1) * rows), step) for work, rows, step in ways])
            kvray, plainly, published, limit = rounds[-1]
            print(f"{turn + 1:>5}  {kvray:>8,.0f}  {plainly:>12,.0f}  {published:>9,.0f}  {limit:>13,.0f}")
    ratios = [statistics.median(each[0] / each[other] for each in rounds) for other in (1, 2, 3)]
    print(
        f"median ratios of kvray: {ratios[0]:.0f} x plain Python, {ratios[1]:.0f} x the published way, "
        f"{ratios[2]:.0%} of Parquet alone"
    )


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
