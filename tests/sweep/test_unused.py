"""A knob of finetune that nothing uses is told, at its line; what overrides leave behind is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_tasks import Toy

from kvray.errors import InputError
from kvray.sweep.load import load
from kvray.tasks.base import REGISTRY

HEAD = "name: a\nbase_model: kvray-tiny\ndatasets: {d: {task: toy}}\nevaluate: {q: {task: toy, seed: 9}}\n"


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(REGISTRY, "toy", Toy)
    monkeypatch.chdir(tmp_path)


def told(text: str, *overrides: str, scale: str | None = None, head: str = HEAD) -> list[str]:
    Path("s.yaml").write_text(head + text)
    try:
        load("s.yaml", overrides, scale)
    except InputError as error:
        return error.problems
    return []


@pytest.mark.parametrize("method", ["full", "attention"])
def test_what_only_an_adapter_has_is_told_beside_another_method(method: str) -> None:
    text = f"finetune:\n  method: {method}\n  lora_rank: 8\n  lora_dropout: 0.1\n"
    ending = f"which method: {method} does not use; expected it left out, or method: lora"
    assert told(text) == [
        f"s.yaml:7: finetune.lora_rank: found 8, {ending}",
        f"s.yaml:8: finetune.lora_dropout: found 0.1, {ending}",
    ]
    assert told(text.replace(method, "lora")) == []


def test_what_an_api_has_is_told_beside_a_model_of_ours_and_the_other_way_round() -> None:
    assert told("finetune: {api_batch_size: 8}\n") == [
        "s.yaml:5: finetune.api_batch_size: found 8, which method: lora does not use; expected it left out"
    ]
    head = HEAD.replace("kvray-tiny", "openai:gpt")
    assert told("finetune: {api_batch_size: 8, epochs: 3, seeds: [1, 2], reseed_data: true}\n", head=head) == []
    assert told("finetune: {learning_rate: 1e-5, method: lora}\n", head=head) == [
        f"s.yaml:5: finetune.{name}: found {value}, which a model behind an API does not use; expected it left out"
        for name, value in (("method", "'lora'"), ("learning_rate", "1e-05"))
    ]


def test_a_knob_that_one_variant_uses_is_used() -> None:
    grid = "grid: {finetune.method: [full, lora]}\n"
    assert told("finetune: {lora_rank: 8}\n" + grid) == []
    assert told("grid: {finetune.method: [full, lora], finetune.lora_rank: [8, 16]}\n") == []
    (found,) = told("zip: {finetune.method: [full, attention], finetune.lora_rank: [8, 16]}\n")
    assert found.startswith(
        "s.yaml:5: zip.finetune.lora_rank: found [8, 16], which method: attention and full does not"
    )


def test_what_an_override_or_a_scale_leaves_behind_is_not_told() -> None:
    text = "finetune: {method: lora, lora_rank: 8}\nscales: {small: {finetune.method: full}}\n"
    assert told(text, "finetune.method=full") == told(text, scale="small") == told(text, "base_model=openai:x") == []


def test_what_is_typed_or_written_in_a_scale_for_nothing_is_told() -> None:
    (found,) = told("finetune: {method: full}\n", "finetune.lora_rank=8")
    assert found.startswith("--set finetune.lora_rank: finetune.lora_rank: found 8, which method: full does not use")
    text = "finetune: {method: full}\nscales:\n  small:\n    finetune: {lora_rank: 8}\n"
    (found,) = told(text, scale="small")
    assert found.startswith("s.yaml:8: finetune.lora_rank: found 8, which method: full does not use")
    (found,) = told("", "finetune={method: full, lora_rank: 8}")
    assert found.startswith("--set finetune: finetune.lora_rank: found 8")
