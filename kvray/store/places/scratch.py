"""Directories of a node's own disk, for what a process needs while it lives; those of dead processes are removed."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator

from kvray.errors import DiskFullError, KvrayError, disk_full
from kvray.store.places.files import full, naming

PREFIX = "kvray-"
HELD = ".held"
"""A file of each directory, locked for as long as the process lives that made it."""


@contextlib.contextmanager
def scratch_directory(place: str | None, purpose: str) -> Iterator[str]:
    """Make a directory below ``place``, None for the system's temporary one; it goes when its context ends.

    StoreError if it cannot be made; DiskFullError, which names it, in place of any error inside that its disk is full.
    A process that is killed leaves its directory behind, with all adapters in it: the next one removes it.
    """
    if place is not None:
        place = os.path.expanduser(place)
        with naming(place, "make a directory"):
            os.makedirs(place, exist_ok=True)
    remove_abandoned(place)
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{purpose}-", dir=place) as directory:
        try:
            with _held(directory):
                yield directory
        except KvrayError:
            raise
        except Exception as error:
            if disk_full(error):
                why = full(directory, error)
                raise DiskFullError(f"{directory}: cannot write: {why}, or set runtime.scratch") from error
            raise


def remove_abandoned(place: str | None = None) -> None:
    """Remove the directories of this user below ``place`` whose process is dead; others' and unmarked ones stay."""
    place = tempfile.gettempdir() if place is None else place
    with contextlib.suppress(OSError):
        for entry in os.scandir(place):
            if entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False) and _is_own(entry):
                with contextlib.suppress(OSError):  # it has no such file, or that is locked
                    file = os.open(os.path.join(entry.path, HELD), os.O_RDWR | os.O_NOFOLLOW)
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        shutil.rmtree(entry.path, ignore_errors=True)
                    finally:
                        os.close(file)


def _is_own(entry: os.DirEntry[str]) -> bool:
    return entry.stat(follow_symlinks=False).st_uid == os.getuid()


@contextlib.contextmanager
def _held(directory: str) -> Iterator[None]:
    """Hold the lock of a directory, by which any process of the machine, of another container too, sees one that lives.

    The lock and not the process's number, which means something else in every container.
    """
    begun, marked = os.path.join(directory, f"{HELD}.tmp"), os.path.join(directory, HELD)
    file = os.open(begun, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(begun, marked)  # marked once it is locked: what is marked and not locked is abandoned
        except OSError:  # a file system without locks: nobody removes it
            os.unlink(begun)
        yield
    finally:
        os.close(file)
