"""Between a finetune and the store: the rows that it reads, and its files as an artefact. No Ray."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kvray.errors import DamagedArtefactError, InputError
from kvray.finetune import encode
from kvray.models.chat import plain_text, prompts_of
from kvray.models.reference import BaseModelRef, load_tokenizer
from kvray.models.tokenizer import token_counter
from kvray.planning.artefacts import Artefact, FinetuneJob
from kvray.planning.mixture import Mixture, mix
from kvray.store.manifest import Manifest
from kvray.store.schemas import LOSS_SCHEMA
from kvray.store.store import Store

COLUMNS = ("example_id", "prompt", "answer")
"""Columns of a dataset that training reads; of chats their ``history`` too."""

_CHECKPOINT = "step-{:08d}.safetensors"

Read = Callable[[str], pa.Table]
"""Returns :data:`COLUMNS` of all rows of a dataset, by its id."""

_counted: dict[tuple[str, str], NDArray[np.int64]] = {}


def job_of(artefact: Artefact) -> FinetuneJob:
    """Return the job of a finetune's artefact; TypeError for other artefacts."""
    if not isinstance(artefact.params, FinetuneJob):
        raise TypeError(f"{artefact.id} is no finetune: its params are {type(artefact.params).__name__}")
    return artefact.params


def select(job: FinetuneJob, base: BaseModelRef, read: Read) -> Mixture:
    """Choose a finetune's rows by their tokens; InputError if they fit no template, or cannot be mixed as asked."""
    return mix(job, lambda dataset: count(dataset, base, read))


def count(dataset: str, base: BaseModelRef, read: Read) -> NDArray[np.int64]:
    """Return a dataset's tokens per row, encoded as for training; for an API, of plain prompt and answer. Cached."""
    key = dataset, base.token_identity
    if key not in _counted:
        table = read(dataset)
        texts = prompts_of(table), table["answer"].to_pylist()
        if base.api:
            counter = token_counter(base)
            _counted[key] = counter(plain_text(texts[0])) + counter(texts[1])
        else:
            _counted[key] = encode.count(load_tokenizer(base), *texts, end_ids=limits(base)[1])
    return _counted[key]


def limits(base: BaseModelRef) -> tuple[int | None, set[int]]:
    """Return the model's context length (None if its configuration has none) and the ids that end its answers."""
    from transformers import AutoConfig

    base = base.here()
    trust = base.trust_remote_code
    full = AutoConfig.from_pretrained(base.location, revision=base.revision, trust_remote_code=trust)
    config = full.get_text_config().to_dict()
    ends = config.get("eos_token_id")
    return config.get("max_position_embeddings"), set(ends if isinstance(ends, list) else [ends]) - {None}


def read_whole(store: Store, dataset: str) -> pa.Table:
    """Return a dataset's columns that training reads; DamagedArtefactError if its files do not match (sha256)."""
    problems = store.problems(dataset, verify=True)
    if problems:
        raise DamagedArtefactError(f"{dataset} cannot be trained on: {'; '.join(problems)}")
    manifest = store.manifest(dataset)
    chats = manifest is not None and any(each["name"] == "history" for each in manifest.schema or ())
    return store.read_table(dataset, columns=[*COLUMNS, "history"] if chats else COLUMNS)


def here(base: BaseModelRef) -> BaseModelRef:
    """Return the base model as this machine has it; InputError if it is a directory that this machine lacks."""
    local = base.here()
    if local.revision is None and not Path(local.location).is_dir():
        raise InputError(
            f"base_model: {local.location} is not on this node; use a path that every node sees, or a hub id"
        )
    return local


