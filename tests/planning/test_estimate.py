"""The estimate is the enumeration that a run carries out, with a reason for each artefact and stated rates."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from planned_toys import BASE, commit, toy_plan
from toy_tasks import Toy

from kvray.models.reference import resolve
from kvray.planning import inputs
from kvray.planning.cost import measured
from kvray.planning.cost.estimate import estimate
from kvray.results.crossed import detectable
from kvray.results.stats import detectable_difference
from kvray.store import failures
from kvray.store.store import Store
from kvray.tasks.base import REGISTRY


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "toy", Toy)
    monkeypatch.setattr(inputs, "resolve", lambda name, tokenizer=None: BASE)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def document(store: Store, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(estimate(toy_plan(**changes), store).document))
    return found


def test_an_empty_store_has_everything_to_run_and_stays_absent(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    found = document(store)
    planned = toy_plan().artefacts
    assert [each["id"] for each in found["artefacts"]] == [artefact.id for artefact in planned]
    assert {each["state"] for each in found["artefacts"]} == {"to run"}
    assert {each["why"] for each in found["artefacts"]} == {"new"}
    assert found["totals"]["to_run"] == len(planned) and found["totals"]["cached"] == 0
    assert not (tmp_path / "store").exists()


def test_cells_carry_their_labels(tmp_path: Path) -> None:
    cells = document(Store(tmp_path))["cells"]
    assert [(cell["evaluation"], cell["mixture"], cell["seed"]) for cell in cells] == [
        ("ask", None, None),
        ("ask", "ours", 0),
        ("ask", "other", 0),
    ]


def test_reasons_tell_new_from_damaged_from_failed(tmp_path: Path) -> None:
    store, planned = Store(tmp_path), toy_plan()
    whole, damaged, failed = planned.artefacts[:3]
    commit(store, whole)
    commit(store, damaged)
    Path(store.path(damaged.id, "part-0.parquet")).unlink()
    failures.note(store, failed.id, "the loss\nwas nan")
    by_id = {item.artefact.id: item for item in estimate(planned, store).items}
    assert (by_id[whole.id].state, by_id[whole.id].why, by_id[whole.id].seconds) == ("cached", "", 0.0)
    assert by_id[damaged.id].state == "to run" and by_id[damaged.id].why.startswith("damaged: ")
    assert "part-0.parquet" in by_id[damaged.id].why
    assert by_id[failed.id].why == "failed before: the loss was nan"


def test_measured_rates_replace_the_defaults(tmp_path: Path) -> None:
    store, planned = Store(tmp_path), toy_plan()
    first, second = [artefact for artefact in planned.artefacts if artefact.kind == "finetune"]
    before = document(store)["totals"]
    assert "default" in before["seconds_basis"]["finetune"]
    commit(store, first, seconds=10, tokens=80)
    found = estimate(planned, store)
    item = next(item for item in found.items if item.artefact.id == second.id)
    assert item.seconds == item.reads / 8
    assert "8 tokens/s, measured over 1 lora finetune" in found.document["totals"]["seconds_basis"]["finetune"]


def test_what_the_data_counted_corrects_the_tokens_of_what_needs_it(tmp_path: Path) -> None:
    store, planned = Store(tmp_path), toy_plan()
    data = planned.artefacts[0]
    commit(store, data, tokens=2 * data.tokens)
    tokens = {item.artefact.id: item.reads for item in estimate(planned, store).items}
    for artefact in planned.artefacts:
        factor = 2 if data.id in (artefact.id, *artefact.needs) else 1
        assert tokens[artefact.id] == factor * artefact.tokens


def test_a_whole_store_has_nothing_to_do(tmp_path: Path) -> None:
    store, planned = Store(tmp_path), toy_plan()
    for artefact in planned.artefacts:
        commit(store, artefact)
    found = estimate(planned, store)
    assert found.document["totals"] == {
        "to_run": 0,
        "cached": len(planned.artefacts),
        "tokens": 0,
        "seconds": 0.0,
        "seconds_basis": {},
        "gpu_hours": 0,
        "cpu_hours": 0,
        "store_bytes": 0,
        "scratch_bytes": 0,
        "api": {"tokens": {"input": 0, "output": 0, "training": 0}, "usd": 0.0},
    }
    assert "nothing to do" in found.text()


def test_the_smallest_difference_counts_questions(tmp_path: Path) -> None:
    block = {"task": "mdqa", "documents": 20, "questions": 100, "positions": [1, 10, 20]}
    found = document(Store(tmp_path), datasets={}, evaluate={"ask": {"task": "toy", "rows": 400}, "docs": block})
    docs = found["detectable_difference"]["docs"]
    assert (docs["questions"], docs["points"]) == (100, round(100 * detectable_difference(100), 1))
    assert found["detectable_difference"]["ask"]["questions"] == 400


def test_the_text_names_every_mixture_and_basis(tmp_path: Path) -> None:
    text = estimate(toy_plan(), Store(tmp_path)).text()
    for part in ("ours", "other", "ask", "to run", "rough default", "points"):
        assert part in text


def test_it_is_quick(tmp_path: Path) -> None:
    planned = toy_plan(finetune={"seeds": list(range(200))})
    started = time.process_time()
    estimate(planned, Store(tmp_path)).text()
    assert time.process_time() - started < 2


def test_what_was_not_counted_is_marked_and_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rough = estimate(toy_plan(), Store(tmp_path))
    assert "?160" in rough.text() and "? a rough estimate" in rough.text()
    assert {each["counted"] for each in rough.document["artefacts"]} == {"estimate"}
    monkeypatch.setattr(inputs, "resolve", resolve)
    many = {"ours": {"task": "toy", "rows": 20}, "other": {"task": "toy", "rows": 4000, "seed": 1}}
    counted = estimate(toy_plan(base_model="kvray-tiny", datasets=many), Store(tmp_path))
    by_label = {
        (item.artefact.labels.get("dataset") or item.artefact.labels.get("mixture")): item.artefact.counted
        for item in counted.items
        if item.artefact.kind in ("dataset", "finetune")
    }
    assert by_label == {"ours": "rows", "other": "sample", "ask": "rows"}
    assert "~ by the mean" in counted.text() and "? a rough" not in counted.text()


def test_an_evaluation_that_finds_nothing_is_a_warning_that_says_what_to_ask(tmp_path: Path) -> None:
    few = {"ask": {"task": "toy", "rows": 3, "seed": 9}, "many": {"task": "toy", "rows": 400, "seed": 8}}
    (warning,) = [each for each in document(Store(tmp_path), evaluate=few)["warnings"] if "questions" in each]
    assert warning.startswith("evaluate.ask: 3 questions find a difference of 100 points at least")
    asked = int(warning.split("; ask ")[1].split(" ")[0])
    assert (
        100 * detectable_difference(asked, comparisons=4) <= 10 < 100 * detectable_difference(asked - 20, comparisons=4)
    )


def test_the_smallest_difference_is_that_of_the_report_s_family_of_comparisons(tmp_path: Path) -> None:
    found = document(
        Store(tmp_path),
        evaluate={"ask": {"task": "toy", "rows": 4000, "seed": 9}},
        finetune={"seeds": [0, 1], "match": "rows"},
    )
    # Two mixtures on one evaluation, over two seeds each, 5 points apart unless the store knows better.
    points = round(100 * detectable((0.2 / 4000) ** 0.5, 0.05 / 2**0.5, 2, comparisons=2), 1)
    asked = found["detectable_difference"]["ask"]
    assert (asked["questions"], asked["seeds"], asked["points"]) == (4000, 2, points)
    assert (asked["spread"], asked["spread_basis"]) == (5.0, "default")
    five = asked["seeds_for"]["5"]
    needed = [detectable((0.2 / 4000) ** 0.5, 0.05 / n**0.5, n, comparisons=2) for n in (five - 1, five)]
    assert needed[1] <= 0.05 < needed[0]
    assert asked["seeds_for"]["2"] is None  # not of 4,000 questions, however many seeds


def test_one_seed_is_told_to_give_no_verdict_about_mixtures(tmp_path: Path) -> None:
    said = "No verdict about mixtures can come of it"
    assert said in estimate(toy_plan(), Store(tmp_path)).text()
    assert said not in estimate(toy_plan(finetune={"seeds": [0, 1, 2]}), Store(tmp_path)).text()


def test_a_large_plan_reads_few_manifests_and_of_what_is_committed_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, planned = Store(tmp_path), toy_plan(finetune={"seeds": list(range(30)), "match": "rows"})
    *others, last = planned.artefacts
    for artefact in others:
        commit(store, artefact, seconds=2, tokens=100)
    read: list[str] = []
    genuine = Store.read_manifests
    monkeypatch.setattr(Store, "read_manifests", lambda self, ids: read.extend(ids) or genuine(self, ids))
    monkeypatch.setattr(Store, "remote", True)
    found = estimate(planned, store)
    basis = found.document["totals"]["seconds_basis"]["predictions"]
    assert "50 tokens/s, measured over 3 toy predictions in this store" in basis
    assert len(read) <= measured.MOST_REMOTE and last.id not in read
    # Of another sweep, whose finetunes are none of these.
    read.clear()
    another = toy_plan(
        finetune={"seeds": [0], "match": "rows", "epochs": 3}, evaluate={"new": {"task": "toy", "rows": 7, "seed": 3}}
    )
    rates = estimate(another, store).document["totals"]["seconds_basis"]
    assert "measured over 3 toy predictions" in rates["predictions"] and "lora finetune" in rates["finetune"]
    assert 0 < len(read) <= measured.MOST_REMOTE
    read.clear()
    commit(store, last)
    assert estimate(planned, store).document["totals"]["to_run"] == 0
    assert read == []
