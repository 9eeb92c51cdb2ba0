"""The file system under a store: reading through pyarrow, and what local disks and object stores do their own way."""

import contextlib
import errno
import functools
import hashlib
import mmap
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from kvray.console import size
from kvray.errors import DiskFullError, StoreError, StoreUnavailableError, disk_full, passes
from kvray.store.patience import Patience

CHUNK = 8 * 2**20
_Result = TypeVar("_Result")
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")


class Files(ABC):
    """The store's view of ``fs``, a pyarrow file system; failures are StoreErrors with the path after ``prefix``.

    What may pass is waited out with ``patience``: a StoreUnavailableError has outlived it. ``lent`` is the same place
    for other libraries, which have no such patience; default ``fs``.
    """

    remote: bool
    """Whether every read is a round trip, so that reads should be few and concurrent."""

    def __init__(
        self, fs: pafs.FileSystem, patience: Patience, prefix: str = "", lent: pafs.FileSystem | None = None
    ) -> None:
        self.fs = fs
        self.lent = lent or fs
        self.patience = patience
        self.prefix = prefix

    @abstractmethod
    def put(self, path: str, data: memoryview) -> None:
        """Write a whole file; concurrent readers see the old one or the new one."""

    @abstractmethod
    def put_new(self, path: str, data: memoryview) -> bool:
        """Write a whole file unless there is one; return whether it was written. Of several callers one writes.

        A place that cannot tell writes it; see :meth:`exclusive`.
        """

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove a file, if it exists, durably."""

    @abstractmethod
    def clean(self, path: str, names: Iterable[str]) -> None:
        """Remove the temporary files that dead writers left below a directory, among the ``names`` of its files."""

    @abstractmethod
    def abandoned(self, path: str) -> bool:
        """Return whether whoever wrote a temporary file is dead, or has been silent for long."""

    def exclusive(self, path: str) -> bool:
        """Return whether :meth:`put_new` refuses a second file of a name, by trying at ``path``, which is deleted."""
        try:
            self.put_new(path, memoryview(b"kvray"))
            return not self.put_new(path, memoryview(b"kvray"))
        finally:
            self.delete(path)

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, None if it is missing."""
        return self.tail(path, -1)

    def tail(self, path: str, count: int) -> bytes | None:
        """Return the last ``count`` bytes (all of a shorter file, or of any if negative), None if it is missing."""

        def read() -> bytes | None:
            try:
                with self.fs.open_input_file(path) as stream:
                    end = stream.size()
                    start = max(0, end - count) if count >= 0 else 0
                    return bytes(stream.read_at(end - start, start))
            except (FileNotFoundError, NotADirectoryError):
                return None

        return self.patiently(path, "read", read)

    def sha256(self, path: str) -> str:
        """Return the sha256, in hex, of a file, which must exist; in flat memory."""
        digest = hashlib.sha256()
        for chunk in self.chunks(path):
            digest.update(chunk)
        return digest.hexdigest()

    def chunks(self, path: str) -> Iterator[bytes]:
        """Yield a file's bytes in pieces of some MiB; the file must exist."""
        at = 0
        with self.patiently(path, "read", lambda: self.fs.open_input_file(path)) as stream:
            while chunk := self.patiently(path, "read", functools.partial(stream.read_at, CHUNK, at)):
                at += len(chunk)
                yield chunk

    def size(self, path: str) -> int | None:
        """Return a file's size in bytes, None if it is missing."""
        info = self.patiently(path, "look up", lambda: self.fs.get_file_info(path))
        return int(info.size) if info.type == pafs.FileType.File else None

    def listing(self, path: str, hidden: bool = False) -> dict[str, int]:
        """Return name -> bytes of every file below a directory, names relative to it, hidden ones on request."""
        return {name: info.size for name, info in self.infos(path, hidden).items()}

    def infos(self, path: str, hidden: bool = False) -> dict[str, pafs.FileInfo]:
        """Return a listing with pyarrow's information on each file: size in bytes, modification time."""
        selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
        infos = self.patiently(path, "list", lambda: self.fs.get_file_info(selector))
        names = ((info.path[len(path) + 1 :], info) for info in infos if info.type == pafs.FileType.File)
        return {name: info for name, info in names if hidden or "/." not in f"/{name}"}

    def delete_tree(self, path: str) -> None:
        """Remove a directory, if it exists, with its contents."""

        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                self.fs.delete_dir(path)

        self.patiently(path, "delete", delete)

    def patiently(self, path: str, doing: str, call: Callable[[], _Result]) -> _Result:
        """Return what ``call`` returns, which may be made more than once; StoreError if it fails for good."""

        def attempt() -> _Result:
            with naming(path, doing, self.prefix):
                return call()

        return self.patience(attempt)


