"""The sha256 of a local model's files, kept by path, size and times, so that a plan does not read gigabytes again."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path

SMALL = 2**20
"""Bytes up to which a file is always read: that takes no longer than looking it up."""
SETTLED_S = 5.0
"""Seconds for which a file must have lain unchanged to be kept: of younger ones a second change may leave no trace in a
file system with coarse times (2 s on FAT)."""
_FOLDER = "kvray/sha256"


def sha256(path: Path) -> bytes:
    """Return the sha256 (32 bytes) of a file: read, unless it was when it had the same size, times and inode.

    What was read is kept in ``$XDG_CACHE_HOME/kvray/sha256``, by default in ``~/.cache``. Where that cannot be read or
    written, or looks odd, the file is read. Safe among processes: a note is written whole or not at all.
    """
    path = path.resolve()
    before = _stamp(path)
    if before["size"] <= SMALL:
        return _read(path)
    note = _cache() / f"{hashlib.sha256(os.fsencode(path)).hexdigest()}.json"
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        kept = json.loads(note.read_bytes())
        digest = bytes.fromhex(kept.pop("sha256"))
        if kept == {**before, "path": str(path)} and len(digest) == hashlib.sha256().digest_size:
            return digest
    digest = _read(path)
    settled = max(before["mtime_ns"], before["ctime_ns"]) < time.time_ns() - SETTLED_S * 1e9
    if settled and _stamp(path) == before:
        _keep(note, {**before, "path": str(path), "sha256": digest.hex()})
    return digest


def _stamp(path: Path) -> dict[str, int]:
    """Return what changes when a file does: where its old time is put back, the ctime, and the inode."""
    found = path.stat()
    times = {"mtime_ns": found.st_mtime_ns, "ctime_ns": found.st_ctime_ns}
    return {"size": found.st_size, **times, "inode": found.st_ino, "device": found.st_dev}


def _read(path: Path) -> bytes:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _keep(note: Path, values: dict[str, str | int]) -> None:
    temporary = note.with_name(f"{note.stem}-{secrets.token_hex(8)}.tmp")
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(json.dumps(values))
            os.replace(temporary, note)
        finally:
            temporary.unlink(missing_ok=True)


def _cache() -> Path:
    # A relative path there is to be ignored (XDG Base Directory Specification 0.8).
    asked = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(asked) if os.path.isabs(asked) else Path(os.path.expanduser("~/.cache"))) / _FOLDER
