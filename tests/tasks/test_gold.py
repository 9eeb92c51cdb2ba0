"""The gold pieces of an example stand in its prompt word for word, and hold its answer."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from kvray import tasks
from kvray.models.reference import resolve
from kvray.models.tokenizer import token_counter
from kvray.tasks.base import REGISTRY, Task

tasks.load_all()
FEW = 8
DICTIONARIES = {"simple_kv", "several_kv", "multi_subkey_kv"}
MADE: dict[str, list[dict[str, Any]]] = {
    "simple_kv": [
        {"rows": FEW, "dictionaries": 12},
        {"rows": FEW, "dictionaries": "fit", "law": "strict", "max_tokens": 900, "template": False},
    ],
    "several_kv": [{"rows": FEW, "dictionaries": 12}],
    "multi_subkey_kv": [{"rows": FEW, "dictionaries": 12}, {"rows": FEW, "dictionaries": 6, "law": "paper"}],
    "kv_retrieval": [{"questions": 4, "keys": 12}, {"questions": 4, "keys": 12, "query_aware": True}],
    "mdqa": [
        {"questions": 3, "documents": 12, "positions": [1, 2, 11, 12]},
        {"questions": 3, "documents": 5, "query_aware": True},
        {"questions": 3, "documents": 1},
    ],
    "multidoc_qa": [{"rows": FEW, "documents": 5}],
    "needle": [{"rows": 4, "lengths": 600, "depths": [0, 50, 100]}, {"rows": 2, "lengths": 600, "needles": "classic"}],
    "flenqa": [
        {"questions": 3, "lengths": [250, 500]},
        {"questions": 3, "lengths": [250, 500], "cot": True, "paddings": "same,identity", "seed": 3},
    ],
    "val_probing": [{"probe": probe, "pieces": 20, "questions": 3} for probe in ("document", "code", "database")],
    "ruler": [
        {
            "tasks": [name for name in tasks.Ruler().tasks if name.startswith("niah") or name == "vt"],
            "rows": 2,
            "lengths": 1500,
        }
    ],
}
"""Tasks that tell where the answer stands, with knobs that change how it does."""
NONE: dict[str, dict[str, Any]] = {
    "recall": {"questions": FEW},
    "in2": {"rows": FEW},
    "mdqa": {"questions": FEW, "documents": 0},
    "ruler": {"tasks": ["fwe", "qa_1"], "rows": 2, "lengths": 1500},
}
"""Examples without such a place, or whose task does not tell it."""
WITHOUT = {"recall", "in2", "messages", "lm_eval"}


def examples(name: str, knobs: dict[str, Any]) -> tuple[Task, list[dict[str, Any]]]:
    task = REGISTRY[name].model_validate({"task": name, **knobs})
    context = task.context(token_counter(resolve("kvray-tiny")))
    return task, task.build(0, task.count(context), context).to_pylist()


def test_every_task_is_looked_at() -> None:
    assert {name for name, kind in REGISTRY.items() if kind.__module__.startswith("kvray.")} == {*MADE, *WITHOUT}


@pytest.mark.parametrize(("name", "at"), [(name, at) for name, made in MADE.items() for at in range(len(made))])
def test_gold_pieces_are_in_the_prompt_and_hold_the_answer(name: str, at: int) -> None:
    task, rows = examples(name, MADE[name][at])
    for row in rows:
        gold = task.gold(row)
        assert gold, row["prompt"]
        assert all(piece in row["prompt"] for piece in gold)
        together = " ".join(gold)
        if name == "flenqa":  # whose answer follows from both, and is in neither
            assert len(gold) == 2
        elif name in DICTIONARIES:  # keys and values, and the numbers of the dictionaries
            assert all(number in together for number in re.findall(r"\d+", row["answer"]))
        else:
            assert all(reference in together for reference in row["references"])


@pytest.mark.parametrize("name", NONE)
def test_a_task_that_does_not_tell_has_none(name: str) -> None:
    task, rows = examples(name, NONE[name])
    assert rows
    assert not any(task.gold(row) for row in rows)


def test_the_gold_document_is_that_at_its_place_with_number_and_title(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl.gz"
    lines = [
        {
            "question": f"who is number {number}",
            "answers": [f"Answer {number}"],
            "ctxs": [
                {"title": f"Title {number}", "text": f"Line one.\n\nAnswer {number} is here.", "isgold": True},
                *({"title": f"Other {k}", "text": f"Nothing {k}.\n\nQuestion: none"} for k in range(4)),
            ],
        }
        for number in range(60)
    ]
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    knobs = {"source": str(file), "documents": 4, "positions": [1, 3, 4], "questions": 4, "distractors": "retrieved"}
    task, rows = examples("mdqa", knobs)
    for row in rows:
        (gold,) = task.gold(row)
        assert gold.startswith(f"Document [{row['position']}](Title: Title ")
        assert gold.endswith(f"{row['references'][0]} is here.")
