"""The file system under a store: the protocol, and local disks, where a file is whole or absent at every instant.

A file is written under a hidden temporary name, flushed, renamed, and its directory flushed (about 1.6 ms for 2 MB), so
a reader, or a machine that loses power, sees the old state or the new one. Object stores: see ``object_store``.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import socket
import time
from collections.abc import Iterator
from typing import Protocol

import pyarrow.fs as pafs

from kvray.errors import StoreError

TEMPORARY = ".tmp-"  # prefix of files being written; hidden, so that listings and Parquet readers skip them
STALE_S = 3600.0  # seconds after which another host's temporary file counts as abandoned
_CHUNK = 8 * 2**20
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class Files(Protocol):
    """The store's view of a file system. Paths are inside ``fs``; every failure is a StoreError with the path."""

    @property
    def fs(self) -> pafs.FileSystem:
        """The pyarrow file system, for Ray and for readers."""

    @property
    def remote(self) -> bool:
        """Whether every read is a round trip, so that reads should be few and concurrent."""

    def put(self, path: str, data: memoryview) -> None:
        """Write a whole file; concurrent readers see the old one or the new one."""

    def put_new(self, path: str, data: memoryview) -> bool:
        """Write a whole file unless it exists; return whether it was written."""

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, None if it is missing."""

    def tail(self, path: str, count: int) -> bytes | None:
        """Return the last ``count`` bytes (all of a shorter file), None if it is missing."""

    def chunks(self, path: str) -> Iterator[bytes]:
        """Yield a file's bytes in pieces of some MiB; the file must exist."""

    def size(self, path: str) -> int | None:
        """Return a file's size in bytes, None if it is missing."""

    def listing(self, path: str, hidden: bool = False) -> dict[str, int]:
        """Return name -> bytes of every file below a directory, names relative to it, hidden ones on request."""

    def delete(self, path: str) -> None:
        """Remove a file, if it exists, durably."""

    def delete_tree(self, path: str) -> None:
        """Remove a directory, if it exists, with its contents."""

    def clean(self, path: str) -> None:
        """Remove temporary files that dead writers left below a directory."""


def sha256(files: Files, path: str) -> str:
    """Return a file's sha256 in hex, in flat memory."""
    digest = hashlib.sha256()
    for chunk in files.chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def naming(path: str, doing: str) -> Iterator[None]:
    """Turn any OSError into a StoreError that names the path and the operation."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: cannot {doing}: {error.strerror or error}") from error


class LocalFiles:
    """A directory of a local or network (NFS) file system."""

    remote = False

    def __init__(self) -> None:
        self.fs = pafs.LocalFileSystem()

    def put(self, path: str, data: memoryview) -> None:
        with naming(path, f"write {data.nbytes:,} bytes"):
            temporary = _write_temporary(path, data)
            with _removed_on_failure(temporary):
                os.replace(temporary, path)
            _flush_directory(os.path.dirname(path))

    def put_new(self, path: str, data: memoryview) -> bool:
        """Link a file that is already whole to its name, which fails if the name is taken."""
        with naming(path, f"write {data.nbytes:,} bytes"):
            temporary = _write_temporary(path, data)
            with _removed_on_failure(temporary):
                try:
                    os.link(temporary, path)
                except FileExistsError:
                    os.unlink(temporary)
                    return False
                except OSError as error:
                    if error.errno not in _NO_HARD_LINKS:
                        raise
                    # exFAT, some FUSE mounts: of two writers within the same millisecond the later one wins there.
                    if os.path.lexists(path):
                        os.unlink(temporary)
                        return False
                    os.replace(temporary, path)
                else:
                    os.unlink(temporary)
            _flush_directory(os.path.dirname(path))
        return True

    def read(self, path: str) -> bytes | None:
        return self.tail(path, -1)

    def tail(self, path: str, count: int) -> bytes | None:
        """Return the last bytes of a file; a negative count is the whole file."""
        with naming(path, "read"):
            try:
                with open(path, "rb") as stream:
                    if count >= 0:
                        stream.seek(max(0, stream.seek(0, os.SEEK_END) - count))
                    return stream.read()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def chunks(self, path: str) -> Iterator[bytes]:
        with naming(path, "read"), open(path, "rb") as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk

    def size(self, path: str) -> int | None:
        with naming(path, "look up"):
            try:
                return os.stat(path).st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    def listing(self, path: str, hidden: bool = False) -> dict[str, int]:
        with naming(path, "list"):
            return {name[len(path) + 1 :]: size for name, size in _walk(path, hidden)}

    def delete(self, path: str) -> None:
        with naming(path, "delete"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(path)
            _flush_directory(os.path.dirname(path))

    def delete_tree(self, path: str) -> None:
        with naming(path, "delete"):
            _delete_tree(path)

    def clean(self, path: str) -> None:
        """Remove temporary files of dead writers; those of a live process, or fresh ones of another host, stay."""
        with naming(path, "clean up"):
            for name, _ in _walk(path, hidden=True):
                if os.path.basename(name).startswith(TEMPORARY) and _abandoned(name):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(name)


def _write_temporary(path: str, data: memoryview) -> str:
    directory = os.path.dirname(path)
    _make_directory(directory)
    temporary = os.path.join(directory, f"{TEMPORARY}{_host()}-{os.getpid()}-{secrets.token_hex(6)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    with _removed_on_failure(temporary):
        try:
            view = data.cast("B")
            while view.nbytes:
                view = view[os.write(descriptor, view[:_CHUNK]) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return temporary


@contextlib.contextmanager
def _removed_on_failure(temporary: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _make_directory(path: str) -> None:
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    _make_directory(parent)
    try:
        os.mkdir(path)
    except FileExistsError:
        if not os.path.isdir(path):
            raise NotADirectoryError(errno.ENOTDIR, f"{path} is a file, expected a directory") from None
    _flush_directory(parent)


def _flush_directory(path: str) -> None:
    """Make the names in a directory durable: a rename is not until its directory is flushed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network mounts cannot flush a directory; the server does it
            raise
    finally:
        os.close(descriptor)


def _walk(path: str, hidden: bool) -> Iterator[tuple[str, int]]:
    try:
        with os.scandir(path) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.name.startswith(".") and not hidden:
            continue
        if entry.is_dir():
            yield from _walk(entry.path, hidden)
            continue
        with contextlib.suppress(FileNotFoundError):  # a temporary file that was renamed meanwhile
            yield entry.path, entry.stat().st_size


def _delete_tree(path: str) -> None:
    try:
        with os.scandir(path) as scan:
            entries = list(scan)
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            _delete_tree(entry.path)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry.path)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(path)


def _host() -> str:
    return "".join(char for char in socket.gethostname() if char.isalnum()) or "host"


def _abandoned(path: str) -> bool:
    host, pid, *_ = [*os.path.basename(path).removeprefix(TEMPORARY).split("-"), "", ""]
    try:
        if host == _host() and pid.isdecimal():
            os.kill(int(pid), 0)
        return time.time() - os.stat(path).st_mtime > STALE_S
    except ProcessLookupError:
        return True
    except (PermissionError, FileNotFoundError):  # alive and another user's; or gone by now
        return False
