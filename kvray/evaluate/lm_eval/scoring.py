"""What a benchmark's own filters, metrics and aggregates make of the responses to its questions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kvray.errors import CellError, last_line
from kvray.evaluate.lm_eval.tasks import Benchmark, Row, by_length, choose_metric

ABSENT = -1
"""What RULER's tasks give as the score at a length that a question does not have."""


def score(benchmark: Benchmark, rows: Sequence[Row], responses: Sequence[Sequence[Any]]) -> list[Scored]:
    """Score the responses to some questions; CellError if the metric that scores is no number in [0, 1].

    ``responses`` holds for each request of each question the text of a generation, or (log-probability, whether greedy
    decoding would write it) of a continuation.
    """
    return [_scored(benchmark, row, given) for row, given in zip(rows, responses, strict=True)]


def references(benchmark: Benchmark, row: Row) -> list[str]:
    """Return the accepted answers of a question, options by their texts."""
    task = benchmark.subtasks[row.subtask]
    if isinstance(task.config.doc_to_target, int):
        return []  # a placeholder: the answer is checked against rules (IFEval)
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
        name: {
            key: float(value)
            for key, value in aggregates.items()
            if "," in key and value != "N/A" and not (value == ABSENT and by_length([key]))
        }
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
        try:
            measured = task.process_results(row.document, results)
        except Exception as error:
            # The benchmark's own code: it may lack a package or its data (nltk's), which a new engine would lack too.
            raise CellError(
                f"benchmark {benchmark.task.benchmark}: {row.id} cannot be scored: {_why(error)}"
            ) from error
        values |= {f"{metric},{filtered}": value for metric, value in measured.items()}
    other_lengths = {key for key in by_length(values) if values[key] == ABSENT}
    key = choose_metric([key for key in values if key not in other_lengths], benchmark.task.metric)
    score = values[key]
    if isinstance(score, list | tuple | np.ndarray) or not 0.0 <= float(score) <= 1.0:
        others = ", ".join(other for other in values if other != key) or "nothing else"
        raise CellError(f"metric {key} of {row.subtask} is no score in [0, 1] of a question; it also has {others}")
    metric = key.rpartition(",")[0]
    length = int(metric) if by_length([key]) else None
    return Scored(_answer(task, row, responses, metric), key, float(score), values, length)


def _why(error: Exception) -> str:
    """Return an error's message on a line; of data that nltk lacks, what to type."""
    resource = re.search(r"nltk\.download\('([\w-]+)'\)", str(error)) if isinstance(error, LookupError) else None
    if resource is None:
        return f"{type(error).__name__}: {last_line(error)}"
    return f"nltk has no {resource[1]} here; type python -m nltk.downloader {resource[1]}, where there is a network"


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

    ``answer`` is the raw text or the chosen option; ``values`` is all by ``metric,filter``, ``metric`` the score's key.
    ``length`` is the context length, in tokens, where the metric is the score at a length.
    """

    answer: str
    metric: str
    score: float
    values: dict[str, Any]
    length: int | None = None
