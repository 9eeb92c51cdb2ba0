"""Synthetic predictions with a known truth: clustered by question, U-shaped over gold positions."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from kvray.store.fingerprint import fingerprint
from kvray.store.manifest import DATA
from kvray.store.schemas import ANSWERS_SCHEMA, EXAMPLE_SCHEMA, PREDICTIONS_SCHEMA
from kvray.store.store import Store, artefact_id

POSITIONS = (1, 2, 5, 10, 15, 20)
GAINS = {"ours": (0.16, -0.01), "ours-no-template": (0.10, 0.0), "multi-subkey": (0.02, 0.005), "mdqa": (0.13, -0.12)}
"""Per mixture: true gain in retrieval, true change in knowledge."""

Cell = Callable[..., pa.Table]


def cell(
    evaluation: str,
    mixture: str | None = None,
    seed: int | None = None,
    *,
    questions: int = 60,
    too_long: int = 0,
    sweep: str = "first",
    finetune: str = "lora",
) -> pa.Table:
    """Predictions of one model on one evaluation ("recall" is closed book, any other has gold positions).

    All models meet the same questions with the same difficulty; a mixture adds its gain. The last ``too_long`` rows
    could not be run.
    """
    knowledge = evaluation.startswith("recall")
    difficulty = np.random.default_rng(questions).beta(1.2, 1.2, questions)
    rng = np.random.default_rng([len(evaluation), sum(map(ord, mixture or "base")), (seed or 0) + 1])
    gain = GAINS.get(mixture or "", (0.0, 0.0))
    places = (None,) if knowledge else POSITIONS
    rows = []
    for place, position in enumerate(places):
        dip = 0.0 if knowledge else (0.25, 0.12, -0.1, -0.2, -0.14, 0.02)[place]
        for question in range(questions):
            skill = 0.3 + 0.5 * difficulty[question] + dip + gain[int(knowledge)] + (0.15 if knowledge else 0)
            right = rng.random() < np.clip(skill, 0.02, 0.98)
            rows.append(
                {
                    "sweep": sweep,
                    "evaluation": evaluation,
                    "task": "recall" if knowledge else "mdqa",
                    "base_model": "kvray-tiny",
                    "mixture": mixture,
                    "finetune": finetune if mixture else None,
                    "seed": seed,
                    "adapter": None if mixture is None else f"{mixture}-{seed}",
                    "example_id": f"q{question:04d}" + ("" if position is None else f"@{position}"),
                    "question_id": f"q{question:04d}",
                    "position": position,
                    "units": 0 if knowledge else 20,
                    "length": None,
                    "prompt_tokens": 40 if knowledge else 900 + question,
                    "cached_tokens": 0 if knowledge else 640,
                    "output_tokens": 7,
                    "answer": "Ada Quill" if right else "no idea",
                    "references": ["Ada Quill"],
                    "score": float(right),
                    "finish_reason": "stop",
                }
            )
    for row in rows[len(rows) - too_long :]:
        row |= {"answer": None, "score": None, "output_tokens": 0, "finish_reason": "too_long"}
    return pa.Table.from_pylist(rows, schema=PREDICTIONS_SCHEMA)


def dataset(predictions: pa.Table) -> pa.Table:
    """Return the dataset that predictions of :func:`cell` answer: 20 documents with the gold one, or none."""
    rows = []
    for row in predictions.select(
        [name for name in EXAMPLE_SCHEMA.names if name in PREDICTIONS_SCHEMA.names]
    ).to_pylist():
        question, position = row["question_id"], row["position"]
        text = f"It is known for {question}, and for the market that its people hold by the river every spring."
        told = {place: f"Document [{place}](Title: Town {place}) {text}" for place in range(1, 21)}
        asked = f"Question: Who founded {question}?\nAnswer:"
        prompt = asked
        if position is not None:
            told[position] = f"Document [{position}](Title: {question}) It was founded by Ada Quill."
            prompt = "\n".join(["Answer from the documents.", "", *told.values(), "", asked])
        rows.append({**row, "prompt": prompt, "answer": "Ada Quill"})
    return pa.Table.from_pylist(rows, schema=EXAMPLE_SCHEMA)


@pytest.fixture(scope="session")
def make_cell() -> Cell:
    """The builder of one cell's predictions."""
    return cell


@pytest.fixture(scope="session")
def whole() -> pl.DataFrame:
    """A complete sweep: the base and four mixtures of two seeds, in one retrieval and one recall evaluation."""
    parts = [cell(evaluation) for evaluation in ("mdqa20", "recall")]
    parts += [cell(e, m, s) for e in ("mdqa20", "recall") for m in GAINS for s in (0, 1)]
    frame = pl.from_arrow(pa.concat_tables(parts))
    assert isinstance(frame, pl.DataFrame)
    return frame


