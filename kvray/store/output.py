"""The target of ``--out``: a file or a directory, local or in a bucket; files are written whole or not at all."""

import errno
import glob
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil

from kvray.errors import InputError, StoreError, disk_full
from kvray.store.places.files import Files, Folder, mapped
from kvray.store.places.local import TEMPORARY
from kvray.store.places.object_store import Location, connect, locate

OPTION = "--out"
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ENODEV, errno.ESTALE}


@contextmanager
def replacing(out: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file, to write and to read, that takes the place of ``out`` (a path or a URI) once it is whole.

    Missing directories are made. A file for a bucket is first written to the local temporary directory. Raises
    InputError if ``out`` cannot be written or reached (nothing was written), StoreError if the writing failed (a full
    disk; what was written is removed).
    """
    location = locate(os.fspath(out), OPTION)
    if location.scheme == "local":
        with _beside(Path(location.root)) as file:
            yield file
        return
    if "/" not in location.root or os.fspath(out).partition("?")[0].endswith("/"):
        raise InputError(f"{OPTION}: {shown(out)} is a folder; expected a file name in it")
    files = _connect(location)
    with tempfile.NamedTemporaryFile(prefix="kvray-out-") as file:
        with _disk_errors(file.name):
            yield file
            file.flush()
        files.put(location.root, mapped(Path(file.name)))


def shown(out: str | os.PathLike[str]) -> str:
    """Return ``out`` as messages name it: a path unchanged, a URI without its parameters."""
    location = locate(os.fspath(out), OPTION)
    return os.fspath(out) if location.scheme == "local" else f"{location.scheme}://{location.root}"


@contextmanager
def _beside(path: Path) -> Iterator[IO[bytes]]:
    if path.is_dir():
        raise InputError(f"{OPTION}: {path} is a directory; expected a file name like {path / 'data.jsonl'}")
    # A rename would replace the device itself, such as /dev/stdout, for every program of the machine.
    if path.exists() and (not path.is_file() or Path(os.path.realpath(path.parent)) == Path("/dev")):
        raise InputError(f"{OPTION}: {path} is a device or a pipe; expected the name of a file")
    temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex[:8]}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = temporary.open("w+b")
    except OSError as error:
        raise InputError(f"{OPTION}: {path} cannot be written: {error.strerror or error}") from error
    try:
        with _disk_errors(str(path)):
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(out: str | os.PathLike[str], mark: str, force: bool = False) -> Iterator[Path]:
    """Yield an empty directory that takes the place of the directory ``out`` of this machine once it is whole.

    Raises InputError if ``out`` is none or cannot be made, or holds files: with ``force`` only those of an earlier
    call are replaced, which hold a file called ``mark``. StoreError if the writing failed (a full disk). Whatever ends
    it early, ``out`` is as it was; what a killed one left beside it is removed by the next.
    """
    location = locate(os.fspath(out), OPTION)
    if location.scheme != "local":
        raise InputError(f"{OPTION}: found {shown(out)}; expected a directory of this machine")
    path = Path(os.path.realpath(location.root))
    _check_free(path, mark, force, shown(out))
    begun = f".{path.name}.part-{socket.gethostname()}-"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f"{glob.escape(begun)}*"):
            if not psutil.pid_exists(int(left.name.removeprefix(begun).partition("-")[0] or 0)):
                shutil.rmtree(left, ignore_errors=True)
        part = path.parent / f"{begun}{os.getpid()}-{uuid.uuid4().hex[:8]}"
        part.mkdir()
    except OSError as error:
        raise InputError(f"{OPTION}: {shown(out)} cannot be written: {error.strerror or error}") from error
    former = part.with_name(f"{part.name}-former")
    try:
        with _disk_errors(str(path)):
            yield part
            if path.is_dir():
                _check_free(path, mark, force, shown(out))  # it may have been filled meanwhile
                path.rename(former)
            part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if former.is_dir() and not path.is_dir():  # between the two renames
            former.rename(path)
        shutil.rmtree(former, ignore_errors=True)


def _check_free(path: Path, mark: str, force: bool, name: str) -> None:
    """Refuse a target that is a file, or holds what a new folder must not replace."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{OPTION}: {name} is a file; expected a directory that is empty or does not exist")
    held = sorted(os.listdir(path)) if path.is_dir() else []
    if held and not (force and mark in held):
        some = f"{', '.join(held[:3])}{' …' if len(held) > 3 else ''}"
        then = "; --force replaces it" if mark in held else ", and nothing that this command wrote"
        raise InputError(f"{OPTION}: {name} holds {some}{then}; expected a directory that is empty or does not exist")


@contextmanager
def _disk_errors(path: str) -> Iterator[None]:
    """Name the file in errors of its disk; all other errors belong to the code that fills it."""
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        raise StoreError(f"{OPTION}: {path}: cannot write: {error.strerror}") from error
    except Exception as error:
        if not disk_full(error):  # a library in Rust has its own kind of error, which tells it in its text
            raise
        raise StoreError(f"{OPTION}: {path}: cannot write: {os.strerror(errno.ENOSPC)}") from error


def folder(out: str | os.PathLike[str]) -> Folder:
    """Return the directory (made if missing) or bucket's folder ``out`` after a probe write; InputError if it fails."""
    location = locate(os.fspath(out), OPTION)
    target = Folder(_connect(location), location.root, shown(out))
    probe = f"{TEMPORARY}probe-{uuid.uuid4().hex}"
    try:
        target.put(probe, b"kvray")
        target.delete(probe)
    except StoreError as error:
        raise InputError(f"{error}; give a directory that can be written") from None
    return target


def _connect(location: Location) -> Files:
    # Whoever typed the command can make room sooner than a wait would end.
    return connect(location, OPTION, patience_s=0.0 if location.scheme == "local" else None)
