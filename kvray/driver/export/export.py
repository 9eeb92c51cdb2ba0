"""Write a finetune, a dataset or a mixture of a store to a folder, with its card, and push it to the hub if asked."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kvray import __version__
from kvray.driver.export import cards, data, weights
from kvray.driver.export.find import Found, base_of, find
from kvray.driver.export.formats import Columns, Encoding, default_encoding
from kvray.driver.export.push import RepoType, check, push
from kvray.driver.export.scores import scores
from kvray.errors import InputError, need
from kvray.models.changed import CHANGED
from kvray.models.reference import BaseModelRef
from kvray.store.output import replacing_folder
from kvray.store.store import Store
from kvray.sweep.model import Sweep
from kvray.sweep.yaml import dump

MARK = "kvray.json"
"""The file that tells an exported folder from any other, with the manifests of what is in it."""
CARD, SWEEP = "README.md", "sweep.yaml"


@dataclass(frozen=True)
class Options:
    """What may be asked of an export beside what and where; :func:`kvray.cli.export.export` describes each."""

    merged: bool = False
    columns: Columns | None = None
    encoding: Encoding | None = None
    push: str | None = None
    public: bool = False
    force: bool = False
    base_model: str | None = None
    base_id: str | None = None
    dataset_ids: Sequence[str] = ()
    license: str | None = None


@dataclass(frozen=True)
class Exported:
    """A folder that was written."""

    path: str
    what: str  # finetune, dataset or mixture
    id: str  # of the artefact that it is; of a mixture, the finetune's whose rows these are
    about: str  # one line: what was written, and its size
    files: dict[str, int]  # bytes by name
    notes: tuple[str, ...]  # what whoever shares it should know
    url: str | None = None  # of the repository that it was pushed to

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


def export(store: Store, what: str, out: Path, options: Options = Options()) -> Exported:
    """Write what a name stands for (:data:`kvray.driver.export.find.EXPECTED`) to the directory ``out``, or nothing.

    Raises:
        InputError: there is no such thing, options do not fit it, ``out`` holds something, or the hub refuses it.
        DamagedArtefactError: files of the store do not match their manifest.
        StoreError: the disk of ``out`` is full.
        KvrayError: the hub does not answer; the folder stays.
    """
    found = find(store, what, data=bool(options.columns or options.encoding))
    _check(found, what, out, options)
    with replacing_folder(out, MARK, options.force) as folder:
        about, notes = (_finetune if found.what == "finetune" else _data)(found, folder, options)
        (folder / SWEEP).write_text(_sweep(found), encoding="utf-8")
        (folder / MARK).write_text(json.dumps(_manifests(found), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        names = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in names}
    kind: RepoType = "model" if found.what == "finetune" else "dataset"
    url = push(out, options.push, kind, options.public, f"{found.planned.id} by kvray") if options.push else None
    return Exported(str(out), found.what, found.planned.id, about, files, notes, url)


def _check(found: Found, what: str, out: Path, options: Options) -> None:
    """Refuse options that do not fit, and what the hub would refuse, before anything is made."""
    kept: dict[str, object]
    if found.what == "finetune":
        weights.check(found)
        if options.merged:
            need("kvray export --merged", "torch", "transformers", "peft")
        elif any(entry.name == CHANGED for entry in found.manifest.files):  # the rest is the base's
            need("kvray export of changed tensors", "torch", "transformers")
        need("kvray export of a finetune", "transformers", extra="run")  # whose tokenizer lies beside it
        kept = {}
    else:
        kept = {"--merged": options.merged, "--base-id": options.base_id, "--dataset-id": options.dataset_ids}
    problems = [
        f"{name}: found it with the {found.what} {what}; it is of a finetune alone"
        for name, value in kept.items()
        if value
    ]
    if options.columns == "openai" and options.encoding == "parquet":
        problems.append("--file-type: found parquet with --format openai; expected jsonl, which its API takes")
    if options.public and not options.push:
        problems.append("--public: found it without --push ORG/NAME")
    if not found.store.remote and out.resolve().is_relative_to(Path(found.store.root).resolve()):
        problems.append(f"--out: {out} is inside the store {found.store.uri}; expected a directory outside it")
    if problems:
        raise InputError(problems)
    if options.push:
        check(options.push)


def _finetune(found: Found, folder: Path, options: Options) -> tuple[str, tuple[str, ...]]:
    base = base_of(found, options.base_model)
    written = weights.write(found, base, folder, options.merged, options.base_id)
    licence, scored = _licence(base, options.license), scores(found)
    card = cards.model_card(
        found,
        base,
        written,
        folder,
        scored,
        place=options.push or ".",
        license=licence,
        dataset_ids=options.dataset_ids,
    )
    (folder / CARD).write_text(card, encoding="utf-8")
    notes = []
    if written.beside:
        text = f"the base model {cards.base_label(base)} is on no hub, so it lies in {weights.BASE}/"
        notes.append(f"{text}; --base-id ORG/NAME says where others find it, --merged makes one model")
    if options.merged and written.form == "whole":
        notes.append("it was no adapter: its whole weights are written with and without --merged")
    if not licence:
        notes.append(f"the licence of {cards.base_label(base)} is unknown here: look it up before you share this")
    if not scored.own:
        notes.append("it has no scores beside its base model's yet, so the card has none")
    names = {"adapter": "adapter", "merged": "merged model", "whole": "whole model"}
    return f"{names[written.form]} of {found.name}, {written.parameters:,} parameters", tuple(notes)


def _licence(base: BaseModelRef, given: str | None) -> cards.License:
    """Return the licence of the base model; one that is given stands in for an unknown one alone."""
    known = cards.license_of(base)
    if known and given not in (None, known.get("license")):
        own = known.get("license")
        raise InputError(f"--license: found {given}; the finetune has that of its base model, whose card says {own}")
    return known or ({"license": given} if given else {})


def _data(found: Found, folder: Path, options: Options) -> tuple[str, tuple[str, ...]]:
    columns: Columns = options.columns or "examples"
    encoding = options.encoding or default_encoding(columns)
    written = data.write(found, folder, columns, encoding, options.base_model)
    licence = {"license": options.license} if options.license else {}
    sweep = found.document["sweep"]
    tokenizer = Path(sweep.get("tokenizer") or sweep["base_model"])
    shown = tokenizer.name if tokenizer.is_absolute() else str(tokenizer)
    card = cards.data_card(found, written, columns, place=options.push or ".", license=licence, tokenizer=shown)
    (folder / CARD).write_text(card, encoding="utf-8")
    about = (
        f"{columns} of the {found.what} {found.name}, {written.rows:,} rows, {written.prompt_tokens:,} prompt tokens"
    )
    notes = [] if licence else ["no --license was given, so the card names none"]
    if written.split == "test":
        notes.append("these are the questions of an evaluation: a model that trains on them cannot be asked them")
    return about, tuple(notes)


def _sweep(found: Found) -> str:
    """Return the sweep as a file that makes the same artefacts, without where and how fast it ran."""
    values = {**found.document["sweep"], "runtime": {}}
    head = f"# The sweep that made {found.planned.id}, as kvray {__version__} plans it: kvray run {SWEEP}\n"
    try:
        return head + Sweep.model_validate(values).to_yaml()
    except (InputError, ValueError):  # tasks of its own, whose code is not here
        kept = {name: value for name, value in values.items() if value not in (None, {}, [])}
        return f"{head}# Its tasks are not kvray's alone: their code belongs beside this file.\n{dump(kept)}"


def _manifests(found: Found) -> dict[str, Any]:
    manifests = [found.manifest, *filter(None, map(found.store.manifest, found.manifest.needs))]
    listed = [json.loads(manifest.to_bytes()) for manifest in manifests]
    return {"kvray": __version__, "what": found.what, "sweep": found.sweep, "manifests": listed}
