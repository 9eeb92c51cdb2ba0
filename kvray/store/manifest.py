"""The manifest: the file written last, whose presence means that an artefact is whole."""

import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from kvray.errors import DamagedArtefactError
from kvray.store.fingerprint import canonical_json, encoded, plain

State = Literal["committed", "missing", "damaged"]

MANIFEST = "manifest.json"
DATA = "data"
"""Folder in an artefact of rows (a dataset, a writing, predictions) for its Parquet, and nothing else: whatever reads
directories of Parquet opens it as it is. Artefacts of earlier versions have their files beside the manifest."""
_SEAL = ".sizes-"
_DISTRIBUTIONS = ("kvray", "numpy", "peft", "polars", "pyarrow", "ray", "tokenizers", "torch", "transformers", "vllm")


@dataclass(frozen=True)
class FileEntry:
    """One file of an artefact."""

    name: str  # relative to the artefact's directory, with "/"
    rows: int | None  # of a Parquet file; None of any other
    bytes: int
    sha256: str  # hex


@dataclass(frozen=True)
class Manifest:
    """What an artefact is, how it was made, and all of its files."""

    id: str  # <kind folder>/<name>-<fingerprint[:16]>
    kind: str  # writing, dataset, finetune or predictions
    name: str  # the readable part of the id
    fingerprint: str  # sha256 of the recipe and of what it needs
    recipe: dict[str, Any]  # everything that decides the content
    needs: list[str]  # ids of the artefacts that it was made from
    files: list[FileEntry]  # a file that is not listed is not part of the artefact
    rows: int  # of all Parquet files together
    schema: list[dict[str, str]] | None  # name, type and description per column, if the artefact is a table
    measurements: dict[str, Any]  # versions, hardware and the stage's own; outside the identity; "facts" in the file
    created: str  # ISO 8601, UTC

    def to_bytes(self) -> bytes:
        """Return the file's content: readable JSON that carries the sha256 of its own values."""
        values = {"facts" if name == "measurements" else name: value for name, value in asdict(self).items()}
        values["checksum"] = _sha256(canonical_json(values))
        return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode()


_FIELDS = [field.name for field in fields(Manifest)]


@dataclass(frozen=True)
class Presence:
    """What a listing of the store shows of an artefact."""

    state: State
    files: Mapping[str, int]  # bytes by name, sorted, of what lies there, manifest aside; listed in one or not
    committed_ns: int | None  # modification time of the manifest, which is written once; None where there is none


def parse(data: bytes, artefact_id: str) -> Manifest:
    """Read a manifest's bytes; DamagedArtefactError if they are none, were changed later, or belong to another id."""
    where = f"{artefact_id}/{MANIFEST}"
    try:
        values = json.loads(data)
        checksum = values.pop("checksum")
        # What a manifest has is plain already: it is copied, for a 0 with a sign, only where something seems wrong.
        if checksum != _sha256(encoded(values)) and checksum != _sha256(canonical_json(values)):
            raise DamagedArtefactError(f"{where} was changed after it was written: its checksum does not match")
        values["measurements"] = values.pop("facts")
        values["files"] = [FileEntry(**entry) for entry in values["files"]]
        manifest = Manifest(**{name: values.pop(name) for name in _FIELDS})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedArtefactError(f"{where} is unreadable: {type(error).__name__}: {error}") from error
    if manifest.id != artefact_id:
        raise DamagedArtefactError(f"{where} belongs to {manifest.id}")
    outside = next((entry.name for entry in manifest.files if not _inside(entry.name)), None)
    if outside is not None:  # whoever may write the store could have files copied anywhere
        raise DamagedArtefactError(f"{where} lists {outside!r}, which is not inside the artefact")
    return manifest


def _inside(name: object) -> bool:
    """Return whether the name of a file stays inside the directory that it is relative to."""
    parts = name.split("/") if isinstance(name, str) else [""]
    return not any(part in ("", ".", "..") or "\\" in part for part in parts)


def seal(sizes: Mapping[str, int]) -> str:
    """Return the name of the empty file that vouches for the names and sizes of an artefact's files.

    On object stores it lies beside the manifest: one listing shows which artefacts are whole; no manifest is read.
    """
    lines = [f"{name}\0{size}\n" for name, size in sorted(sizes.items()) if not name.startswith(".")]
    return _SEAL + hashlib.sha256("".join(lines).encode()).hexdigest()[:32]


def describe(schema: pa.Schema) -> list[dict[str, str]]:
    """Return the name, type and description of every column of a schema, for a manifest."""
    about = {field.name: (field.metadata or {}).get(b"description", b"").decode() for field in schema}
    return [{"name": field.name, "type": str(field.type), "description": about[field.name]} for field in schema]


def now() -> str:
    """Return the time in ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def with_provenance(measurements: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a stage's measurements with versions and hardware; a number that is not finite becomes text ("nan")."""
    given = _finite(dict(measurements or {}))
    merged = {**given, "versions": {**versions(), **given.get("versions", {})}}
    merged["hardware"] = {**hardware(), **given.get("hardware", {})}
    return dict(plain(merged))


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that shape results, without importing them."""
    packages = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        for distribution in (name, f"{name}-cpu"):
            try:
                packages[name] = importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                continue
            break
    return packages


@functools.cache
def hardware() -> dict[str, Any]:
    """Return this host's processor, cores, memory (bytes) and NVIDIA devices, without any driver library."""
    models = [
        line.split(":", 1)[1].strip()
        for information in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        for line in information.read_text(errors="replace").splitlines()
        if line.startswith("Model:")
    ]
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": models,
    }


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _finite(value: Any) -> Any:
    if type(value) is float and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
