"""The questions of a benchmark of lm-evaluation-harness, as every cell asks them.

Rows have the schema of all predictions; the manifest has the tasks' versions, and lm_eval's own aggregates beside ours.
Responses are scored by lm_eval's own filters, metrics and aggregates, question by question.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa

from kvray.errors import CellError
from kvray.evaluate.engines.base import TOO_LONG, Reply
from kvray.evaluate.lm_eval import tasks
from kvray.evaluate.lm_eval.requests import Encoder, Reading, as_text, responses
from kvray.evaluate.lm_eval.tasks import Benchmark, Row, choose_metric
from kvray.evaluate.questions import Questions, Replies, info_of, reply_columns
from kvray.tasks.base import RIGHT, WRONG, Task
from kvray.tasks.lm_eval import LmEval

Values = defaultdict[str, defaultdict[str, list[Any]]]
"""What was measured, a value per question: by subtask, then by ``metric,filter``."""


@dataclass(frozen=True)
class Scored:
    """What lm_eval makes of the responses to one question.

    ``answer`` is the raw text or the chosen option; ``values`` is all by ``metric,filter``, ``metric`` the score's key.
    """

    answer: str
    metric: str
    score: float
    values: dict[str, Any]


class BenchmarkQuestions(Questions):
    """A benchmark as lm-evaluation-harness has it; a question may take several requests."""

    def __init__(self, task: Task, tokenizer: Any | None) -> None:
        """Load a benchmark; ``tokenizer`` is the base model's, None for a model behind an API.

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
        self.benchmark = tasks.load(task, tokenizer)
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
            "metrics": {benchmark.rows[row].subtask: one.metric for row, one in by_row.items()},
            "cut": sum(any(reading.cut for reading in self.requests[row]) for row in rows),
        }

    def summary(self, tables: Sequence[pa.Table]) -> dict[str, Any]:
        """Add ``harness`` to the measurements of all predictions.

        That has lm_eval (version), benchmark, cut (questions whose prompt lost its beginning), system_left_out (chats
        whose system message the chat template refused), subtasks (version of the task, shots, metric of the score,
        questions, run) and aggregates: lm_eval's own, of every subtask and group, by ``metric,filter``.
        """
        benchmark = self.benchmark
        infos = [info_of(each) for each in tables]
        values: Values = defaultdict(lambda: defaultdict(list))
        for info in infos:
            for name, measured in info["values"].items():
                for key, each in measured.items():
                    values[name][key] += each
        metrics = {name: metric for info in infos for name, metric in info["metrics"].items()}
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


def _row_reply(replies: Sequence[Reply]) -> Reply:
    """Return one reply for a row; with several replies the cached tokens are unknown."""
    first = replies[0]
    if len(replies) == 1:
        return first
    return replace(first, cached_tokens=None, output_tokens=sum(each.output_tokens for each in replies))


def score(benchmark: Benchmark, rows: Sequence[Row], responses: Sequence[Sequence[Any]]) -> list[Scored]:
    """Score the responses to some questions; CellError if the metric that scores is no number in [0, 1].

    ``responses`` holds for each request of each question the text of a generation, or (log-probability, whether greedy
    decoding would write it) of a continuation.
    """
    return [_scored(benchmark, row, given) for row, given in zip(rows, responses, strict=True)]


def references(benchmark: Benchmark, row: Row) -> list[str]:
    """Return the accepted answers of a question, options by their texts."""
    task = benchmark.subtasks[row.subtask]
    # A task with several contexts and one continuation (WinoGrande) gives the right context in place of the text.
    gold = (task.doc_to_text if task.multiple_input else task.doc_to_target)(row.document)
    accepted = gold if isinstance(gold, list) else [gold]
    if task.config.doc_to_choice is None:
        return [str(each) for each in accepted]
    options = [str(option) for option in task.doc_to_choice(row.document)]
    places = [each for each in accepted if isinstance(each, int)]
    named = [str(each) for each in accepted if not isinstance(each, int)]
    return named + [options[place] for place in places if 0 <= place < len(options)]


def aggregate(benchmark: Benchmark, values: Mapping[str, Mapping[str, Sequence[Any]]]) -> dict[str, dict[str, Any]]:
    """Return lm_eval's own aggregates of subtasks and groups; ``values`` has, by subtask, a value per question."""
    metrics: dict[str, dict[str, Any]] = {}
    for name, measured in values.items():
        functions = benchmark.subtasks[name].aggregation()
        metrics[name] = {"sample_len": max(len(each) for each in measured.values())}
        for key, each in measured.items():
            # JSON has made lists of the pairs that some aggregates take.
            items = [tuple(value) if isinstance(value, list) else value for value in each]
            metrics[name][key] = functions.get(key.rpartition(",")[0], np.mean)(items)
    for name, group in benchmark.groups.items():
        metrics[name] = dict(group.aggregate(metrics))  # standard errors, which are not computed here, as "N/A"
    return {
        name: {key: float(value) for key, value in aggregates.items() if "," in key and value != "N/A"}
        for name, aggregates in metrics.items()
    }


def _scored(benchmark: Benchmark, row: Row, responses: Sequence[Any]) -> Scored:
    """Score a question as lm_eval's evaluator does: by filters first, then by metrics."""
    task, values = benchmark.subtasks[row.subtask], dict[str, Any]()
    # Copies, since the benchmark's own requests serve every model.
    pairs = zip(row.requests, responses, strict=True)
    requests = [replace(request, resps=[response], filtered_resps={}) for request, response in pairs]
    task._instances = requests
    task.apply_filters()
    task._instances = None
    for filtered in requests[0].filtered_resps:
        results = [request.filtered_resps[filtered] for request in requests]
        for metric, value in task.process_results(row.document, results).items():
            values[f"{metric},{filtered}"] = value
    key = choose_metric(values, benchmark.task.metric)
    score = values[key]
    if isinstance(score, list | tuple | np.ndarray) or not 0.0 <= float(score) <= 1.0:
        others = ", ".join(other for other in values if other != key) or "nothing else"
        raise CellError(f"metric {key} of {row.subtask} is no score in [0, 1] of a question; it also has {others}")
    answer = _answer(task, row, responses, key.rpartition(",")[0])
    return Scored(answer, key, float(score), values)


def _answer(task: Any, row: Row, responses: Sequence[Any], metric: str) -> str:
    """Return the model's answer: its text, or the option that the metric takes for chosen."""
    if task.OUTPUT_TYPE == "generate_until":
        return str(responses[0])
    if task.OUTPUT_TYPE == "loglikelihood":
        return f"log-probability {responses[0][0]:.4f}"
    options = [str(option) for option in task.doc_to_choice(row.document)]
    lengths = {
        "acc_norm": [len(option) for option in options],
        "acc_bytes": [len(option.encode()) for option in options],
    }.get(metric, [1] * len(options))
    likelihoods = [response[0] for response in responses[: len(options)]]
    return options[int(np.argmax(np.array(likelihoods) / np.array(lengths)))]
