"""Adapter arithmetic on CPU, against one matrix product per row. No engine."""

from __future__ import annotations

import os

import pytest

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

WIDTHS = (24, 8)
SLOTS, RANK, INSIDE = 3, 4, 16


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def wrapper(rows: list[int]):
    """A wrapper told which adapter each row of the batch has (0 for none); all slots are taken, as in a long run."""
    from vllm.lora.layers import LoRAMapping

    from kvray.evaluate.engines.cpu_lora import GroupedPunicaWrapper

    made = GroupedPunicaWrapper(max_num_batched_tokens=64, max_batches=16, device="cpu")
    mapping = LoRAMapping(index_mapping=tuple(rows), prompt_mapping=tuple(rows), is_prefill=True)
    made.update_metadata(mapping, [11, 12, 13], SLOTS, 100)
    return made


@pytest.mark.parametrize(
    "rows", [[11] * 8, [0] * 8, [0, 0, 11, 11, 13, 13, 13, 12], [12, 0, 12, 0, 11, 0, 13, 0]], ids=str
)
def test_every_row_gets_its_own_adapter_and_base_rows_none(torch, rows: list[int]) -> None:
    torch.manual_seed(0)
    down = tuple(torch.randn(SLOTS, 1, RANK, INSIDE) for _ in WIDTHS)
    up = tuple(torch.randn(SLOTS, 1, width, RANK) for width in WIDTHS)
    x, y = torch.randn(len(rows), INSIDE), torch.randn(len(rows), sum(WIDTHS))
    before = y.clone()
    wrapper(rows).add_lora_linear(y, x, down, up, 0.5, WIDTHS)
    for row, adapter in enumerate(rows):
        added = torch.zeros(sum(WIDTHS))
        if adapter:
            slot = adapter - 11
            added = torch.cat([0.5 * (x[row] @ a[slot, 0].T) @ b[slot, 0].T for a, b in zip(down, up, strict=True)])
        torch.testing.assert_close(y[row] - before[row], added, atol=1e-5, rtol=1e-5)
        if not adapter:
            assert torch.equal(y[row], before[row])
