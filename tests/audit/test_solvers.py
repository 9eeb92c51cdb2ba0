"""Solvers read prompts alone, find what every row says, and notice every kind of wrong row."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest

from kvray.audit.solvers import solver_of
from kvray.audit.tally import SHOWN, Tally
from kvray.cli.samples import DEFAULT_BASE, task_of
from kvray.generate.job import build, rows_of
from kvray.models.reference import resolve
from kvray.tasks import load_all
from kvray.tasks.base import REGISTRY, Task

BASE = resolve(DEFAULT_BASE)
ROWS = 200
CASES = {
    "simple_kv": ("dictionaries=12",),
    "simple_kv strict": ("law=strict", "dictionaries=fit", "max_tokens=500", "template=false"),
    "several_kv": ("dictionaries=12",),
    "multi_subkey_kv": ("dictionaries=9",),
    "multi_subkey_kv paper": ("dictionaries=9", "law=paper"),
    "kv_retrieval": ("keys=12",),
    "mdqa": ("documents=8",),
    "mdqa short": ("documents=8", "answers=short", "query_aware=true"),
    "multidoc_qa": ("documents=8",),
    "multidoc_qa passage": ("documents=8", "restate=passage"),
    "in2": ("segment_tokens=40", "length_min=240", "length_max=500", "integration_share=0.7"),
    "needle": ("lengths=512",),
    "needle classic": ("lengths=512", "needles=classic", "depths=[0, 25, 100]"),
    "flenqa": ("lengths=250,400", "dispersions=first,middle,last,random", "paddings=books,same,identity"),
    "flenqa worked": ("lengths=400", "cot=true"),
    "ruler": ("lengths=2048",),
    "val_probing": ("pieces=12",),
    "val_probing code": ("pieces=12", "probe=code"),
    "val_probing database": ("pieces=12", "probe=database"),
}
"""By name: the settings of some 200 rows that take little time."""

Row = dict[str, Any]
Change = Callable[[Row], Row]


def task(case: str) -> Task:
    name = case.partition(" ")[0]
    return task_of(name, 3, CASES[case]).with_rows(ROWS)


@cache
def made(case: str) -> Sequence[Row]:
    asked = task(case)
    rows: list[Row] = build(asked, BASE, range(min(rows_of(asked, BASE), ROWS))).to_pylist()
    return rows


def tally(case: str, rows: Sequence[Row], **knobs: Any) -> Tally:
    asked, counted = task(case), Tally()
    solver, _ = solver_of(asked.task, asked.model_dump() | knobs)
    for row in rows:
        counted.take(row, solver, asked.narrowed(row["subtask"]).score)
    return counted


@pytest.mark.parametrize("case", CASES)
def test_every_reference_is_found_in_the_prompt_alone(case: str) -> None:
    counted = tally(case, made(case))
    assert [(one.example_id, one.why) for one in counted.failures] == []
    assert counted.found == counted.read == counted.rows == ROWS
    assert counted.wrong == 0 and (counted.ambiguous == 0 or "law=paper" in CASES[case])
    assert counted.repeated == []


def other_label(row: Row) -> Row:
    """Give the row another dictionary in its answer and references."""
    wrong = re.sub(r"Dictionary \[(\d+)\]", lambda found: f"Dictionary [{int(found[1]) % 12 + 1}]", row["answer"])
    return row | {"answer": wrong, "references": [wrong]}


def other_answer(row: Row) -> Row:
    return row | {"answer": "Velmora", "references": ["Velmora"]}


def swapped_verdict(row: Row) -> Row:
    return row | {"answer": str(row["answer"] != "True"), "references": [str(row["references"] != ["True"])]}


def next_place(row: Row) -> Row:
    return row | {"position": row["position"] % row["units"] + 1}


def without_answer(row: Row) -> Row:
    """Take the answer out of the prompt, as a generator would that forgets the gold part."""
    return row | {"prompt": row["prompt"].replace(row["references"][0], "nobody")}


def one_more(row: Row) -> Row:
    return row | {"units": row["units"] + 1}


def elsewhere(row: Row) -> Row:
    return row | {"depth": 100 - row["depth"]}


def too_long(row: Row) -> Row:
    return row | {"prompt_tokens": row["length"] + 1}


def other_kind(row: Row) -> Row:
    return row | {"subtask": "short" if row["subtask"] != "short" else "integration"}


@pytest.mark.parametrize(
    ("case", "change", "why"),
    [
        ("simple_kv", other_label, "the prompt says"),
        ("simple_kv", next_place, "gold position"),
        ("simple_kv", one_more, "units"),
        ("several_kv", other_label, "the prompt says"),
        ("multi_subkey_kv", other_label, "the prompt says"),
        ("kv_retrieval", other_answer, "the prompt says"),
        ("kv_retrieval", without_answer, "the prompt says"),
        ("mdqa", other_answer, "hold an accepted answer"),
        ("mdqa", without_answer, "hold an accepted answer"),
        ("mdqa", next_place, "gold position"),
        ("multidoc_qa", lambda row: row | {"answer": row["answer"].replace("[", "[1")}, "answer: "),
        ("in2", without_answer, ""),
        ("in2", other_kind, "kind"),
        ("needle", other_answer, "the prompt says"),
        ("needle", without_answer, "the prompt says"),
        ("needle classic", elsewhere, "the needle stands at"),
        ("needle", too_long, "of its length"),
        ("flenqa", swapped_verdict, "the prompt says"),
        ("ruler", without_answer, ""),
        ("ruler", lambda row: row | {"references": ["a-needle"]}, "the prompt says"),
        ("val_probing", other_answer, "the prompt says"),
        ("val_probing code", without_answer, "the prompt says"),
        ("val_probing database", next_place, "gold position"),
        ("flenqa", lambda row: row | {"subtask": "PIR" if row["subtask"] != "PIR" else "MonoRel"}, "kind"),
    ],
)
def test_a_planted_mistake_is_found_and_shown(case: str, change: Change, why: str) -> None:
    planted, rows = 7, list(made(case))
    if change is elsewhere:
        planted = next(at for at, row in enumerate(rows) if row["depth"] == 0)
    rows[planted] = change(rows[planted])
    counted = tally(case, rows)
    assert [one.example_id for one in counted.failures] == [rows[planted]["example_id"]]
    assert counted.wrong == 1 and counted.found == ROWS - 1
    assert why in counted.failures[0].why
    assert counted.failures[0].excerpt.removeprefix("…") in " ".join(rows[planted]["prompt"].split())


def test_a_key_that_comes_twice_is_wrong_or_under_the_published_law_ambiguous() -> None:
    rows = list(made("simple_kv"))
    asked = re.search(r"value of key (\d+)", rows[0]["prompt"])
    assert asked is not None
    first = "Dictionary [1] {" if rows[0]["position"] != 1 else "Dictionary [2] {"
    rows[0] = rows[0] | {"prompt": rows[0]["prompt"].replace(first, f"{first}{asked[1]}: 777, ")}
    by_law = tally("simple_kv", rows)
    assert (by_law.wrong, by_law.ambiguous) == (0, 1)
    strictly = tally("simple_kv", rows, law="strict")
    assert (strictly.wrong, strictly.ambiguous) == (1, 0)


def test_key_paragraphs_elsewhere_than_the_row_says_are_found() -> None:
    rows = [
        row for row in made("flenqa") if "dispersion=first padding=books" in row["condition"] and row["length"] == 400
    ]
    moved = [row | {"condition": row["condition"].replace("first", "last")} for row in rows]
    assert len(rows) > 3
    assert tally("flenqa", rows).wrong == 0
    assert tally("flenqa", moved).wrong == len(moved)


def test_an_answer_that_its_own_scorer_refuses_is_wrong() -> None:
    rows = [row | {"answer": "I do not know"} for row in made("mdqa")]
    counted = tally("mdqa", rows)
    assert counted.wrong == ROWS and len(counted.failures) == SHOWN
    assert "scores 0" in counted.failures[0].why


def test_a_distractor_that_holds_the_answer_is_wrong_unless_it_was_retrieved() -> None:
    row = made("mdqa")[0]
    other = "Document [2](Title: " if row["position"] != 2 else "Document [3](Title: "
    spoiled = row | {"prompt": row["prompt"].replace(other, f"{other}{row['references'][0]} ")}
    assert tally("mdqa", [spoiled]).failures[0].why.startswith("documents [")
    assert tally("mdqa", [spoiled], source="file.jsonl").wrong == 1
    retrieved = tally("mdqa", [spoiled], source="file.jsonl", distractors="retrieved")
    assert (retrieved.wrong, retrieved.ambiguous) == (0, 1)


def test_repeated_prompts_and_questions_are_found_across_parts() -> None:
    rows = list(made("simple_kv"))
    again = rows[5] | {"example_id": "copy", "question_id": "copy"}
    parts = tally("simple_kv", rows[:100]), tally("simple_kv", [*rows[100:], again])
    parts[0].add(parts[1])
    whole = tally("simple_kv", [*rows, again])
    assert whole.repeated == parts[0].repeated == [(rows[5]["example_id"], "copy")]
    assert whole.again == parts[0].again == 1
    assert (whole.rows, whole.found, whole.cells) == (parts[0].rows, parts[0].found, parts[0].cells)
    assert whole.hits["random entry"] == pytest.approx(parts[0].hits["random entry"])


def test_what_a_guess_scores_is_what_guessing_scores() -> None:
    counted = tally("mdqa", made("mdqa"))
    at = [row["position"] for row in made("mdqa")]
    hits, rows = counted.hits["first entry"]
    assert (hits, rows) == (sum(position == 1 for position in at), ROWS)
    assert counted.hits["random entry"] == [pytest.approx(ROWS / 8), ROWS]
    assert max(counted.constants.values()) == max(
        sum(row["references"] == [one] for row in made("mdqa"))
        for one in {row["references"][0] for row in made("mdqa")}
    )


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("recall", {}),
        ("messages", {"source": "mine.jsonl"}),
        ("mdqa", {"documents": 0}),
        ("in2", {"source": "mine.jsonl"}),
        ("flenqa", {"source": "FLenQA.zip"}),
        ("my.package:Task", {}),
    ],
)
def test_what_no_solver_can_read_is_said(name: str, knobs: dict[str, Any]) -> None:
    solver, why = solver_of(name, knobs)
    assert solver is None and why


def test_every_generator_has_a_solver_or_a_reason_why_not() -> None:
    load_all()
    ours = {name: cls for name, cls in REGISTRY.items() if cls.__module__.startswith("kvray.") and cls.BRINGS_EXAMPLES}
    without = {name for name, cls in ours.items() if name != "messages" and not solver_of(name, cls().model_dump())[0]}
    assert without == {"recall"}
    assert set(ours) - without - {"messages"} == {case.partition(" ")[0] for case in CASES}


def test_every_task_of_ruler_is_read() -> None:
    rows = list(made("ruler"))[:13]
    assert len({row["subtask"] for row in rows}) == 13
    wrong = [row | {"references": ["a-word", *row["references"][1:]]} for row in rows]
    assert (tally("ruler", rows).found, tally("ruler", wrong).wrong) == (13, 13)