def load_rows(store: Store, job: FinetuneJob, base: BaseModelRef) -> tuple[encode.Encoded, Mixture]:
    """Return one epoch's rows by dataset (verified, encoded, blended, alike on all workers), and their mixture.

    Raises DamagedArtefactError if a dataset does not match its manifest (sha256 of every file), InputError if rows do
    not fit the template or the length, or the mixture cannot be blended or has too few tokens.
    """
    tokenizer = load_tokenizer(base)
    limit, ends = limits(base)
    encoded: dict[str, encode.Encoded] = {}
    for dataset, _ in job.mixture:
        table = read_whole(store, dataset)
        names = [f"{dataset}: {name}" for name in table["example_id"].to_pylist()]
        texts = prompts_of(table), table["answer"].to_pylist()
        longest = job.finetune.max_length or limit
        encoded[dataset] = encode.encode(tokenizer, *texts, names=names, max_length=longest, end_ids=ends)

    def tokens(dataset: str) -> NDArray[np.int64]:
        # Datasets of the budget alone are only counted.
        if dataset in encoded:
            return encoded[dataset].lengths
        return count(dataset, base, lambda name: read_whole(store, name))

    mixture = mix(job, tokens)
    return encode.join([encoded[part.name].take(part.rows) for part in mixture.parts]), mixture


class Checkpoints:
    """The last checkpoint of a finetune that is not committed: a file in the store's hidden scratch.

    The store writes files whole or not at all, and an older checkpoint goes when a newer one is there.
    """

    def __init__(self, store: Store, artefact: Artefact) -> None:
        self._folder = store.folder(f".work/finetunes/{artefact.fingerprint}")

    def last(self) -> int | None:
        """Return the step of the last checkpoint that is whole, None if there is none."""
        steps = sorted(step for step in map(_step, self._folder.names()) if step is not None)
        return next((step for step in reversed(steps) if self._whole(step)), None)

    def put(self, file: Path, step: int) -> None:
        """Store a local file as the checkpoint of a step; StoreError if the store does not take it."""
        self._folder.copy(file, _CHECKPOINT.format(step))
        for name in self._folder.names() - {_CHECKPOINT.format(step)}:
            self._folder.delete(name)

    def get(self, step: int, into: Path) -> Path:
        """Return a step's checkpoint as a local file, from a bucket a copy in ``into``; StoreError if that fails."""
        name = _CHECKPOINT.format(step)
        if not self._folder.files.remote:
            return Path(self._folder.root, name)
        return self._folder.fetch(name, into / name)

    def clear(self) -> None:
        self._folder.clear()

    def _whole(self, step: int) -> bool:
        """Return whether the file, in safetensors' format, has all the bytes that its header promises."""
        path, files = f"{self._folder.root}/{_CHECKPOINT.format(step)}", self._folder.files

        def whole() -> bool:
            with files.fs.open_input_file(path) as file:
                length = int.from_bytes(file.read(8), "little")
                try:
                    header = json.loads(file.read(min(length, file.size())))
                except ValueError:
                    return False
                ends = (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
                return bool(file.size() == 8 + length + max(ends, default=0))

        return files.patiently(path, "read", whole)


def _step(name: str) -> int | None:
    match = re.fullmatch(r"step-(\d{8})\.safetensors", name)
    return int(match[1]) if match else None


def commit(
    store: Store,
    artefact: Artefact,
    rows: encode.Encoded,
    log: Sequence[dict[str, Any]],
    model: Path,
    measurements: Mapping[str, Any],
) -> Manifest:
    """Write a finished finetune's files into the store, and last its manifest, with further measurements."""
    files = [store.write(artefact.id, path.name, path) for path in sorted(model.iterdir())]
    files.append(store.write(artefact.id, "loss.parquet", pa.Table.from_pylist(log, schema=LOSS_SCHEMA)))
    last = log[-1]
    per_epoch = max(1, round(last["step"] / last["epoch"]))
    measured = {
        "steps": last["step"],
        "loss": last["loss"],
        "loss_last_epoch": float(np.mean([row["loss"] for row in log[-per_epoch:]])),
        "prompt_tokens": int(rows.lengths.sum() - rows.answers.sum()),
        "answer_tokens": int(rows.answers.sum()),
        "trained_tokens": last["tokens"],
        "seconds": last["seconds"],
        "tokens_per_second": last["tokens"] / max(last["seconds"], 1e-9),
    }
    return store.commit(
        **artefact.identity(), files=files, schema=LOSS_SCHEMA, measurements={**measured, **measurements}
    )
