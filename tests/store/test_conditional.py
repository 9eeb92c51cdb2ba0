"""Files that are created once: of many writers one wins, on disks, on S3 and on GCS; and stores that cannot do it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pytest
from s3_server import BUCKET, CONDITIONS, KEY, SECRET, endpoint

from kvray.errors import StoreError
from kvray.store.fingerprint import fingerprint
from kvray.store.manifest import Manifest
from kvray.store.places.conditional import Bucket, _amazon_keys
from kvray.store.store import Store

__all__ = ["endpoint"]


@pytest.fixture
def in_bucket(endpoint: str, tmp_path: Path) -> Store:
    return Store(f"s3://{BUCKET}/{tmp_path.name}?endpoint_override=http://{endpoint}&scheme=http")


@pytest.fixture(params=["disk", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(tmp_path) if request.param == "disk" else request.getfixturevalue("in_bucket")


@pytest.fixture
def conditions() -> Iterator[list[str]]:
    yield CONDITIONS
    CONDITIONS[0] = "kept"


def commit(store: Store, writer: int) -> Manifest:
    recipe = {"n": 1}
    files = [store.write("finetunes/f-0", "adapter.bin", b"same size")]
    return store.commit(
        id="finetunes/f-0",
        kind="finetune",
        name="f",
        fingerprint=fingerprint(recipe),
        recipe=recipe,
        needs=[],
        files=files,
        measurements={"writer": writer},
    )


def test_of_many_writers_of_one_name_one_wins(store: Store) -> None:
    path, start = store.path(".work", "once"), threading.Barrier(8)

    def write(number: int) -> bool:
        start.wait()
        return store._files.put_new(path, memoryview(b"%d" % number))

    store.check(write=True)
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(write, range(8)))
    assert won.count(True) == 1
    assert store._files.read(path) == b"%d" % won.index(True)


def test_of_many_commits_all_return_the_first(store: Store) -> None:
    store.check(write=True)
    start = threading.Barrier(4)

    def run(writer: int) -> Manifest:
        start.wait()
        return commit(store, writer)

    with ThreadPoolExecutor(4) as pool:
        manifests = list(pool.map(run, range(4)))
    assert manifests == [store.manifest("finetunes/f-0")] * 4
    assert store.state("finetunes/f-0", verify=True) == "committed"


def test_a_chunk_that_is_there_is_not_replaced(store: Store) -> None:
    first = store.create("predictions/c-0", "chunk-00000.parquet", pa.table({"n": [1]}))
    assert first is not None and store.entry("predictions/c-0", "chunk-00000.parquet") == first
    assert store.create("predictions/c-0", "chunk-00000.parquet", pa.table({"n": [2]})) is None
    assert store.entry("predictions/c-0", "chunk-00000.parquet") == first


@pytest.mark.parametrize("kind", ["ignored", "refused"])
def test_a_store_that_knows_no_conditions_is_used_without_and_named(
    in_bucket: Store, conditions: list[str], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    in_bucket.check(write=True)
    assert capsys.readouterr().err == ""
    conditions[0] = kind
    in_bucket.check(write=True)
    assert "ignores conditional writes" in capsys.readouterr().err
    assert commit(in_bucket, 1) == commit(in_bucket, 2)
    assert in_bucket.state("finetunes/f-0", verify=True) == "committed"


def test_an_error_of_a_conditional_write_names_the_path_and_no_key(endpoint: str, tmp_path: Path) -> None:
    store = Store(f"s3://{BUCKET}/x?endpoint_override=http://{endpoint}&scheme=http")
    with pytest.raises(StoreError, match=r"^s3://nowhere-at-all/a: cannot write 1 bytes: .*NoSuchBucket") as failure:
        store._files._bucket._name = "nowhere-at-all"  # type: ignore[attr-defined]
        store._files.put_new("nowhere-at-all/a", memoryview(b"x"))
    for text in (KEY, SECRET, "Debug source"):
        assert text not in str(failure.value)


def test_keys_of_a_profile_serve_as_they_serve_pyarrow(
    in_bucket: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = AKIALAB\naws_secret_access_key = of/lab\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert _amazon_keys()()["access_key_id"] == "AKIALAB"
    in_bucket.check(write=True)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.delenv("AWS_PROFILE")
    with pytest.raises(OSError, match="found no AWS credentials"):
        _amazon_keys()


def test_without_signatures_no_keys_are_looked_for(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    files = Store(f"s3://{BUCKET}/x?endpoint_override=http://{endpoint}&scheme=http&anonymous=true")._files
    assert files.put_new(f"{BUCKET}/x/unsigned", memoryview(b"x"))


def test_google_is_asked_for_the_generation_that_nothing_has() -> None:
    asked: list[tuple[str, str | None]] = []

    class Google(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append((self.path, self.headers["x-goog-if-generation-match"]))
            self.send_response(200 if len(asked) == 1 else 412)
            for name, value in (("ETag", '"1"'), ("x-goog-generation", "1"), ("Content-Length", "0")):
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Google) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = {"endpoint_override": f"127.0.0.1:{server.server_port}", "scheme": "http", "anonymous": "true"}
        bucket = Bucket("gs", "sweeps", options, "", 5.0, 10.0)
        assert bucket.create("kvray/.work/a.json", memoryview(b"x")) is True
        assert bucket.create("kvray/.work/a.json", memoryview(b"x")) is False
        server.shutdown()
    assert [(unquote(path), generation) for path, generation in asked] == [("/sweeps/kvray/.work/a.json", "0")] * 2
