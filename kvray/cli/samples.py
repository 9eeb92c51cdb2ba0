"""A single task on the command line: made from its name and ``--set key=value``, and its examples as text."""

import json
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from kvray.errors import InputError, Place, Problem
from kvray.generate.job import build, rows_of
from kvray.models.chat import answered, prompts_of
from kvray.models.reference import BUNDLED, BaseModelRef, load_tokenizer, tokenizer_place
from kvray.sweep import yaml as yaml_lines
from kvray.sweep.blocks import check_task, lookup, task_class
from kvray.sweep.document import Document
from kvray.tasks import load_all
from kvray.tasks.base import Task
from kvray.tasks.lm_eval import LmEval

DEFAULT_BASE = next(iter(BUNDLED))  # its tokenizer counts where no model is named
_ROWS_AT_ONCE = 64


def task_of(name: str, seed: int | None = None, settings: Sequence[str] = (), allow_code: bool = False) -> Task:
    """Return a task by its name or ``module:Class`` and a command line's settings, ``key=value`` with values in YAML.

    ``seed`` None keeps the default; ``allow_code`` loads a file of the current folder that the name may stand for.
    Raises InputError, with all problems at once, if the name or settings are unknown or cannot be used.
    """
    load_all()
    document = Document(name)
    if seed is not None:
        document.set(("seed",), seed, Place(0, "--seed"))
    wrong = [problem for text in settings if (problem := yaml_lines.override(document, text))]
    if "task" in document.value:
        known = f"found {document.value.pop('task')!r}; expected the task as the argument alone"
        wrong.append(Problem(("task",), known, document.places[("task",)]))
    with lookup(".", allow_code):
        try:
            task_class(name)
        except InputError as error:
            problems = _lines(document, [*document.problems, *wrong])
            raise InputError([f"task: {error}", *problems]) from error
        task, found = check_task({"task": name, **document.value})
    found = [problem for problem in found if not document.hides(problem.path)]
    if task is None or wrong or document.problems:
        raise InputError(_lines(document, [*document.problems, *wrong, *found]))
    return task


def with_rows(task: Task, rows: int) -> Task:
    """Return :meth:`Task.with_rows`, or the task itself if its ``rows`` or ``questions`` were set by hand."""
    return task if task.model_fields_set & {"rows", "questions"} else task.with_rows(rows)


def rows(task: Task, base: BaseModelRef, n: int) -> Iterator[dict[str, Any]]:
    """Yield the first ``n`` examples: columns of ``EXAMPLE_SCHEMA``, with ``messages`` in place of prompt and answer.

    Raises InputError if the task has fewer examples, its parameters cannot be met, or it needs a model's texts.
    """
    has = rows_of(task, base)
    if n > has:
        raise InputError(f"--rows: found {n}, but {task.task} with these settings has {has}; expected at most {has}")
    for start in range(0, n, _ROWS_AT_ONCE):
        table = build(task, base, range(start, min(start + _ROWS_AT_ONCE, n)))
        for row, prompt in zip(table.to_pylist(), prompts_of(table), strict=True):
            about = {name: row[name] for name in row if name not in ("prompt", "answer", "history")}
            yield {**about, "messages": answered(prompt, row["answer"])}


def benchmark_rows(task: LmEval, base: BaseModelRef, n: int) -> Iterator[dict[str, Any]]:
    """Yield the first ``n`` questions of a benchmark of lm-evaluation-harness, as :func:`rows` does for other tasks.

    Raises CellError if the harness is not installed or cannot load the benchmark.
    """
    from kvray.evaluate.lm_eval import scoring, tasks

    benchmark = tasks.load(task, load_tokenizer(base) if task.chat_template else None, tokenizer_place(base))
    for row in benchmark.rows[:n]:
        asked = row.requests[0].args[0]
        accepted = scoring.references(benchmark, row)
        shown = {name: None for name in ("position", "depth", "length", "condition", "prompt_tokens")}
        yield {
            **shown,
            "example_id": row.id,
            "question_id": row.id,
            "units": 0,
            "subtask": row.subtask,
            "references": accepted,
            "messages": answered(asked, accepted[0] if accepted else ""),
        }


def text(row: dict[str, Any], task: Task) -> str:
    """Return an example of :func:`rows` as text for a terminal."""
    *earlier, prompt, answer = (message["content"] for message in row["messages"])
    about = {
        "references": json.dumps(row["references"], ensure_ascii=False),
        "position": row["position"],
        "depth": None if row["depth"] is None else f"{row['depth']:g} %",
        "units": row["units"] or None,
        "length": row["length"],
        "kind": row["subtask"],
        "condition": row["condition"],
        "prompt tokens": row["prompt_tokens"],
        "question id": row["question_id"],
        "answer begins": row.get("answer_prefix"),
        "scored": task.rule(),
    }
    facts = [f"{name + ':':<15}{value}" for name, value in about.items() if value is not None]
    parts = (
        f"== {task.task} {row['example_id']} ==",
        *(f"-- {message['role']}\n{text}" for message, text in zip(row["messages"], earlier, strict=False)),
        "-- prompt",
        prompt.rstrip("\n"),
        "-- answer to train on" if task.TRAINABLE else "-- right answer",
        answer,
        "-- about",
        *(textwrap.fill(fact, 120, subsequent_indent=" " * 15, break_long_words=False) for fact in facts),
    )
    return "\n".join(parts) + "\n"


def _lines(document: Document, problems: Sequence[Problem]) -> list[str]:
    """Return a line per problem: ``--set documents: found …``, or ``mdqa: source: …`` if no option set it."""
    placed = []
    for problem in problems:
        typed = document.places.get(problem.path[:1]) if problem.path else None
        if typed is not None:
            rest = problem.path[1:]
            placed.append(Problem(rest, problem.text, typed))
        else:
            placed.append(Problem(problem.path, problem.text, problem.place or Place(-1, document.file)))
    return document.report(placed)
