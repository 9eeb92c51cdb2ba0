"""A task by hand: settings are checked like a sweep's, and examples come out as chat messages."""

from __future__ import annotations

import pytest

from kvray.cli import samples
from kvray.errors import InputError
from kvray.models.reference import resolve
from kvray.store.schemas import EXAMPLE_SCHEMA
from kvray.tasks.kv.simple import SimpleKV
from kvray.tasks.qa.mdqa import Mdqa
from kvray.tasks.qa.recall import Recall

BASE = resolve(samples.DEFAULT_BASE)
KEYS = {*EXAMPLE_SCHEMA.names, "messages"} - {"prompt", "answer"}


def problems_of(name: str, *settings: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        samples.task_of(name, 0, settings)
    assert caught.value.exit_status == 2
    return caught.value.problems


def test_settings_are_yaml_and_the_last_one_counts() -> None:
    task = samples.task_of("mdqa", 7, ["documents=3", "positions=[1, 3]", "documents=4"])
    assert task == Mdqa(seed=7, documents=4, positions=(1, 3))
    assert samples.task_of("simple_kv", None, ["template=false", "law=strict"]) == SimpleKV(
        template=False, law="strict"
    )


def test_position_is_short_for_positions() -> None:
    assert samples.task_of("mdqa", None, ["documents=9", "position=2"]) == Mdqa(documents=9, positions=(2,))


def test_every_problem_is_told_at_once_and_where() -> None:
    found = problems_of("mdqa", "documnts=3", "questions=many", "task=recall", "nonsense")
    assert len(found) == 4
    assert any(line.startswith("--set documnts: ") and "did you mean 'documents'?" in line for line in found)
    assert any(line.startswith("--set questions: ") and "a whole number" in line for line in found)
    assert any(line.startswith("--set task: ") for line in found)
    assert any("KEY.KEY=VALUE" in line for line in found)


def test_an_unknown_task_names_the_nearest() -> None:
    (line,) = problems_of("simple_kw")
    assert "did you mean 'simple_kv'?" in line


def test_a_rule_across_fields_names_the_task() -> None:
    (line,) = problems_of("mdqa", "documents=3", "position=4")
    assert "positions" in line and "found" in line


@pytest.mark.parametrize("rows", [1, 3, 7])
@pytest.mark.parametrize("name", ["simple_kv", "multi_subkey_kv", "mdqa", "recall"])
def test_examples_are_as_many_as_asked_for(name: str, rows: int) -> None:
    settings = {"mdqa": ["documents=3"], "recall": []}.get(name, ["dictionaries=3"])
    task = samples.with_rows(samples.task_of(name, 1, settings), rows)
    made = list(samples.rows(task, BASE, rows))
    assert len(made) == rows
    for row in made:
        assert set(row) == KEYS
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert task.score(row["messages"][1]["content"], row["references"]) == 1.0


def test_tasks_over_questions_take_just_enough_of_them() -> None:
    assert samples.with_rows(Mdqa(documents=20), 7) == Mdqa(documents=20, questions=2)
    assert samples.with_rows(Recall(), 5) == Recall(questions=5)
    assert samples.with_rows(SimpleKV(), 5) == SimpleKV(rows=5)


def test_a_size_set_by_hand_is_kept_and_its_first_rows_are_shown() -> None:
    task = samples.with_rows(samples.task_of("simple_kv", 0, ["dictionaries=30", "rows=100"]), 60)
    assert task.rows == 100  # type: ignore[attr-defined]
    shown = [row["position"] for row in samples.rows(task, BASE, 60)]
    assert shown == [row["position"] for row in samples.rows(task, BASE, 100)][:60]
    mdqa = samples.with_rows(samples.task_of("mdqa", 0, ["documents=3", "positions=1,3", "questions=2"]), 5)
    with pytest.raises(InputError, match="found 5, but mdqa with these settings has 4"):
        list(samples.rows(mdqa, BASE, 5))


def test_positions_may_be_listed_without_brackets() -> None:
    assert samples.task_of("mdqa", None, ["positions=1, 5,10"]) == Mdqa(positions=(1, 5, 10))
    assert "found ''; expected a whole number or 'random'" in problems_of("mdqa", "positions=1,")[0]


def test_more_than_there_is_is_refused() -> None:
    with pytest.raises(InputError, match="expected at most 2"):
        list(samples.rows(SimpleKV(rows=2, dictionaries=3), BASE, 3))


def test_the_text_shows_prompt_answer_and_scoring() -> None:
    task = samples.task_of("mdqa", 0, ["documents=2", "position=2"])
    (row,) = samples.rows(samples.with_rows(task, 1), BASE, 1)
    text = samples.text(row, task)
    for part in (row["messages"][0]["content"], row["messages"][1]["content"], "position:", "Score as lost-in-the-mid"):
        assert part in text
