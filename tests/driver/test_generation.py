"""The stage that makes datasets, on a real Ray, when its process is stopped in the middle."""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path

import psutil
import pytest

from kvray.driver.generation import Generation
from kvray.generate.job import build
from kvray.models.reference import resolve
from kvray.planning.artefacts import Artefact
from kvray.store.fingerprint import fingerprint
from kvray.store.store import Store, artefact_id
from kvray.sweep.model import Runtime
from kvray.tasks.kv.simple import SimpleKV

BASE = resolve("kvray-tiny")
TASK = SimpleKV(rows=20_000, dictionaries=40)
LIMIT_S = 300.0


def planned(task: SimpleKV = TASK) -> Artefact:
    recipe = {"task": task.recipe()}
    digest = fingerprint(recipe)
    return Artefact(artefact_id("dataset", "kv", digest), "dataset", "kv", digest, (), task.rows, 0, {}, recipe, task)


def generators() -> set[psutil.Process]:
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {process} if "ray::Generator" in " ".join(process.cmdline()) else set()
    return found


@pytest.mark.usefixtures("ray_two_cpus")
def test_a_generator_that_is_stopped_is_ended_and_another_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store, artefact, others = Store(tmp_path), planned(), generators()
    generation = Generation(store, BASE, Runtime(start_minutes=0.25, retries=1))
    generation.add(artefact)
    deadline = time.monotonic() + LIMIT_S
    while not (line := generation.line()) or not line.done:
        assert generation.poll() == [] and time.monotonic() < deadline
        time.sleep(0.05)
    assert line.done < TASK.rows, "made before it could be stopped: give the task more rows"
    (generator,) = generators() - others
    generator.send_signal(signal.SIGSTOP)
    outcomes = []
    while generation.busy:
        outcomes += generation.poll()
        assert time.monotonic() < deadline, "nobody ended the generator"
        time.sleep(0.2)
    assert [(each.artefact_id, each.error) for each in outcomes] == [(artefact.id, None)]
    assert not generator.is_running()
    assert "generate: no row for 0.25 minutes (runtime.start_minutes); it is ended" in capfd.readouterr().err
    (note,) = (tmp_path / ".work/stalls").iterdir()
    assert f"process {generator.pid} " in note.read_text() and "a stopped process (SIGSTOP)" in note.read_text()
    assert store.problems(artefact.id, verify=True) == []
    assert store.read_table(artefact.id).slice(19_000).equals(build(TASK, BASE, range(19_000, 20_000)))


@pytest.mark.usefixtures("ray_two_cpus")
@pytest.mark.parametrize("lost", [False, True], ids=["all is there", "one is not"])
def test_a_generator_that_dies_at_its_end_takes_no_outcome_with_it(lost: bool, tmp_path: Path) -> None:
    import ray

    store, others = Store(tmp_path), generators()
    artefacts = [planned(SimpleKV(rows=rows, dictionaries=4)) for rows in (30, 40)]
    generation = Generation(store, BASE, Runtime(retries=2))
    for artefact in artefacts:
        generation.add(artefact)
    assert generation.poll() == []
    ray.get(generation._running)  # done, and nobody has asked
    (generator,) = generators() - others
    generator.kill()
    generator.wait()
    if lost:
        store.discard(artefacts[1].id)
    outcomes, deadline = [], time.monotonic() + LIMIT_S
    while generation.busy:
        outcomes += generation.poll()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert sorted((each.artefact_id, each.error) for each in outcomes) == sorted((each.id, None) for each in artefacts)
    assert [problem for each in artefacts for problem in store.problems(each.id, verify=True)] == []
