"""What the store checks in a file that it reads: presence, size, rows, sha256; and verified copies."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from kvray.errors import DamagedArtefactError
from kvray.store import parquet
from kvray.store.files import Files, naming
from kvray.store.local import TEMPORARY
from kvray.store.manifest import FileEntry


def problem(files: Files, directory: str, entry: FileEntry, size: int | None, verify: bool) -> str | None:
    """Return what is wrong with a listed file of ``size`` bytes (None: missing), or None; ``verify`` adds sha256."""
    path = f"{directory}/{entry.name}"
    if size != entry.bytes:
        return f"{path} " + ("is missing" if size is None else f"has {size} bytes, not {entry.bytes}")
    try:
        if entry.rows is not None and (counted := parquet.footer_rows(files, path)) != entry.rows:
            return f"{path} has {counted} rows, not {entry.rows}"
    except parquet.UnreadableError as error:
        return f"{path} {error}"
    if verify and files.sha256(path) != entry.sha256:
        return f"{path}: its sha256 is not that of the manifest; its bytes were changed"
    return None


def table(files: Files, directory: str, entry: FileEntry, columns: Sequence[str] | None) -> pa.Table:
    """Return a listed Parquet file as a table.

    Raises DamagedArtefactError if it is missing, unreadable or has not as many rows, StoreError without such a column.
    """
    path = f"{directory}/{entry.name}"
    try:
        stored = parquet.read(files, path, columns)
    except parquet.UnreadableError as error:
        raise DamagedArtefactError(f"{path} {error}") from error
    if stored.num_rows != entry.rows:
        raise DamagedArtefactError(f"{path} has {stored.num_rows} rows, not {entry.rows}")
    return stored


def copy(files: Files, directory: str, entry: FileEntry, into: Path) -> None:
    """Copy a listed file to a local directory, unless it is there; DamagedArtefactError if missing or changed."""
    source, target = f"{directory}/{entry.name}", into / entry.name
    with naming(str(target), f"write {entry.bytes:,} bytes"):
        if target.is_file() and target.stat().st_size == entry.bytes:
            with target.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() == entry.sha256:
                    return
        if files.size(source) is None:
            raise DamagedArtefactError(f"{source} is missing")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{TEMPORARY}{os.getpid()}-{target.name}")
        digest = hashlib.sha256()
        with temporary.open("wb") as stream:
            for chunk in files.chunks(source):
                digest.update(chunk)
                stream.write(chunk)
        if digest.hexdigest() != entry.sha256:
            temporary.unlink()
            raise DamagedArtefactError(f"{source}: its sha256 is not that of the manifest; its bytes were changed")
        temporary.replace(target)
