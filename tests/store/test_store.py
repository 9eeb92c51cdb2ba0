"""The store on a local disk: identity, whole files, manifest-last commits, damage, and what it refuses."""

from __future__ import annotations

import errno
import json
import math
import os
import pickle  # noqa: TID251 - how Ray carries a store to its workers
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kvray.errors import DamagedArtefactError, InputError, RecipeMismatchError, StoreError
from kvray.store.fingerprint import canonical_json, fingerprint, recipe_diff
from kvray.store.manifest import Manifest
from kvray.store.places import local
from kvray.store.store import Store, artefact_id

RECIPE = {"task": {"rows": 6, "law": 1}, "positions": [1, 2]}
FINGERPRINT = fingerprint(RECIPE)
ID = artefact_id("dataset", "ours", FINGERPRINT)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def rows(start: int, stop: int) -> pa.Table:
    numbers = list(range(start, stop))
    return pa.table({"n": pa.array(numbers, pa.int64()), "text": [f"row {n}" * 50 for n in numbers]})


def commit(store: Store, recipe: dict[str, Any] = RECIPE, at: str = ID, **changes: Any) -> Manifest:
    files = [
        store.write(at, "shard-00001.parquet", rows(3, 6)),
        store.write(at, "shard-00000.parquet", rows(0, 3)),
        store.write(at, "card.md", b"# card\n"),
    ]
    values = {"kind": "dataset", "name": "ours", "fingerprint": fingerprint(recipe), "recipe": recipe, "needs": []}
    return store.commit(id=at, files=files, **{**values, **changes})


def on_disk(store: Store, *names: str) -> Path:
    return Path(store.path(ID, *names))


# Identity.


def test_canonical_json_has_one_form_per_value() -> None:
    assert canonical_json({"b": (1, 2.0), "a": "é"}) == '{"a":"é","b":[1,2.0]}'.encode()
    assert canonical_json({"a": -0.0}) == canonical_json({"a": 0.0})
    assert canonical_json({"x": 1, "y": 2}) == canonical_json({"y": 2, "x": 1})


@pytest.mark.parametrize(
    "odd", [math.nan, math.inf, b"x", {1: 2}, {3}, np.float64(1.0), np.int64(1), Path("x"), object(), "\ud800"]
)
def test_a_value_without_a_stable_form_is_an_error_with_its_path(odd: object) -> None:
    with pytest.raises(TypeError, match=r"task\.1\.knob"):
        canonical_json({"task": [0, {"knob": odd}]})


def test_the_fingerprint_covers_the_recipe_and_what_it_needs_in_order() -> None:
    assert fingerprint({"a": 1}) == "825a7d1be0f67ffe7064b6358c164c36dbe7eef672b997606f9317bfa2e70a9a"
    assert len({fingerprint({"a": 1}), fingerprint({"a": 2}), fingerprint({"a": 1}, ["x", "y"])}) == 3
    assert fingerprint({"a": 1}, ["x", "y"]) != fingerprint({"a": 1}, ["y", "x"])


def test_recipe_diff_names_what_differs_by_dotted_path() -> None:
    old = {"task": {"rows": 350, "law": "paper"}, "positions": [1, 5], "gone": None, "same": {"x": [1, {"y": 2}]}}
    new = {"task": {"rows": 400, "law": "paper"}, "positions": [1, 10], "seed": 0, "same": {"x": [1, {"y": 2}]}}
    assert recipe_diff(old, new) == [
        "gone: null -> (absent)",
        "positions.1: 5 -> 10",
        "seed: (absent) -> 0",
        "task.rows: 350 -> 400",
    ]
    assert recipe_diff(old, old) == []
    assert recipe_diff({"p": [1]}, {"p": [1, 2]}) == ["p: [1] -> [1,2]"]
    assert recipe_diff({"p": 1}, {"p": 1.0}) == ["p: 1 -> 1.0"]
    assert len(recipe_diff({"p": "a" * 500}, {"p": "b"})[0]) < 120


# Writing and reading.


def test_a_committed_artefact_reads_back_in_the_order_of_its_names(store: Store) -> None:
    manifest = commit(store, schema=rows(0, 1).schema, measurements={"loss": math.nan, "seconds": 1.5})
    assert store.read_table(ID).equals(rows(0, 6))
    assert store.read_table(ID, columns=["n"]).column_names == ["n"]
    assert (manifest.rows, [entry.rows for entry in manifest.files]) == (6, [None, 3, 3])
    assert store.manifest(ID) == manifest == store.manifests("dataset")[0]
    assert manifest.recipe == RECIPE
    assert manifest.measurements["loss"] == "nan"
    assert {"python", "pyarrow"} <= manifest.measurements["versions"].keys()
    assert manifest.measurements["hardware"]["cpus"] == os.cpu_count()
    assert manifest.schema == [
        {"name": "n", "type": "int64", "description": ""},
        {"name": "text", "type": "string", "description": ""},
    ]
    assert store.problems(ID, verify=True) == []
    with pytest.raises(StoreError, match="no column nope"):
        store.read_table(ID, columns=["nope"])


