"""Benchmarks of lm-evaluation-harness asked of a model behind an API: those whose answers are written.

A chat completion tells no log-probabilities of given texts, so a benchmark that compares options (MMLU, HellaSwag) has
no score there. The harness's plain prompt, solved examples included, is sent as one user message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from kvray.errors import CellError
from kvray.evaluate.chunks import Labels, Reply
from kvray.evaluate.lm_eval import requests, tasks
from kvray.evaluate.lm_eval import rows as harness_rows
from kvray.evaluate.lm_eval.tasks import Benchmark, generation
from kvray.evaluate.orders import job_of
from kvray.evaluate.prompts import Decoding
from kvray.planning.artefacts import Artefact
from kvray.tasks.lm_eval import LmEval

MOST_STOPS = 4
"""Stop texts that OpenAI's API takes; the harness's own model class sends as many, and cuts at the others itself."""


def load(cell: Artefact) -> Benchmark:
    """Load a cell's benchmark.

    Raises:
        CellError: it cannot be loaded, or not be asked of an API; names the ones that can.
    """
    task = job_of(cell).task
    if not isinstance(task, LmEval):
        raise TypeError(f"{cell.id} is no benchmark of lm-evaluation-harness")
    if task.chat_template:
        raise CellError("chat_template: the API applies its own; leave chat_template out, or ask a model of your own")
    benchmark = tasks.load(task, None)
    for name, subtask in benchmark.subtasks.items():
        if subtask.OUTPUT_TYPE != "generate_until":
            raise CellError(
                f"benchmark {task.benchmark}: {name} compares log-probabilities, which a chat API does not tell; "
                "benchmarks whose answers are written work: gsm8k, triviaqa, nq_open"
            )
    return benchmark


def examples(benchmark: Benchmark) -> pa.Table:
    """Return what is asked, in asking order: example_id, prompt and prompt_tokens (0: the API's server counts)."""
    prompts = [row.requests[0].args[0] for row in benchmark.rows]
    return benchmark.examples.append_column("prompt", pa.array(prompts, pa.string())).append_column(
        "prompt_tokens", pa.array([0] * len(prompts), pa.int32())
    )


def decoding(benchmark: Benchmark, at: int) -> Decoding:
    """Return how the answer to a question is written."""
    max_tokens, stop = generation(benchmark.task, benchmark.rows[at].requests[0].args[1])
    return Decoding(max_tokens, stop[:MOST_STOPS])


def table(
    labels: Labels, benchmark: Benchmark, span: range, replies: Sequence[Reply], facts: dict[str, Any]
) -> pa.Table:
    """Return the scored rows of a chunk; a question that did not fit the model has none of answer and score.

    Args:
        labels: the constant columns.
        benchmark: what was asked.
        span: which questions.
        replies: one per question.
        facts: of this chunk (seconds, engine).

    Raises:
        CellError: the benchmark's metric is no score of a question.
    """
    rows = benchmark.rows[span.start : span.stop]
    stops = [generation(benchmark.task, row.requests[0].args[1])[1] for row in rows]
    responses = [
        None if reply.answer is None else [requests.cut_at(reply.answer, stop)]
        for reply, stop in zip(replies, stops, strict=True)
    ]
    return harness_rows.table(labels, benchmark, rows, replies, responses, {**facts, "cut": 0})
