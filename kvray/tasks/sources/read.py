"""Rows and texts that tasks read.

A source is a path (a file or a directory), an ``http(s)://`` URL, an ``s3://`` or ``gs://`` URI, or a dataset of the
Hugging Face hub: ``hf://datasets/<org>/<name>[@revision][/file or folder in it]``. Rows come from ``.jsonl`` and
``.json`` (an array, one object, or lines), with ``.gz`` (lines also with ``.zst``), and from ``.parquet``; texts from
``.txt`` or from the ``text`` field of rows. A directory, a ``.zip`` and a hub dataset or a folder of it stand for all
such files in them, sorted by name; the only file of a ``.zip`` holds rows whatever it is called, if it begins as JSON.
"""

import codecs
import hashlib
import http.client
import io
import itertools
import json
import os
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit

from kvray.errors import InputError, SourceUnreachableError, status_passes
from kvray.models.hub import look
from kvray.tasks.sources import hub, records
from kvray.tasks.sources.records import ROWS, TABLES, TEXTS

MAX_FILES = 100_000
"""Most files of a directory; more are a home directory or a disk by mistake."""
_SNIFFED = 64  # bytes
_WEB = ("http://", "https://")
_EXPECTED = "expected .jsonl, .jsonl.gz or .parquet, or a directory or .zip of such files"
_NO_DATA = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "config.json"}
"""Files of a dataset that describe its data."""


def rows(source: str, tables: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, row) for every row; ``where`` names file and row for an error; ``tables``: ``.csv`` too, as text.

    Raises:
        SourceUnreachableError: a remote source does not answer.
        InputError: it cannot be read, is of another kind, or holds something that is no row; names file and line.
    """
    for file in _choose(source, ROWS + TABLES if tables else ROWS):
        yield from _rows_of(file)


def texts(source: str) -> list[str]:
    """Return every text of a source that is not blank: its ``.txt`` files, or else the ``text`` fields of its rows.

    Raises SourceUnreachableError if a remote source does not answer, InputError if it cannot be read or has no text.
    """
    files = _choose(source, TEXTS + ROWS)
    read = []
    for file in [file for file in files if file.name.endswith(TEXTS)]:
        with _opened(file) as stream:
            read.append(records.text(stream, file.name, file.where))
    if not read:
        for where, row in (pair for file in files for pair in _rows_of(file)):
            text = row.get("text")
            if not isinstance(text, str):
                raise records.lacking(row, "'text'", where)
            read.append(text)
    kept = [text for text in read if text.strip()]
    if not kept:
        raise InputError(f"{source}: no text in it")
    return kept


def digest(source: str) -> str:
    """Return the sha256 of a file, or over names and contents of a directory's data files; a hub's :func:`hub.digest`.

    Raises SourceUnreachableError if a remote source does not answer, InputError if it cannot be read.
    """
    if source.startswith("hf://"):
        return hub.digest(source)
    fetched = _fetched(source)
    if not isinstance(fetched, list):
        return _sha256(fetched)
    named = [[file.name, _sha256(file)] for file in fetched]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


class _File(NamedTuple):
    """A file to read: ``where`` names it in messages, ``name`` within the source; that decides its kind and order."""

    where: str
    name: str
    open: Callable[[], AbstractContextManager[IO[bytes]]]


def _choose(source: str, kinds: tuple[str, ...]) -> list[_File]:
    """Return the files of a source that are of one of the kinds, zip archives opened, in order."""
    fetched = _fetched(source)
    files = []
    for file in fetched if isinstance(fetched, list) else [fetched]:
        files += _members(file, kinds) if file.name.endswith(".zip") else [file]
    chosen = [file for file in files if file.name.endswith(kinds)]
    if not chosen:
        several = isinstance(fetched, list) or fetched.name.endswith(".zip")
        raise InputError(f"{source}: " + ("no data file in it; " if several else "") + _EXPECTED)
    return chosen


def _members(file: _File, kinds: tuple[str, ...]) -> list[_File]:
    with _opened(file) as stream, zipfile.ZipFile(stream) as archive:
        names = [name for name in sorted(archive.namelist()) if _is_data(name) and not name.endswith("/")]
    members = [_File(f"{file.where}: {name}", name, partial(_member, file, name)) for name in names]
    if len(members) == 1 and not names[0].endswith(kinds):
        with _opened(members[0]) as stream:
            start = stream.read(_SNIFFED).removeprefix(codecs.BOM_UTF8).lstrip()
        # As pandas reads it, which wrote some of these archives; .json is an array or lines.
        return [members[0]._replace(name=f"{names[0]}.json")] if start.startswith((b"{", b"[")) else members
    return members


@contextmanager
def _member(file: _File, name: str) -> Iterator[IO[bytes]]:
    with file.open() as stream, zipfile.ZipFile(stream) as archive, archive.open(name) as member:
        yield member


def _is_data(name: str) -> bool:
    """Tell a data file from hidden files, a Mac's resource forks and descriptions of a dataset."""
    parts = name.split("/")
    return not any(part.startswith((".", "__")) for part in parts) and parts[-1] not in _NO_DATA


