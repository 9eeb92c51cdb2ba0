"""FLenQA as published: 300 base instances under 40 conditions each (Levy et al. 2024; Apache-2.0).

Rows of ``hf://datasets/alonj/FLenQA`` or of ``FLenQA.zip`` of the authors' repository. What is read of a row:
``dataset``, ``global_sample_id``, ``label`` (a boolean or its name), ``assertion/question``, ``mixin``,
``padding_type``, ``dispersion``, ``ctx_size``; for a worked answer ``facts``, or ``statement`` and ``rule``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from kvray.errors import InputError
from kvray.tasks.flenqa.prompts import Condition, Question, Subtask
from kvray.tasks.rng import draws, key_of
from kvray.tasks.sources import read as sources

NAMES: dict[str, Subtask] = {"MonoRel": "MonoRel", "PIR": "PIR", "Simplified RuleTaker": "RuleTaker"}
"""The tasks by their names in the rows."""
_LABELS = {"true": True, "false": False}


@dataclass(frozen=True)
class Row(Question):
    """A published row: an instance under one condition; ``text`` is its ``mixin``."""

    text: str


Rows = Mapping[tuple[Subtask, str], Mapping[Condition, Row]]
"""Rows by (task, base instance) and condition."""


def read(source: str, subtasks: Sequence[Subtask], conditions: Sequence[Condition]) -> Rows:
    """Return the rows of those instances that were published under every condition.

    Raises:
        InputError: a row cannot be read; or a task or condition has no row (the message lists those that have).
    """
    wanted = set(conditions)
    instances: dict[tuple[Subtask, str], dict[Condition, Row]] = {}
    published: set[tuple[Subtask, Condition]] = set()
    for where, row in sources.rows(source):
        subtask, instance, condition = _place(row, where)
        published.add((subtask, condition))
        if subtask not in subtasks or condition not in wanted:
            continue
        rows = instances.setdefault((subtask, instance), {})
        if condition in rows:
            raise InputError(f"{where}: global_sample_id {instance} of {subtask} comes twice under {condition}")
        rows[condition] = _row(row, where, subtask)
    absent = [
        f"{subtask} padding={each.padding} dispersion={each.dispersion} ctx_size={each.length}"
        for subtask in subtasks
        for each in conditions
        if (subtask, each) not in published
    ]
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise InputError(f"{source}: no rows for {absent[0]}{more}; it has {_summary(published)}")
    return {name: rows for name, rows in sorted(instances.items()) if wanted <= set(rows)}


def choose(rows: Rows, subtask: Subtask, questions: int, key: tuple[str | int, ...]) -> list[str]:
    """Choose base instances of a task by the seed, true and false in turn while both last; InputError if too few."""
    names = [instance for name, instance in rows if name == subtask]
    if len(names) < questions:
        raise InputError(
            f"questions: {questions} asked for, but the source has {len(names)} base instances of {subtask} under all "
            f"the conditions; type questions: {len(names)}"
        )
    order = np.argsort(draws(key_of(*key, subtask), 0, len(names), 1)[:, 0], kind="stable")
    by_label: dict[bool, list[str]] = {True: [], False: []}
    for index in order.tolist():
        label = next(iter(rows[subtask, names[index]].values())).label
        by_label[label].append(names[index])
    ranked = [(place, not label, name) for label, kept in by_label.items() for place, name in enumerate(kept)]
    return [name for _, _, name in sorted(ranked)[:questions]]


def _place(row: dict[str, Any], where: str) -> tuple[Subtask, str, Condition]:
    needed = ("dataset", "global_sample_id", "padding_type", "dispersion", "ctx_size")
    missing = [name for name in needed if row.get(name) is None]
    if missing:
        raise InputError(f"{where}: no {missing[0]!r}; found the fields {', '.join(row) or 'none'}")
    subtask = NAMES.get(str(row["dataset"]))
    if subtask is None:
        raise InputError(f"{where}: dataset: found {row['dataset']!r}; expected one of {', '.join(NAMES)}")
    try:
        length = int(row["ctx_size"])
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: ctx_size: found {row['ctx_size']!r}; expected a number of tokens") from error
    return subtask, str(row["global_sample_id"]), Condition(row["padding_type"], row["dispersion"], length)


def _row(row: dict[str, Any], where: str, subtask: Subtask) -> Row:
    text, question = row.get("mixin"), row.get("assertion/question")
    if not isinstance(text, str) or not isinstance(question, str) or not text or not question:
        raise InputError(
            f"{where}: 'mixin' and 'assertion/question' must be texts; found {text!r:.60}, {question!r:.60}"
        )
    label = _LABELS.get(str(row.get("label")).strip().lower())
    if label is None:
        raise InputError(f"{where}: label: found {row.get('label')!r}; expected True or False")
    facts, rule = row.get("facts"), ""
    if subtask == "RuleTaker":
        if not row.get("rule"):
            raise InputError(f"{where}: no 'rule'; found the fields {', '.join(row)}")
        # The authors' notebook prints whatever the field holds.
        facts, rule = row.get("statement"), str(row["rule"])
    return Row(question, label, tuple(str(fact) for fact in [*(facts or []), rule] if fact), rule, text)


def _summary(published: set[tuple[Subtask, Condition]]) -> str:
    if not published:
        return "no rows"
    values = zip(*((subtask, *astuple(condition)) for subtask, condition in published), strict=True)
    names = ("tasks", "paddings", "dispersions", "lengths")
    return ", ".join(f"{name} {', '.join(map(str, sorted(set(of))))}" for name, of in zip(names, values, strict=True))
