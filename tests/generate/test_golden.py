"""Golden bytes of every task as it is exported, whatever the number of workers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvray.driver.export.files import make
from kvray.generate.job import ROWS_PER_SHARD, rows_of, shard_count
from kvray.models.reference import resolve
from kvray.tasks.base import Task
from kvray.tasks.kv.simple import SimpleKV
from kvray.tasks.kv.subkeys import MultiSubkeyKV
from kvray.tasks.qa.mdqa import Mdqa
from kvray.tasks.qa.recall import Recall

ROWS = 3 * ROWS_PER_SHARD + 6
"""Four shards, so that each of four workers has one."""
GOLDEN: dict[str, str] = {
    "mdqa file": "5fdbf8f36a8a447d436af584422b4b07e7090e6ba7f0bbb4ef06ec0aabb9f0d7",
    "mdqa tiny": "9ba060dd8be449c14e0d4c468ef602f038fd95410c823d5809468c1211dc0634",
    "multi_subkey_kv": "35c07cfd01a6f0831a09f9c26055e481facdc53b6a3facfe61a5a13b2d025cdd",
    "multi_subkey_kv no template": "f3621c0d7d516e537cc354d252b05e1426d51f6d5a3aca7c26df3e549df7b10f",
    "recall file": "de802605f3860a31b2208ade6d02940727e7835fe92e0e3ff9a23f78638e3597",
    "recall tiny": "f875984ff80164c8ef510e44818b381c1421a9eb08f104549121c7211d6991e6",
    "simple_kv paper": "572671053d81054dea739e11f76fa3ad9c2c639cc3a99ec40ad995daa2ccf475",
    "simple_kv paper no template": "36a44e193fa958024a8fc88b32fc55b8810e3354d9f3ce5f229f72f9b1b7d450",
    "simple_kv strict": "69a4eb5af686aaa4fff1a42bf684da5ef7aab366a5e3752de3f74612db00509f",
    "simple_kv strict no template": "4f1c7e66b2d143857200ad1d5329959670bf79ef03c6cbd5880fe52e04e4b8dd",
}


def question_file(folder: Path) -> str:
    """Write questions as lost-in-the-middle's oracle file has them."""
    path = folder / "questions.jsonl"
    with path.open("w") as file:
        for n in range(ROWS):
            gold = {"title": f"Book {n}", "text": f"Book {n} was written by Author{n:04d} Smith.", "isgold": True}
            row = {"question": f"who wrote book {n}", "answers": [f"Author{n:04d} Smith"], "ctxs": [gold]}
            file.write(json.dumps(row) + "\n")
    return str(path)


def task_of(name: str, folder: Path) -> Task:
    """Return a small task of four shards; recall's tiny world fills half of one."""
    family, _, kind = name.partition(" ")
    if family == "simple_kv":
        law, _, template = kind.partition(" ")
        return SimpleKV(rows=ROWS, dictionaries=2, digits_max=3, law=law, template=not template)
    if family == "multi_subkey_kv":
        return MultiSubkeyKV(rows=ROWS, dictionaries=2, template=not kind)
    source = question_file(folder) if kind == "file" else "tiny"
    if family == "mdqa":
        return Mdqa(source=source, split="all", documents=3, positions=[1, 3], questions=ROWS // 2)
    return Recall(source=source, split="all")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_two_cpus")
@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_golden_bytes_at_one_two_and_four_workers(name: str, tmp_path: Path) -> None:
    # Whoever changes these changes every dataset made so far: raise the task's VERSION.
    task, base = task_of(name, tmp_path), resolve("kvray-tiny")
    assert shard_count(rows_of(task, base)) == (1 if name == "recall tiny" else 4)
    made = {workers: make(task, base, tmp_path / str(workers), "jsonl", workers).sha256 for workers in (1, 2, 4)}
    assert made == dict.fromkeys((1, 2, 4), GOLDEN[name])