def _rows_of(file: _File) -> Iterator[tuple[str, dict[str, Any]]]:
    with _opened(file) as stream:
        yield from records.rows(stream, file.name, file.where)


@contextmanager
def _opened(file: _File) -> Iterator[IO[bytes]]:
    try:
        with file.open() as stream:
            yield stream
    except (zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{file.where}: not a whole zip file: {error}") from error
    except (OSError, RuntimeError) as error:
        # zipfile raises the last, or a kind of it, for an archive that is encrypted or packed in an unknown way.
        raise InputError(f"source: {file.where} cannot be read: {error}") from error


def _sha256(file: _File) -> str:
    with _opened(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


def _on_disk(where: str, name: str, path: Path) -> _File:
    return _File(where, name, lambda: path.open("rb"))


def _fetched(source: str) -> _File | list[_File]:
    if source.startswith("hf://"):
        downloaded = hub.download(source, (*ROWS, *TABLES, *TEXTS, ".zip"), _is_data)
        if isinstance(downloaded, Path):
            return _on_disk(source, urlsplit(source).path, downloaded)
        return [_on_disk(f"{source}: {name}", name, path) for name, path in downloaded.items()]
    if "://" in source:
        content = _from_network(source)
        name = urlsplit(source).path if source.startswith(_WEB) else source
        return _File(source, name, partial(io.BytesIO, content))
    path = Path(os.path.expanduser(source))
    if not path.is_dir():
        if path.exists() and not path.is_file():
            # A device or a pipe may never end.
            raise InputError(f"source: {source} cannot be read: it is neither a file nor a directory")
        return _on_disk(source, source, path)
    files = list(itertools.islice((inner for inner in path.rglob("*") if inner.is_file()), MAX_FILES + 1))
    if len(files) > MAX_FILES:
        raise InputError(f"source: {source} holds over {MAX_FILES:,} files; expected a directory of data alone")
    names = sorted(inner.relative_to(path).as_posix() for inner in files)
    return [_on_disk(str(path / name), name, path / name) for name in names if _is_data(name)]


@lru_cache(maxsize=8)
def _from_network(source: str) -> bytes:
    try:
        if source.startswith(_WEB):
            return look(lambda: _from_web(source))
        from pyarrow.fs import FileSystem

        files, path = FileSystem.from_uri(source)
        with files.open_input_stream(path, compression=None) as stream:
            return bytes(stream.read())
    except urllib.error.HTTPError as error:
        kind = SourceUnreachableError if status_passes(error.code) else InputError
        raise kind(f"source: {source} cannot be read: {error}") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise SourceUnreachableError(f"source: {source} cannot be read: {error}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"source: {source} cannot be read: {error}") from error


def _from_web(source: str) -> bytes:
    with urllib.request.urlopen(source, timeout=hub.TIMEOUT_S) as response:
        return bytes(response.read())
