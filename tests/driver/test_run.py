"""A run makes what is missing or damaged; what needs a failed artefact fails with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from planned_toys import BASE, commit, toy_plan
from toy_tasks import Toy

from kvray.driver import run as running
from kvray.driver.connection import Connection
from kvray.driver.seats.lanes import Lanes, lane_of
from kvray.driver.seats.placement import Capacity
from kvray.errors import InputError, StoreError
from kvray.models.reference import BaseModelRef
from kvray.planning import artefacts, inputs
from kvray.planning.artefacts import Artefact, Plan
from kvray.planning.work import FINETUNE, Lane, Nothing, Seat, Source
from kvray.store import failures
from kvray.store.store import Outcome, Store
from kvray.sweep.model import Runtime
from kvray.tasks.base import REGISTRY


class Stages:
    """Stages that commit what they are given, but for names to fail; they note the order."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.fail: set[str] = set()
        self.silent: set[str] = set()
        self.broken: str | None = None
        self.store = Store("unused")
        self.artefacts: dict[str, Artefact] = {}
        self.total = 0

    # Datasets.

    def generation(self, store: Store, base: BaseModelRef, runtime: Runtime) -> Stages:
        self.store, self.queued = store, list[Artefact]()
        return self

    @property
    def busy(self) -> bool:
        return bool(self.queued)

    def makes(self, artefact_id: str) -> bool:
        return any(one.id == artefact_id for one in self.queued)

    def add(self, artefact: Artefact) -> None:
        self.queued.append(artefact)

    def poll(self) -> list[Outcome]:
        outcomes = []
        for artefact in self.queued:
            error = "broke down" if artefact.id in self.fail else None
            if error is None:
                self.commit(artefact)
            outcomes.append(Outcome(artefact.id, error))
        self.queued = []
        return outcomes

    def line(self) -> None:
        return None

    # Everything else.

    def lanes(
        self, todo: Sequence[Artefact], store: Store, base: BaseModelRef, runtime: Runtime, cluster: object
    ) -> Lanes:
        self.artefacts = {artefact.id: artefact for artefact in todo}
        names = {lane_of(artefact) for artefact in todo if artefact.kind != "dataset"}
        return Lanes(threads=[Lane(name, self.work, {}, most=1, start_s=0.0) for name in sorted(names)])

    def work(self, source: Source, seat: Seat) -> None:
        if seat.lane == self.broken:
            raise StoreError("the disk is full")
        source.started(0.0)
        while (unit := source.take()) is not Nothing.END:
            if unit is Nothing.LATER:
                continue
            if unit.artefact_id in self.silent:
                return
            if unit.artefact_id in self.fail:
                source.failed(unit, "broke down")
                continue
            if seat.lane == FINETUNE or source.finish(unit) is not None:
                self.commit(self.artefacts[unit.artefact_id])
                source.committed(unit)

    def commit(self, artefact: Artefact) -> None:
        assert all(self.store.state(need) == "committed" for need in artefact.needs)
        commit(self.store, artefact)
        self.made.append(artefact.id)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    @contextlib.contextmanager
    def no_cluster(runtime: Runtime) -> Iterator[Connection]:
        yield Connection(local=True, ends=True)

    made = Stages()
    monkeypatch.setitem(REGISTRY, "toy", Toy)
    monkeypatch.setattr(inputs, "resolve", lambda name, tokenizer=None: BASE)
    monkeypatch.setattr(running, "connect", no_cluster)
    monkeypatch.setattr(running, "Cluster", lambda local: SimpleNamespace(capacity=Capacity, local=local))
    monkeypatch.setattr(running, "Generation", made.generation)
    monkeypatch.setattr(running, "open_lanes", made.lanes)
    return made


def states(store: Store) -> dict[str, str]:
    return {each.id: each.state for each in artefacts.status(toy_plan().artefacts, store)}