@dataclass(frozen=True)
class Folder:
    """A directory that holds files by name; ``place`` is what a user opens: a path, or a URI without its parameters."""

    files: Files
    root: str
    place: str

    def put(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all; an older one is replaced."""
        self.files.put(f"{self.root}/{name}", memoryview(data))

    def copy(self, file: Path, name: str) -> None:
        """Write a local file, which is mapped, under a name."""
        self.files.put(f"{self.root}/{name}", mapped(file))

    def put_new(self, name: str, data: bytes) -> bool:
        """Write a file unless there is one; return whether it was written."""
        return self.files.put_new(f"{self.root}/{name}", memoryview(data))

    def infos(self) -> dict[str, pafs.FileInfo]:
        """Return pyarrow's information on each file by name, from one listing."""
        return self.files.infos(self.root)

    def read(self, name: str) -> bytes | None:
        return self.files.read(f"{self.root}/{name}")

    def fetch(self, name: str, out: Path) -> Path:
        """Copy a file, which must exist, to a local one in flat memory; return ``out``."""
        with naming(str(out), "write"), out.open("wb") as local:
            for chunk in self.files.chunks(f"{self.root}/{name}"):
                local.write(chunk)
        return out

    def clear(self) -> None:
        """Remove the folder with all that lies in it."""
        self.files.delete_tree(self.root)

    def delete(self, name: str) -> None:
        self.files.delete(f"{self.root}/{name}")

    def names(self) -> set[str]:
        """Return the names of all files, those in folders with the folder."""
        return set(self.files.listing(self.root))


@contextlib.contextmanager
def naming(path: str, doing: str, prefix: str = "") -> Iterator[None]:
    """Turn errors of a file system into a StoreError that names path and operation, and no credential."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        number = getattr(error, "errno", None)
        kind: type[StoreError] = StoreError
        why = os.strerror(number) if number else redacted(error)
        if disk_full(error):
            kind, why = DiskFullError, full(path, error)
        elif passes(error):
            kind = StoreUnavailableError
        # "from None": a chained traceback would show the cause with its credentials.
        raise kind(f"{prefix}{path}: cannot {doing}: {why}") from None


def full(path: str, error: BaseException) -> str:
    """Return, of the disk that a path is or would be on, that it is full, what is free, and what to do."""
    if getattr(error, "errno", None) == errno.EDQUOT:
        found = os.strerror(errno.EDQUOT)
    else:
        free = free_bytes(path)
        found = os.strerror(errno.ENOSPC) + ("" if free is None else f", {size(free)} free")
    return f"{found}; make room there, then type the same command"


def free_bytes(path: str) -> int | None:
    """Return the bytes that are free where a local path is or would be; None if its file system does not tell."""
    with contextlib.suppress(OSError):
        usage = shutil.disk_usage(nearest(path))
        return usage.free if usage.total else None
    return None


def nearest(path: str) -> str:
    """Return a local path, or of those above it the first that exists."""
    path = os.path.abspath(path)
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


def redacted(error: BaseException) -> str:
    """Return an error's text on one line, without any credential of the environment."""
    text = " ".join(str(error).split())
    for name in _SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return text


def mapped(local: Path) -> memoryview:
    """Map a local file into memory without reading it; StoreError if it cannot be opened."""
    with naming(str(local), "read"), local.open("rb") as stream:
        empty = os.fstat(stream.fileno()).st_size == 0
        return memoryview(b"" if empty else mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
