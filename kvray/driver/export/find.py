"""Find what is to be exported, by the names that a sweep gives it, or by its artefact's id."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from kvray.errors import DamagedArtefactError, InputError
from kvray.models.reference import BaseModelRef, resolve, snapshot
from kvray.planning.artefacts import PlannedArtefact, described
from kvray.planning.why import find as find_artefact
from kvray.results.frames import with_models
from kvray.results.losses import names
from kvray.results.reader import EMPTY
from kvray.store.manifest import Manifest
from kvray.store.store import Store
from kvray.tasks.problems import unknown

What = Literal["finetune", "dataset", "mixture"]
KINDS: Mapping[str, What] = {"finetunes": "finetune", "datasets": "dataset", "mixtures": "mixture"}
"""What can be exported, by the folder that says so in a name: ``quickstart/datasets/in2``, ``finetunes/in2-…``."""
EXPECTED = (
    "SWEEP/MIXTURE or SWEEP/MIXTURE/SEED (a finetune), SWEEP/datasets/NAME, SWEEP/mixtures/NAME, or an artefact's id "
    "(finetunes/…, datasets/…)"
)


@dataclass(frozen=True)
class Found:
    """Something to export: the committed artefact that it is or, of a mixture, whose rows these are."""

    what: What
    store: Store
    document: Mapping[str, Any]  # the plan of a sweep that has it
    planned: PlannedArtefact
    manifest: Manifest
    model: str | None  # of a finetune, the model's name in reports

    @property
    def sweep(self) -> str:
        """The sweep's name."""
        return str(self.document["name"])

    @property
    def name(self) -> str:
        """A short name: a dataset's, or the model's; with the seed where the sweep has several."""
        if self.what == "dataset":
            return str(self.planned.labels["dataset"])
        model = str(self.model or self.planned.labels["mixture"])
        return f"{model} seed {self.planned.labels['seed']}" if len(_seeds(self.document)) > 1 else model


def find(store: Store, what: str, data: bool = False) -> Found:
    """Return what a name stands for (:data:`EXPECTED`).

    ``SWEEP/NAME`` is the finetune on a mixture of that name, else a dataset; with ``data`` the dataset, else the
    mixture's rows. Raises InputError if there is no such thing, several fit, or it is not committed.
    """
    sweep, _, rest = what.partition("/")
    known = store.sweeps()
    if sweep in KINDS and sweep not in known:
        return _by_id(store, what, known)
    if not rest or sweep not in known:
        where = f"one of the sweeps in {store.uri}"
        raise InputError(f"{what!r}: {unknown(sweep, known, where)}; expected {EXPECTED}")
    document = store.plan_document(sweep)
    artefacts = described(document)
    folder, _, inner = rest.partition("/")
    if folder in KINDS and inner:
        return _named(store, document, artefacts, inner, [KINDS[folder]], what)
    kinds: list[What] = ["dataset", "mixture"] if data else ["finetune", "dataset"]
    return _named(store, document, artefacts, rest, kinds, what)


def base_of(found: Found, base_model: str | None = None) -> BaseModelRef:
    """Return the base model that a finetune was made from, at the very commit if it is on the hub.

    ``base_model`` says where it is now, if that is elsewhere. Raises InputError if it is not to be found, or another.
    """
    recorded, sweep = str(found.manifest.recipe["base"]), found.document["sweep"]
    name, trust = base_model or str(sweep["base_model"]), bool(sweep.get("trust_remote_code"))
    if recorded.startswith("hub:") and base_model is None:
        hub, _, commit = recorded.removeprefix("hub:").rpartition("@")
        return BaseModelRef(hub, hub, commit, recorded, trust, cached=_offline() and snapshot(hub, commit) is not None)
    base = resolve(name, sweep.get("tokenizer"))
    if base.identity != recorded:
        raise InputError(
            f"base_model: {name} is {base.identity} now, but {found.planned.id} was made from {recorded}; expected "
            "that one: --base-model DIRECTORY says where it is"
        )
    return replace(base, trust_remote_code=trust)


def _offline() -> bool:
    from huggingface_hub import constants

    return constants.is_offline_mode()


