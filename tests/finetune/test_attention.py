"""Packed rows have the losses and gradients of padded ones: no row sees another, however it is computed."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, MambaConfig, MistralConfig, Qwen2Config

from kvray.errors import CellError
from kvray.finetune import attention
from kvray.finetune.attention import FLASH_3, VARLEN, choose, packs, varlen_forward
from kvray.finetune.batches import SplitLoss, collate, pack
from kvray.finetune.placement import Shape
from kvray.finetune.train import train
from kvray.sweep.model import Finetune, Runtime

AMPERE, HOPPER = (8, 0), (9, 0)
LENGTHS = (13, 40, 1, 27)
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES = {
    "llama": LlamaConfig(**SIZES),
    "mistral, a window": MistralConfig(**SIZES, sliding_window=9),
    "qwen2, a window in some layers": Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=9, max_window_layers=1
    ),
}


def reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> torch.Tensor:
    """What torch's kernel is documented to compute, row by row, on any device."""
    assert cu_seq_q.dtype == torch.int32 and torch.equal(cu_seq_q, cu_seq_k)
    assert max_q == max_k == int(cu_seq_q.diff().max())
    assert enable_gqa and window_size[1] == 0
    rows = []
    for start, end in pairwise(cu_seq_q.tolist()):
        at = torch.arange(end - start)
        seen = at[:, None] >= at
        if window_size[0] >= 0:
            seen &= at[:, None] - at <= window_size[0]
        q, k, v = (each[start:end].transpose(0, 1) for each in (query, key, value))
        k, v = (each.repeat_interleave(len(q) // len(each), dim=0) for each in (k, v))
        rows.append(torch.nn.functional.scaled_dot_product_attention(q, k, v, seen, scale=scale).transpose(0, 1))
    return torch.cat(rows)


def rows(seed: int = 0) -> list[tuple[np.ndarray, int]]:
    rng = np.random.default_rng(seed)
    answers = [min(length - 1, int(rng.integers(1, 6))) for length in LENGTHS]
    return [(rng.integers(3, 64, length).astype(np.int32), n) for length, n in zip(LENGTHS, answers, strict=True)]


def step(config: Any, name: str, batch: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=name).train()
    model.config.use_cache = False  # as in training: with a cache transformers takes packed rows for one
    labels = batch["labels"]
    loss = SplitLoss(np.zeros(64, np.bool_))(model(**{k: v for k, v in batch.items() if k != "labels"}), labels)
    loss.backward()
    return loss.item(), {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["sdpa", "eager", VARLEN])
def test_packed_rows_have_the_losses_and_gradients_of_padded_ones(monkeypatch, family, name):
    monkeypatch.setattr(attention, "varlen_attn", reference)
    config = FAMILIES[family]
    padded, expected = step(config, "sdpa", collate(rows(), 0))
    packed, found = step(config, name, pack(rows()))
    assert packed == pytest.approx(padded, abs=1e-6)
    for weight, gradient in expected.items():
        assert torch.allclose(found[weight], gradient, atol=1e-6), weight


def test_a_row_is_the_same_whatever_is_packed_before_it(monkeypatch):
    monkeypatch.setattr(attention, "varlen_attn", reference)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES["mistral, a window"], attn_implementation=VARLEN)

    def logits(items: list[tuple[np.ndarray, int]]) -> torch.Tensor:
        batch = pack(items)
        return model(**{k: v for k, v in batch.items() if k != "labels"}).logits[0]

    last = rows()[-1]
    alone = logits([last])
    for seed in (1, 2):
        assert torch.allclose(logits([*rows(seed)[:-1], last])[-len(alone) :], alone, atol=1e-6)


def test_a_packed_batch_says_where_rows_begin_and_keeps_their_answers():
    items = [(np.array([5, 6, 7], np.int32), 2), (np.array([8], np.int32), 0), (np.array([9, 10], np.int32), 1)]
    batch = pack(items)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 10]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 3, 4, 6]
    assert batch["max_length_q"] == 3
    assert batch["logits_to_keep"].tolist() == [0, 1, 2, 3, 4, 5]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, -100, 10]]


@pytest.mark.parametrize("method", ["lora", "attention"])
def test_a_finetune_on_packed_rows_is_the_one_on_padded_rows(monkeypatch, mini, rows, tmp_path, method):
    recipe, shape = Finetune(method=method, learning_rate=3e-3), Shape(1, 1, 0)
    runtime = Runtime(gradient_checkpointing=True)
    padded = train(mini, rows, recipe, 0, tmp_path / "padded", shape=shape, runtime=runtime)
    monkeypatch.setattr(attention, "varlen_attn", reference)
    monkeypatch.setattr(attention, "choose", lambda config, capability: VARLEN)
    packed = train(mini, rows, recipe, 0, tmp_path / "packed", shape=shape, runtime=runtime)
    assert [row["loss"] for row in packed.log] == pytest.approx([row["loss"] for row in padded.log], abs=1e-5)
    assert padded.measurements["attention"] == "sdpa"
    assert packed.measurements["attention"] == VARLEN
    for config in (tmp_path / "packed/model").glob("*config.json"):
        assert VARLEN not in config.read_text()  # vLLM and others do not know it


@pytest.mark.parametrize(
    ("config", "capability", "expected"),
    [
        (MistralConfig(**SIZES), None, None),
        (MistralConfig(**SIZES), (7, 5), None),
        (MistralConfig(**SIZES), AMPERE, VARLEN),
        (MistralConfig(**SIZES), HOPPER, VARLEN),
        (FAMILIES["qwen2, a window in some layers"], AMPERE, VARLEN),
        (MistralConfig(**SIZES, attention_dropout=0.1), AMPERE, None),
        (MistralConfig(**{**SIZES, "head_dim": 512}), AMPERE, None),
        (MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2), AMPERE, None),
        (AutoConfig.for_model("gemma2", **SIZES, attn_logit_softcapping=50.0), AMPERE, None),
        (AutoConfig.for_model("lfm2", vocab_size=64, hidden_size=32, full_attn_idxs=[1]), AMPERE, None),
        (AutoConfig.for_model("deepseek_v3", vocab_size=64, hidden_size=32), AMPERE, None),
        (SimpleNamespace(), AMPERE, None),
    ],
)
def test_rows_are_packed_only_where_no_row_can_see_another(config, capability, expected):
    assert choose(config, capability) == expected


def test_hoppers_own_flash_kernels_are_taken_where_they_are_installed(monkeypatch):
    monkeypatch.setattr(attention, "is_flash_attn_3_available", lambda: True)
    assert choose(MistralConfig(**SIZES), HOPPER) == FLASH_3
    assert choose(MistralConfig(**SIZES), AMPERE) == VARLEN
    assert packs(FLASH_3) and packs(VARLEN) and not packs(None) and not packs("sdpa")


@pytest.mark.parametrize(
    "asked",
    [{"softcap": 50.0}, {"s_aux": torch.zeros(4)}, {"dropout": 0.1}, {"attention_mask": torch.ones(1, 1, 4, 4)}, {}],
)
def test_what_the_kernel_does_not_compute_is_refused(asked):
    tensor = torch.zeros(1, 4, 4, 8)
    given = {"attention_mask": None, **asked}
    starts = {"cu_seq_lens_q": torch.tensor([0, 4], dtype=torch.int32), "max_length_q": 4} if asked else {}
    with pytest.raises(CellError, match="does not compute"):
        varlen_forward(SimpleNamespace(is_causal=True), tensor, tensor, tensor, **given, **starts)
