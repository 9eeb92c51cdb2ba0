"""The questions of a benchmark of lm-evaluation-harness, as every cell asks them.

Rows have the schema of all predictions; the manifest has the tasks' versions, and lm_eval's own aggregates beside ours.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from kvray.errors import CellError
from kvray.evaluate import chunks
from kvray.evaluate.engines.base import TOO_LONG, Reply, Request
from kvray.evaluate.lm_eval import scores, tasks
from kvray.evaluate.lm_eval.requests import Encoder, Reading, as_text, responses
from kvray.evaluate.questions import Questions
from kvray.tasks.base import RIGHT, WRONG, Task
from kvray.tasks.lm_eval import LmEval


class BenchmarkQuestions(Questions):
    """A benchmark as lm-evaluation-harness has it; a question may take several requests."""

    def __init__(self, task: Task, tokenizer: Any | None) -> None:
        """Load a benchmark; ``tokenizer`` is the base model's, None for a model behind an API.

        A chat completion gives no log-probabilities of given texts, so an API cannot be asked benchmarks that compare
        options (MMLU, HellaSwag). It is sent the plain prompt, solved examples included, as one user message.

        Raises:
            CellError: it cannot be loaded, or not be asked of an API; names the ones that can.
        """
        if not isinstance(task, LmEval):
            raise TypeError(f"{task.task} is no benchmark of lm-evaluation-harness")
        if tokenizer is None and task.chat_template:
            raise CellError(
                "chat_template: the API applies its own; leave chat_template out, or ask a model of your own"
            )
        self.benchmark = tasks.load(task, tokenizer)
        for name, subtask in self.benchmark.subtasks.items():
            if tokenizer is None and subtask.OUTPUT_TYPE != "generate_until":
                raise CellError(
                    f"benchmark {task.benchmark}: {name} compares log-probabilities, which a chat API does not tell; "
                    "benchmarks whose answers are written work: gsm8k, triviaqa, nq_open"
                )
        super().__init__([row.id for row in self.benchmark.rows])
        self._readings: dict[int, list[Reading]] = {}

    def _make(self, rows: Sequence[int], tokenizer: Any | None, limit: int) -> Iterator[list[Request]]:
        task, questions = self.benchmark.task, [self.benchmark.rows[row] for row in rows]
        if tokenizer is None:
            made: Iterable[list[Reading]] = ([as_text(task, question)] for question in questions)
        else:
            made = Encoder(tokenizer, task, limit).encode(questions)
        for row, readings in zip(rows, made, strict=True):
            self._readings[row] = readings
            yield [reading.request for reading in readings]

    def table(
        self, rows: range, replies: Sequence[Sequence[Reply]], labels: Mapping[str, Any], info: Mapping[str, Any]
    ) -> pa.Table:
        """Return a chunk's scored rows and lm_eval's measurements; CellError if the metric scores no question alone."""
        benchmark = self.benchmark
        questions = benchmark.rows[rows.start : rows.stop]
        run = [given[0].finish_reason != TOO_LONG for given in replies]
        readings = [self._readings[row] for row in rows]
        asked = [question for question, was_run in zip(questions, run, strict=True) if was_run]
        answered = [
            responses(*each)
            for each, was_run in zip(zip(questions, readings, replies, strict=True), run, strict=True)
            if was_run
        ]
        scored = scores.score(benchmark, asked, answered)
        done = iter(scored)
        results = [next(done) if was_run else None for was_run in run]
        columns = chunks.reply_columns([_row_reply(given) for given in replies])
        columns |= {
            "example_id": [question.id for question in questions],
            "question_id": [question.id for question in questions],
            "units": [0] * len(rows),
            "subtask": [question.subtask if len(benchmark.subtasks) > 1 else None for question in questions],
            "answer": [one and one.answer for one in results],
            "references": [scores.references(benchmark, question) for question in questions],
            "score": [one and one.score for one in results],
            "outcome": [one and (RIGHT if one.score == 1.0 else WRONG) for one in results],
        }
        values: dict[str, dict[str, list[Any]]] = {}
        for question, one in zip(asked, scored, strict=True):
            for key, value in one.values.items():
                values.setdefault(question.subtask, {}).setdefault(key, []).append(value)
        measured = {
            "values": values,
            "metrics": {question.subtask: one.metric for question, one in zip(asked, scored, strict=True)},
            "cut": sum(any(reading.cut for reading in each) for each in readings),
        }
        return chunks.with_info(self.SCHEMA, columns, labels, {**info, **measured})

    def summary(self, tables: Sequence[pa.Table]) -> dict[str, Any]:
        """Return the measurements of all predictions, and ``harness``.

        That has lm_eval (version), benchmark, cut (questions whose prompt lost its beginning), system_left_out (chats
        whose system message the chat template refused), subtasks (version of the task, shots, metric of the score,
        questions, run) and aggregates: lm_eval's own, of every subtask and group, by ``metric,filter``.
        """
        benchmark = self.benchmark
        infos = [chunks.info_of(each) for each in tables]
        values: dict[str, dict[str, list[Any]]] = {}
        metrics: dict[str, str] = {}
        for info in infos:
            metrics |= info["metrics"]
            for name, measured in info["values"].items():
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
                "cut": sum(info["cut"] for info in infos),
                "system_left_out": benchmark.system_left_out,
                "subtasks": subtasks,
                "aggregates": scores.aggregate(benchmark, values),
            }
        }


def _row_reply(replies: Sequence[Reply]) -> Reply:
    """Return one reply for a row; with several replies the cached tokens are unknown."""
    first = replies[0]
    if len(replies) == 1:
        return first
    return Reply(first.prompt_tokens, None, sum(each.output_tokens for each in replies), None, first.finish_reason)
