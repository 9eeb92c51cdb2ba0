"""Responses of a model -> scores: lm_eval's own filters, metrics and aggregates, question by question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kvray.errors import CellError
from kvray.evaluate.lm_eval.tasks import Benchmark, Row, choose_metric


def score(benchmark: Benchmark, rows: Sequence[Row], responses: Sequence[Sequence[Any]]) -> list[Scored]:
    """Score the responses to some questions.

    ``responses`` holds for each request of each question the text of a generation, or (log-probability, whether greedy
    decoding would write it) of a continuation.

    Raises:
        CellError: the metric that scores is no number in [0, 1].
    """
    measured = zip(rows, responses, _measure(benchmark, rows, responses), strict=True)
    return [_scored(benchmark, row, given, values) for row, given, values in measured]


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
    """Return lm_eval's own aggregates of every subtask and group.

    ``values`` has, by subtask and ``metric,filter``, what was measured of each question.
    """
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


def _measure(benchmark: Benchmark, rows: Sequence[Row], responses: Sequence[Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Yield what lm_eval measures of each question: filters first, then metrics, as in its evaluator."""
    # Copies, since the benchmark's own requests serve every model.
    answered = [
        [replace(request, resps=[given], filtered_resps={}) for request, given in zip(row.requests, each, strict=True)]
        for row, each in zip(rows, responses, strict=True)
    ]
    for name in sorted({row.subtask for row in rows}):
        task = benchmark.subtasks[name]
        mine = zip(rows, answered, strict=True)
        task._instances = [request for row, requests in mine if row.subtask == name for request in requests]
        task.apply_filters()
        task._instances = None
    for row, requests in zip(rows, answered, strict=True):
        values: dict[str, Any] = {}
        for filtered in requests[0].filtered_resps:
            results = [request.filtered_resps[filtered] for request in requests]
            for metric, value in benchmark.subtasks[row.subtask].process_results(row.document, results).items():
                values[f"{metric},{filtered}"] = value
        yield values


def _scored(benchmark: Benchmark, row: Row, responses: Sequence[Any], values: dict[str, Any]) -> Scored:
    key = choose_metric(values, benchmark.task.metric)
    score = values[key]
    if isinstance(score, list | tuple | np.ndarray) or not 0.0 <= float(score) <= 1.0:
        others = ", ".join(other for other in values if other != key) or "nothing else"
        raise CellError(f"metric {key} of {row.subtask} is no score in [0, 1] of a question; it also has {others}")
    answer = _answer(benchmark.subtasks[row.subtask], row, responses, key.rpartition(",")[0])
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


@dataclass(frozen=True)
class Scored:
    """What lm_eval makes of the responses to one question.

    ``answer`` is the raw text, or the chosen option; ``values`` is everything measured, by ``metric,filter``; the one
    called ``metric`` is the score, in [0, 1].
    """

    answer: str
    metric: str
    score: float
    values: dict[str, Any]
