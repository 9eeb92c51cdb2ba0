"""How often a bucket is asked, counted by its server: by the number of folders, not by that of the cells."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

import pytest
from planned_toys import BASE, commit, toy_plan
from s3_server import BUCKET, REQUESTS, endpoint
from toy_tasks import Toy

from kvray.driver import run as running
from kvray.driver.spending import Spending
from kvray.planning import inputs
from kvray.planning.artefacts import Plan, status
from kvray.planning.cost import budget
from kvray.planning.cost.budget import Spent
from kvray.planning.cost.estimate import estimate
from kvray.report.build import current, made_from
from kvray.results.snapshot import look
from kvray.store import failures
from kvray.store.store import Store
from kvray.tasks.base import REGISTRY

__all__ = ["endpoint"]


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A plan of 35 artefacts."""
    monkeypatch.setitem(REGISTRY, "toy", Toy)
    monkeypatch.setattr(inputs, "resolve", lambda name, tokenizer=None: BASE)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return toy_plan(finetune={"seeds": list(range(8)), "match": "rows"})


@pytest.fixture
def store(endpoint: str, planned: Plan) -> Store:
    """A bucket that has all of the plan, its document, and an open connection."""
    store = Store(f"s3://{BUCKET}/traffic?endpoint_override=http://{endpoint}&scheme=http")
    for artefact in planned.artefacts:
        commit(store, artefact)
    running.run(planned, BASE, store)
    return store


def asked(work: Callable[[], object]) -> Counter[str]:
    REQUESTS.clear()
    work()
    return Counter(REQUESTS)


def test_what_is_committed_is_listed_once_and_not_read(store: Store, planned: Plan) -> None:
    # Datasets, finetunes, predictions, failures.
    assert asked(lambda: status(planned.artefacts, store)) == {"LIST": 4}
    # And the reports, for the spread of seeds.
    assert asked(lambda: estimate(planned, store)) == {"LIST": 5}
    # A probe is looked up, created, refused a second time and deleted; leases are listed; the plan's document is read.
    assert asked(lambda: running.run(planned, BASE, store)) == {"LIST": 5, "HEAD": 2, "GET": 1, "PUT": 2, "POST": 1}
    done = running.run(planned, BASE, store)
    assert done.nothing_to_do and done.found is not None
    note = made_from(store, look(store, "s")) | {"files": [], "summary": ["as it was"]}
    store.write_document("reports/s/made-from.json", json.dumps(note).encode())
    # The report's note is read, and its files are listed.
    found = asked(lambda: current(store, "s", done.found))
    assert found == {"LIST": 1, "HEAD": 1, "GET": 1}
    assert current(store, "s", done.found) == current(store, "s") == ["as it was"]


def test_notes_of_failures_are_read_for_what_failed_and_removed_where_they_are(
    store: Store, planned: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = [artefact for artefact in planned.artefacts if artefact.kind == "predictions"][:5]
    for artefact in lost:
        store.discard(artefact.id)
    failures.note(store, lost[0].id, "died")
    failures.note(store, planned.artefacts[0].id, "of long ago")
    reads = asked(lambda: status(planned.artefacts, store))
    assert reads == {"LIST": 4, "HEAD": 1, "GET": 1}
    monkeypatch.setattr(running, "connect", lambda runtime: pytest.fail("the work would begin"))
    with pytest.raises(pytest.fail.Exception, match="would begin"):
        running.run(planned, BASE, store)
    assert failures.noted(store) == {planned.artefacts[0].id}


def test_a_budget_costs_a_listing_and_a_read_per_run_and_nothing_without_one(store: Store, planned: Plan) -> None:
    for run in ("one", "two"):
        store.write_document(f"spent/s/{run}.json", Spent(1.0, gpus=True).to_bytes(run, "s", "here"))
    assert asked(lambda: budget.read(store, "s")) == {"LIST": 1, "HEAD": 2, "GET": 2}
    assert not asked(lambda: Spending(store, "s", "me", planned.sweep.runtime))
