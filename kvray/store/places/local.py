"""Local disks and network mounts under a store, where a file is whole or absent at every instant, even if power fails.

It is written under a hidden temporary name, flushed, renamed, and its directory flushed (about 1.6 ms for 2 MB).
"""

import contextlib
import errno
import os
import secrets
import socket
import time
from collections.abc import Iterable, Iterator

import pyarrow.fs as pafs

from kvray.store.patience import Patience
from kvray.store.places.files import CHUNK, Files, free_bytes

TEMPORARY = ".tmp-"  # prefix of files being written; hidden, so that listings and Parquet readers skip them
STALE_S = 3600.0  # seconds after which another host's temporary file counts as abandoned
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class LocalFiles(Files):
    """A directory of a local or network (NFS) file system."""

    remote = False

    def __init__(self, patience: Patience, prefix: str = "") -> None:
        super().__init__(pafs.LocalFileSystem(), patience, prefix)

    def put(self, path: str, data: memoryview) -> None:
        def write() -> None:
            with _temporary(path, data) as temporary:
                os.replace(temporary, path)
            _flush_directory(os.path.dirname(path))

        self.patiently(path, f"write {data.nbytes:,} bytes", write)

    def put_new(self, path: str, data: memoryview) -> bool:
        """Link a file that is already whole to its name, which fails if the name is taken."""

        def write() -> bool:
            with _temporary(path, data) as temporary:
                try:
                    os.link(temporary, path)
                except FileExistsError:
                    return False
                except OSError as error:
                    if error.errno not in _NO_HARD_LINKS:
                        raise
                    # exFAT, some FUSE mounts: of two writers within the same millisecond the later one wins there.
                    if os.path.lexists(path):
                        return False
                    os.replace(temporary, path)
            _flush_directory(os.path.dirname(path))
            return True

        return self.patiently(path, f"write {data.nbytes:,} bytes", write)

    def delete(self, path: str) -> None:
        def delete() -> None:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(path)
                _flush_directory(os.path.dirname(path))

        self.patiently(path, "delete", delete)

    def clean(self, path: str, names: Iterable[str]) -> None:
        """Remove temporary files of dead writers; those of a live process, or fresh ones of another host, stay."""

        def clean() -> None:
            for name in names:
                if os.path.basename(name).startswith(TEMPORARY) and self.abandoned(os.path.join(path, name)):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(os.path.join(path, name))

        self.patiently(path, "clean up", clean)

    def abandoned(self, path: str) -> bool:
        host, pid, *_ = [*os.path.basename(path).removeprefix(TEMPORARY).split("-"), "", ""]
        try:
            if host == _host() and pid.isdecimal():
                os.kill(int(pid), 0)
            return time.time() - os.stat(path).st_mtime > STALE_S
        except ProcessLookupError:
            return True
        except (PermissionError, FileNotFoundError):  # alive and another user's; or gone by now
            return False


@contextlib.contextmanager
def _temporary(path: str, data: memoryview) -> Iterator[str]:
    """Write data to a hidden file beside ``path`` and yield its name; it is removed unless it was renamed."""
    directory = os.path.dirname(path)
    _make_directory(directory)
    free = free_bytes(directory)
    if free is not None and data.nbytes > free:  # rather than fill the disk for everybody and then fail
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    temporary = os.path.join(directory, f"{TEMPORARY}{_host()}-{os.getpid()}-{secrets.token_hex(6)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            view = data.cast("B")
            while view.nbytes:
                view = view[os.write(descriptor, view[:CHUNK]) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


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


def _host() -> str:
    return "".join(char for char in socket.gethostname() if char.isalnum()) or "host"
