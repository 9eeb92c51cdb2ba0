"""What a model's files lack is told from the files alone, and so is what the model can take."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvray.errors import InputError
from kvray.models.files import ModelFiles, linear_modules, problems
from kvray.models.reference import BUNDLED, resolve

TINY = BUNDLED["kvray-tiny"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shutil.copytree(TINY, tmp_path / "model")
    return tmp_path / "model"


def config(model: Path, **changes: Any) -> None:
    known = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**known, **changes}))


def without_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def without_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def without_a_shard(model: Path) -> None:
    weights = {"a.weight": "one.safetensors", "b.weight": "model.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_tokenizer, "has no tokenizer (tokenizer.json, or tokenizer.model); copy it from the model"),
        (without_weights, "has no weights (model.safetensors"),
        (without_a_shard, "lacks 1 of 2 files of weights, one.safetensors first"),
        (lambda model: (model / "config.json").unlink(), "without config.json, so not a transformers model"),
        (lambda model: (model / "config.json").write_text("{"), "has a config.json that cannot be read: Expecting"),
        (lambda model: config(model, architectures=None), "without architectures, so vLLM cannot serve it"),
    ],
)
def test_a_directory_that_cannot_be_loaded_is_refused(
    model: Path, spoil: Callable[[Path], object], message: str
) -> None:
    assert problems(model) == []
    spoil(model)
    (problem,) = problems(model)
    assert message in problem
    with pytest.raises(InputError) as caught:
        resolve(str(model))
    assert caught.value.problems == [f"base_model: {model} {problem}"]


def test_a_model_that_only_counts_needs_no_weights(model: Path) -> None:
    without_weights(model)
    assert problems(model, weights=False) == []
    assert resolve("kvray-tiny", str(model)).tokenizer is not None


def test_modules_that_can_get_an_adapter_are_named(model: Path) -> None:
    names = {f"self_attn.{each}_proj" for each in "qkvo"} | {f"mlp.{each}_proj" for each in ("gate", "up", "down")}
    assert linear_modules(ModelFiles(model).tensor_names()) == names
    without_weights(model)
    assert ModelFiles(model).tensor_names() == frozenset()
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a.weight": "1.safetensors"}}))
    assert ModelFiles(model).tensor_names() == {"a.weight"}


@pytest.mark.parametrize(
    ("tensors", "modules"),
    [
        (["h.0.attn.c_attn.weight", "h.0.attn.c_attn.bias", "h.0.ln_1.weight", "wte.weight"], {"attn.c_attn"}),
        (["gpt_neox.layers.11.attention.dense.weight", "embed_out.weight"], {"attention.dense"}),
        (["model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_norm.weight"], {"self_attn.q_proj"}),
        (["vision_tower.encoder.layers.0.self_attn.out_proj.weight", "lm_head.weight"], set()),
        (["model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.experts.0.w1.weight"], set()),
    ],
)
def test_what_is_linear_is_told_by_the_names_of_weights(tensors: list[str], modules: set[str]) -> None:
    assert linear_modules(tensors) == modules


def test_the_class_and_the_width_are_read(model: Path) -> None:
    assert (ModelFiles(model).architecture, ModelFiles(model).width) == ("MistralForCausalLM", 128)


def test_templates_and_special_tokens_are_read_in_every_form(model: Path) -> None:
    assert "[INST]" in (ModelFiles(model).chat_template or "")
    (model / "chat_template.jinja").unlink()
    assert ModelFiles(model).chat_template is None
    words = json.loads((model / "tokenizer_config.json").read_text())
    forms: list[Any] = ["x", [{"name": "rag", "template": "y"}, {"name": "default", "template": "x"}]]
    for form in forms:
        changed = {**words, "chat_template": form, "bos_token": {"content": "<s>", "lstrip": False}}
        (model / "tokenizer_config.json").write_text(json.dumps(changed))
        assert ModelFiles(model).chat_template == "x"
        assert ModelFiles(model).special_tokens["bos_token"] == "<s>"
