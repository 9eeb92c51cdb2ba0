"""The store in a bucket, over HTTP against moto's server: the same promises as on a disk, and clear refusals."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle  # noqa: TID251 - how Ray carries a store to its workers
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from s3_server import BUCKET, KEY, REQUESTS, SECRET, bucket, endpoint

from kvray.errors import DamagedArtefactError, InputError, RecipeMismatchError, StoreError
from kvray.store.fingerprint import fingerprint
from kvray.store.manifest import Manifest
from kvray.store.patience import Patience
from kvray.store.places import object_store
from kvray.store.store import Store, artefact_id

__all__ = ["endpoint"]
RECIPE = {"rows": 6, "law": 1}
ID = artefact_id("dataset", "ours", fingerprint(RECIPE))


@pytest.fixture
def store(endpoint: str, request: pytest.FixtureRequest) -> Store:
    """An empty prefix per test."""
    return Store(f"s3://{BUCKET}/{request.node.name.split('[')[0]}?endpoint_override=http://{endpoint}&scheme=http")


def rows(start: int, stop: int) -> pa.Table:
    return pa.table({"n": list(range(start, stop))})


def commit(store: Store, recipe: dict[str, Any] = RECIPE, **changes: Any) -> Manifest:
    files = [
        store.write(ID, "shard-00000.parquet", rows(0, 3)),
        store.write(ID, "shard-00001.parquet", rows(3, 6)),
        store.write(ID, "card.md", b"# card\n"),
    ]
    values = {"kind": "dataset", "name": "ours", "fingerprint": fingerprint(recipe), "recipe": recipe, "needs": []}
    return store.commit(id=ID, files=files, **{**values, **changes})


def key(store: Store, name: str) -> str:
    return store.path(ID, name).removeprefix(f"{BUCKET}/")


def test_a_committed_artefact_reads_back(store: Store, tmp_path: Path) -> None:
    manifest = commit(store)
    assert commit(store, measurements={"later": True}) == manifest
    assert store.read_table(ID).equals(rows(0, 6))
    assert store.state(ID, verify=True) == "committed"
    assert store.manifests("dataset") == [manifest]
    assert store.entry(ID, "card.md") == manifest.files[0]
    assert store.read_file_table(ID, "shard-00001.parquet") == rows(3, 6)
    assert store.read_file_table(ID, "shard-00002.parquet") is None
    fetched = store.fetch(ID, tmp_path / "copy")
    assert sorted(path.name for path in fetched.iterdir()) == [entry.name for entry in manifest.files]
    assert (fetched / "card.md").read_bytes() == b"# card\n"


def test_the_bytes_are_those_of_a_local_store(store: Store, tmp_path: Path) -> None:
    assert commit(store).files == commit(Store(tmp_path / "store")).files


def test_another_recipe_is_refused_and_a_committed_artefact_never_written_into(store: Store) -> None:
    entry = commit(store).files[1]
    with pytest.raises(RecipeMismatchError, match="rows: 6 -> 7"):
        commit(store, {**RECIPE, "rows": 7})
    assert store.write(ID, entry.name, rows(50, 60)) == entry
    with pytest.raises(StoreError, match="is committed"):
        store.write(ID, "more.bin", b"")


def test_damage_in_the_bucket_shows_from_the_listing(store: Store, endpoint: str, tmp_path: Path) -> None:
    s3 = bucket(endpoint)
    harms: list[tuple[Callable[[], object], bool]] = [
        (lambda: s3.Object(key(store, "shard-00001.parquet")).delete(), False),
        (lambda: s3.put_object(Key=key(store, "card.md"), Body=b"# car"), False),
        (lambda: s3.put_object(Key=key(store, "manifest.json"), Body=b"{}"), False),
        (lambda: s3.put_object(Key=key(store, "card.md"), Body=b"# CARD\n"), True),  # needs its bytes read
    ]
    for number, (harm, verify) in enumerate(harms):
        commit(store)
        assert store.states([ID, "datasets/none-0"], verify) == {ID: "committed", "datasets/none-0": "missing"}
        harm()
        assert store.states([ID], verify) == {ID: "damaged"} == {ID: store.state(ID, verify)}
        with pytest.raises(DamagedArtefactError):
            store.fetch(ID, tmp_path / str(number))
        store.discard(ID)
        assert store.states([ID]) == {ID: "missing"}
        assert store._files.listing(store.root, hidden=True) == {}


def test_an_unlisted_object_does_not_make_an_artefact_damaged(store: Store) -> None:
    commit(store)
    store._files.put(store.path(ID, "rubbish.bin"), memoryview(b"x"))
    assert store.states([ID]) == {ID: "committed"}
    assert store.read_table(ID).num_rows == 6


def test_the_states_of_many_cells_are_one_listing_and_no_reads(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [f"predictions/cell-{n:04}" for n in range(12)]
    for one in ids:
        files = [store.write(one, "chunk.bin", b"x")]
        store.commit(id=one, kind="predictions", name="c", fingerprint="0", recipe={}, needs=[], files=files)
    store._files.delete(store.path(ids[3], "chunk.bin"))
    store._files.delete(store.path(ids[7], "manifest.json"))
    calls: list[str] = []
    for name in ("infos", "read", "size"):
        genuine = getattr(store._files, name)
        monkeypatch.setattr(
            store._files, name, lambda *a, name=name, genuine=genuine, **k: calls.append(name) or genuine(*a, **k)
        )
    odd = {ids[3]: "damaged", ids[7]: "missing"}
    assert store.states(ids) == {one: odd.get(one, "committed") for one in ids}
    assert calls == ["infos", "read"]  # the manifest of the damaged one alone


def test_a_cell_takes_two_requests_beside_its_own_bytes(store: Store) -> None:
    store.check()  # connected
    recipe: dict[str, Any] = {"cell": 1}
    digest = fingerprint(recipe)
    one = artefact_id("predictions", "cell", digest)
    REQUESTS.clear()
    files = [store.create(one, f"chunk-{n}.parquet", rows(0, 3)) for n in range(5)]
    assert REQUESTS == ["PUT"] * 5
    REQUESTS.clear()
    made = store.commit(
        id=one, kind="predictions", name="cell", fingerprint=digest, recipe=recipe, needs=[], files=files, created=True
    )
    assert REQUESTS == ["PUT", "PUT"]
    assert store.manifest(one) == made
    later = made.id, "predictions", "cell", digest, recipe
    again = store.commit(
        **dict(zip(("id", "kind", "name", "fingerprint", "recipe"), later, strict=True)),
        needs=[],
        files=files,
        created=True,
        measurements={"later": True},
    )
    assert again == made and store.states([one]) == {one: "committed"}
    REQUESTS.clear()
    found = store.listing([one])[one]
    assert (found.state, len(found.files)) == ("committed", 5)
    assert REQUESTS == ["LIST"]
    REQUESTS.clear()
    assert store.entry(one, "chunk-0.parquet") == files[0]
    assert REQUESTS == ["HEAD", "GET"]


def test_objects_above_the_part_size_arrive_whole(store: Store, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(os.urandom(11 * 2**20 + 5))
    entry = store.write(ID, "weights", tmp_path / "weights")
    empty = store.write(ID, "empty", b"")
    store.commit(id=ID, kind="dataset", name="w", fingerprint="0", recipe={}, needs=[], files=[entry, empty])
    fetched = store.fetch(ID, tmp_path / "copy")
    assert (fetched / "weights").read_bytes() == (tmp_path / "weights").read_bytes()
    assert (fetched / "empty").read_bytes() == b""
    stamp = (fetched / "weights").stat().st_mtime_ns
    (fetched / "empty").write_bytes(b"not empty")
    assert (store.fetch(ID, tmp_path / "copy") / "empty").read_bytes() == b""
    assert (fetched / "weights").stat().st_mtime_ns == stamp


class Death:
    """Counts requests until one, which is done or not, and after which nothing is."""

    def __init__(self, die_at: int, after: bool) -> None:
        self.die_at, self.after, self.count, self.dead = die_at, after, 0, False


class Mortal:
    """A pyarrow file system, or what writes conditionally, until a death."""

    def __init__(self, place: Any, death: Death) -> None:
        self.place, self.death = place, death

    def __getattr__(self, name: str) -> Any:
        def request(*args: Any, **options: Any) -> Any:
            death = self.death
            if death.dead or (death.count == death.die_at and not death.after):
                death.dead = True
                raise KeyboardInterrupt
            death.count += 1
            done = getattr(self.place, name)(*args, **options)
            if death.count - 1 == death.die_at and name != "open_output_stream":
                death.dead = True
                raise KeyboardInterrupt
            return done

        return request


@pytest.mark.parametrize("after", [False, True])
def test_a_commit_that_dies_at_any_request_leaves_the_old_state_or_the_new(store: Store, after: bool) -> None:
    seen = set()
    for number in range(200):
        mortal = Store(store.uri)
        dying = Death(number, after)
        mortal_fs: Any = Mortal(store.fs, dying)
        bucket: Any = Mortal(store._files._bucket, dying)  # type: ignore[attr-defined]
        files = object_store.ObjectFiles(mortal_fs, Patience("s3", 0), "s3://", bucket=bucket)
        mortal.__dict__["_files"] = files
        with contextlib.suppress(KeyboardInterrupt):
            commit(mortal)
        if not dying.dead and number >= dying.count:
            break
        state = store.state(ID, verify=True)
        seen.add(state)
        assert store.states([ID]) == {ID: state}
        assert commit(store).rows == 6
        assert store.states([ID]) == {ID: "committed"}
        store.discard(ID)
    assert seen <= {"committed", "missing"}
    assert "missing" in seen
    assert number == 9  # of three files a look at the manifest and the file itself, the listing, seal, manifest


def test_a_failed_upload_leaves_no_object_of_half_the_bytes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of a large upload is refused; nothing may appear under the name, then or when the stream is dropped."""
    from moto.s3.models import FakeMultipart

    genuine = FakeMultipart.set_part

    def refuse(self: Any, part_id: int, *args: Any, **options: Any) -> Any:
        if part_id > 1:
            raise OSError("refused")
        return genuine(self, part_id, *args, **options)

    monkeypatch.setattr(FakeMultipart, "set_part", refuse)
    monkeypatch.setattr(object_store, "LENT_ATTEMPTS", 2)
    with pytest.raises(StoreError, match=r"s3://.*big.bin: cannot write"):
        store.write(ID, "big.bin", os.urandom(25 * 2**20))
    gc.collect()
    assert store.entry(ID, "big.bin") is None


