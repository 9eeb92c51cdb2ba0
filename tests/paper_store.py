"""A made-up store with an evaluation of every kind: what a sweep over the paper's figures and tables leaves behind."""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from made_sweeps import commit_artefact

import kvray.tasks
from kvray.store.schemas import PREDICTIONS_SCHEMA
from kvray.store.store import Store

MIXTURES: Mapping[str, tuple[float, float]] = {
    "kv-template": (0.15, 0.0),
    "kv": (0.10, -0.005),
    "multidoc_qa": (0.09, -0.03),
    "in2": (0.12, -0.02),
    "needle": (0.03, -0.07),
}
"""Per mixture: true gain in retrieval, true change in knowledge."""
TASKS = ("MonoRel", "PIR", "RuleTaker")
RULER = kvray.tasks.Ruler().tasks
LEVELS = {"mmlu": 0.53, "hellaswag": 0.56, "gsm8k": 0.35, "triviaqa": 0.48, "nq-open": 0.12}


def cells(questions: int, ruler: Sequence[str] = RULER) -> dict[str, list[dict[str, Any]]]:
    """Examples of every evaluation, each with its chance of being right for the base and what a mixture moves."""
    asked = [f"q{i:04d}" for i in range(questions)]
    dip = {1: 0.28, 2: 0.2, 5: 0.05, 10: -0.06, 15: -0.02, 20: 0.14}
    made: dict[str, list[dict[str, Any]]] = {
        "mdqa-20": [
            {"task": "mdqa", "question_id": q, "position": p, "units": 20, "chance": 0.5 + d}
            for q, (p, d) in itertools.product(asked, dip.items())
        ],
        "mdqa-20-retrieved": [
            {"task": "mdqa", "question_id": q, "position": p, "units": 20, "chance": 0.42 + dip[p]}
            for q, p in itertools.product(asked, (1, 5, 10, 15, 20))
        ],
        "mdqa-closed": [
            {"task": "mdqa", "question_id": q, "units": 0, "chance": 0.24, "moves": "knowledge"} for q in asked
        ],
        "mdqa-oracle": [
            {"task": "mdqa", "question_id": q, "position": 1, "units": 1, "chance": 0.9, "moves": ""} for q in asked
        ],
        "recall": [
            {"task": "recall", "question_id": f"k{q}", "units": 0, "chance": 0.62, "moves": "knowledge"} for q in asked
        ],
    }
    for name, level in (("flenqa-direct", 0.72), ("flenqa-cot", 0.8)):
        made[name] = [
            {
                "task": "flenqa",
                "question_id": f"{subtask}-{i}",
                "subtask": subtask,
                "length": length,
                "condition": f"dispersion=random padding={padding}",
                "chance": level + 0.04 * k - 0.05 * np.log2(length / 250),
            }
            for (k, subtask), i, length, padding in itertools.product(
                enumerate(TASKS), range(max(2, questions // 6)), (250, 500, 1000, 2000, 3000), ("books", "same")
            )
        ]
    made["ruler"] = [
        {
            "task": "ruler",
            "question_id": f"{variant}-{i}",
            "subtask": variant,
            "length": length,
            "depth": 10.0 * (i % 11) if variant == "niah_single_2" else None,
            "chance": 0.95 - 0.02 * k - 0.11 * np.log2(length / 4096),
        }
        for (k, variant), i, length in itertools.product(
            enumerate(ruler),
            range(max(11, questions // 12)),
            (4096, 8192, 16384, 32768),
        )
    ]
    made["needle"] = [
        {
            "task": "needle",
            "question_id": f"n{i}-{length}",
            "length": length,
            "depth": depth,
            "chance": 1.02 - 0.09 * np.log2(length / 1024) * (1 - abs(depth - 50) / 60),
        }
        for i, length, depth in itertools.product(
            range(max(2, questions // 20)), (1024, 2048, 4096, 8192, 16384), (0.0, 25.0, 50.0, 75.0, 100.0)
        )
    ]
    for name, level in LEVELS.items():
        subjects = [f"mmlu_{i:02d}" for i in range(14)] if name == "mmlu" else [None]
        made[name] = [
            {
                "task": "lm_eval",
                "question_id": f"{name}-{i}",
                "subtask": subjects[i % len(subjects)],
                "chance": level,
                "moves": "knowledge" if name in ("triviaqa", "nq-open") else "",
            }
            for i in range(4 * questions)
        ]
    return made


def predictions(
    evaluation: str, examples: Sequence[Mapping[str, Any]], mixture: str | None = None, seed: int | None = None
) -> pa.Table:
    """One model's predictions: the same luck per question for all models, moved by the mixture's gains."""
    gain, knowledge = MIXTURES[mixture] if mixture else (0.0, 0.0)
    rng = np.random.default_rng([zlib.crc32(evaluation.encode()), zlib.crc32((mixture or "base").encode()), seed or 0])
    rows = []
    for at, example in enumerate(examples):
        moved = {"knowledge": knowledge, "": 0.0}.get(example.get("moves", "retrieval"), gain)
        luck = np.random.default_rng(zlib.crc32(f"{evaluation} {example['question_id']}".encode())).random()
        chance = float(np.clip(example["chance"] + moved * (0.4 + 0.6 * (example.get("position") != 1)), 0.01, 0.995))
        right = (0.75 * luck + 0.25 * rng.random()) < 0.125 + 0.75 * chance if 0.05 < chance < 0.95 else luck < chance
        outcome, score = "right" if right else "wrong", float(right)
        if example["task"] == "recall" or (example.get("units") == 0 and example["task"] == "mdqa"):
            outcome = "right" if right else "refusal" if rng.random() < 0.35 - 2 * abs(knowledge) else "invention"
        elif example["task"] == "flenqa" and not right and rng.random() < 0.2:
            outcome = "other"
        elif example.get("subtask") in ("multivalue", "multiquery") and not right and rng.random() < 0.6:
            outcome, score = "partial", 0.5
        rows.append(
            {
                "sweep": "another",
                "evaluation": evaluation,
                "task": example["task"],
                "base_model": "mistralai/Mistral-7B-Instruct-v0.1",
                "mixture": mixture,
                "finetune": "attention" if mixture else None,
                "seed": seed,
                "adapter": None,
                "example_id": f"e{at:06d}",
                "question_id": example["question_id"],
                "position": example.get("position"),
                "units": example.get("units", 0),
                "length": example.get("length"),
                "depth": example.get("depth"),
                "subtask": example.get("subtask"),
                "condition": example.get("condition"),
                "prompt_tokens": 40 + (example.get("length") or 150 * example.get("units", 0)),
                "cached_tokens": 16,
                "output_tokens": 7,
                "answer": "yes" if right else "no",
                "references": ["yes"],
                "score": score,
                "outcome": outcome,
                "finish_reason": "stop",
                "coverage": 0.25 + 0.5 * right if evaluation == "flenqa-cot" else None,
                "early": not right if evaluation == "flenqa-cot" else None,
            }
        )
    return pa.Table.from_pylist(rows, schema=PREDICTIONS_SCHEMA)


def tables(
    questions: int, evaluations: Sequence[str], mixtures: Sequence[str], seeds: Sequence[int]
) -> Iterator[pa.Table]:
    """Every model's predictions on some evaluations."""
    examples = cells(questions)
    for evaluation in evaluations:
        yield predictions(evaluation, examples[evaluation])
        for mixture, seed in itertools.product(mixtures, seeds):
            yield predictions(evaluation, examples[evaluation], mixture, seed)


def commit(
    store: Store,
    *,
    questions: int,
    seeds: Sequence[int] = (0,),
    mixtures: Sequence[str] = tuple(MIXTURES),
    evaluations: Sequence[str] | None = None,
    reference: Sequence[str] = ("artificial-needles", "lost-in-the-middle", "flenqa", "ruler"),
    base_model: str = "mistralai/Mistral-7B-Instruct-v0.1",
    name: str = "paper",
    ruler: Sequence[str] = RULER,
) -> None:
    """Commit a whole sweep: datasets, one writing, finetunes, predictions, and its plan document."""
    planned: list[dict[str, Any]] = []

    artefact = partial(commit_artefact, store, planned, method="attention")
    some, examples = pa.table({"x": [0]}), cells(questions, ruler)
    written = artefact(
        "writing",
        "in2-writing",
        [],
        {"dataset": "in2", "role": "train"},
        pa.table({"text": ["?"] * 420}),
        rows=420,
        cut_off=6,
        too_long=0,
        output_tokens=31_512,
        seconds=88.0,
    )
    tuned: dict[tuple[str | None, int | None], list[str]] = {(None, None): []}
    for at, mixture in enumerate(mixtures):
        needs = [written] if mixture == "in2" else []
        data = artefact("dataset", f"data-{mixture}", needs, {"dataset": mixture, "role": "train"}, some)
        for seed in seeds:
            tokens = 1_371_204 + 311 * at
            tuned[mixture, seed] = [
                artefact(
                    "finetune",
                    f"{mixture}-s{seed}",
                    [data],
                    {"mixture": mixture, "finetune": "attention", "seed": seed},
                    some,
                    rows_per_epoch=350 - 20 * at,
                    tokens_per_epoch=tokens,
                    budget_tokens=None if at == 0 else 1_371_204,
                    datasets={data: {"rows": 350 - 20 * at, "tokens": tokens}},
                    answer_tokens=11_300 + at,
                    trained_tokens=2 * tokens,
                    steps=44,
                    loss_last_epoch=0.21,
                    seconds=812.0,
                    device="NVIDIA H100",
                    precision="bf16",
                )
            ]
    for evaluation in evaluations or examples:
        for (mixture, seed), needs in tuned.items():
            labels = {"evaluation": evaluation, "mixture": mixture, "seed": seed}
            labels |= {"finetune": "attention" if mixture else None}
            table = predictions(evaluation, examples[evaluation], mixture, seed)
            artefact("predictions", f"{evaluation}-{mixture or 'base'}-s{seed}", needs, labels, table, seconds=42.0)
    sweep = {"reference": list(reference), "datasets": {"in2": {"question_writer": "Qwen/Qwen2.5-7B-Instruct"}}}
    document = {"format": 1, "name": name, "base_model": base_model, "sweep": sweep, "artefacts": planned}
    store.write_document(f"sweeps/{name}.json", json.dumps(document).encode())
