"""The questions of a benchmark of lm-evaluation-harness, as every cell asks them.

Rows have the schema of all predictions; the manifest has the tasks' versions, and lm_eval's own aggregates beside ours.
Responses are scored by lm_eval's own filters, metrics and aggregates, question by question.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from kvray.errors import CellError
from kvray.evaluate.engines.base import TOO_LONG, Reply
from kvray.evaluate.lm_eval import tasks
from kvray.evaluate.lm_eval.requests import Encoder, Reading, as_text, responses
from kvray.evaluate.lm_eval.scoring import aggregate, references, score
from kvray.evaluate.questions import Questions, Replies, info_of, reply_columns
from kvray.tasks.base import RIGHT, WRONG, Task
from kvray.tasks.lm_eval import LmEval

Values = defaultdict[str, defaultdict[str, list[Any]]]
"""What was measured, a value per question: by subtask, then by ``metric,filter``."""


class BenchmarkQuestions(Questions):
    """A benchmark as lm-evaluation-harness has it; a question may take several requests."""

    def __init__(self, task: Task, tokenizer: Any | None, place: str | None = None) -> None:
        """Load a benchmark; ``tokenizer`` is the base model's, None for a model behind an API.

        ``place`` is where the harness finds the tokenizer that measures the prompts of a benchmark that generates them.
        A chat completion gives no log-probabilities of given texts, so an API cannot be asked benchmarks that compare
        options (MMLU, HellaSwag). It is sent the plain prompt, solved examples included, as one user message. Raises
        CellError for a benchmark that cannot be loaded, or not be asked of an API; it names the ones that can.
        """
        if not isinstance(task, LmEval):
            raise TypeError(f"{task.task} is no benchmark of lm-evaluation-harness")
        if tokenizer is None and task.chat_template:
            raise CellError(
                "chat_template: the API applies its own; leave chat_template out, or ask a model of your own"
            )
        self.benchmark = tasks.load(task, tokenizer, place)
        for name, subtask in self.benchmark.subtasks.items():
            if tokenizer is None and subtask.OUTPUT_TYPE != "generate_until":
                raise CellError(
                    f"benchmark {task.benchmark}: {name} compares log-probabilities, which a chat API does not tell; "
                    "benchmarks whose answers are written work: gsm8k, triviaqa, nq_open"
                )
        super().__init__([row.id for row in self.benchmark.rows])

    def _make(self, rows: Sequence[int], tokenizer: Any | None, limit: int) -> Iterator[list[Reading]]:
        task, questions = self.benchmark.task, [self.benchmark.rows[row] for row in rows]
        if tokenizer is None:
            return ([as_text(task, question)] for question in questions)
        return Encoder(tokenizer, task, limit).encode(questions)

    def columns(self, rows: range, replies: Replies) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return a chunk's scored rows and lm_eval's measurements; CellError if the metric scores no question alone."""
        benchmark = self.benchmark
        questions = benchmark.rows[rows.start : rows.stop]
        asked = {
            row: responses(benchmark.rows[row], self.requests[row], given)
            for row, given in zip(rows, replies, strict=True)
            if given[0].finish_reason != TOO_LONG
        }
        scored = score(benchmark, [benchmark.rows[row] for row in asked], list(asked.values()))
        by_row = dict(zip(asked, scored, strict=True))
        results = [by_row.get(row) for row in rows]
        columns = reply_columns([_row_reply(given) for given in replies])
        columns |= {
            "example_id": [question.id for question in questions],
            "question_id": [question.id for question in questions],
            "units": [0] * len(rows),
            "subtask": [question.subtask if len(benchmark.subtasks) > 1 else None for question in questions],
            "length": [one and one.length for one in results],
            "answer": [one and one.answer for one in results],
            "references": [references(benchmark, question) for question in questions],
            "score": [one and one.score for one in results],
            "outcome": [one and (RIGHT if one.score == 1.0 else WRONG) for one in results],
        }
        values: Values = defaultdict(lambda: defaultdict(list))
        for row, one in by_row.items():
            for key, value in one.values.items():
                values[benchmark.rows[row].subtask][key].append(value)
        return columns, {
            "values": values,
            "metrics": _joined((benchmark.rows[row].subtask, one.metric) for row, one in by_row.items()),
            "cut": sum(any(reading.cut for reading in self.requests[row]) for row in rows),
        }

    def summary(self, tables: Sequence[pa.Table]) -> dict[str, Any]:
        """Add ``harness`` to the measurements of all predictions.

        That has lm_eval (version), benchmark, cut (questions whose prompt lost its beginning), system_left_out (chats
        whose system message the chat template refused), subtasks (version of the task, shots, metrics of the score,
        questions, run) and aggregates: lm_eval's own, of every subtask and group, by ``metric,filter``.
        """
        benchmark = self.benchmark
        infos = [info_of(each) for each in tables]
        values: Values = defaultdict(lambda: defaultdict(list))
        for info in infos:
            for name, measured in info["values"].items():
                for key, each in measured.items():
                    values[name][key] += each
        metrics = _joined(
            (name, each) for info in infos for name, metrics in info["metrics"].items() for each in metrics.split(", ")
        )
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
        return super().summary(tables) | {
            "harness": {
                "lm_eval": version("lm_eval"),
                "benchmark": benchmark.task.benchmark,
                "cut": sum(info["cut"] for info in infos),
                "system_left_out": benchmark.system_left_out,
                "subtasks": subtasks,
                "aggregates": aggregate(benchmark, values),
            }
        }


def _joined(metrics: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the different metrics of each subtask, separated by ", ": one, or those of several lengths."""
    found: dict[str, dict[str, None]] = {}
    for name, metric in metrics:
        found.setdefault(name, {})[metric] = None
    return {name: ", ".join(each) for name, each in found.items()}


def _row_reply(replies: Sequence[Reply]) -> Reply:
    """Return one reply for a row; with several replies the cached tokens are unknown."""
    first = replies[0]
    if len(replies) == 1:
        return first
    return replace(first, cached_tokens=None, output_tokens=sum(each.output_tokens for each in replies))