def test_an_upload_in_several_pieces_arrives_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "_PIECE", 5 * 2**20)
    data = os.urandom(13 * 2**20)
    store._files.put(store.path("reports", "large.bin"), memoryview(data))
    assert store.read_document("reports/large.bin") == data


def test_documents_in_a_bucket(store: Store) -> None:
    store.write_document("failures/datasets/a-0.json", b"1")
    store.write_document("failures/datasets/a-0.json", b"2")
    assert store.documents("failures/") == ["failures/datasets/a-0.json"]
    assert store.read_document("failures/datasets/a-0.json") == b"2"
    store.delete_document("failures/datasets/a-0.json")
    store.delete_document("failures/datasets/a-0.json")
    assert store.documents("failures/") == []


def test_a_store_and_its_file_system_travel_without_keys(store: Store) -> None:
    manifest = commit(store)
    carried = pickle.dumps((store, store.fs))
    stored = store._files.read(store.path(ID, "manifest.json"))
    for text in (carried, store.uri.encode(), stored or b"", repr(store).encode()):
        assert KEY.encode() not in text
        assert SECRET.encode() not in text
    again, fs = pickle.loads(carried)
    assert again.manifest(ID) == manifest
    assert fs.get_file_info(again.path(ID, "card.md")).size == 7
    store.check(write=True)


