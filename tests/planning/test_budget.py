"""A plan says whether its sweep fits its budget, what is spent counts each run once, and messages tell what to type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from planned_toys import BASE, commit, toy_plan
from toy_tasks import Toy

from kvray.errors import InputError, StoreError
from kvray.planning import inputs
from kvray.planning.cost import budget
from kvray.planning.cost.budget import Spent
from kvray.planning.cost.estimate import estimate
from kvray.store import garbage
from kvray.store.store import Store
from kvray.sweep.load import load
from kvray.sweep.model import Runtime
from kvray.tasks.base import REGISTRY


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "toy", Toy)
    monkeypatch.setattr(inputs, "resolve", lambda name, tokenizer=None: BASE)


def priced(**values: Any) -> Runtime:
    return Runtime.model_validate(values)


def spend(store: Store, run: str, hours: float, gpus: bool = True, sweep: str = "s") -> None:
    store.write_document(f"spent/{sweep}/{run}.json", Spent(hours, gpus).to_bytes(run, sweep, "here"))


def budget_of(store: Store, **runtime: Any) -> tuple[dict[str, Any], str]:
    found = estimate(toy_plan(runtime={"num_cpus": 1, **runtime}), store)
    (line,) = [each for each in found.text().splitlines() if each.startswith(("  budget:", "  price:"))]
    return found.document["budget"], line


def test_a_plan_without_budget_and_price_says_nothing_of_them(tmp_path: Path) -> None:
    found = estimate(toy_plan(), Store(tmp_path))
    assert found.document["budget"] is None and "budget" not in found.text()


def test_a_plan_says_whether_it_fits_and_how_far_to_raise_the_budget(tmp_path: Path) -> None:
    store = Store(tmp_path)
    gpus = {"gpus_per_finetune": 1, "gpus_per_engine": 1}
    document, line = budget_of(store, **gpus, budget={"gpu_hours": 40})
    assert document["fits"] and document["hours_of"] == "GPUs" and line.endswith("GPU-hours to come: fits")
    # Two starts of worker groups and engines alone are more than a second.
    document, line = budget_of(store, **gpus, budget={"gpu_hours": 0.0003})
    assert not document["fits"]
    assert "does not fit; a run stops when it is spent; raise it: --set runtime.budget.gpu_hours=" in line
    told = float(line.rpartition("=")[2])
    assert budget_of(store, **gpus, budget={"gpu_hours": told})[0]["fits"]
    spend(store, "one", told)
    assert "it is spent, and a run starts nothing" in budget_of(store, **gpus, budget={"gpu_hours": told})[1]


def test_without_gpus_the_hours_are_those_of_seats(tmp_path: Path) -> None:
    document, line = budget_of(Store(tmp_path), gpus_per_finetune=0, gpus_per_engine=0, budget={"gpu_hours": 40})
    assert document["hours_of"] == "seats" and "seat-hours to come" in line
    assert 0 < document["needed_hours"] < 1


def test_a_price_alone_is_told_and_usd_are_hours_at_that_price(tmp_path: Path) -> None:
    store = Store(tmp_path)
    document, line = budget_of(store, gpus_per_finetune=1, gpus_per_engine=1, gpu_price=2.5)
    assert document["fits"] is None and line.startswith("  price: about ") and line.endswith(" USD) to come")
    assert budget.limit(priced(gpu_price=2.0, budget={"usd": 100})) == 50
    assert budget.limit(priced(gpu_price=2.0, budget={"usd": 100, "gpu_hours": 40})) == 40
    assert budget.limit(priced()) is None


def test_what_is_left_once_it_is_made_is_not_to_come(tmp_path: Path) -> None:
    store, planned = Store(tmp_path), toy_plan(runtime={"num_cpus": 1, "budget": {"gpu_hours": 1}})
    before = estimate(planned, store).document["budget"]["needed_hours"]
    for artefact in planned.artefacts[:-1]:
        commit(store, artefact)
    assert 0 < estimate(planned, store).document["budget"]["needed_hours"] < before
    commit(store, planned.artefacts[-1])
    assert estimate(planned, store).document["budget"]["needed_hours"] == 0


def test_what_is_spent_is_the_sum_over_runs_each_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert budget.read(store, "s") == Spent()
    spend(store, "one", 1.5, gpus=False)
    spend(store, "one", 2.0, gpus=False)  # written again by the same run
    assert budget.read(store, "s") == Spent(2.0, gpus=False)
    spend(store, "two", 3.0)
    spend(store, "other", 5.0, sweep="another")
    assert budget.read(store, "s") == Spent(5.0, gpus=True)
    assert budget.read(store, "s", but="two") == Spent(2.0)
    store.write_document("spent/s/three.json", b"{}")
    with pytest.raises(StoreError, match=r"three\.json does not tell what a run has spent"):
        budget.read(store, "s")


def test_a_message_names_each_knob_that_is_too_low() -> None:
    both = priced(gpu_price=2.0, budget={"gpu_hours": 40, "usd": 100})
    said = budget.stopped(both, Spent(40.5, gpus=True), 12, Spent(13.0, gpus=True))
    assert said == (
        "runtime.budget is spent: 40.5 GPU-hours (81.00 USD) of 40 GPU-hours (80.00 USD). What is left to make, 12 "
        "artefacts, takes about 13 GPU-hours (26.00 USD). To go on, raise it: --set runtime.budget.gpu_hours=55 "
        "--set runtime.budget.usd=110"
    )
    hours = priced(budget={"gpu_hours": 0.001})
    assert budget.stopped(hours, Spent(0.0013), 1, Spent(0.002)).endswith("--set runtime.budget.gpu_hours=0.0035")


def test_a_budget_in_usd_needs_a_price_and_every_amount_is_positive(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    head = "name: s\nbase_model: kvray-tiny\nevaluate:\n  recall: {task: recall}\nruntime:\n"

    def problem(text: str) -> str:
        file.write_text(head + text)
        with pytest.raises(InputError) as raised:
            load(str(file))
        return str(raised.value)

    assert "found budget.usd 100 and no gpu_price; expected runtime.gpu_price" in problem("  budget: {usd: 100}\n")
    assert "runtime.budget.gpu_hours: found 0; expected greater than 0" in problem("  budget: {gpu_hours: 0}\n")
    assert "did you mean 'gpu_hours'" in problem("  budget: {gpu_hour: 1}\n")
    assert "runtime.budget.gpu_hours: found true; expected a number" in problem("  budget: {gpu_hours: true}\n")
    file.write_text(head + "  num_cpus: 1\n")
    changed = load(str(file), ["runtime.budget.gpu_hours=3", "runtime.gpu_price=2"])
    assert changed.runtime.budget.gpu_hours == 3
    assert "budget:" in changed.to_yaml() and type(changed).from_yaml(changed.to_yaml()) == changed


def test_hours_of_a_forgotten_sweep_are_garbage(tmp_path: Path) -> None:
    store, planned = Store(tmp_path), toy_plan()
    store.write_document("sweeps/s.json", planned.to_json())
    spend(store, "one", 1.0)
    spend(store, "two", 1.0, sweep="gone")
    assert [each.path for each in garbage.find(store, 0.0)] == ["spent/gone/two.json"]
