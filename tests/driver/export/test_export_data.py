"""Exported data open in datasets and in TRL as they are, as the very tokens that kvray trains on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import shipped_store as shipped
import yaml
from huggingface_hub import DatasetCard

from kvray.driver.export.export import Options, export
from kvray.driver.export.formats import COLUMNS, ENCODINGS
from kvray.errors import DamagedArtefactError
from kvray.models.openai import OPENAI_SYSTEM
from kvray.models.reference import BaseModelRef
from kvray.store.store import Store


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def opened(folder: Path, split: str = "train") -> Any:
    from datasets import load_dataset

    return load_dataset(str(folder), split=split)


def dataset_of(store: Store, name: str) -> str:
    found = store.plan_document("small")["artefacts"]
    return next(str(a["id"]) for a in found if a["kind"] == "dataset" and a["labels"]["dataset"] == name)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("columns", COLUMNS)
def test_datasets_opens_every_format_by_the_card(columns: Any, encoding: Any, store: Store, out: Path) -> None:
    if (columns, encoding) == ("openai", "parquet"):
        encoding = None  # refused; by default JSON lines
    done = export(store, "small/datasets/kv", out, Options(columns=columns, encoding=encoding, license="mit"))
    assert done.notes == ()
    rows = opened(out).to_list()
    stored = store.read_table(dataset_of(store, "kv")).to_pylist()
    if columns == "examples":
        assert rows == stored
        return
    user, assistant = (
        [{"role": r, "content": row[c]} for row in stored] for r, c in (("user", "prompt"), ("assistant", "answer"))
    )
    system = [{"role": "system", "content": OPENAI_SYSTEM}] if columns == "openai" else []
    if columns == "prompt-completion":
        expected = [{"prompt": [u], "completion": [a]} for u, a in zip(user, assistant, strict=True)]
    else:
        expected = [{"messages": [*system, u, a]} for u, a in zip(user, assistant, strict=True)]
    assert rows == expected


def test_a_mixture_is_the_rows_that_its_finetune_read(store: Store, out: Path) -> None:
    export(store, "small/mixtures/blend/1", out, Options(columns="messages"))
    rows = opened(out)
    assert rows.column_names == ["messages", "dataset"]
    found = store.plan_document("small")["artefacts"]
    labels = {"mixture": "blend", "finetune": "lora", "seed": 1}
    manifest = store.manifest(next(a["id"] for a in found if a["kind"] == "finetune" and a["labels"] == labels))
    assert manifest is not None
    read = manifest.measurements["datasets"]
    counts = {name: sum(row == name for row in rows["dataset"]) for name in ("kv", "several")}
    assert counts == {name: read[dataset_of(store, name)]["rows"] for name in counts}
    text = (out / "README.md").read_text()
    assert all(f"{each['tokens']:,}" in text for each in read.values())


def test_trl_makes_of_prompt_and_completion_what_kvray_trains_on(
    store: Store, out: Path, tmp_path: Path, base: BaseModelRef
) -> None:
    """The same tokens in the same rows, and the loss on the same ones."""
    prepared = by_trl("prompt-completion", store, out, tmp_path, base)
    own = shipped.encoded(store, dataset_of(store, "kv"), base)
    assert len(prepared) == len(own) > 0
    for row, ids, answer in zip(prepared, own.ids, own.answers, strict=True):
        assert row["input_ids"][: len(ids)] == ids.tolist()  # TRL may add what the template has after the answer
        learnt = np.array(row["labels"]) != -100
        assert learnt.argmax() == len(ids) - answer and learnt[len(ids) - answer :].all()


def test_trl_makes_of_messages_the_same_tokens(store: Store, out: Path, tmp_path: Path, base: BaseModelRef) -> None:
    prepared = by_trl("messages", store, out, tmp_path, base)
    own = shipped.encoded(store, dataset_of(store, "kv"), base)
    assert [row["input_ids"][: len(ids)] for row, ids in zip(prepared, own.ids, strict=True)] == [
        ids.tolist() for ids in own.ids
    ]


def by_trl(columns: Any, store: Store, out: Path, tmp_path: Path, base: BaseModelRef) -> Any:
    """Return exported data as TRL's SFTTrainer prepares them for training."""
    from trl import SFTConfig, SFTTrainer

    export(store, "small/datasets/kv", out, Options(columns=columns))
    arguments = SFTConfig(output_dir=str(tmp_path / "sft"), max_length=None, report_to=[], use_cpu=True, bf16=False)
    return SFTTrainer(model=base.location, args=arguments, train_dataset=opened(out)).train_dataset


def test_the_card_says_what_the_columns_hold_and_how_the_data_were_made(
    store: Store, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = export(store, "small/mdqa", out)
    assert any("questions of an evaluation" in note for note in done.notes)
    card = DatasetCard.load(out / "README.md")
    assert card.data.to_dict()["configs"] == [
        {"config_name": "default", "data_files": [{"split": "test", "path": "data/test.parquet"}]}
    ]
    schema = pq.read_schema(out / "data" / "test.parquet")
    for field in schema:
        assert f"| `{field.name}` | `{field.type}` | {field.metadata[b'description'].decode()} |" in card.text
    assert "| position | 1: 20, 3: 20 |" in card.text
    (recipe,) = (yaml.safe_load(code) for code in re.findall(r"```yaml\n(.*?)```", card.text, re.DOTALL))
    assert recipe["datasets"]["mdqa"]["documents"] == 3
    (shown,) = (json.loads(code) for code in re.findall(r"```json\n(.*?)```", card.text, re.DOTALL))
    assert shown["example_id"] == store.read_table(dataset_of(store, "mdqa"))["example_id"][0].as_py()
    monkeypatch.chdir(out)
    for code in re.findall(r"```python\n(.*?)```", card.text, re.DOTALL):
        exec(code, {})
    assert shown["example_id"] in capsys.readouterr().out


def test_the_lines_for_axolotl_name_what_the_file_has(store: Store, out: Path) -> None:
    export(store, "small/datasets/kv", out, Options(columns="messages"))
    text = (out / "README.md").read_text()
    (config,) = (
        found
        for code in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
        if "chat_template" in str(found := yaml.safe_load(code))
    )
    (block,) = config["datasets"]
    messages = json.loads((out / "data" / "train.jsonl").read_text().splitlines()[0])[block["field_messages"]]
    assert [set(message) for message in messages] == [{"role", "content"}] * 2
    assert block["roles_to_train"] == [messages[-1]["role"]]


def test_damaged_data_are_not_exported(store: Store, out: Path, tmp_path: Path) -> None:
    import shutil

    broken = Store(shutil.copytree(store.root, tmp_path / "broken"))
    Path(broken.path(dataset_of(broken, "kv"), "shard-00001.parquet")).write_bytes(b"PAR1")
    with pytest.raises(DamagedArtefactError, match=r"shard-00001|damaged"):
        export(broken, "small/datasets/kv", out)
    assert not out.exists()
