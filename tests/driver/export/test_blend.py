"""A mixture as a file holds the very rows that a finetune reads, whether its data are in a store or made on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from kvray.driver.export.files import BLEND_SCHEMA, blend
from kvray.errors import DamagedArtefactError, InputError
from kvray.finetune import storage
from kvray.finetune.storage import load_rows
from kvray.generate.job import build
from kvray.models.openai import OPENAI_SYSTEM
from kvray.models.reference import BaseModelRef, load_tokenizer, resolve
from kvray.planning.artefacts import Artefact, FinetuneJob, Plan
from kvray.planning.inputs import gather
from kvray.planning.plan import plan
from kvray.store.schemas import EXAMPLE_SCHEMA
from kvray.store.store import Store
from kvray.sweep.model import Sweep
from kvray.tasks.base import Task

BLOCKS: dict[str, Any] = {
    "name": "s",
    "base_model": "kvray-tiny",
    "datasets": {
        "long": {"task": "simple_kv", "rows": 20, "dictionaries": 12},
        "short": {"task": "several_kv", "rows": 90, "dictionaries": 4},
    },
    "mixtures": {"first": {"long": 1}, "blend": {"long": 1, "short": 3}},
    "finetune": {"seeds": [0, 1]},
}


@pytest.fixture(scope="module")
def base() -> BaseModelRef:
    return resolve("kvray-tiny")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def planned(**changes: Any) -> Plan:
    sweep = Sweep.model_validate({**BLOCKS, **changes})
    return plan(sweep, gather(sweep))


def finetune(of: Plan, mixture: str, seed: int = 0) -> FinetuneJob:
    (job,) = (a.params for a in of.artefacts if a.labels.get("mixture") == mixture and a.labels["seed"] == seed)
    assert isinstance(job, FinetuneJob)
    return job


def commit(store: Store, artefact: Artefact, base: BaseModelRef) -> None:
    assert isinstance(artefact.params, Task)
    rows = build(artefact.params, base, range(artefact.rows))
    entry = store.write(artefact.id, "shard-00000.parquet", rows)
    store.commit(**artefact.identity(), files=[entry], schema=EXAMPLE_SCHEMA)


def test_the_rows_are_those_that_a_finetune_reads_in_their_order(store: Store, base: BaseModelRef) -> None:
    of = planned()
    made = blend(of, "blend", 1, store, base, Path(store.root) / "out" / "blend.jsonl", "jsonl")
    lines = [json.loads(line) for line in Path(made.path).read_text().splitlines()]
    for artefact in of.artefacts:
        if artefact.kind == "dataset":
            commit(store, artefact, base)
    rows, mixed = load_rows(store, finetune(of, "blend", 1), base)
    tokenizer = load_tokenizer(base)
    assert len(lines) == len(rows)
    for at, line in enumerate(lines):
        ids = tokenizer.apply_chat_template(line["messages"], return_dict=True)["input_ids"]
        assert ids[: len(rows.ids[at])] == rows.ids[at].tolist()
    assert made.mixture.measurements() == mixed.measurements()
    assert made.mixture.measurements()["tokens_per_epoch"] == rows.lengths.sum()
    assert abs(rows.lengths.sum() - made.mixture.budget) <= rows.lengths.max()
    counts = {name: sum(line["dataset"] == name for line in lines) for name in ("long", "short")}
    assert counts["long"] > 0 and sum(counts.values()) == len(lines)


@pytest.mark.parametrize("format", ["parquet", "jsonl", "openai"])
def test_the_bytes_are_the_same_with_and_without_the_data_in_the_store(
    format: Any, store: Store, base: BaseModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = planned()
    before = blend(of, "blend", 0, store, base, tmp_path / "before", format)
    assert not Path(store.root).exists()
    for artefact in of.artefacts:
        if artefact.kind == "dataset":
            commit(store, artefact, base)
    # As in another process, which has counted nothing yet and need not make anything.
    monkeypatch.setattr(storage, "_counted", {})
    monkeypatch.setattr("kvray.driver.export.files.build", None)
    after = blend(of, "blend", 0, store, base, tmp_path / "after", format)
    assert (tmp_path / "before").read_bytes() == (tmp_path / "after").read_bytes()
    assert (before.sha256, before.bytes) == (after.sha256, (tmp_path / "after").stat().st_size)
    assert blend(of, "blend", 1, store, base, tmp_path / "other", format).sha256 != after.sha256


def test_formats_hold_columns_or_messages(store: Store, base: BaseModelRef, tmp_path: Path) -> None:
    of = planned()
    blend(of, "blend", 0, store, base, tmp_path / "p", "parquet")
    table = pq.read_table(tmp_path / "p")
    assert table.schema.equals(BLEND_SCHEMA)
    assert table.column_names == [*EXAMPLE_SCHEMA.names, "dataset"]
    rows = table.to_pylist()
    blend(of, "blend", 0, store, base, tmp_path / "j", "jsonl")
    blend(of, "blend", 0, store, base, tmp_path / "o", "openai")
    chat = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["answer"]}] for row in rows
    ]
    expected = [{"messages": each, "dataset": row["dataset"]} for each, row in zip(chat, rows, strict=True)]
    assert [json.loads(line) for line in (tmp_path / "j").read_text().splitlines()] == expected
    system = {"role": "system", "content": OPENAI_SYSTEM}
    found = [json.loads(line) for line in (tmp_path / "o").read_text().splitlines()]
    assert found == [{"messages": [system, *each]} for each in chat]
    blend(planned(system_message="Be brief."), "blend", 0, store, base, tmp_path / "o", "openai")
    assert json.loads((tmp_path / "o").read_text().splitlines()[0])["messages"][0]["content"] == "Be brief."


def test_an_unknown_mixture_or_seed_names_those_there_are(store: Store, base: BaseModelRef, tmp_path: Path) -> None:
    of = planned()
    with pytest.raises(
        InputError, match="found 'blnd'; expected one of the mixtures: blend, first; did you mean 'blend'"
    ):
        blend(of, "blnd", 0, store, base, tmp_path / "x", "jsonl")
    with pytest.raises(InputError, match=r"found 7; expected one of finetune\.seeds: 0, 1"):
        blend(of, "blend", 7, store, base, tmp_path / "x", "jsonl")
    assert not (tmp_path / "x").exists()


def test_a_grid_over_the_finetune_alone_is_one_mixture_and_one_over_the_rows_is_not(
    store: Store, base: BaseModelRef, tmp_path: Path
) -> None:
    rates = planned(grid={"finetune.learning_rate": [1e-5, 1e-4]})
    one = blend(rates, "blend", 0, store, base, tmp_path / "x", "jsonl")
    assert one.sha256 == blend(planned(), "blend", 0, store, base, tmp_path / "x", "jsonl").sha256
    with pytest.raises(InputError, match="other rows in other variants of the grid"):
        blend(planned(grid={"finetune.match": ["tokens", "rows"]}), "blend", 0, store, base, tmp_path / "x", "jsonl")
    labelled = planned(grid={"mixtures.blend.short": [1, 3]})
    assert blend(labelled, "blend[short=3.0]", 0, store, base, tmp_path / "x", "jsonl").sha256 == one.sha256


def test_a_damaged_dataset_is_not_dumped(store: Store, base: BaseModelRef, tmp_path: Path) -> None:
    of = planned()
    data = next(artefact for artefact in of.artefacts if artefact.kind == "dataset")
    commit(store, data, base)
    Path(store.path(data.id, "shard-00000.parquet")).unlink()
    storage._counted.clear()
    with pytest.raises(DamagedArtefactError, match=f"{data.id} cannot be read"):
        blend(of, "first", 0, store, base, tmp_path / "x", "jsonl")


@pytest.mark.parametrize("times", [1, 100])
def test_too_few_tokens_are_told_by_the_plan_with_the_rows_to_type(times: int) -> None:
    """Whether every row of the datasets is counted, or a sample."""
    long = {**BLOCKS["datasets"]["long"], "rows": 20 * times}
    short = {"task": "several_kv", "rows": 9 * times, "dictionaries": 4}
    with pytest.raises(InputError, match=rf"short has .* in {9 * times} rows, but its share of an epoch.*rows: \d+"):
        planned(mixtures={"first": {"long": 1}, "short": {"short": 1}}, datasets={"long": long, "short": short})
