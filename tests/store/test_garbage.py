"""What can go and what stays: of a store with a forgotten sweep, a failed run, dead runs and live ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from planned_toys import BASE, commit, toy_plan
from s3_server import endpoint, store
from toy_tasks import Toy

from kvray.errors import InputError, StoreError
from kvray.planning import inputs
from kvray.planning.artefacts import Plan, keep
from kvray.store import failures, garbage, leases
from kvray.store.leases import Leases
from kvray.store.store import Store
from kvray.tasks.base import REGISTRY

__all__ = ["endpoint", "store"]


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "toy", Toy)
    monkeypatch.setattr(inputs, "resolve", lambda name, tokenizer=None: BASE)


def made(store: Store, **changes: object) -> Plan:
    """Make a sweep whole: its plan, its artefacts and a report."""
    planned = toy_plan(**changes)
    keep(planned, store)
    for artefact in planned.artefacts:
        commit(store, artefact)
    store.folder(f"reports/{planned.sweep.name}").put("report.html", b"<html>")
    return planned


def paths(found: list[garbage.Garbage]) -> dict[str, str]:
    return {each.path: each.why for each in found}


def test_a_forgotten_sweep_goes_with_all_that_no_other_needs_and_the_rest_is_intact(store: Store) -> None:
    kept = made(store)
    gone = made(store, name="gone", mixtures={"ours": {"ours": 1}, "both": {"ours": 1, "other": 1}})
    ids = {artefact.id for artefact in gone.artefacts} - {artefact.id for artefact in kept.artefacts}
    failures.note(store, sorted(ids)[0], "died")
    assert garbage.find(store, 0.0) == [] == garbage.find(store)
    expected = {"sweeps/gone.json", "reports/gone", f"failures/{sorted(ids)[0]}.json", *ids}
    found = garbage.find(store, 0.0, ["gone"])
    assert set(paths(found)) == expected and len(ids) == 2
    assert sum(each.bytes for each in found) > 0 and {each.files for each in found} <= {1, 2, 3}
    assert store.sweeps() == ["gone", "s"], "nothing was written"
    assert set(paths(garbage.find(store, forget=["gone"]))) == {"sweeps/gone.json"}, "the rest is of today"
    assert garbage.delete(store, found, ["gone"]) == found
    assert store.sweeps() == ["s"] and garbage.find(store, 0.0) == []
    assert set(store.states([artefact.id for artefact in kept.artefacts], verify=True).values()) == {"committed"}
    assert set(store.states(ids).values()) == {"missing"} and failures.noted(store) == set()
    left = {name.split("/")[0] for name in store.everything()}
    assert left == {"sweeps", "datasets", "finetunes", "predictions", "reports", ".work"}


def test_of_what_runs_leave_the_checkpoints_to_go_on_at_stay(store: Store) -> None:
    planned = made(store, finetune={"seeds": [0, 1, 2], "match": "rows"})
    done, failed, interrupted, *_ = [one for one in planned.artefacts if one.kind == "finetune"]
    for one in (failed, interrupted):
        store.discard(one.id)
    failures.note(store, failed.id, "died")
    for fingerprint in (done.fingerprint, failed.fingerprint, interrupted.fingerprint, "f" * 64):
        store.folder(f".work/finetunes/{fingerprint}").put("step-00000001.safetensors", b"12345678")
    store.folder(".work/slots/finetune-0000-ab").put("a/b.json", b"{}")
    store.write_document("doctor/abc-driver", b"abc")
    assert paths(garbage.find(store, 0.0)) == {
        f".work/finetunes/{done.fingerprint}": "checkpoint of a committed finetune",
        f".work/finetunes/{failed.fingerprint}": "checkpoint of a failed finetune",
        f".work/finetunes/{'f' * 64}": "checkpoint of a finetune of no sweep",
        ".work/slots/finetune-0000-ab": "scratch of ended runs",
        "doctor/abc-driver": "probe of kvray doctor",
    }
    garbage.delete(store, garbage.find(store, 0.0))
    assert [name for name in store.everything() if name.startswith(".work/") and leases.FOLDER not in name] == [
        f".work/finetunes/{interrupted.fingerprint}/step-00000001.safetensors"
    ]


def test_what_a_live_run_holds_stays_and_what_a_dead_one_held_goes(store: Store) -> None:
    orphans = [f"predictions/cell-{number}" for number in range(3)]
    for one in orphans:
        store.write(one, "chunk.bin", b"x")
    store.folder(".work/slots/finetune-0000-ab").put("b.json", b"{}")
    with Leases(store, "other", beat_s=5.0) as run:
        run.take(orphans[:1])
        assert set(paths(garbage.find(store, 0.0))) == set(orphans[1:])
        assert set(paths(garbage.delete(store, garbage.find(store, 0.0)))) == set(orphans[1:])
    gone = Leases(store, "gone")
    gone.me = leases.replace(gone.me, process="elsewhere 1 1")
    gone._put_beat()
    gone._joined = True
    gone.take(orphans[:1])
    assert garbage.find(store, 0.0) == [], "it may live on another machine"
    process = subprocess.Popen([sys.executable, "-c", ""])
    gone.me = leases.replace(gone.me, process=leases._process(process.pid))
    gone._change(set())
    process.wait()
    found = paths(garbage.find(store, 0.0))
    assert found[f"{leases.FOLDER}/beat-{gone.me.run}"] == "lease of a dead run" and orphans[0] in found
    garbage.delete(store, garbage.find(store, 0.0))
    assert garbage.find(store, 0.0) == []
    assert leases.Watch(store).look()[0].runs == {}


def test_a_run_silent_for_a_day_is_dead(tmp_path: Path) -> None:
    store = Store(tmp_path)
    gone = Leases(store, "gone")
    gone.me = leases.replace(gone.me, process=None)
    gone._put_beat()
    gone._joined = True
    gone._change(set())
    beat = tmp_path / leases.FOLDER / f"beat-{gone.me.run}"
    assert garbage.find(store, 0.0) == []
    os.utime(beat, (time.time() - 2 * garbage.DAY_S,) * 2)
    assert paths(garbage.find(store)) == {f"{leases.FOLDER}/{beat.name}": "lease of a dead run"}


def test_a_plan_that_comes_meanwhile_is_heeded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made(store, name="gone")
    store.delete_document("sweeps/gone.json")
    found = garbage.find(store, 0.0)
    take = Leases.take

    def then(self: Leases, artefacts: set[str]) -> set[str]:
        keep(toy_plan(name="new"), store)
        return take(self, artefacts)

    monkeypatch.setattr(Leases, "take", then)
    assert set(paths(garbage.delete(store, found))) == {"reports/gone"}


def test_an_unreadable_plan_or_an_unknown_or_running_sweep_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made(store)
    with pytest.raises(InputError, match=r"--forget: found 't'; the store .* has s"):
        garbage.find(store, forget=["t"])
    with Leases(store, "s"), pytest.raises(InputError, match=r"of which a run is alive: run .* of s on"):
        garbage.find(store, forget=["s"])
    store.write_document("sweeps/old.json", b'{"format": 99}')
    with pytest.raises(StoreError, match=r"sweeps/old\.json in .* is no plan document"):
        garbage.find(store)
    assert garbage.find(store, 0.0, ["old"])[0].path == "sweeps/old.json"


def test_temporary_files_of_dead_writers_go_and_those_of_live_ones_stay(tmp_path: Path) -> None:
    from kvray.store.places import local

    store = Store(tmp_path)
    planned = made(store)
    folder = tmp_path / planned.artefacts[0].id
    dead, alive = (folder / f".tmp-{local._host()}-{pid}-aa" for pid in (2**22 + 1, os.getpid()))
    for file in (dead, alive):
        file.write_bytes(b"half")
    assert [each.path for each in garbage.find(store, 0.0)] == [f"{planned.artefacts[0].id}/{dead.name}"]
    garbage.delete(store, garbage.find(store, 0.0))
    assert alive.exists() and not dead.exists()


def test_the_command_says_what_could_go_and_then_deletes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvray.cli import main

    def typed(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["kvray", "gc", "--store", str(tmp_path), *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        return capsys.readouterr().out

    store = Store(tmp_path)
    made(store)
    made(store, name="gone", mixtures={"both": {"ours": 1, "other": 1}})
    assert typed() == "0 could go (--delete does it), 0 bytes\n"
    said = typed("--forget", "gone")
    assert "1 could go (--delete does it)" in said
    assert "3 more changed within the last day, and stay: --older-than 0 takes all" in said
    said = typed("--forget", "gone", "--older-than", "0")
    assert "sweeps/gone.json" in said and "plan of a sweep to forget" in said and "4 could go" in said
    document = json.loads(typed("--forget", "gone", "--older-than", "0", "--delete", "--json"))
    assert document["deleted"] and document["bytes"] == sum(each["bytes"] for each in document["garbage"]) > 0
    assert store.sweeps() == ["s"] and typed("--older-than", "0") == "0 could go (--delete does it), 0 bytes\n"