def _by_id(store: Store, what: str, sweeps: Sequence[str]) -> Found:
    documents = {name: store.plan_document(name) for name in sweeps}
    folder = what.partition("/")[0]
    if folder == "mixtures":
        raise InputError(f"{what!r} names no sweep; expected SWEEP/{what}")
    known = {each.id: each for document in documents.values() for each in described(document)}
    artefact = find_artefact(what, {key: each for key, each in known.items() if key.startswith(f"{folder}/")})
    document = next(each for each in documents.values() if any(a["id"] == artefact.id for a in each["artefacts"]))
    return _found(store, document, KINDS[folder], artefact)


def _named(
    store: Store,
    document: Mapping[str, Any],
    artefacts: Sequence[PlannedArtefact],
    name: str,
    kinds: Sequence[What],
    what: str,
) -> Found:
    for kind in kinds:
        if kind == "dataset":
            fits = [each for each in artefacts if each.kind == "dataset" and each.labels["dataset"] == name]
        else:
            fits = _finetunes(document, artefacts, name)
        if len(fits) > 1:
            several = "\n".join(f"  {each.id}  ({_labels(each)})" for each in fits)
            seeds = "a seed as in SWEEP/MIXTURE/SEED, or an id" if kind != "dataset" else "an id"
            raise InputError(f"{what!r} fits {len(fits)} {kind}s; expected one: give {seeds}:\n{several}")
        if fits:
            return _found(store, document, kind, fits[0])
    known = {
        "dataset": [str(each.labels["dataset"]) for each in artefacts if each.kind == "dataset"],
        "finetune": [str(each.labels["mixture"]) for each in artefacts if each.kind == "finetune"],
    }
    listed = [each for kind in kinds for each in known["dataset" if kind == "dataset" else "finetune"]]
    expected = f"a {' or '.join(kinds)} of the sweep"
    raise InputError(f"{what!r}: {unknown(name, dict.fromkeys(listed), expected)}")


def _finetunes(document: Mapping[str, Any], artefacts: Sequence[PlannedArtefact], name: str) -> list[PlannedArtefact]:
    """Return the finetunes called so: by mixture or by the model's name in reports, alone or with ``/SEED``."""
    planned = [each for each in artefacts if each.kind == "finetune"]
    models = _models(document)

    def called(wanted: str) -> list[PlannedArtefact]:
        def model(each: PlannedArtefact) -> str:
            return models[each.labels["mixture"], each.labels["finetune"]]

        exact = [each for each in planned if model(each) == wanted]
        return exact or [each for each in planned if each.labels["mixture"] == wanted]

    if fits := called(name):
        return fits
    model, _, seed = name.rpartition("/")
    return [each for each in called(model) if str(each.labels["seed"]) == seed.removeprefix("s")]


def _found(store: Store, document: Mapping[str, Any], what: What, artefact: PlannedArtefact) -> Found:
    state = store.state(artefact.id)
    manifest = store.manifest(artefact.id) if state == "committed" else None
    if state == "damaged":
        raise DamagedArtefactError(f"{artefact.id} is damaged; kvray run makes it again")
    if manifest is None:
        more = " (kvray blend FILE MIXTURE writes a mixture's rows before)" if what == "mixture" else ""
        raise InputError(f"{artefact.id} ({_labels(artefact)}) is not in {store.uri} yet; kvray run makes it{more}")
    labels = artefact.labels
    model = _models(document)[labels["mixture"], labels["finetune"]] if artefact.kind == "finetune" else None
    return Found(what, store, document, artefact, manifest, model)


def _models(document: Mapping[str, Any]) -> dict[tuple[Any, Any], str]:
    finetunes = [each for each in document["artefacts"] if each["kind"] == "finetune"]
    return names(finetunes, with_models(EMPTY))


def _seeds(document: Mapping[str, Any]) -> set[Any]:
    return {each["labels"]["seed"] for each in document["artefacts"] if each["kind"] == "finetune"}


def _labels(artefact: PlannedArtefact) -> str:
    return ", ".join(f"{key} {value}" for key, value in artefact.labels.items() if value is not None)
