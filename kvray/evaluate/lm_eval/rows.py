"""Scored questions of a benchmark -> rows of the predictions, and the facts of its manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from kvray.evaluate import chunks
from kvray.evaluate.chunks import Labels, Reply
from kvray.evaluate.lm_eval import scores
from kvray.evaluate.lm_eval.tasks import Benchmark, Row
from kvray.planning.artefacts import Artefact
from kvray.store.store import Store
from kvray.tasks.base import RIGHT, WRONG


def table(
    labels: Labels,
    benchmark: Benchmark,
    rows: Sequence[Row],
    replies: Sequence[Reply],
    responses: Sequence[Sequence[Any] | None],
    facts: Mapping[str, Any],
) -> pa.Table:
    """Return the scored rows of one chunk, with everything that the harness measured of them in the chunk's facts.

    Args:
        labels: the constant columns.
        benchmark: what was asked.
        rows: the questions.
        replies: tokens and end of each; what is the answer, the harness says.
        responses: to the requests of each; None where the question was not run.
        facts: of this chunk (seconds, engine, cut).

    Raises:
        CellError: the benchmark's metric is no score of a question.
    """
    run = [(row, each) for row, each in zip(rows, responses, strict=True) if each is not None]
    scored = scores.score(benchmark, [row for row, _ in run], [each for _, each in run])
    done = iter(scored)
    results = [None if each is None else next(done) for each in responses]
    several = len(benchmark.subtasks) > 1
    columns: dict[str, Any] = {name: [value] * len(rows) for name, value in asdict(labels).items()}
    columns |= {name: [None] * len(rows) for name in ("position", "length", "depth", "condition")}
    columns |= {
        "example_id": [row.id for row in rows],
        "question_id": [row.id for row in rows],
        "units": [0] * len(rows),
        "subtask": [row.subtask if several else None for row in rows],
        "prompt_tokens": [reply.prompt_tokens for reply in replies],
        "cached_tokens": [reply.cached_tokens for reply in replies],
        "output_tokens": [reply.output_tokens for reply in replies],
        "answer": [one and one.answer for one in results],
        "references": [scores.references(benchmark, row) for row in rows],
        "score": [one and one.score for one in results],
        "outcome": [one and (RIGHT if one.score == 1.0 else WRONG) for one in results],
        "finish_reason": [reply.finish_reason for reply in replies],
    }
    values: dict[str, dict[str, list[Any]]] = {}
    metrics: dict[str, str] = {}
    for (row, _), one in zip(run, scored, strict=True):
        metrics[row.subtask] = one.metric
        for key, value in one.values.items():
            values.setdefault(row.subtask, {}).setdefault(key, []).append(value)
    return chunks.with_facts(columns, {**facts, "values": values, "metrics": metrics})


def commit_if_whole(store: Store, cell: Artefact, benchmark: Benchmark) -> bool:
    """Commit a benchmark's predictions if all of their chunks are there; return whether they are committed now."""
    return chunks.commit_if_whole(store, cell, benchmark.examples, lambda tables: summarize(benchmark, tables))


def summarize(benchmark: Benchmark, tables: Sequence[pa.Table]) -> dict[str, Any]:
    """Return the facts of a benchmark's predictions.

    Returns:
        Those of all predictions, and ``harness``: lm_eval (version), benchmark, cut (questions whose prompt lost its
        beginning), system_left_out (chats whose system message the chat template refused), subtasks (version of the
        task, shots, metric of the score, questions there are and run) and aggregates: the harness's own, of every
        subtask and group, by ``metric,filter``.
    """
    notes = [chunks.facts_of(each) for each in tables]
    values: dict[str, dict[str, list[Any]]] = {}
    metrics: dict[str, str] = {}
    for note in notes:
        metrics |= note["metrics"]
        for name, measured in note["values"].items():
            for key, each in measured.items():
                values.setdefault(name, {}).setdefault(key, []).extend(each)
    subtasks = {
        name: {
            "version": str(benchmark.subtasks[name].VERSION),
            "shots": benchmark.subtasks[name].get_config("num_fewshot"),
            "metric": metrics[name],
            "questions": len(benchmark.subtasks[name].eval_docs),
            "run": max(len(each) for each in measured.values()),
        }
        for name, measured in values.items()
    }
    return chunks.summarize(tables) | {
        "harness": {
            "lm_eval": version("lm_eval"),
            "benchmark": benchmark.task.benchmark,
            "cut": sum(note["cut"] for note in notes),
            "system_left_out": benchmark.system_left_out,
            "subtasks": subtasks,
            "aggregates": scores.aggregate(benchmark, values),
        }
    }
