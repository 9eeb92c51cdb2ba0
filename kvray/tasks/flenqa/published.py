"""FLenQA as its authors published it (Levy et al. 2024; Apache-2.0): prompts, conditions, scorer and rows.

Prompts and scorer are those of their notebook to the letter. The rows are 300 base instances under 40 conditions each,
of ``hf://datasets/alonj/FLenQA`` or of ``FLenQA.zip`` of the authors' repository. What is read of a row:
``dataset``, ``global_sample_id``, ``label`` (a boolean or its name), ``assertion/question``, ``mixin``,
``padding_type``, ``dispersion``, ``ctx_size``; for a worked answer ``facts``, or ``statement`` and ``rule``.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import chain, islice, product, zip_longest
from typing import Any, Literal

from kvray.errors import InputError
from kvray.tasks import prompts
from kvray.tasks.rng import shuffled
from kvray.tasks.sources import read
from kvray.tasks.sources.records import lacking

Subtask = Literal["MonoRel", "PIR", "RuleTaker"]
Padding = Literal["same", "books", "identity"]
Dispersion = Literal["first", "middle", "last", "random"]
Verdict = Literal["true", "false", "other"]

TEXTS: dict[str, Any] = prompts.load("flenqa/texts.toml")
"""The authors' prompts, and the words of our own instances."""
NAMES: dict[str, Subtask] = {"MonoRel": "MonoRel", "PIR": "PIR", "Simplified RuleTaker": "RuleTaker"}
"""The tasks by their names in the rows."""
_LABELS = {"true": True, "false": False}
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class Condition:
    """One text of an instance: its padding, where the key paragraphs stand, and its nominal length in tokens."""

    padding: Padding
    dispersion: Dispersion
    length: int


@dataclass(frozen=True)
class Question:
    """A true or false question, or a statement to derive; ``label`` is the answer, ``rule`` is RuleTaker's, else "".

    ``steps`` is the reasoning of a worked answer, a sentence each.
    """

    question: str
    label: bool
    steps: tuple[str, ...]
    rule: str


@dataclass(frozen=True)
class Row(Question):
    """A published row: an instance under one condition; ``text`` is its ``mixin``."""

    text: str


Instance = tuple[str, Mapping[Condition, Row]]
"""The id of a base instance, and its rows."""


@dataclass(frozen=True)
class Published:
    """The published instances that are asked, by task in order."""

    chosen: Mapping[Subtask, Sequence[Instance]]

    def asked(self, subtask: Subtask, number: int, conditions: Sequence[Condition]) -> list[tuple[str, Question, str]]:
        """Return (question id, question, text) of base instance ``number`` of a task under each condition."""
        name, rows = self.chosen[subtask][number]
        return [(f"{subtask}-{name}", rows[each], rows[each].text) for each in conditions]


def instances(
    source: str, subtasks: Sequence[Subtask], conditions: Sequence[Condition]
) -> dict[Subtask, list[Instance]]:
    """Return those instances of each task that were published under every condition, sorted by id.

    Raises InputError if a row cannot be read, or a task or condition has no row (the message lists those that have).
    """
    wanted = set(conditions)
    by_task: dict[Subtask, dict[str, dict[Condition, Row]]] = {subtask: {} for subtask in subtasks}
    published: set[tuple[Subtask, Condition]] = set()
    for where, row in read.rows(source):
        subtask, instance, condition = _place(row, where)
        published.add((subtask, condition))
        if subtask not in subtasks or condition not in wanted:
            continue
        rows = by_task[subtask].setdefault(instance, {})
        if condition in rows:
            raise InputError(f"{where}: global_sample_id {instance} of {subtask} comes twice under {condition}")
        rows[condition] = _row(row, where, subtask)
    absent = [pair for pair in product(subtasks, conditions) if pair not in published]
    if absent:
        subtask, first = absent[0]
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise InputError(
            f"{source}: no rows for {subtask} padding={first.padding} dispersion={first.dispersion} "
            f"ctx_size={first.length}{more}; it has {_summary(published)}"
        )
    return {
        subtask: [(name, rows) for name, rows in sorted(of_task.items()) if wanted <= set(rows)]
        for subtask, of_task in by_task.items()
    }


def choose(of_task: Sequence[Instance], subtask: Subtask, questions: int, key: int) -> list[Instance]:
    """Choose base instances of a task, true and false in turn while both last; InputError if too few."""
    if len(of_task) < questions:
        raise InputError(
            f"questions: {questions} asked for, but the source has {len(of_task)} base instances of {subtask} under "
            f"all the conditions; type questions: {len(of_task)}"
        )
    by_label: dict[bool, list[Instance]] = {True: [], False: []}
    for instance in shuffled(of_task, key):
        by_label[next(iter(instance[1].values())).label].append(instance)
    in_turn = chain.from_iterable(zip_longest(by_label[True], by_label[False]))
    return list(islice(filter(None, in_turn), questions))


def _place(row: dict[str, Any], where: str) -> tuple[Subtask, str, Condition]:
    needed = ("dataset", "global_sample_id", "padding_type", "dispersion", "ctx_size")
    missing = [name for name in needed if row.get(name) is None]
    if missing:
        raise lacking(row, repr(missing[0]), where)
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
            raise lacking(row, "'rule'", where)
        # The authors' notebook prints whatever the field holds.
        facts, rule = row.get("statement"), str(row["rule"])
    return Row(question, label, tuple(str(fact) for fact in [*(facts or []), rule] if fact), rule, text)


def _summary(published: set[tuple[Subtask, Condition]]) -> str:
    if not published:
        return "no rows"
    values = zip(*((subtask, *astuple(condition)) for subtask, condition in published), strict=True)
    names = ("tasks", "paddings", "dispersions", "lengths")
    return ", ".join(f"{name} {', '.join(map(str, sorted(set(of))))}" for name, of in zip(names, values, strict=True))


def prompt(subtask: Subtask, cot: bool, *, text: str, question: str, rule: str = "") -> str:
    """Word a prompt; ``cot`` asks for the steps first (chain of thought).

    In the published rows ``text`` (key paragraphs and padding) is ``mixin`` and ``question`` is ``assertion/question``.
    """
    template: str = TEXTS["prompts"]["cot" if cot else "direct"][subtask]
    return template.format(text=text, question=question, rule=rule)


def coverage(answer: str, facts: Sequence[str]) -> float:
    """Return the share of ``facts`` that an answer states word for word, both normalised (``cot_coverage``).

    The notebook counts the two facts that an instance reasons over and halves the mean. (For RuleTaker its comments
    name the row's ``statement``; its code reads ``facts`` there too, which those rows lack.)
    """
    said = _normalised(answer)
    return sum(_normalised(fact) in said for fact in facts) / len(facts)


def answers_early(answer: str) -> bool:
    """Return whether the answer's :func:`verdict` is in its first 10 characters, normalised (``early_response``)."""
    return verdict(answer) in _normalised(answer)[:10]


def _normalised(text: str) -> str:
    """Normalise as the notebook does: its punctuation strip strips nothing (it seeks all of it in one piece)."""
    return " ".join(_ARTICLES.sub(" ", text.lower()).split())


def verdict(answer: str) -> Verdict:
    """Return an answer's last "true" or "false", as the authors' notebook reads it; "other" if it has neither.

    It is lower-cased, articles and white space become single spaces, "not true" is "false"; parts of words count too.
    """
    normal = _normalised(answer).replace("not true", "false")
    true, false = normal.rfind("true"), normal.rfind("false")
    if true == false:
        return "other"
    return "true" if true > false else "false"
