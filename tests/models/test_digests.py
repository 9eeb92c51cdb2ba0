"""Digests of local weights: the file's own, always, though it is seldom read twice."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvray.models import digests

BIG = os.urandom(digests.SMALL + 5)


@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read, with a cache of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "SETTLED_S", -60.0)
    found: list[Path] = []
    genuine = digests._read
    monkeypatch.setattr(digests, "_read", lambda path: found.append(path) or genuine(path))
    return found


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(BIG)
    return path


def notes(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache/kvray/sha256").iterdir())


def test_a_large_file_is_read_once_by_any_of_its_names(reads: list[Path], weights: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(weights)
    for path in (weights, tmp_path / "link", weights):
        assert digests.sha256(path) == hashlib.sha256(BIG).digest()
    assert reads == [weights]
    (tmp_path / "small").write_bytes(b"{}")
    for _ in range(2):
        assert digests.sha256(tmp_path / "small") == hashlib.sha256(b"{}").digest()
    assert len(reads) == 3
    assert [path.suffix for path in notes(tmp_path)] == [".json"]


def changed_in_place(path: Path) -> None:
    """One byte, with the old time put back: size, mtime and inode are as before."""
    before = path.stat()
    with path.open("r+b") as stream:
        stream.write(bytes([BIG[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(bytes(len(BIG)))
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [changed_in_place, replaced, lambda path: path.write_bytes(BIG[::-1])])
def test_any_change_is_seen(reads: list[Path], weights: Path, change: Callable[[Path], object]) -> None:
    digests.sha256(weights)
    time.sleep(0.02)  # file systems count time in steps of some ms
    change(weights)
    assert digests.sha256(weights) == hashlib.sha256(weights.read_bytes()).digest()
    assert len(reads) == 2


def test_a_file_that_just_changed_is_not_kept(
    reads: list[Path], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "SETTLED_S", 60.0)
    for _ in range(2):
        digests.sha256(weights)
    assert len(reads) == 2 and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("odd", [b"", b"{", b"[]", b"{}", b'{"sha256": 1}', b'{"sha256": "00"}', b"\xff\xfe"])
def test_an_odd_note_is_not_believed_and_is_replaced(
    reads: list[Path], weights: Path, tmp_path: Path, odd: bytes
) -> None:
    digests.sha256(weights)
    (note,) = notes(tmp_path)
    good = note.read_bytes()
    note.write_bytes(odd)
    assert digests.sha256(weights) == hashlib.sha256(BIG).digest()
    assert len(reads) == 2 and note.read_bytes() == good
    note.write_bytes(good.replace(str(weights).encode(), b"/another/file"))
    digests.sha256(weights)
    assert len(reads) == 3


def test_without_a_cache_it_is_read_each_time(
    reads: list[Path], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert digests.sha256(weights) == hashlib.sha256(BIG).digest()
    assert len(reads) == 2


def test_many_at_once_agree(reads: list[Path], weights: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(digests.sha256, [weights] * 24))
    assert found == {hashlib.sha256(BIG).digest()}
    assert [path.suffix for path in notes(tmp_path)] == [".json"]
