"""Reading from a store: committed artefacts of the plan alone, with the labels of the sweep that asks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

import kvray.results
from kvray.errors import DamagedArtefactError, InputError, StoreError
from kvray.results import family, frames, report
from kvray.store import Store


@pytest.fixture
def store(tmp_path: Path, make_sweep) -> Store:
    found = Store(str(tmp_path / "store"))
    make_sweep(found, questions=12)
    return found


@pytest.fixture
def s3_uri(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        import boto3

        host, port = server.get_host_and_port()
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="kvray-results")
        yield f"s3://kvray-results/store?endpoint_override=http://{host}:{port}&scheme=http&region=us-east-1"
    finally:
        server.stop()


def test_labels_come_from_the_sweep_that_asks(store: Store) -> None:
    document = json.loads(store.read_document("sweeps/first.json") or b"")
    for artefact in document["artefacts"]:
        if artefact["labels"].get("mixture") == "ours":
            artefact["labels"]["mixture"] = "renamed"
    store.write_document("sweeps/second.json", json.dumps(document).encode())

    results = kvray.results.open(store)
    assert results.sweeps() == ["first", "second"]
    first, second = (results.predictions(name).collect() for name in ("first", "second"))
    assert first["sweep"].unique().to_list() == ["first"]
    assert second["sweep"].unique().to_list() == ["second"]
    assert "ours" in first["mixture"]
    assert "ours" not in second["mixture"]
    assert "renamed" in second["mixture"]
    assert results.predictions().collect().height == first.height + second.height


def test_rows_have_the_declared_types_and_adapters_are_finetunes_in_the_store(store: Store) -> None:
    rows = kvray.results.open(store.uri).predictions("first").collect()
    declared = pl.from_arrow(kvray.results.PREDICTIONS_SCHEMA.empty_table())
    assert isinstance(declared, pl.DataFrame)
    assert rows.select(declared.columns).schema == declared.schema
    assert rows.height == 9 * (12 * 6 + 12)
    base = rows.filter(pl.col("mixture").is_null())
    assert base["adapter"].null_count() == base.height
    assert base["seed"].null_count() == base.height
    for adapter in rows["adapter"].drop_nulls().unique():
        assert store.manifest(f"finetunes/{adapter}") is not None


def test_only_what_is_committed_and_planned_is_read(tmp_path: Path, make_sweep) -> None:
    store = Store(str(tmp_path / "partial"))
    ids = make_sweep(store, questions=12, skip=["predictions/recall-ours-s1"])
    make_sweep(Store(store.uri), "other", questions=7, mixtures=["mdqa"])
    rows = kvray.results.open(store).predictions("first").collect()
    assert rows.height == 9 * (12 * 6 + 12) - 12
    # A file that no manifest lists does not exist for a reader.
    cell = next(one for one in ids if "recall-base" in one)
    listed = store.manifest(cell)
    assert listed is not None
    Path(store.path(cell, "chunk-00099.parquet")).write_bytes(Path(store.path(cell, listed.files[0].name)).read_bytes())
    assert kvray.results.open(store).predictions("first").collect().height == rows.height


def test_a_damaged_artefact_is_an_error_that_names_it(store: Store) -> None:
    cell = store.manifests("predictions")[0].id
    Path(store.path(cell, "chunk-00000.parquet")).unlink()
    with pytest.raises(DamagedArtefactError, match=cell):
        kvray.results.open(store).predictions("first")


def test_an_unknown_sweep_is_refused_with_the_known_ones(store: Store) -> None:
    with pytest.raises(InputError, match="first"):
        kvray.results.open(store).predictions("frist")
    store.write_document("sweeps/broken.json", b'{"artefacts": 3}')
    with pytest.raises(StoreError, match="broken"):
        kvray.results.open(store).document("broken")


def test_compare_defaults_to_the_base_and_the_only_sweep(store: Store) -> None:
    results = kvray.results.open(store)
    every = results.compare()
    assert every["family"].n_unique() == 3  # overall, by position, pairwise: no other axis here
    against = results.compare(None, by=["position"])
    assert set(against["a"]) == {"base"}
    assert set(against["b"]) == {"ours", "ours-no-template", "multi-subkey", "mdqa"}
    one = results.compare("ours", "mdqa")
    assert one["evaluation"].to_list() == ["mdqa20", "recall"]
    back = results.compare("ours", None)
    assert back["b"].unique().to_list() == ["base"]
    with pytest.raises(InputError, match="theirs"):
        results.compare("ours", "theirs")
    table = results.accuracy(["evaluation", "model", "position"])
    assert table.columns[-3:] == ["accuracy", "low", "high"]


def test_several_sweeps_need_a_name_to_compare(store: Store) -> None:
    store.write_document("sweeps/second.json", store.read_document("sweeps/first.json") or b"")
    with pytest.raises(InputError, match="first, second"):
        kvray.results.open(store).compare()


def test_a_sweep_without_predictions_gives_no_rows(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert kvray.results.open(store).sweeps() == []
    store.write_document("sweeps/new.json", json.dumps({"artefacts": []}).encode())
    rows = kvray.results.open(store).predictions("new").collect()
    assert rows.height == 0
    assert rows.columns == kvray.results.PREDICTIONS_SCHEMA.names
    assert family.family(frames.with_models(rows)).height == 0


def test_an_object_store_reads_like_a_directory(s3_uri: str, store: Store, make_sweep) -> None:
    far = Store(s3_uri)
    make_sweep(far, questions=12)
    there = kvray.results.open(s3_uri).predictions("first").collect()
    assert there.equals(kvray.results.open(store).predictions("first").collect())


def test_a_report_of_an_object_store_lies_in_it(s3_uri: str, make_sweep) -> None:
    far = Store(s3_uri)
    make_sweep(far, questions=6, mixtures=["ours"])
    paths = report.write(far, "first")
    assert paths.html == "s3://kvray-results/store/reports/first/report.html"
    assert b"</html>" in (far.read_document("reports/first/report.html") or b"")