class MakeSweep(Protocol):
    """Commits a sweep's artefacts and its plan document."""

    def __call__(
        self, store: Store, name: str = "first", *, skip: Sequence[str] = (), too_long: int = 0
    ) -> list[str]: ...


@pytest.fixture(scope="session")
def make_sweep() -> MakeSweep:
    """The builder of a store with one sweep: two seeds of four mixtures, mdqa20 and recall."""
    return commit_sweep


def commit_artefact(
    store: Store,
    planned: list[dict[str, Any]],
    kind: str,
    label: str,
    needs: list[str],
    labels: dict[str, Any],
    table: pa.Table,
    *,
    method: str,
    chunks: int = 1,
    skip: Sequence[str] = (),
    task: str | None = None,
    **measurements: Any,
) -> str:
    """Add an artefact to a plan, and commit it with a table in some chunks unless its id contains a ``skip``.

    ``task`` is that of a dataset, whose knobs are its defaults.
    """
    if kind == "predictions":
        of = next((need for need in needs if need.startswith("datasets/")), None)
        at = table.schema.get_field_index("dataset")
        table = table.set_column(at, ANSWERS_SCHEMA.field("dataset"), pa.array([of] * table.num_rows, pa.string()))
        table = table.select(ANSWERS_SCHEMA.names)
    recipe: dict[str, Any] = {"label": label, "finetune": {"method": method, "epochs": 2.0, "learning_rate": 5e-6}}
    recipe |= {"task": {"task": task}} if task else {}
    digest = fingerprint(recipe, needs)
    identity = {"id": artefact_id(kind, label, digest), "kind": kind, "name": label, "fingerprint": digest}
    identity |= {"needs": needs}
    planned.append({**identity, "labels": labels, "rows": table.num_rows, "tokens": 0})
    if not any(part in identity["id"] for part in skip):
        ends = [table.num_rows * chunk // chunks for chunk in range(chunks + 1)]
        parts = [table[start:end] for start, end in itertools.pairwise(ends)]
        files = [store.write(identity["id"], f"{DATA}/chunk-{at:05d}.parquet", part) for at, part in enumerate(parts)]
        store.commit(**identity, recipe=recipe, files=files, measurements=measurements)
    return str(identity["id"])


def commit_sweep(
    store: Store,
    name: str = "first",
    *,
    skip: Sequence[str] = (),
    too_long: int = 0,
    mixtures: Sequence[str] = tuple(GAINS),
    seeds: Sequence[int] = (0, 1),
    questions: int = 60,
    retrieval: str = "mdqa20",
) -> list[str]:
    """Commit a sweep; artefacts whose id contains a ``skip`` are left out.

    Returns the ids of the plan.
    """
    planned: list[dict[str, Any]] = []

    artefact = partial(commit_artefact, store, planned, method="lora", chunks=2, skip=skip)
    some = pa.table({"x": list(range(4))})
    data = {m: artefact("dataset", f"simple-{m}", [], {"dataset": m, "role": "train"}, some) for m in mixtures}
    tests = {}
    for evaluation, task in ((retrieval, "mdqa"), ("recall", "recall")):
        asked = dataset(cell(evaluation, questions=questions))
        labels = {"dataset": evaluation, "role": "evaluate"}
        tests[evaluation] = artefact("dataset", f"test-{evaluation}", [], labels, asked, task=task)
    tuned: dict[tuple[str | None, int | None], str | None] = {(None, None): None}
    for mixture in mixtures:
        for seed in seeds:
            labels = {"mixture": mixture, "finetune": "lora", "seed": seed}
            facts = {"rows_per_epoch": 350, "trained_tokens": 1_423_000, "steps": 44, "loss_last_epoch": 0.1834}
            facts |= {"seconds": 41.7, "device": "cpu", "precision": "bf16"}
            tuned[mixture, seed] = artefact("finetune", f"{mixture}-s{seed}", [data[mixture]], labels, some, **facts)
    for evaluation, test in tests.items():
        for (mixture, seed), finetune in tuned.items():
            labels = {
                "evaluation": evaluation,
                "mixture": mixture,
                "finetune": "lora" if mixture else None,
                "seed": seed,
            }
            long = too_long if mixture == "ours" and seed == 0 and evaluation == retrieval else 0
            table = cell(evaluation, mixture, seed, questions=questions, too_long=long)
            needs = [test, finetune] if finetune else [test]
            cell_name = f"{evaluation}-{mixture or 'base'}-s{seed}"
            artefact("predictions", cell_name, needs, labels, table, seconds=12.5)
    document = {"format": 1, "name": name, "base_model": "kvray-tiny", "sweep": {}, "artefacts": planned}
    store.write_document(f"sweeps/{name}.json", json.dumps(document).encode())
    return [item["id"] for item in planned]