def test_everything_is_made_in_order_and_then_nothing(stages: Stages, tmp_path: Path) -> None:
    store, planned = Store(tmp_path), toy_plan()
    result = running.run(planned, BASE, store)
    assert set(stages.made) == set(result.made) == {artefact.id for artefact in planned.artefacts}
    assert not result.failed and not result.nothing_to_do
    again = running.run(planned, BASE, store)
    assert again.nothing_to_do and again.cached == len(planned.artefacts)
    assert set(states(store).values()) == {"committed"}
    assert [each["id"] for each in store.plan_document("s")["artefacts"]] == [each.id for each in planned.artefacts]


def test_a_grown_sweep_runs_its_new_cells_alone(stages: Stages, tmp_path: Path) -> None:
    store = Store(tmp_path)
    running.run(toy_plan(), BASE, store)
    before = set(stages.made)
    stages.made.clear()
    grown = toy_plan(mixtures={"ours": {"ours": 1}, "other": {"other": 1}, "both": {"ours": 1, "other": 1}})
    running.run(grown, BASE, store)
    assert len(stages.made) == 2 and not before & set(stages.made)


def test_what_needs_a_failed_artefact_fails_with_it_and_others_stand(stages: Stages, tmp_path: Path) -> None:
    store, planned = Store(tmp_path), toy_plan()
    data = next(a for a in planned.artefacts if a.labels.get("dataset") == "other")
    stages.fail = {data.id}
    result = running.run(planned, BASE, store)
    lost = {a.id for a in planned.artefacts if data.id in a.needs or a.labels.get("mixture") == "other"} | {data.id}
    assert set(result.failed) == lost
    assert result.failed[data.id] == "broke down"
    assert {key for key, state in states(store).items() if state == "failed"} == lost
    assert len(stages.made) == len(planned.artefacts) - len(lost)
    stages.fail = set()
    assert set(running.run(planned, BASE, store).made) == lost
    assert store.documents("failures/") == []


def test_damage_is_made_again(stages: Stages, tmp_path: Path) -> None:
    store, planned = Store(tmp_path), toy_plan()
    running.run(planned, BASE, store)
    stages.made.clear()
    victim = planned.artefacts[0].id
    file = Path(store.path(victim, "part-0.parquet"))
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    assert running.run(planned, BASE, store).nothing_to_do, "the size is right: only --verify reads the bytes"
    running.run(planned, BASE, store, verify=True)
    assert stages.made == [victim]
    file.unlink()
    running.run(planned, BASE, store)
    assert stages.made == [victim, victim]


def test_a_stage_that_breaks_fails_its_artefacts_and_what_needs_them(stages: Stages, tmp_path: Path) -> None:
    planned = toy_plan()
    stages.broken = FINETUNE
    result = running.run(planned, BASE, Store(tmp_path))
    failed = [artefact for artefact in planned.artefacts if artefact.id in result.failed]
    assert {artefact.kind for artefact in failed} == {"finetune", "predictions"}
    assert {result.failed[one.id] for one in failed if one.kind == "finetune"} == {"the disk is full"}
    assert [one.id for one in planned.artefacts if one.kind == "predictions" and one.id in result.made] == [
        one.id for one in planned.artefacts if one.kind == "predictions" and not one.labels.get("mixture")
    ]


def test_a_seat_that_leaves_its_work_is_replaced(stages: Stages, tmp_path: Path) -> None:
    planned = toy_plan()
    finetune = next(one for one in planned.artefacts if one.kind == "finetune")
    stages.silent = {finetune.id}
    left: list[str] = []
    work = stages.work

    def at_first(source: Source, seat: Seat) -> None:
        work(source, seat)
        if stages.silent:
            left.append(seat.name)
            stages.silent = set()

    stages.work = at_first  # type: ignore[method-assign]
    result = running.run(planned, BASE, Store(tmp_path))
    assert left and not result.failed and finetune.id in result.made


def test_a_stage_that_notes_failures_itself_is_read_alike(stages: Stages, tmp_path: Path) -> None:
    store, cell = Store(tmp_path), toy_plan().artefacts[-1]
    failures.note(store, cell.id, "engine died")
    (found,) = artefacts.status([cell], store)
    assert (found.state, found.reason) == ("failed", "engine died")


