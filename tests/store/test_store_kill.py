"""Death at every instant of a commit: what is there afterwards is the old state or the new one, never anything between.

The exhaustive test stops the world before, after, and (of a write) in the middle of every step that changes the file
system: from there on no step has any effect, as if the process had been killed. The random one kills real processes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from kvray.store.fingerprint import fingerprint
from kvray.store.places import local
from kvray.store.store import Store

STEPS = ("open", "write", "fsync", "replace", "link", "unlink", "mkdir", "rmdir")
RECIPE = {"rows": 6}
ID = f"datasets/ours-{fingerprint(RECIPE)[:16]}"


class Killed(BaseException):
    """The process is gone: not an Exception, so nothing may handle it."""


class DyingOs:
    """The os module, until a step: that one is done, half done or not done, and after it nothing has any effect."""

    def __init__(self, die_at: int, moment: str) -> None:
        self.die_at, self.moment = die_at, moment
        self.steps: list[str] = []
        self.dead = False

    def __getattr__(self, name: str) -> Any:
        genuine = getattr(os, name)
        if name not in STEPS:
            return genuine

        def step(*args: Any, **options: Any) -> Any:
            if self.dead:
                raise Killed
            self.steps.append(name)
            if len(self.steps) - 1 != self.die_at:
                return genuine(*args, **options)
            self.dead = True
            if self.moment == "middle" and name == "write":
                genuine(args[0], args[1][: len(args[1]) // 2])
            if self.moment == "after":
                genuine(*args, **options)
            raise Killed

        return step


def table(generation: int) -> pa.Table:
    return pa.table({"n": list(range(6)), "generation": [generation] * 6})


def make(store: Store) -> None:
    files = [store.write(ID, f"shard-{shard:05}.parquet", table(0)) for shard in range(2)]
    store.commit(id=ID, kind="dataset", name="ours", fingerprint="0", recipe=RECIPE, needs=[], files=files)


def rewrite_document(store: Store) -> None:
    store.write_document("sweeps/quick.json", b"new" * 100)


def put_document(store: Store) -> None:
    store.write_document("sweeps/quick.json", b"old" * 100)


def whole_or_absent(store: Store) -> None:
    """Assert what every reader relies on, whatever was killed."""
    state = store.state(ID, verify=True)
    assert state in ("committed", "missing")
    assert store.states([ID]) == {ID: state}
    if state == "committed":
        assert store.read_table(ID).num_rows == 12
    for shard in range(2):
        name = f"shard-{shard:05}.parquet"
        assert (store.entry(ID, name) is None) == (store._files.size(store.path(ID, name)) is None)
        found = store.read_file_table(ID, name)
        assert found is None or found.equals(table(0))
    assert store.read_document("sweeps/quick.json") in (None, b"old" * 100, b"new" * 100)


def every_death(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: Callable[[Store], None], act: Callable[[Store], None]
) -> Iterator[tuple[Store, str]]:
    """Yield a store per instant at which ``act`` was killed, and which step it was."""
    for moment in ("before", "middle", "after"):
        for number in range(1000):
            store = Store(tmp_path / f"{moment}-{number}")
            before(store)
            dying = DyingOs(number, moment)
            with monkeypatch.context() as patch:
                patch.setattr(local, "os", dying)
                with contextlib.suppress(Killed):
                    act(store)
            if not dying.dead:
                assert number > 0
                break
            yield store, f"{moment} step {number}, {dying.steps[-1]}"


def test_a_commit_killed_at_any_step_leaves_the_old_state_or_the_new(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[str] = []
    for store, _where in every_death(monkeypatch, tmp_path, lambda store: None, make):
        whole_or_absent(store)
        seen.append(store.state(ID))
        make(store)  # the rerun
        whole_or_absent(store)
        assert store.state(ID, verify=True) == "committed"
        assert sorted(store._files.listing(store.path(ID))) == [
            "manifest.json",
            "shard-00000.parquet",
            "shard-00001.parquet",
        ]
    assert set(seen) == {"committed", "missing"}
    assert len(seen) > 45


def test_a_discard_killed_at_any_step_never_leaves_a_damaged_artefact(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for store, _where in every_death(monkeypatch, tmp_path, make, lambda store: store.discard(ID)):
        whole_or_absent(store)
        make(store)
        assert store.state(ID, verify=True) == "committed"


def test_a_document_killed_at_any_step_is_the_old_one_or_the_new(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for store, where in every_death(monkeypatch, tmp_path, put_document, rewrite_document):
        assert store.read_document("sweeps/quick.json") in (b"old" * 100, b"new" * 100), where
        assert store.documents("sweeps/") == ["sweeps/quick.json"]


def test_the_manifest_is_written_last_and_every_name_is_flushed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The order on which all else rests: per file write, fsync, rename, directory fsync; the manifest after them."""
    store = Store(tmp_path / "store")
    living = DyingOs(-1, "never")
    monkeypatch.setattr(local, "os", living)
    make(store)
    shard = ["open", "write", "fsync", "replace", "unlink", "open", "fsync"]  # nothing is left to unlink
    manifest = ["open", "write", "fsync", "link", "unlink", "open", "fsync"]
    directories = ["mkdir", "open", "fsync"] * 3
    assert living.steps == [*directories, *shard, *shard, *manifest]


WRITER = """
import sys
import pyarrow as pa
from kvray.store.store import Store
store = Store(sys.argv[1])
sys.stdout.write("ready\\n")
sys.stdout.flush()
table = pa.table({"n": list(range(200_000))})
while True:
    files = [store.write("datasets/big-0", f"shard-{n:05}.parquet", table) for n in range(3)]
    store.commit(id="datasets/big-0", kind="dataset", name="big", fingerprint="0", recipe={}, needs=[], files=files)
    store.discard("datasets/big-0")
"""


def test_sigkill_in_the_middle_of_writing_leaves_nothing_torn(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for attempt in range(6):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, store.uri], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(0.05 + 0.037 * attempt)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        assert store.state("datasets/big-0", verify=True) in ("committed", "missing")
        for shard in range(3):
            found = store.read_file_table("datasets/big-0", f"shard-{shard:05}.parquet")
            assert found is None or found.num_rows == 200_000
    big = pa.table({"n": list(range(200_000))})
    files = [store.write("datasets/big-0", f"shard-{shard:05}.parquet", big) for shard in range(3)]
    store.commit(id="datasets/big-0", kind="dataset", name="big", fingerprint="0", recipe={}, needs=[], files=files)
    assert store.state("datasets/big-0", verify=True) == "committed"
    assert not list(Path(store.root).rglob(".tmp-*"))


FULL = """
import resource, signal, sys
from kvray.errors import StoreError
from kvray.store.store import Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
try:
    Store(sys.argv[1]).write("datasets/big-0", "a.bin", bytes(2**21))
except StoreError as error:
    print(error)
"""


def test_the_kernel_refusing_bytes_in_the_middle_of_a_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    """A real limit, met half way through: what fits is on the disk when the rest is refused."""
    store = Store(tmp_path / "store")
    done = subprocess.run([sys.executable, "-c", FULL, store.uri], capture_output=True, text=True, check=True)
    assert done.stdout == f"{store.path('datasets/big-0', 'a.bin')}: cannot write 2,097,152 bytes: File too large\n"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