def test_nothing_is_created_before_the_first_write(store: Store) -> None:
    assert store.states([ID]) == {ID: "missing"}
    assert (store.manifests(), store.documents("sweeps/"), store.manifest(ID)) == ([], [], None)
    assert not Path(store.root).exists()


def test_equal_tables_give_equal_bytes_however_they_are_chunked(store: Store) -> None:
    whole = rows(0, 10_000)
    chunked = pa.concat_tables([whole.slice(0, 7), whole.slice(7, 4100), whole.slice(4107)])
    sliced = pa.concat_tables([rows(0, 5), whole]).slice(5)
    entries = [store.write(ID, f"{n}.parquet", table) for n, table in enumerate((whole, chunked, sliced))]
    assert len({entry.sha256 for entry in entries}) == 1
    metadata = pq.read_metadata(on_disk(store, "0.parquet"))
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [4096, 4096, 1808]
    assert metadata.row_group(0).column(0).statistics.max == 4095


def test_an_empty_table_keeps_its_schema(store: Store) -> None:
    entry = store.write(ID, "empty.parquet", rows(0, 0))
    assert entry.rows == 0
    assert store.read_file_table(ID, "empty.parquet") == rows(0, 0)


def test_entry_and_read_file_table_serve_resuming_before_the_commit(store: Store) -> None:
    written = store.write(ID, "chunk.parquet", rows(0, 3))
    assert store.entry(ID, "chunk.parquet") == written
    assert store.read_file_table(ID, "chunk.parquet") == rows(0, 3)
    on_disk(store, "chunk.parquet").write_bytes(b"PAR1 torn")
    for name in ("chunk.parquet", "absent.parquet"):
        assert store.entry(ID, name) is None
        assert store.read_file_table(ID, name) is None


