"""An exported finetune is what the store holds: its adapter, merged weights and whole models give the same logits."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from kvray.driver.export.export import MARK, Exported, Options, export
from kvray.errors import DamagedArtefactError, InputError
from kvray.models.changed import compose
from kvray.models.reference import BUNDLED, BaseModelRef, load_tokenizer
from kvray.planning.inputs import gather
from kvray.planning.plan import plan
from kvray.results.reader import Results
from kvray.store.store import Store
from kvray.sweep.load import load

IDS = torch.arange(100, 160)[None]
Ship = Callable[..., Exported]


@pytest.fixture
def ship(store: Store, out: Path) -> Ship:
    return lambda what, **options: export(store, what, out, Options(**options))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS).logits.float()
    return found


def artefact(store: Store, kind: str, sweep: str = "small", **labels: Any) -> str:
    found = [a["id"] for a in store.plan_document(sweep)["artefacts"] if a["kind"] == kind]
    if labels:
        documents = store.plan_document(sweep)["artefacts"]
        found = [a["id"] for a in documents if a["kind"] == kind and labels.items() <= a["labels"].items()]
    return str(found[0])


@pytest.fixture(scope="module")
def expected(store: Store) -> torch.Tensor:
    """The logits of the stored adapter of ``small/kv/1`` on the base."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(BUNDLED["kvray-tiny"])
    stored = store.path(artefact(store, "finetune", mixture="kv", seed=1))
    found = logits(PeftModel.from_pretrained(base, stored))
    plain = logits(AutoModelForCausalLM.from_pretrained(BUNDLED["kvray-tiny"]))
    assert (found - plain).abs().max() > 0.1
    return found


def test_an_adapter_lies_with_a_base_that_is_on_no_hub_and_peft_loads_both(
    ship: Ship, out: Path, expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch, base: BaseModelRef
) -> None:
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = ship("small/kv/1")
    assert (done.what, done.path) == ("finetune", str(out))
    assert any("base/" in note for note in done.notes)
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md", "tokenizer.json", MARK} <= set(done.files)
    on = AutoModelForCausalLM.from_pretrained(out / "base")
    assert torch.equal(logits(PeftModel.from_pretrained(on, out)), expected)
    chat = [{"role": "user", "content": "Where?"}]
    tokens = [each.apply_chat_template(chat) for each in (AutoTokenizer.from_pretrained(out), load_tokenizer(base))]
    assert tokens[0]["input_ids"] == tokens[1]["input_ids"]
    monkeypatch.chdir(out)  # as adapter_config.json names the base
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(".")), expected)


def test_merged_weights_are_one_model_that_gives_the_adapters_logits(
    ship: Ship, out: Path, expected: torch.Tensor
) -> None:
    from transformers import AutoModelForCausalLM

    done = ship("small/kv/1", merged=True)
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(done.files)
    assert not any("adapter" in name or name.startswith("base/") for name in done.files)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(out)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["attention", "full"])
