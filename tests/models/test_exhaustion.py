"""Memory that ran out is told with the knob to change, from the words of whoever ran out of it."""

from __future__ import annotations

import pytest
import torch

from kvray.models.exhaustion import exhaustion

CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.2 GiB is free."
)
RAY = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.2) was 31 GB / 32 GB"
)
KERNEL = "Worker exit detail: Worker unexpectedly exits with a connection error code 2. End of file."


def of_torch() -> str:
    with pytest.raises(RuntimeError) as failure:
        torch.empty(10**15)
    return str(failure.value)


@pytest.mark.parametrize(
    ("text", "finetune", "words", "final"),
    [
        (CUDA, True, ("GPU's memory", "per_device_batch_size", "gradient_checkpointing: true", "strategy: fsdp"), True),
        (CUDA, False, ("GPU's memory", "gpu_memory_utilization", "max_model_len", "tensor_parallel"), True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling", True, ("GPU's memory",), True),
        (RAY, True, ("node's memory", "concurrent_finetunes", "cpus_per_finetune"), False),
        (RAY, False, ("node's memory", "runtime.engines", "kv_cache_gib"), False),
        (KERNEL, True, ("killed from outside", "dmesg", "concurrent_finetunes"), False),
        (of_torch(), True, ("node's memory", "per_device_batch_size"), False),
    ],
)
def test_the_sentence_names_what_to_change(text: str, finetune: bool, words: tuple[str, ...], final: bool) -> None:
    found = exhaustion(f"a trace\n{text}\nand more of it", finetune)
    assert found is not None and found.final == final
    assert all(word in found.sentence for word in words), found.sentence
    assert "\n" not in found.sentence


@pytest.mark.parametrize("text", ["", "RuntimeError: shapes do not match", "ValueError: memory_format"])
def test_other_errors_are_not_explained_by_memory(text: str) -> None:
    assert exhaustion(text, finetune=True) is None
    assert exhaustion(text, finetune=False) is None
