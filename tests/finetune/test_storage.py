"""Only whole datasets are trained on, and a mixture's rows are theirs, each once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from make_store import dataset, finetune_of
from safetensors.numpy import load_file, save_file

from kvray.errors import DamagedArtefactError, InputError
from kvray.finetune.storage import Checkpoints, here, load_rows
from kvray.models.reference import BUNDLED, BaseModelRef
from kvray.store.schemas import LOSS_SCHEMA
from kvray.store.store import Store
from kvray.sweep.model import Finetune


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def test_a_mixture_holds_each_datasets_share_of_rows(store, mini):
    short, long = dataset(store, "short", 30, 3), dataset(store, "long", 20, 20)
    rows, found = load_rows(store, finetune_of({short: 0.25, long: 0.75}, Finetune(match="rows")).params, mini)
    assert len(rows) == 6 + 20
    assert {part.name: len(part.rows) for part in found.parts} == {short: 6, long: 20}
    assert sorted(rows.lengths.tolist())[5] < sorted(rows.lengths.tolist())[6] / 2
    assert len({rows.ids[i].tobytes() for i in range(len(rows))}) == len(rows)


def test_one_dataset_alone_is_taken_whole_over_all_its_shards(store, mini):
    assert len(load_rows(store, finetune_of({dataset(store, "one", 7): 1.0}, Finetune()).params, mini)[0]) == 7


def test_a_mixture_reads_as_many_tokens_as_the_mixture_of_its_budget(store, mini):
    long, short = dataset(store, "long", 12, 20), dataset(store, "short", 80, 3)
    whole, alone = load_rows(store, finetune_of({long: 1.0}, Finetune()).params, mini)
    rows, found = load_rows(store, finetune_of({short: 1.0}, Finetune(), budget={long: 1.0}).params, mini)
    assert alone.budget is None and found.budget == whole.lengths.sum()
    assert abs(rows.lengths.sum() - whole.lengths.sum()) <= rows.lengths.max()
    assert found.measurements()["datasets"] == {short: {"rows": len(rows), "tokens": int(rows.lengths.sum())}}
    few = dataset(store, "few", 20, 3)
    with pytest.raises(InputError, match=rf"{few} has [\d,]+ tokens in 20 rows.*rows: \d+"):
        load_rows(store, finetune_of({few: 1.0}, Finetune(), budget={long: 1.0}).params, mini)


def test_a_damaged_dataset_of_the_budget_stops_the_finetune_too(store, mini):
    long, short = dataset(store, "long2", 12, 20), dataset(store, "short2", 80, 3)
    Path(store.path(long, "data/shard-00001.parquet")).unlink()
    with pytest.raises(DamagedArtefactError, match=f"{long} cannot be trained on"):
        load_rows(store, finetune_of({short: 1.0}, Finetune(), budget={long: 1.0}).params, mini)


def test_a_dataset_with_one_changed_byte_is_not_trained_on(store, mini):
    made = dataset(store, "one", 7)
    path = Path(store.path(made, "data/shard-00001.parquet"))
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(DamagedArtefactError, match=f"{made} cannot be trained on"):
        load_rows(store, finetune_of({made: 1.0}, Finetune()).params, mini)


def test_a_row_too_long_names_its_dataset_and_example(store, mini):
    made = dataset(store, "one", 7)
    with pytest.raises(InputError, match=rf"7 of 7 rows are longer than 8 tokens: {made}: one-0 \(\d+ tokens\)"):
        load_rows(store, finetune_of({made: 1.0}, Finetune(max_length=8)).params, mini)


def test_the_last_whole_checkpoint_is_kept_and_a_torn_one_is_none(store, tmp_path):
    checkpoints = Checkpoints(store, finetune_of({dataset(store, "one", 4): 1.0}, Finetune()))
    assert checkpoints.last() is None
    file = tmp_path / "any.safetensors"
    for step in (9, 10):
        save_file({"weights.a": np.full(1000, step)}, file, {"trainer": "{}"})
        checkpoints.put(file, step)
        assert checkpoints.last() == step
    stored = checkpoints.get(10, tmp_path)
    assert load_file(stored)["weights.a"].tolist() == [10] * 1000
    assert [each.name for each in stored.parent.iterdir()] == ["step-00000010.safetensors"]
    data = file.read_bytes()
    stored.with_name("step-00000008.safetensors").write_bytes(data)
    for size in (0, 4, 50, 1000, len(data) - 1):
        stored.write_bytes(data[:size])
        assert checkpoints.last() == 8
    checkpoints.clear()
    assert checkpoints.last() is None and not stored.parent.exists()


def test_a_bundled_base_is_found_where_this_machines_kvray_is():
    elsewhere = BaseModelRef("kvray-tiny", "/other/machine/kvray-tiny", None, "sha256:0")
    assert here(elsewhere).location == str(BUNDLED["kvray-tiny"])
    with pytest.raises(InputError, match="is not on this node"):
        here(BaseModelRef("/other/machine/m", "/other/machine/m", None, "sha256:0"))


def test_every_column_of_the_loss_log_is_described():
    assert all(field.metadata[b"description"] for field in LOSS_SCHEMA)