def test_whole_models_are_written_whole_whatever_the_store_holds_of_them(
    method: str, ship: Ship, out: Path, store: Store, base: BaseModelRef, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    done = ship(f"{method}/kv")
    stored = Path(store.path(artefact(store, "finetune", method)))
    whole = compose(base, stored, tmp_path / "whole") if method == "attention" else stored
    given = logits(AutoModelForCausalLM.from_pretrained(out))
    assert torch.equal(given, logits(AutoModelForCausalLM.from_pretrained(whole)))
    assert (given - logits(AutoModelForCausalLM.from_pretrained(base.location))).abs().max() > 0.01
    assert {"config.json", "generation_config.json", "tokenizer.json", "README.md"} <= set(done.files)
    assert not {"loss.parquet", "manifest.json", "changed.safetensors"} & set(done.files)
    assert f"method {method}" in (out / "README.md").read_text()  # not the base model's own card


def test_the_card_is_one_that_the_hub_reads_and_its_python_runs(
    ship: Ship, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ship("small/kv/1", dataset_ids=("me/kv",))
    card = ModelCard.load(out / "README.md")
    data = card.data.to_dict()
    assert (data["library_name"], data["license"], data["datasets"]) == ("peft", "apache-2.0", ["me/kv"])
    assert {"kvray", "lora"} <= set(data["tags"])
    assert "base_model" not in data  # it is on no hub
    monkeypatch.chdir(out)
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", card.text, re.DOTALL):
        exec(code, names)
    assert names["written"].shape[1] > names["inputs"]["input_ids"].shape[1]
    assert capsys.readouterr().out


def test_the_cards_numbers_are_those_of_results(ship: Ship, out: Path, store: Store) -> None:
    ship("small/kv/1")
    text = (out / "README.md").read_text()
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table
    rows = Results(store).accuracy(by=["model", "seed"], sweep="small").to_dicts()
    base, tuned = (
        next(row["accuracy"] for row in rows if (row["model"], row["seed"]) == key)
        for key in (("base", None), ("kv", 1))
    )
    assert re.search(rf"\| mdqa \| 40 \| {100 * base:.1f} % \| {100 * tuned:.1f} % \| \+\d", text), text
    assert "The mixture over its 2 seeds" in text
    assert "| gold position | 1 | 3 |" in text
    (recipe,) = (yaml.safe_load(code) for code in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))
    assert recipe["finetune"]["lora_rank"] == 4 and recipe["seed"] == 1
    manifest = store.manifest(artefact(store, "finetune", mixture="kv", seed=1))
    assert manifest is not None
    assert f"{manifest.measurements['tokens_per_epoch']:,}" in text
    assert str(Path(store.root).parent) not in text


def test_the_sweep_beside_it_plans_the_very_same_artefacts(ship: Ship, out: Path, store: Store) -> None:
    ship("small/blend/0")
    sweep = load(str(out / "sweep.yaml"))
    again = {artefact.id for artefact in plan(sweep, gather(sweep)).artefacts}
    assert again == {each["id"] for each in store.plan_document("small")["artefacts"]}
    written = json.loads((out / MARK).read_text())
    assert written["manifests"][0]["id"] == artefact(store, "finetune", mixture="blend", seed=0)


def test_a_base_in_a_directory_is_named_by_its_hub_id_where_one_is_given(ship: Ship, out: Path, store: Store) -> None:
    done = ship("own/kv", base_id="me/base")
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "me/base"
    assert not (out / "base").exists()
    card = (out / "README.md").read_text()
    assert "base_model: me/base" in card and "vllm serve me/base --enable-lora" in card
    assert "licence of the base model is unknown" in card and any("licence" in note for note in done.notes)
    named = store.plan_document("own")["base_model"]
    told = ship("own/kv", force=True, license="mit")
    assert "license: mit" in (out / "README.md").read_text() and not any("licence" in note for note in told.notes)
    shown = (out / "README.md").read_text() + (out / "adapter_config.json").read_text()
    assert named not in shown and (out / "base" / "model.safetensors").is_file()


def test_a_base_that_moved_is_found_by_an_option_and_another_is_refused(
    ship: Ship, out: Path, store: Store, tmp_path: Path
) -> None:
    named = Path(store.plan_document("own")["base_model"])
    moved = shutil.copytree(named, tmp_path / "moved")
    assert ship("own/kv", base_model=str(moved), base_id="me/base").what == "finetune"
    (moved / "config.json").write_text((moved / "config.json").read_text() + " ")
    with pytest.raises(InputError, match=r"was made from sha256:.*--base-model DIRECTORY says where it is"):
        ship("own/kv", base_model=str(moved), force=True)


def test_a_damaged_finetune_is_not_exported(store: Store, out: Path, tmp_path: Path) -> None:
    broken = Store(shutil.copytree(store.root, tmp_path / "broken"))
    file = Path(broken.path(artefact(store, "finetune", mixture="kv", seed=1), "adapter_model.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(DamagedArtefactError, match=r"adapter_model\.safetensors"):
        export(broken, "small/kv/1", out)
    assert not out.exists() and not list(tmp_path.glob(".out*"))