def test_an_unknown_sweep_names_the_known_ones(stages: Stages, tmp_path: Path) -> None:
    store = Store(tmp_path)
    running.run(toy_plan(), BASE, store)
    with pytest.raises(InputError, match="it has s"):
        store.plan_document("t")


def test_a_plan_that_lacks_some_of_the_stored_one_says_so_before_it_replaces_it(
    stages: Stages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, name = Store(tmp_path), "sweeps/s.json"

    def told(planned: Plan) -> str:
        capsys.readouterr()
        running.run(planned, BASE, store)
        assert store.read_document(name) == planned.to_json()
        return "".join(line for line in capsys.readouterr().err.splitlines() if "that this one has not" in line)

    assert told(toy_plan()) == "" == told(toy_plan())
    grown = toy_plan(mixtures={"ours": {"ours": 1}, "other": {"other": 1}, "both": {"ours": 1, "other": 1}})
    assert told(grown) == ""
    assert told(toy_plan(mixtures={"renamed": {"ours": 1}, "other": {"other": 1}, "b": {"ours": 1, "other": 1}})) == ""
    shrunk = told(toy_plan(mixtures={"ours": {"ours": 1}}))
    assert "the sweep 's' in the store has 5 artefacts of 10 that this one has not" in shrunk
    assert "its mixtures other, b are not in this one" in shrunk and "--set name=" in shrunk
    assert "the recipes are not" in told(toy_plan(mixtures={"ours": {"ours": 1}}, finetune={"epochs": 3}))
    unlike = replace(toy_plan(), base_model="another", artefacts=())
    artefacts.tell_replaced(unlike, store)
    said = capsys.readouterr().err
    assert "its base model is tiny, now another" in said and "its evaluations ask are not in this one" in said
    store.write_document(name, b"{}")
    artefacts.tell_replaced(unlike, store)
    assert "cannot be read" in capsys.readouterr().err


def test_unlike_sweeps_of_one_name_are_not_run_together(stages: Stages) -> None:
    one, other = toy_plan(), toy_plan(name="S", finetune={"epochs": 3})
    running.check_names([("a.yaml", one), ("b.yaml", one), ("c.yaml", toy_plan(name="t"))])
    with pytest.raises(InputError, match=r"b\.yaml: name: found 'S', as in a\.yaml; expected a name of its own"):
        running.check_names([("a.yaml", one), ("b.yaml", other)])


def test_the_store_is_the_one_given_then_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVRAY_STORE", "/data/kv")
    assert running.open_store("s3://bucket/p").uri == Store("s3://bucket/p").uri
    assert running.open_store(None).uri == "/data/kv"
    monkeypatch.delenv("KVRAY_STORE")
    assert running.open_store(None).uri == Store("store").uri


def test_an_api_without_a_key_is_told_before_anything_is_written(
    stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    behind, store = replace(BASE, name="openai:gpt"), Store(tmp_path)
    with pytest.raises(InputError, match="OPENAI_API_KEY is not set"):
        running.run(toy_plan(), behind, store)
    assert not stages.made and store.documents("sweeps/") == []
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    assert not running.run(toy_plan(), behind, store).failed
    monkeypatch.delenv("OPENAI_API_KEY")
    assert running.run(toy_plan(), behind, store).nothing_to_do


def test_sweeps_share_a_ray_only_if_they_ask_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Runtime] = []
    monkeypatch.setattr(running, "connect", lambda runtime: contextlib.nullcontext(held.append(runtime)))
    for apart in ([Runtime()], [Runtime(), Runtime(num_cpus=1)], [Runtime(), Runtime(address="auto")]):
        running.shared_cluster(apart)
        assert held == []
    running.shared_cluster([Runtime(num_cpus=2, engines=1), Runtime(num_cpus=2, engines=3)])
    assert [runtime.num_cpus for runtime in held] == [2]
