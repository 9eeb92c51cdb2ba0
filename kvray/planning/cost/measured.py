"""Which manifests an estimate rests on: few, since each is a request where the store is a bucket."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from kvray.planning.artefacts import KINDS, Artefact, FinetuneJob, Plan, PredictionsJob, WritingJob
from kvray.planning.cost.rates import keys
from kvray.planning.plan import plain_name
from kvray.store.manifest import Manifest
from kvray.store.store import Store

MOST_REMOTE, MOST_LOCAL = 16, 400
ALIKE = 3
"""Manifests whose throughputs are pooled, of one kind, model and task or method."""


def manifests(planned: Plan, committed: Collection[str], store: Store) -> dict[str, Manifest]:
    """Return the manifests, by id, that say how much there is to read, and how fast, of what is not ``committed``.

    They are those of the data that it reads, and of what was made alike: of this plan, or else of other sweeps.
    """
    todo = [artefact for artefact in planned.artefacts if artefact.id not in committed]
    if not todo:
        return {}
    own = {artefact.id: artefact for artefact in planned.artefacts if artefact.id in committed}
    data = dict.fromkeys(need for artefact in todo for need in artefact.needs if need in own)
    # Where every row was counted, the plan knows the tokens already.
    uncounted = [one for one in data if own[one].kind == "dataset" and own[one].counted != "rows"]
    most = MOST_REMOTE if store.remote else MOST_LOCAL
    wanted = dict.fromkeys([*uncounted[: most // 2], *_alike(todo, own, store)])
    return store.read_manifests(list(wanted)[:most])


def _alike(todo: list[Artefact], own: dict[str, Artefact], store: Store) -> Iterator[str]:
    """Yield what is committed and closest to what is to be made, the last made first."""
    lacking = {keys(artefact.kind, artefact.recipe)[0]: artefact for artefact in todo}
    found: dict[tuple[str, ...], list[str]] = {}
    for artefact in reversed(own.values()):
        key = keys(artefact.kind, artefact.recipe)[0]
        if key in lacking and len(found.setdefault(key, [])) < ALIKE:
            found[key].append(artefact.id)
    for at in range(ALIKE):
        yield from (ids[at] for ids in found.values() if at < len(ids))
    for kind in KINDS:
        names = [_part_of_name(each) for key, each in lacking.items() if each.kind == kind and key not in found]
        if names:
            times = {one: time for one, time in store.committed(kind).items() if one not in own}
            others = sorted(times, key=lambda one: -times[one])
            for name in names:
                yield from [one for one in others if name in one][:ALIKE]
            yield from others[:ALIKE]


def _part_of_name(artefact: Artefact) -> str:
    """Return what the ids of artefacts of the same task or method have in common."""
    job = artefact.params
    if isinstance(job, FinetuneJob):
        return f"-{job.finetune.method}-s"
    return f"/{plain_name(job.task if isinstance(job, PredictionsJob | WritingJob) else job)}-"
