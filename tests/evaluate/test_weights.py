"""What takes the place of a base model's tensors: read from a finetune's files, and by blocks."""

from __future__ import annotations

import json
from pathlib import Path

import evaluate_store as made
import pytest

from kvray.errors import CellError
from kvray.evaluate.engines.weights import WeightExchange, block, changes
from kvray.models.reference import BaseModelRef


def test_a_block_is_a_layer_and_the_first_module_in_it() -> None:
    assert block("model.layers.3.self_attn.q_proj.weight") == "model.layers.3.self_attn"
    assert block("model.layers.3.block_sparse_moe.experts.0.w1.weight") == "model.layers.3.block_sparse_moe"
    assert block("model.layers.13.input_layernorm.weight") == "model.layers.13.input_layernorm"
    assert block("transformer.h.0.attn.c_attn.weight") == "transformer.h.0.attn"
    assert block("model.embed_tokens.weight") == "model.embed_tokens.weight"
    assert block("lm_head.weight") == "lm_head.weight"


@pytest.mark.parametrize("rooted", [False, True])
def test_an_adapter_is_merged_as_peft_does(base: BaseModelRef, tmp_path: Path, rooted: bool) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = made.make_adapter(base, tmp_path / "adapter", strength=0.3)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": rooted}))
    plain = AutoModelForCausalLM.from_pretrained(base.location)
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    merged = PeftModel.from_pretrained(plain, str(adapter)).merge_and_unload().state_dict()
    made_of = changes(adapter)
    assert made_of.keys() == {name for name, tensor in merged.items() if not torch.equal(tensor, before[name])}
    for name, change in made_of.items():
        assert torch.allclose(change(before[name]), merged[name], rtol=0, atol=1e-6)
        half = before[name].bfloat16()
        assert change(half).dtype == torch.bfloat16  # rounded once, from the sum in float32
        assert torch.equal(change(half), change(half.float()).bfloat16())


def test_what_is_more_than_plain_lora_or_cannot_be_read_is_refused(base: BaseModelRef, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    adapter = made.make_adapter(base, tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    tensors, whole = load_file(file), file.read_bytes()
    name = next(iter(tensors)).replace("lora_A.weight", "lora_magnitude_vector")
    save_file({**tensors, name: tensors[next(iter(tensors))].clone()}, file)
    with pytest.raises(CellError, match="more than plain LoRA"):
        changes(adapter)
    file.write_bytes(whole[:1000])
    with pytest.raises(CellError, match=r"adapter_model\.safetensors cannot be read"):
        changes(adapter)
    file.write_bytes(whole)
    (adapter / "adapter_config.json").write_text("[]")
    with pytest.raises(CellError, match="no readable adapter configuration"):
        changes(adapter)
    changed = made.make_changed(base, tmp_path / "changed")
    (changed / "changed.safetensors").unlink()
    with pytest.raises(CellError, match=r"changed\.safetensors cannot be read"):
        changes(changed)


class Exchange(WeightExchange):
    """A worker that keeps what it is given to load."""

    device = "cpu"

    def __init__(self, base: Path) -> None:
        from safetensors.torch import load_file

        self.base = load_file(base / "model.safetensors")
        self.served = dict(self.base)
        self.came: list[str] = []

        def reload_weights(weights_iterator):
            tensors = dict(weights_iterator)
            self.came = sorted(tensors)
            self.served |= tensors

        self.reload_weights = reload_weights

    def _tensors(self, directory: str | None = None):
        from safetensors.torch import load_file

        yield from (load_file(Path(directory) / "model.safetensors") if directory else self.base).items()


def test_blocks_come_whole_and_go_back_when_the_next_weights_leave_them_alone(
    base: BaseModelRef, tmp_path: Path
) -> None:
    import torch

    worker = Exchange(Path(base.location))
    attention = {name for name in worker.base if ".self_attn." in name}
    down = {name for name in worker.base if ".mlp." in name}
    queries = made.make_changed(base, tmp_path / "queries", "q_proj")
    mlp = made.make_changed(base, tmp_path / "mlp", "down_proj", seed=1)
    assert worker.exchange_weights(str(queries)) is None
    assert set(worker.came) == attention  # q, k, v are one module of vLLM
    changed = {name for name in worker.base if not torch.equal(worker.served[name], worker.base[name])}
    assert changed == {name for name in attention if "q_proj" in name}
    assert worker.exchange_weights(str(mlp)) is None
    assert set(worker.came) == attention | down
    changed = {name for name in worker.base if not torch.equal(worker.served[name], worker.base[name])}
    assert changed == {name for name in down if "down_proj" in name}
    assert worker.exchange_weights(None) is None
    assert set(worker.came) == down and all(torch.equal(worker.served[name], worker.base[name]) for name in worker.base)
    assert worker.exchange_weights(str(made.make_full(base, tmp_path / "full"))) is None
    assert worker.exchange_weights(str(queries)) is None
    assert set(worker.came) == worker.base.keys()  # a whole model may have changed anything


def test_tensors_that_the_base_model_lacks_are_refused_and_nothing_is_changed(
    base: BaseModelRef, tmp_path: Path
) -> None:
    worker = Exchange(Path(base.location))
    lost = made.rename_modules(made.make_adapter(base, tmp_path / "real"), tmp_path / "lost")
    refused = worker.exchange_weights(str(lost))
    assert refused is not None and "the base model has no such tensor (8 of 8)" in refused and not worker.came


def test_a_load_that_breaks_off_leaves_nothing_to_rely_on(base: BaseModelRef, tmp_path: Path) -> None:
    worker = Exchange(Path(base.location))
    whole = worker.reload_weights

    def broken(weights_iterator):
        raise RuntimeError("out of memory")

    worker.reload_weights = broken
    with pytest.raises(RuntimeError, match="out of memory"):
        worker.exchange_weights(str(made.make_changed(base, tmp_path / "queries")))
    worker.reload_weights = whole
    assert worker.exchange_weights(None) is None and set(worker.came) == worker.base.keys()
