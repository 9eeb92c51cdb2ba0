"""What a model's files lack is told from the files alone, and so is what the model can take."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvray.errors import InputError
from kvray.models.files import ModelFiles, problems
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
    names = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert ModelFiles(model).module_names() == names
    without_a_shard(model)
    assert ModelFiles(model).module_names() == frozenset()
    experts = {"model.layers.0.mlp.experts.0.w1.weight": "model.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": experts}))
    assert ModelFiles(model).module_names() == frozenset()


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
