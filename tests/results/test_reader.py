"""Reading from a store: committed artefacts of the plan alone, with the labels of the sweep that asks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

import kvray.results
from kvray.errors import DamagedArtefactError, InputError, StoreError
from kvray.report import build
from kvray.results import comparisons, frames
from kvray.store.store import Store


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


def test_a_column_that_stored_files_lack_is_null(tmp_path: Path, make_sweep) -> None:
    store = Store(str(tmp_path))
    make_sweep(store, questions=4, mixtures=["ours"])
    whole = kvray.results.open(store).predictions("first").collect()
    for cell in store.manifests("predictions"):
        first, *rest = [(file.name, store.read_file_table(cell.id, file.name)) for file in cell.files]
        store.discard(cell.id)
        # The first chunk alone lacks the columns: what is read must not depend on which one does.
        tables = [(first[0], first[1].drop_columns(["outcome", "cached_tokens"])), *rest]  # type: ignore[union-attr]
        files = [store.write(cell.id, name, table) for name, table in tables]
        identity = {name: getattr(cell, name) for name in ("id", "kind", "name", "fingerprint", "recipe", "needs")}
        store.commit(**identity, files=files)
    rows = kvray.results.open(store).predictions("first").collect()
    assert rows.schema == whole.schema
    assert rows.drop("outcome", "cached_tokens").equals(whole.drop("outcome", "cached_tokens"))
    assert 0 < rows["cached_tokens"].null_count() < rows.height
    assert kvray.results.open(store).accuracy().equals(kvray.results.open(store).accuracy(sweep="first"))


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
    Path(store.path(cell, "data/chunk-00099.parquet")).write_bytes(
        Path(store.path(cell, listed.files[0].name)).read_bytes()
    )
    assert kvray.results.open(store).predictions("first").collect().height == rows.height


def test_a_damaged_artefact_is_an_error_that_names_it(store: Store) -> None:
    cell = store.manifests("predictions")[0].id
    Path(store.path(cell, "data/chunk-00000.parquet")).unlink()
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


def relabel(store: Store, name: str, **names: str) -> None:
    """Store the sweep "first" under another name, with other names for its mixtures and evaluations."""
    document = json.loads(store.read_document("sweeps/first.json") or b"")
    for artefact in document["artefacts"]:
        labels = artefact["labels"]
        labels |= {key: names[label] for key, label in labels.items() if label in names}
    store.write_document(f"sweeps/{name}.json", json.dumps({**document, "name": name}).encode())


@pytest.mark.parametrize("taken", ["base", "ours"])
def test_a_mixture_called_base_changes_no_number(tmp_path: Path, make_sweep, taken: str) -> None:
    store = Store(str(tmp_path))
    make_sweep(store, questions=30, mixtures=["ours", "mdqa"], seeds=(0,))
    relabel(store, "second", ours=taken)
    results = kvray.results.open(store)
    said = "base (mixture)" if taken == "base" else taken
    first, second = (results.accuracy(["evaluation", "model", "mixture"], sweep) for sweep in ("first", "second"))
    numbers = ["n", "accuracy", "low", "high"]
    assert (
        first.sort("evaluation", "accuracy")
        .select(numbers)
        .equals(second.sort("evaluation", "accuracy").select(numbers))
    )
    assert set(second["model"]) == {"base", said, "mdqa"}
    assert second.filter(pl.col("model") == "base")["mixture"].null_count() == 2
    before, after = (results.compare(sweep=sweep) for sweep in ("first", "second"))
    assert after.height == before.height
    for a, b in (("base", "ours"), ("base", "mdqa"), ("ours", "mdqa")):
        there = {"ours": said}
        was = before.filter((pl.col("a") == a) & (pl.col("b") == b)).select("difference", "p_holm", "verdict")
        now = after.filter((pl.col("a") == there.get(a, a)) & (pl.col("b") == there.get(b, b)))
        assert was.height > 0 and was.equals(now.select("difference", "p_holm", "verdict"))


def test_a_row_counts_once_whatever_the_number_of_sweeps(store: Store) -> None:
    results = kvray.results.open(store)
    alone = results.accuracy(sweep="first")
    relabel(store, "second")
    relabel(store, "third", ours="renamed")
    assert results.accuracy(["evaluation"]).equals(results.accuracy(["evaluation"], "first"))
    assert results.accuracy([]).equals(results.accuracy([], "first"))
    every = results.accuracy()
    assert every.filter(pl.col("model") != "renamed").equals(alone)
    renamed = every.filter(pl.col("model") == "renamed").drop("model")
    assert renamed.equals(alone.filter(pl.col("model") == "ours").drop("model"))
    by_sweep = results.accuracy(["sweep", "model"])
    assert by_sweep.filter(pl.col("sweep") == "third")["n"].sum() == alone["n"].sum()
    rows = results.predictions().collect()
    assert rows.height == 3 * rows.unique(["artefact", "example_id"]).height
    assert rows.filter(pl.col("sweep") == "third").filter(pl.col("mixture") == "ours").height == 0


def test_names_of_different_things_are_not_averaged_over_sweeps(store: Store) -> None:
    results = kvray.results.open(store)
    relabel(store, "swapped", ours="mdqa", mdqa="ours")
    with pytest.raises(InputError, match=r"mixture ours \(lora\) \(in first and swapped\).*sweep='first'"):
        results.accuracy()
    assert set(results.accuracy(["sweep", "evaluation", "model"])["sweep"]) == {"first", "swapped"}
    relabel(store, "swapped", mdqa20="recall", recall="mdqa20")
    with pytest.raises(InputError, match="evaluation mdqa20"):
        results.accuracy(["model"])
    relabel(store, "swapped", mdqa20="one", recall="two")
    document = json.loads(store.read_document("sweeps/swapped.json") or b"")
    store.write_document("sweeps/swapped.json", json.dumps({**document, "base_model": "another"}).encode())
    with pytest.raises(InputError, match="the base model"):
        results.accuracy(["model"])


def test_a_plan_that_calls_two_models_alike_is_refused(store: Store) -> None:
    relabel(store, "second", mdqa="ours")
    with pytest.raises(InputError, match="calls two models ours on mdqa20: kvray run with its file"):
        kvray.results.open(store).predictions("second")


def test_an_unknown_model_is_refused_with_those_that_there_are(store: Store) -> None:
    results = kvray.results.open(store)
    with pytest.raises(InputError, match="no model 'kv'; expected one of: base, ours, ours-no-template"):
        results.compare("base", "kv", sweep="first")
    assert results.compare(None, "ours").equals(results.compare("base", "ours"))


def test_a_sweep_without_predictions_gives_no_rows(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert kvray.results.open(store).sweeps() == []
    store.write_document("sweeps/new.json", json.dumps({"format": 1, "artefacts": []}).encode())
    rows = kvray.results.open(store).predictions("new").collect()
    assert rows.height == 0
    assert rows.columns == [*kvray.results.PREDICTIONS_SCHEMA.names, "artefact"]
    assert comparisons.compare_all(frames.with_models(rows)).height == 0


def test_an_object_store_reads_like_a_directory(s3_uri: str, store: Store, make_sweep) -> None:
    far = Store(s3_uri)
    make_sweep(far, questions=12)
    there = kvray.results.open(s3_uri).predictions("first").collect()
    assert there.equals(kvray.results.open(store).predictions("first").collect())


def test_a_report_of_an_object_store_lies_in_it(s3_uri: str, make_sweep) -> None:
    far = Store(s3_uri)
    make_sweep(far, questions=6, mixtures=["ours"])
    paths = build.write(far, "first")
    assert paths.html == "s3://kvray-results/store/reports/first/report.html"
    assert b"</html>" in (far.read_document("reports/first/report.html") or b"")
