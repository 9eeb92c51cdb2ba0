"""``why`` finds one artefact by a part of its id, and says what of its recipe differs from the nearest stored one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from planned_toys import BASE, commit, toy_plan
from toy_tasks import Toy

from kvray.errors import InputError
from kvray.planning import inputs
from kvray.planning.artefacts import Artefact
from kvray.planning.why import explain, lines
from kvray.store import failures
from kvray.store.store import Store
from kvray.tasks.base import REGISTRY

ROOT = Path(__file__).parents[2]


def why(cell: str, store: Store, planned: Sequence[Artefact] | None = None) -> list[str]:
    return list(lines(explain(cell, store, planned)))


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "toy", Toy)
    monkeypatch.setattr(inputs, "resolve", lambda name, tokenizer=None: BASE)


def test_in_an_empty_store_it_is_new_and_its_needs_are_followed(tmp_path: Path) -> None:
    planned = toy_plan().artefacts
    cell = next(
        artefact for artefact in planned if artefact.labels.get("mixture") == "other" and len(artefact.needs) > 1
    )
    found = why(cell.id, Store(tmp_path), planned)
    assert found[0].startswith(f"{cell.id}: missing") and "mixture other" in found[0]
    text = "\n".join(found)
    for need in cell.needs:
        assert f"  {need}: missing" in text
    (finetune,) = [artefact for artefact in planned if artefact.id == cell.needs[1]]
    deeper = next(line for line in found if line.strip().startswith(finetune.needs[0]))
    assert len(deeper) - len(deeper.lstrip()) > 4
    assert "it is new" in text


def test_the_nearest_recipe_is_compared(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for artefact in toy_plan().artefacts:
        commit(store, artefact)
    changed = toy_plan(finetune={"epochs": 3}).artefacts
    target = next(a for a in changed if a.kind == "finetune" and a.labels["mixture"] == "ours")
    found = why(target.id, store, changed)
    assert any(line.strip() == "finetune.epochs: 2.0 -> 3.0" for line in found)
    before = next(a for a in toy_plan().artefacts if a.kind == "finetune" and a.labels["mixture"] == "ours")
    assert any(f": {before.id} (made" in line for line in found)


def test_a_change_of_what_is_needed_is_shown_inside(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for artefact in toy_plan().artefacts:
        commit(store, artefact)
    changed = toy_plan(evaluate={"ask": {"task": "toy", "rows": 6, "seed": 9}}).artefacts
    cell = next(a for a in changed if a.kind == "predictions" and a.labels["mixture"] == "ours")
    text = "\n".join(why(cell.id, store, changed))
    assert "needs[0]: " in text and "task.rows: 5 -> 6" in text


def test_committed_tells_when_by_what_and_the_recipe(tmp_path: Path) -> None:
    store, planned = Store(tmp_path), toy_plan().artefacts
    made = commit(store, planned[0])
    text = "\n".join(why(planned[0].id, store, planned))
    for part in ("committed", made.created, "kvray ", "task.rows: 20"):
        assert part in text


def test_failures_and_damage_tell_their_reason(tmp_path: Path) -> None:
    store, planned = Store(tmp_path), toy_plan().artefacts
    failures.note(store, planned[0].id, "no disk left")
    assert "no disk left" in "\n".join(why(planned[0].id, store, planned))
    commit(store, planned[1])
    Path(store.path(planned[1].id, "part-0.parquet")).unlink()
    assert "part-0.parquet" in "\n".join(why(planned[1].id, store, planned))


def test_names_that_fit_several_or_none_list_candidates(tmp_path: Path) -> None:
    planned = toy_plan().artefacts
    with pytest.raises(InputError, match="fits 3 artefacts") as several:
        why("toy-", Store(tmp_path), [artefact for artefact in planned if artefact.kind == "dataset"])
    assert all(artefact.id in str(several.value) for artefact in planned if artefact.kind == "dataset")
    with pytest.raises(InputError, match="did you mean"):
        why("toy-lora-s1", Store(tmp_path), planned)
    with pytest.raises(InputError, match="give --sweep"):
        why("anything", Store(tmp_path))


def test_a_label_names_an_artefact_too(tmp_path: Path) -> None:
    planned = [artefact for artefact in toy_plan().artefacts if artefact.kind == "dataset"]
    assert why("other", Store(tmp_path), planned)[0].startswith("datasets/toy-")


def test_sweeps_of_the_store_are_looked_through_and_planned_again(tmp_path: Path) -> None:
    store, planned = Store(tmp_path), toy_plan()
    store.write_document("sweeps/s.json", planned.to_json())
    commit(store, planned.artefacts[0])
    found = why(planned.artefacts[1].id, store)
    assert any("nearest of 1 committed" in line for line in found)
    assert any(line.strip().startswith("task.rows: 20 -> 30") for line in found)


def test_all_stored_ones_are_compared_the_nearest_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for epochs, rate in ((1, 1e-3), (2, 1e-3), (2, 2e-3), *((2, 1e-2 + 1e-4 * i) for i in range(9))):
        for artefact in toy_plan(finetune={"epochs": epochs, "learning_rate": rate, "match": "rows"}).artefacts:
            if artefact.labels.get("mixture") == "ours" and artefact.kind == "finetune":
                commit(store, artefact)
    planned = toy_plan(finetune={"epochs": 1, "learning_rate": 2e-3, "match": "rows"}).artefacts
    target = next(a for a in planned if a.kind == "finetune" and a.labels["mixture"] == "ours")
    told = explain(target.id, store, planned)
    assert (told["id"], told["kind"], told["state"]) == (target.id, "finetune", "missing")
    stored = told["stored"]
    assert len(stored) == 12
    counts = [len(each["differences"]) for each in stored]
    assert counts == sorted(counts) == [1] * 2 + [2] * 10
    assert sorted(each["differences"] for each in stored[:2]) == [
        ["finetune.epochs: 2.0 -> 1.0"],
        ["finetune.learning_rate: 0.001 -> 0.002"],
    ]
    assert json.loads(json.dumps(told)) == told
    found = why(target.id, store, planned)
    places = [next(i for i, line in enumerate(found) if each["id"] in line) for each in stored]
    assert places == sorted(places), "all are listed, in that order"
    assert "2 differences" in found[places[-1]]
    cell = next(a for a in planned if a.kind == "predictions" and target.id in a.needs)
    assert any(line.strip() == f"and 11 more: kvray why {target.id}" for line in why(cell.id, store, planned))


def test_all_that_a_name_fits_are_listed_the_nearest_first(tmp_path: Path) -> None:
    planned = toy_plan(finetune={"seeds": list(range(12)), "match": "rows"}).artefacts
    with pytest.raises(InputError, match="fits 25 artefacts") as several:
        why("predictions/toy-", Store(tmp_path), planned)
    listed = [line.split()[0] for line in str(several.value).splitlines()[1:]]
    assert set(listed) == {a.id for a in planned if a.kind == "predictions"}
    assert "toy-base" in listed[0]


def test_the_first_example_of_the_help_works_after_the_quickstart(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from kvray.cli import app
    from kvray.driver.run import prepare

    help_ = CliRunner().invoke(app, ["why", "--help"], env={"COLUMNS": "120"}).output
    first, second = (line.split() for line in help_.splitlines() if line.strip().startswith("kvray why"))
    store, (planned, _) = Store(tmp_path), prepare(str(ROOT / "sweeps/quickstart.yaml"))
    store.write_document("sweeps/quickstart.json", planned.to_json())
    for artefact in planned.artefacts:
        if artefact.kind == "predictions":
            commit(store, artefact)
    for command in (first, second):
        arguments = [str(ROOT / part) if part.startswith("sweeps/") else part for part in command[1:]]
        done = CliRunner().invoke(app, [*arguments, "--store", str(tmp_path), "--json"])
        assert done.exit_code == 0, done.output
        told = json.loads(done.stdout)
        assert (told["state"], told["kind"]) == ("committed", "predictions")
        assert told["made"]["recipe"]["scorer"]["task"] == command[2].partition("-")[0]
