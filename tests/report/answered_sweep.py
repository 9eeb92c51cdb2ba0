"""A small sweep whose evaluations have their prompts in the store, and an answer that tries to act in the page."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pyarrow as pa
from made_sweeps import cell, commit_artefact

from kvray.store.schemas import EXAMPLE_SCHEMA
from kvray.store.store import Store

HOSTILE = '<script>window.acted = 1</script><img src="https://example.com/x.png" onerror="window.acted = 1">'
QUESTIONS = 30
MIXTURES = ("ours", "mdqa")


def prompt(evaluation: str, example: str) -> str:
    """The user message of an example: long for documents, one line closed book."""
    if evaluation == "recall":
        return f"Who wrote book {example}?"
    documents = [
        f"Document [{at}] Text {at} about {example}, and what else there is to be said." for at in range(1, 41)
    ]
    return "\n".join(["Answer from these documents.", *documents, f"Who wrote book {example}?"])


def commit(store: Store, *, seeds: tuple[int, ...] = (0, 1), name: str = "asked") -> None:
    """Commit the base and two mixtures on mdqa20 and recall, prompts in their datasets."""
    planned: list[dict[str, Any]] = []
    artefact = partial(commit_artefact, store, planned, method="lora")
    tuned: dict[tuple[str | None, int | None], str | None] = {(None, None): None}
    data = artefact("dataset", "train", [], {"dataset": "train", "role": "train"}, pa.table({"x": [1]}))
    for mixture in MIXTURES:
        for seed in seeds:
            labels = {"mixture": mixture, "finetune": "lora", "seed": seed}
            tuned[mixture, seed] = artefact("finetune", f"{mixture}-s{seed}", [data], labels, pa.table({"x": [1]}))
    for evaluation in ("mdqa20", "recall"):
        asked = examples(evaluation)
        test = artefact("dataset", evaluation, [], {"dataset": evaluation, "role": "evaluate"}, asked)
        for (mixture, seed), finetune in tuned.items():
            labels = {"evaluation": evaluation, "mixture": mixture, "finetune": mixture and "lora", "seed": seed}
            table = cell(evaluation, mixture, seed, questions=QUESTIONS)
            if evaluation == "mdqa20" and (mixture, seed) == ("ours", 0):
                table = answered(table, "q0003@20", HOSTILE)
            needs = [test, finetune] if finetune else [test]
            artefact("predictions", f"{evaluation}-{mixture or 'base'}-s{seed}", needs, labels, table)
    document = {"format": 1, "name": name, "base_model": "kvray-tiny", "sweep": {}, "artefacts": planned}
    store.write_document(f"sweeps/{name}.json", json.dumps(document).encode())


def examples(evaluation: str) -> pa.Table:
    """The examples that :func:`made_sweeps.cell` answers."""
    rows = cell(evaluation, questions=QUESTIONS).to_pylist()
    shared = [{name: row[name] for name in EXAMPLE_SCHEMA.names if name in row} for row in rows]
    asked = [row | {"prompt": prompt(evaluation, row["example_id"]), "answer": "Ada Quill"} for row in shared]
    return pa.Table.from_pylist(asked, schema=EXAMPLE_SCHEMA)


def answered(table: pa.Table, example: str, answer: str) -> pa.Table:
    """Return predictions with another answer to an example, which is wrong."""
    changed = {"answer": answer, "score": 0.0, "outcome": "wrong"}
    rows = [row | changed if row["example_id"] == example else row for row in table.to_pylist()]
    return pa.Table.from_pylist(rows, schema=table.schema)
