"""The GPU benchmark counts operations as published figures do, and its code runs without a GPU."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from kvray.models.memory import Decoder, decoder_of

QWEN_7B = Decoder(3584, 28, 28, 4, 128, 18944, 152064, False, 2)


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks/gpu.py"
    spec = importlib.util.spec_from_file_location("benchmark_gpu", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_operations_are_those_of_the_published_record(gpu: ModuleType) -> None:
    # 423 TFLOP/s at 14,110 tokens/s; kvray computes no logits of prompts.
    logits = 4 * QWEN_7B.vocabulary * QWEN_7B.hidden
    ours = gpu.operations(QWEN_7B, "lora", 4096)
    assert ours == pytest.approx(28.6e9, rel=0.01)
    assert ours + logits == pytest.approx(423e12 / 14110, rel=0.03)
    lora, attention, full = (gpu.operations(QWEN_7B, method, 4096) for method in ("lora", "attention", "full"))
    assert attention - lora == 2 * QWEN_7B.attention_weights
    assert full - lora == 2 * QWEN_7B.layer_weights


def test_its_7b_model_has_7b_weights(gpu: ModuleType) -> None:
    decoder = decoder_of(gpu.MISTRAL_7B)
    assert decoder is not None
    assert decoder.weights == pytest.approx(7.24e9, rel=1e-3)


def test_a_small_model_is_made_finetuned_and_measured(gpu: ModuleType, tmp_path: Path) -> None:
    model = tmp_path / "model"
    gpu.make(model, gpu.SMALL, gpu=False)
    asked = argparse.Namespace(length=48, batch=4, steps=3, rows=None, checkpointing="yes")
    found = gpu.finetune(str(model), "attention", asked)
    assert found["tokens_per_second"] > 0
    assert (found["rows_per_pass"], found["gradient_checkpointing"]) == (4, True)
    decoder = decoder_of(gpu.SMALL)
    assert decoder is not None
    assert found["estimate"] > 16 * decoder.attention_weights
    assert json.dumps(found)


def test_its_adapters_are_such_as_a_finetune_leaves(gpu: ModuleType, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = tmp_path / "model"
    gpu.make(model, gpu.SMALL, gpu=False)
    directory = gpu.adapter(str(model), tmp_path / "adapter", seed=1)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(directory))
    weights = [weight for name, weight in adapted.named_parameters() if "lora_B" in name]
    assert len(weights) == 2 * 4
    assert all(weight.any() for weight in weights)
