"""Datasets whose size is left out are as large as the match in tokens needs; those whose size is given are judged."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from kvray.errors import InputError
from kvray.finetune.storage import select
from kvray.generate.job import build
from kvray.models.reference import resolve
from kvray.planning import sizes
from kvray.planning.artefacts import FinetuneJob, Plan
from kvray.planning.inputs import gather
from kvray.planning.lengths import _spread, counting, measure
from kvray.planning.mixture import Short, ShortError
from kvray.planning.plan import plan
from kvray.sweep.grid import variants
from kvray.sweep.model import Sweep
from kvray.tasks.base import Task
from kvray.tasks.kv.simple import SimpleKV
from kvray.tasks.needle.needle import NeedleInHaystack

FIRST = {"task": "simple_kv", "rows": 140, "dictionaries": 6, "template": True}


def sweep_of(second: dict[str, Any], **changes: Any) -> Sweep:
    """A sweep with a first mixture of 140 rows of dictionaries and a second one, of documents."""
    blocks = {"name": "s", "base_model": "kvray-tiny", "datasets": {"first": FIRST, "second": second}}
    return Sweep.model_validate({**blocks, "finetune": {"learning_rate": 1e-3}, **changes})


def planned(second: dict[str, Any], **changes: Any) -> Plan:
    sweep = sweep_of(second, **changes)
    return plan(sweep, gather(sweep))


def rows_of(found: Plan) -> dict[str, int]:
    return {str(each.labels["dataset"]): each.rows for each in found.artefacts if each.kind == "dataset"}


DOCUMENTS = {"task": "mdqa", "split": "train", "documents": 3, "positions": "random"}


def test_a_size_that_is_left_out_grows_to_what_the_match_needs() -> None:
    found = planned(DOCUMENTS)
    rows = rows_of(found)["second"]
    assert rows > 200 and rows % 10 == 0
    assert found.sizes == {"second": rows}
    assert found.sweep.datasets["second"].questions == rows  # type: ignore[attr-defined]
    # The very rows that a finetune reads: no more than two percent too many were asked for.
    data = {each.id: each.params for each in found.artefacts if each.kind == "dataset"}
    base = resolve("kvray-tiny")

    def read(name: str) -> object:
        task = data[name]
        assert isinstance(task, Task)
        return build(task, base, range(task.expected_rows()))

    (finetune,) = [
        each for each in found.artefacts if each.labels.get("mixture") == "second" and each.kind == "finetune"
    ]
    assert isinstance(finetune.params, FinetuneJob)
    facts = select(finetune.params, base, read).measurements()
    assert facts["tokens_per_epoch"] == pytest.approx(facts["budget_tokens"], rel=0.01)
    assert 0.95 * rows < facts["rows_per_epoch"] < rows


def test_the_plan_document_gives_the_size_so_that_it_plans_the_same_again() -> None:
    found = planned(DOCUMENTS)
    again = Sweep.model_validate(found.sweep.model_dump(mode="json"))
    assert [each.id for each in plan(again, gather(again)).artefacts] == [each.id for each in found.artefacts]


def test_a_default_that_suffices_stays() -> None:
    found = planned({**DOCUMENTS, "documents": 20})
    assert rows_of(found)["second"] == 200 and found.sizes == {}
    given = planned({**DOCUMENTS, "documents": 20, "questions": 200})
    assert [each.id for each in given.artefacts] == [each.id for each in found.artefacts]


def test_one_size_is_enough_for_every_variant_and_seed() -> None:
    grid = {"datasets.first.rows": [120, 160]}
    found = planned(DOCUMENTS, grid=grid, finetune={"seeds": [0, 1], "reseed_data": True, "learning_rate": 1e-3})
    assert {rows for name, rows in rows_of(found).items() if name.startswith("second")} == set(found.sizes.values())
    assert found.sizes["second"] > planned(DOCUMENTS).sizes["second"]


@pytest.mark.parametrize(
    "changes",
    [
        {"finetune": {"match": "rows", "learning_rate": 1e-3}},
        {"grid": {"datasets.second.questions": [20, 30]}, "finetune": {"match": "rows", "learning_rate": 1e-3}},
        {"mixtures": {"second": {"second": 1}, "first": {"first": 1}}},
    ],
)
def test_sizes_stay_where_nothing_is_matched_to_them(changes: dict[str, Any]) -> None:
    assert planned(DOCUMENTS, **changes).sizes == {}


def test_a_varied_size_is_given() -> None:
    sweep = sweep_of(DOCUMENTS, grid={"datasets.second.questions": [400, 500]})
    assert sizes.left_out(sweep, variants(sweep)) == {}
    assert sizes.left_out(sweep_of(DOCUMENTS), variants(sweep_of(DOCUMENTS))) == {"second": "questions"}


def test_a_given_size_that_is_too_small_is_refused_with_one_that_suffices() -> None:
    with pytest.raises(InputError, match=r"datasets.second: second has .* give that dataset rows: (\d+)") as caught:
        planned({**DOCUMENTS, "questions": 200})
    enough = int(str(caught.value).split("rows: ")[1].split()[0])
    assert planned(DOCUMENTS).sizes["second"] - 10 < enough <= planned(DOCUMENTS).sizes["second"]
    # Within a twentieth of enough it is used whole: what a sample cannot tell is counted.
    assert rows_of(planned({**DOCUMENTS, "questions": round(0.95 * enough)}))["second"] == round(0.95 * enough)
    with pytest.raises(InputError, match="give that dataset rows"):
        planned({**DOCUMENTS, "questions": round(0.92 * enough)})


def test_every_row_is_sampled_once_and_conditions_evenly() -> None:
    for rows, each in ((7, 1), (60, 6), (96, 12), (100, 7), (30, 30)):
        batches = list(_spread(rows, each))
        assert sorted(row for batch in batches for row in batch) == list(range(rows))
    first = next(iter(_spread(1200, 6)))
    assert sorted(row % 6 for row in first) == sorted(2 * list(range(6)))
    assert len({row // 6 for row in first}) == 12


def test_all_rows_are_counted_where_asked() -> None:
    base = resolve("kvray-tiny")
    counted = counting(base)
    assert counted is not None
    task = SimpleKV(rows=150, dictionaries=5)
    context = task.context(counted.texts)
    sampled, whole = (measure(task, context, 150, counted, whole=each) for each in (False, True))
    assert whole.whole and not sampled.whole
    assert sampled.total(sampled.trained) == pytest.approx(int(whole.trained.sum()), rel=0.02)


def test_unlike_conditions_are_averaged_as_they_are_asked() -> None:
    base = resolve("kvray-tiny")
    counted = counting(base)
    assert counted is not None
    task = NeedleInHaystack(rows=40, lengths=(128, 512), depths=(0, 50, 100))
    context = task.context(counted.texts)
    sampled, whole = (measure(task, context, task.count(context), counted, whole=each) for each in (False, True))
    assert sampled.total(sampled.asked) == pytest.approx(int(whole.asked.sum()), rel=0.01)


def test_the_error_of_a_worker_keeps_its_numbers() -> None:
    error = ShortError([Short("d", 10, 100, 200.0, 200.0)])
    again = copy.copy(error)  # by the same method as Ray's pickling
    assert again.short == error.short and str(again) == str(error) and again.short[0].enough == 22
