"""LoRA on vLLM's CPU back end: right for base rows, and several times quicker.

vLLM 0.32 applies adapters on CPU with ``weights[slot_of_token]``, a gather that copies one whole weight matrix per
token: seven times slower than the base on a 1.3 M-parameter model. It also reads slot -1 ("no adapter") as the *last*
slot, so once every slot is taken a base request in a decode or mixed batch silently gets the last adapter. Here each
run of tokens that share an adapter is one small matrix product, and runs without an adapter are left alone. Only a
process that runs an engine may import this module: torch and vLLM are imported at the top.
"""

from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform


def install() -> None:
    """Make vLLM's CPU platform choose :class:`GroupedPunicaWrapper` for engines made from now on; elsewhere nothing."""
    if current_platform.is_cpu():
        qualified = f"{GroupedPunicaWrapper.__module__}.{GroupedPunicaWrapper.__qualname__}"
        type(current_platform).get_punica_wrapper = classmethod(lambda _cls: qualified)


class GroupedPunicaWrapper(PunicaWrapperCPU):  # type: ignore[misc]  # vllm is untyped here
    """vLLM's CPU adapter arithmetic, one matrix product per run of tokens that share an adapter."""

    _runs: tuple[tuple[int, int, int], ...] = ()

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Note which rows of the coming batch use which adapter slot: ``(slot, first row, end)``."""
        super().update_metadata(*args, **kwargs)
        slots, counts = torch.unique_consecutive(self.token_lora_indices, return_counts=True)
        runs, start = [], 0
        for slot, count in zip(slots.tolist(), counts.tolist(), strict=True):
            if slot >= 0:
                runs.append((slot, start, start + count))
            start += count
        self._runs = tuple(runs)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        """Add ``scale * (x @ A.T) @ B.T`` of each row's adapter to ``y`` in place, slice by slice.

        Shapes: ``y`` is ``(tokens, sum(output_slices))``, ``x`` is ``(tokens, in)``; per slice ``lora_a_stacked`` is
        ``(slots, 1, rank, in)`` and ``lora_b_stacked`` ``(slots, 1, slice, rank)``. ``output_slices`` are the widths of
        the packed outputs (q, k, v). vLLM folds the adapter's own scaling into B; its other arguments are not needed.
        """
        rows, out = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        for slot, start, stop in self._runs:
            offset = 0
            for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                down = rows[start:stop] @ a[slot, 0].T
                target = out[start:stop, offset : offset + width]
                target.addmm_(down.to(b.dtype), b[slot, 0].T, alpha=scale)
                offset += width