@pytest.mark.usefixtures("endpoint")
def test_a_missing_bucket_or_dead_endpoint_is_bad_input_told_in_time(endpoint: str) -> None:
    with pytest.raises(InputError, match=r"no bucket s3://nowhere-at-all at 127"):
        Store(f"s3://nowhere-at-all/x?endpoint_override=http://{endpoint}").check()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(InputError, match=rf"cannot reach s3://{BUCKET} at 127.0.0.1:{port}") as failure:
        Store(f"s3://{BUCKET}/x?endpoint_override=http://127.0.0.1:{port}").states([ID])
    assert time.monotonic() - started < 30
    assert SECRET not in str(failure.value)


@pytest.mark.usefixtures("endpoint")
def test_an_endpoint_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "REQUEST_TIMEOUT_S", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        with pytest.raises(InputError, match="cannot reach"):
            Store(f"s3://{BUCKET}/x?endpoint_override=http://127.0.0.1:{silent.getsockname()[1]}").check()
        assert time.monotonic() - started < 20


def test_the_text_of_an_error_never_repeats_a_key_of_the_environment(store: Store) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(f"signature of {KEY} with {SECRET} does not match")

    files = object_store.ObjectFiles(Mortal(store.fs, Death(-1, False)), Patience("s3", 0), "s3://")
    files.fs = type("Refusing", (), {"open_input_file": refuse})()
    with pytest.raises(StoreError, match=r"\*\*\*") as failure:
        files.read("bucket/x")
    assert KEY not in str(failure.value)
    assert SECRET not in str(failure.value)
    assert failure.value.__cause__ is None
