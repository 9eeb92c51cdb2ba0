"""Small random models of several families are finetuned by the defaults, and vLLM serves the adapter of a fused one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvray
from kvray.errors import InputError
from kvray.evaluate.engines.base import Adapter, Reply, Request, Serving
from kvray.evaluate.engines.vllm import VllmEngine
from kvray.finetune.encode import Encoded
from kvray.finetune.placement import Shape
from kvray.finetune.train import train
from kvray.models.files import ModelFiles
from kvray.models.lora import ATTENTION, target_names
from kvray.models.reference import BUNDLED, BaseModelRef, resolve, tensor_names
from kvray.planning.limits import limits_of, resolved
from kvray.sweep.model import Finetune, Runtime

FUSED = ("o_proj", "qkv_proj")
FAMILIES = {
    "llama": (ATTENTION, {"down_proj", "gate_proj", "up_proj"}),
    "qwen2": (ATTENTION, {"down_proj", "gate_proj", "up_proj"}),
    "qwen3": (ATTENTION, {"down_proj", "gate_proj", "up_proj"}),
    "gemma2": (ATTENTION, {"down_proj", "gate_proj", "up_proj"}),
    "phi3": (FUSED, {"down_proj", "gate_up_proj"}),
    "gpt_neox": (("dense", "query_key_value"), {"dense_4h_to_h", "dense_h_to_4h"}),
    "gpt2": (("c_attn",), {"c_fc", "c_proj"}),
}
"""By model_type: the default targets, and those that all-linear adds."""
OWN = {"gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_inner": 128}}
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
}

Family = Callable[[str], BaseModelRef]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Makes a random model of a model_type, with kvray-tiny's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    def made(kind: str) -> BaseModelRef:
        home = tmp_path_factory.mktemp(kind)
        tiny = BUNDLED["kvray-tiny"]
        own = json.loads((tiny / "config.json").read_text())
        kept = {name: own[name] for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
        config = AutoConfig.for_model(kind, **kept, **OWN.get(kind, SIZES), tie_word_embeddings=True)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(home)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(tiny / file, home)
        return resolve(str(home))

    return made


def step(base: BaseModelRef, rows: Encoded, recipe: Finetune, out: Path) -> dict[str, Any]:
    """Train one step; return the adapter's configuration, after a check that the step moved it."""
    from safetensors.numpy import load_file

    shape = Shape(workers=1, cpus=1, gpus=0)
    done = train(base, rows, recipe, 0, out, shape=shape, runtime=Runtime(per_device_batch_size=16))
    assert len(done.log) == 1 and done.log[0]["learning_rate"] == recipe.rate
    weights = load_file(out / "model" / "adapter_model.safetensors")
    risen = [name for name, weight in weights.items() if "lora_B" in name and np.abs(weight).max() > 0]
    assert len(risen) == len(weights) / 2
    config: dict[str, Any] = json.loads((out / "model" / "adapter_config.json").read_text())
    return config


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_is_finetuned_by_the_defaults(kind: str, family: Family, rows: Encoded, tmp_path: Path) -> None:
    base = family(kind)
    attention, between = FAMILIES[kind]
    limits = limits_of(base, ModelFiles(Path(base.location)), tensor_names(base))
    assert limits.width == 64 and resolved(Finetune(), limits).lora_targets == attention
    everything = resolved(Finetune(lora_targets="all-linear"), limits).lora_targets
    assert everything == target_names("all-linear", limits.modules) and set(everything) == {*attention, *between}
    # Training finds in the model what the plan found in the names of its weights.
    assert set(step(base, rows, Finetune(epochs=0.1), tmp_path / "a")["target_modules"]) == set(attention)
    recipe = Finetune(epochs=0.1, lora_targets="all-linear", lora_rank=4)
    assert set(step(base, rows, recipe, tmp_path / "b")["target_modules"]) == set(everything)


@pytest.mark.parametrize("kind", FAMILIES)
def test_all_linear_is_what_peft_calls_so(kind: str, family: Family) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = family(kind)
    model = AutoModelForCausalLM.from_pretrained(base.location)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", fan_in_fan_out=kind == "gpt2")
    theirs = get_peft_model(model, config).peft_config["default"].target_modules
    assert {name.rpartition(".")[2] for name in theirs} == {*FAMILIES[kind][0], *FAMILIES[kind][1]}


def test_a_family_without_adapters_in_vllm_is_refused_by_the_plan(family: Family) -> None:
    base = family("gpt2")
    tasks = {"datasets": {"kv": kvray.tasks.SimpleKV(rows=16)}, "evaluate": {"recall": kvray.tasks.Recall()}}
    with pytest.raises(InputError, match=r"finetune\.method: found lora; vLLM serves no adapters of GPT2LMHeadModel"):
        kvray.plan(kvray.Sweep(name="s", base_model=base.location, **tasks))
    planned = kvray.plan(kvray.Sweep(name="s", base_model=base.location, finetune={"method": "attention"}, **tasks))
    assert "updates at learning rate 5e-06" in str(planned)


@pytest.mark.slow
def test_vllm_serves_the_adapter_of_a_fused_family_as_peft_does(family: Family, rows: Encoded, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, prompt = family("phi3"), rows.ids[0].astype(np.int32)
    step(base, rows, Finetune(epochs=0.1, learning_rate=0.05, lora_targets="all-linear"), tmp_path)
    adapter = Adapter("fused", 1, tmp_path / "model")
    VllmEngine.prepare(gpus=0, cpus=2)
    engine = VllmEngine(Serving(base, Runtime(kv_cache_gib=0.25), ranks=(16,)))
    engine.start(256)
    engine.load(adapter)
    plain = AutoModelForCausalLM.from_pretrained(base.location)
    ids = torch.from_numpy(prompt.astype(np.int64))[None]
    scores = {}
    for each in (None, adapter):
        with torch.no_grad():
            logits = (PeftModel.from_pretrained(plain, str(each.path)) if each else plain)(ids).logits[0, :-1]
        expected = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0].numpy()
        ((_, reply),) = engine.answer([(0, Request(prompt, kind="score", adapter=each))])
        assert isinstance(reply, Reply)
        scores[each] = np.array([value for value, _ in reply.scored])
        assert scores[each] == pytest.approx(expected, abs=1e-3)
    assert np.abs(scores[adapter] - scores[None]).max() > 0.1
