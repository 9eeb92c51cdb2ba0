"""A cell is cut into units that lack nothing and repeat nothing; the lines of a run add up."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
from planned_toys import toy_plan
from toy_tasks import Toy

from kvray.driver.progress import Lines
from kvray.driver.seats.lanes import UNIT_S, lane_of, units
from kvray.driver.seats.queue import Limits, WorkQueue
from kvray.evaluate.chunks import CHUNK_ROWS, chunk_count, chunk_name
from kvray.models import reference
from kvray.planning import inputs
from kvray.planning.artefacts import Artefact
from kvray.planning.work import EVALUATE, FINETUNE, Lane, Seat, Unit
from kvray.tasks.base import REGISTRY


@pytest.fixture
def artefacts(monkeypatch: pytest.MonkeyPatch) -> list[Artefact]:
    from planned_toys import BASE

    monkeypatch.setitem(REGISTRY, "toy", Toy)
    monkeypatch.setattr(inputs, "resolve", lambda name, tokenizer=None: BASE)
    assert reference.BaseModelRef
    return list(toy_plan().artefacts)


def of_kind(artefacts: list[Artefact], kind: str) -> list[Artefact]:
    return [artefact for artefact in artefacts if artefact.kind == kind]


@pytest.mark.parametrize("rows", [1, CHUNK_ROWS, CHUNK_ROWS + 1, 40 * CHUNK_ROWS - 3])
@pytest.mark.parametrize("stored", [(), (0,), (1, 2, 7), range(100)])
@pytest.mark.parametrize("seconds", [0.0, 5.0, 4000.0])
def test_units_are_the_chunks_that_are_not_stored(
    artefacts: list[Artefact], rows: int, stored: Collection[int], seconds: float
) -> None:
    cell = replace(of_kind(artefacts, "predictions")[-1], rows=rows)
    made = units(cell, seconds, {chunk_name(number) for number in stored})
    absent = [number for number in range(chunk_count(rows)) if number not in stored]
    assert [number for unit in made for number in unit.chunks or ()] == absent
    assert len(made) == 1 or all(unit.chunks for unit in made)
    if not stored:
        assert sum(unit.rows for unit in made) == rows
        assert sum(unit.seconds for unit in made) == pytest.approx(seconds)
    assert all(unit.seconds <= max(2 * UNIT_S, seconds * CHUNK_ROWS / rows) * 1.001 for unit in made)
    assert {unit.model for unit in made} == {of_kind(artefacts, "finetune")[-1].id}


def test_a_finetune_is_one_unit(artefacts: list[Artefact]) -> None:
    finetune = of_kind(artefacts, "finetune")[0]
    assert units(finetune, 60.0, ()) == [Unit(0, finetune.id, None, None, 1, 60.0)]
    assert (lane_of(finetune), lane_of(artefacts[-1])) == (FINETUNE, EVALUATE)


def nothing(*arguments: Any) -> None:
    """Stand for the work of a lane."""


def test_the_lines_say_what_is_done_what_waits_and_who_works(artefacts: list[Artefact]) -> None:
    now = [0.0]
    todo = {artefact.id: artefact for artefact in artefacts}
    lines = Lines(todo, {FINETUNE: 1.0, EVALUATE: 1.0}, clock=lambda: now[0])
    queue = WorkQueue([Lane(name, nothing, {}, start_s=9.0) for name in (FINETUNE, EVALUATE)], Limits(), lambda: now[0])
    first, second = of_kind(artefacts, "finetune")
    cell = next(one for one in of_kind(artefacts, "predictions") if not one.labels.get("mixture"))
    queue.add(FINETUNE, first.id, [Unit(0, first.id, rows=1, seconds=100.0)])
    queue.add(EVALUATE, cell.id, [Unit(0, cell.id, None, (0,), cell.rows, 10.0)])
    queue.seat(Seat("slot", FINETUNE))
    train = lines.of_lane(queue.view()[0], [second])
    assert str(train) in {f"finetune 0/2 finetunes 1 worker group {how}" for how in ("starting", "waiting for a place")}
    queue.started("slot", 5.0)
    unit = queue.take("slot", process="1")
    assert isinstance(unit, Unit)
    queue.progress("slot", unit, 0.45, "loss 0.310")
    train = lines.of_lane(queue.view()[0], [second])
    assert (train.done, train.total) == (0.45, 2) and f"{first.name} 45% loss 0.310" in train.note
    last = lines.of_all(queue.view(), [(second, [artefacts[0]])], gpus=8.0)
    assert last.startswith("1 of 8 GPUs held, 1 of finetune wait for generate, about ")
    queue.seat(Seat("engine", EVALUATE))
    queue.started("engine", 5.0)
    part = queue.take("engine", process="2")
    assert isinstance(part, Unit)
    assert queue.finish("engine", part) is not None
    queue.committed("engine", part)
    lines.of_lane(queue.view()[1], [])
    now[0] = 2.0
    answered = lines.of_lane(queue.view()[1], [])
    assert (answered.done, answered.total) == (cell.rows, cell.rows) and "rows/s" in answered.note