def test_write_file_copies_and_fetch_gives_verified_files_in_place(store: Store, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(os.urandom(100_000))
    (tmp_path / "none").write_bytes(b"")
    files = [store.write(ID, f"adapter/{name}", tmp_path / name) for name in ("weights", "none")]
    store.commit(
        id=ID, kind="dataset", name="ours", fingerprint=FINGERPRINT, recipe=RECIPE, needs=["finetunes/x-1"], files=files
    )
    fetched = store.fetch(ID, tmp_path / "unused")
    assert (fetched / "adapter/weights").read_bytes() == (tmp_path / "weights").read_bytes()
    assert not (tmp_path / "unused").exists()
    (fetched / "adapter/weights").write_bytes(os.urandom(100_000))
    with pytest.raises(DamagedArtefactError, match="sha256"):
        store.fetch(ID, tmp_path / "unused")
    with pytest.raises(StoreError, match="gone: cannot read"):
        store.write("datasets/other-0", "x", tmp_path / "gone")


def test_documents_are_replaced_listed_and_deleted(store: Store) -> None:
    store.write_document("failures/datasets/a-0.json", b"1")
    store.write_document("sweeps/quick.json", b"1")
    store.write_document("sweeps/quick.json", b"2")
    assert store.read_document("sweeps/quick.json") == b"2"
    assert store.documents("failures/") == ["failures/datasets/a-0.json"]
    assert store.documents("sweeps/q") == ["sweeps/quick.json"]
    store.delete_document("sweeps/quick.json")
    store.delete_document("sweeps/quick.json")
    assert store.read_document("sweeps/quick.json") is None
    for name in ("datasets/a-0/manifest.json", "loose.json"):
        with pytest.raises(StoreError, match="no document name"):
            store.write_document(name, b"")


def test_a_store_is_picklable_absolute_and_shows_its_file_system(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(store)
    assert pickle.loads(pickle.dumps(store)).read_table(ID).equals(rows(0, 6))
    monkeypatch.chdir(tmp_path)
    assert Store("store").uri == Store(f"file://{tmp_path}/store").uri == store.uri == str(tmp_path / "store")
    assert store.fs.get_file_info(store.path(".work", "run")).type.name == "NotFound"
    assert store.path(".work", "run") == f"{tmp_path}/store/.work/run"
    store.check(write=True)
    assert list((tmp_path / "store").iterdir()) == [tmp_path / "store/datasets"]


# Committing.


def test_the_same_recipe_twice_gives_the_first_manifest(store: Store) -> None:
    first = commit(store, measurements={"seconds": 1})
    assert commit(store, measurements={"seconds": 2}) == first


def test_another_recipe_at_an_id_is_refused_with_the_difference(store: Store) -> None:
    first = commit(store)
    with pytest.raises(RecipeMismatchError, match=r"task\.rows: 6 -> 7"):
        commit(store, {**RECIPE, "task": {"rows": 7, "law": 1}})
    with pytest.raises(RecipeMismatchError, match="fingerprint"):
        commit(store, fingerprint="0" * 64)
    assert store.manifest(ID) == first


def test_a_committed_artefact_is_never_written_into(store: Store) -> None:
    entry = commit(store).files[1]
    assert store.write(ID, entry.name, rows(100, 200)) == entry
    assert store.read_table(ID).equals(rows(0, 6))
    with pytest.raises(StoreError, match="is committed"):
        store.write(ID, "more.bin", b"x")


def test_a_commit_checks_that_every_listed_file_is_there_with_its_size(store: Store) -> None:
    entry = store.write(ID, "a.bin", b"abc")
    values = {"id": ID, "kind": "dataset", "name": "x", "fingerprint": "0", "recipe": {}, "needs": [], "files": [entry]}
    on_disk(store, "a.bin").write_bytes(b"ab")
    with pytest.raises(StoreError, match=r"a.bin has 2 bytes, expected 3"):
        store.commit(**values)
    on_disk(store, "a.bin").unlink()
    with pytest.raises(StoreError, match=r"a.bin is missing"):
        store.commit(**values)
    with pytest.raises(StoreError, match="not of kind 'finetune'"):
        store.commit(**{**values, "kind": "finetune"})
    with pytest.raises(TypeError, match=r"recipe|b'"):
        store.commit(**{**values, "recipe": {"x": b"b"}})
    assert store.manifest(ID) is None


def test_two_writers_of_one_manifest_agree_on_the_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one looks before the first has committed, and tries to commit after."""
    first = commit(store, measurements={"writer": 1})
    late = Store(store.uri)
    genuine = late._files.listing
    monkeypatch.setattr(
        late._files, "listing", lambda *a, **k: {n: s for n, s in genuine(*a, **k).items() if n != "manifest.json"}
    )
    files = first.files
    again = late.commit(
        id=ID, kind="dataset", name="ours", fingerprint=FINGERPRINT, recipe=RECIPE, needs=[], files=files,
        measurements={"writer": 2},
    )  # fmt: skip
    assert again == first
    assert again.measurements["writer"] == 1


def test_without_hard_links_the_first_manifest_still_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(local.os, "link", no_links)
    first = commit(store, measurements={"writer": 1})
    assert not store._files.put_new(store.path(ID, "manifest.json"), memoryview(b"later"))
    assert store.manifest(ID) == first
    assert not list(on_disk(store).glob(".tmp-*"))


def test_a_commit_removes_what_dead_writers_left(store: Store) -> None:
    on_disk(store, "adapter").mkdir(parents=True)
    host = local._host()
    dead = [on_disk(store, f".tmp-{host}-{2**22 + 1}-aa"), on_disk(store, "adapter/.tmp-elsewhere-1-aa")]
    alive = [on_disk(store, f".tmp-{host}-{os.getpid()}-aa"), on_disk(store, ".tmp-elsewhere-1-bb")]
    for path in (*dead, *alive):
        path.write_bytes(b"half")
    os.utime(dead[1], (time.time() - 2 * local.STALE_S,) * 2)
    commit(store)
    assert [path.exists() for path in (*dead, *alive)] == [False, False, True, True]
    assert store.state(ID) == "committed"


def test_a_discarded_artefact_is_missing_and_can_be_made_again(store: Store) -> None:
    commit(store)
    on_disk(store, ".tmp-x").write_bytes(b"")
    store.discard(ID)
    store.discard(ID)
    assert store.state(ID) == "missing"
    assert not on_disk(store).exists()
    assert commit(store).rows == 6


# Damage.


def change_one_byte(path: Path, offset: int = 20) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing file": (lambda path: (path / "shard-00000.parquet").unlink(), "is missing"),
    "cut file": (lambda path: os.truncate(path / "card.md", 3), "has 3 bytes, not 7"),
    "changed manifest": (lambda path: change_one_byte(path / "manifest.json", 12), "manifest.json"),
    "torn manifest": (lambda path: os.truncate(path / "manifest.json", 100), "unreadable"),
    "empty manifest": (lambda path: os.truncate(path / "manifest.json", 0), "unreadable"),
}


@pytest.mark.parametrize("name", list(DAMAGE))
def test_damage_shows_without_reading_every_byte(store: Store, name: str) -> None:
    harm, message = DAMAGE[name]
    commit(store)
    harm(on_disk(store))
    assert message in store.problems(ID)[0]
    assert store.state(ID) == "damaged"
    assert store.states([ID, "datasets/none-0"]) == {ID: "damaged", "datasets/none-0": "missing"}
    if name != "cut file":  # the card is no table
        with pytest.raises(DamagedArtefactError):
            store.read_table(ID)
    store.discard(ID)
    assert commit(store).rows == 6


def test_every_changed_byte_of_a_manifest_or_a_file_is_found(store: Store) -> None:
    commit(store)
    for path in (on_disk(store, "manifest.json"), on_disk(store, "shard-00000.parquet")):
        good = path.read_bytes()
        for offset in range(0, len(good), 37):
            change_one_byte(path, offset)
            same = path.name == "manifest.json" and json.loads(good) == _json_or_none(path)
            assert same or store.state(ID, verify=True) == "damaged", (path.name, offset)
            path.write_bytes(good)
    assert store.states([ID], verify=True) == {ID: "committed"}


def _json_or_none(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


def test_row_counts_are_checked_on_reading(store: Store) -> None:
    """A file of the right size with other rows: caught by its footer, without a sha256."""
    small = pa.table({"n": pa.array([1, 2, 3], pa.int64())})
    entry = store.write(ID, "a.parquet", small)
    other = store.write(ID, "b.parquet", small.slice(0, 2))
    longer, shorter = (on_disk(store, name) for name in ("a.parquet", "b.parquet"))
    pad = entry.bytes - other.bytes
    store.commit(id=ID, kind="dataset", name="ours", fingerprint=FINGERPRINT, recipe=RECIPE, needs=[], files=[entry])
    assert pad >= 0
    data = shorter.read_bytes()
    longer.write_bytes(data[:4] + b"\0" * pad + data[4:])
    assert store.problems(ID) == [f"{longer} has 2 rows, not 3"]
    with pytest.raises(DamagedArtefactError):
        store.read_table(ID)


def test_a_manifest_moved_to_another_id_is_damage(store: Store) -> None:
    commit(store)
    on_disk(store).rename(Path(store.path("datasets/moved-0")))
    assert "belongs to" in store.problems("datasets/moved-0")[0]


def test_an_uncommitted_artefact_is_refused_by_readers(store: Store, tmp_path: Path) -> None:
    store.write(ID, "shard-00000.parquet", rows(0, 3))
    for act in (lambda: store.read_table(ID), lambda: store.fetch(ID, tmp_path / "x")):
        with pytest.raises(StoreError, match="is not committed"):
            act()
    assert store.state(ID) == "missing"


def test_an_unlisted_file_does_not_exist_for_readers(store: Store) -> None:
    commit(store)
    on_disk(store, "shard-00009.parquet").write_bytes(on_disk(store, "shard-00000.parquet").read_bytes())
    assert store.read_table(ID).num_rows == 6
    assert store.state(ID, verify=True) == "committed"


def test_the_states_of_a_thousand_cells_come_from_one_listing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [f"predictions/cell-{n:04}" for n in range(1000)]
    monkeypatch.setattr(local.os, "fsync", lambda _: None)  # the set-up, not the subject
    for one in ids:
        files = [store.write(one, "chunk.bin", b"x")]
        store.commit(id=one, kind="predictions", name="c", fingerprint="0", recipe={}, needs=[], files=files)
    Path(store.path(ids[3], "chunk.bin")).unlink()
    Path(store.path(ids[5], "chunk.bin")).write_bytes(b"xy")
    Path(store.path(ids[7], "manifest.json")).unlink()
    listings = []
    genuine = store._files.infos
    monkeypatch.setattr(store._files, "infos", lambda *a, **k: listings.append(a) or genuine(*a, **k))
    started = time.process_time()
    states = store.states(ids)
    assert time.process_time() - started < 2  # seconds of this process alone: 0.15 is usual
    assert len(listings) == 1
    odd = {ids[3]: "damaged", ids[5]: "damaged", ids[7]: "missing"}
    assert states == {one: odd.get(one, "committed") for one in ids}


def test_a_listing_shows_states_and_the_files_of_what_is_not_committed(store: Store) -> None:
    committed = commit(store)
    resumed, none = "predictions/half-0", "predictions/none-0"
    for index in (0, 2):
        store.create(resumed, f"chunk-{index}.parquet", rows(0, 3))
    Path(store.path(resumed, ".tmp-x")).write_bytes(b"half")
    found = store.listing([ID, resumed, none])
    assert {one: each.state for one, each in found.items()} == store.states([ID, resumed, none])
    assert [each.state for each in found.values()] == ["committed", "missing", "missing"]
    assert found[ID].files == {entry.name: entry.bytes for entry in committed.files}
    assert found[ID].committed_ns == on_disk(store, "manifest.json").stat().st_mtime_ns
    assert list(found[resumed].files) == ["chunk-0.parquet", "chunk-2.parquet"]
    assert store.entry(resumed, "chunk-2.parquet").bytes == found[resumed].files["chunk-2.parquet"]  # type: ignore[union-attr]
    assert (found[none].files, found[none].committed_ns) == ({}, None)


# Refusals and failures.


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "", ".", "a//b", "a\\b", "a\nb", "a/"])
def test_names_that_leave_the_root_are_refused(store: Store, name: str) -> None:
    for act in (
        lambda: store.path(name),
        lambda: store.write(ID, name, b""),
        lambda: store.read_file_table(ID, name),
        lambda: store.discard(name),
        lambda: store.read_document(name),
        lambda: store.states([name]),
    ):
        with pytest.raises(StoreError):
            act()
    assert not Path(store.root).exists()


@pytest.mark.parametrize("name", ["manifest.json", ".hidden", "adapter/.tmp-x"])
def test_names_that_the_store_keeps_for_itself_are_refused(store: Store, name: str) -> None:
    with pytest.raises(StoreError, match="cannot be called"):
        store.write(ID, name, b"")


@pytest.mark.parametrize("one", ["datasets", "sweeps/a", "datasets/a/b", "datasets/.x"])
def test_only_artefact_ids_are_discarded(store: Store, one: str) -> None:
    commit(store)
    with pytest.raises(StoreError, match="no artefact id"):
        store.discard(one)
    assert store.state(ID) == "committed"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("step", ["open", "write", "fsync", "replace", "mkdir"])
def test_a_failing_disk_is_named_and_leaves_nothing_behind(
    store: Store, monkeypatch: pytest.MonkeyPatch, code: int, step: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch, store.hurry():
        patch.setattr(local.os, step, fail)
        with pytest.raises(StoreError, match=os.strerror(code)) as failure:
            store.write(ID, "a.bin", b"x" * 1234)
    assert store.path(ID, "a.bin") in str(failure.value)
    assert "1,234 bytes" in str(failure.value)
    assert not [path for path in Path(store.root).rglob("*") if path.is_file()]
    assert commit(store).rows == 6


def test_a_read_only_place_is_named() -> None:
    with pytest.raises(InputError, match="store: /proc/kvray cannot be written"):
        Store("/proc/kvray").check(write=True)


def test_a_file_in_the_place_of_the_store_or_of_a_folder_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"")
    with pytest.raises(InputError, match="is a file; expected a directory"):
        Store(tmp_path / "store").check()
    (tmp_path / "datasets").write_bytes(b"")
    with pytest.raises(StoreError, match="datasets"):
        commit(Store(tmp_path))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "empty name"),
        ("http://host/x", "found scheme http"),
        ("s3://", "no valid bucket"),
        ("s3:/bucket", "no valid bucket"),
        ("s3://BUCKET/x", "no valid bucket"),
        ("s3://bucket/a/../b", "'..' part"),
        ("s3://bucket/x?secret_key=hunter2", "unknown parameter 'secret_key'"),
        ("s3://bucket/x?scheme=ftp", "scheme: expected http or https"),
        ("s3://bucket/x?region=a&region=b", "given twice"),
        ("s3://bucket/x?endpoint_override=http://k:hunter2@h:1", "expected http://host:port"),
        ("s3://AKIAKEY:hunter2@bucket/x", "credentials"),
        ("s3://AKIAKEY:hun/ter2@bucket/x", "credentials"),
        ("gs://bucket/x?region=a", "unknown parameter 'region'"),
    ],
)
def test_a_bad_uri_is_told_without_its_secrets(uri: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as failure:
        Store(uri)
    assert not any(secret in str(failure.value) for secret in ("hunter2", "ter2", "AKIAKEY"))
