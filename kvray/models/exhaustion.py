"""What to change where memory ran out: from the words of torch, CUDA, vLLM, Ray and the kernel to the sweep's knobs."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Exhaustion:
    """That memory ran out: a sentence with what to change, and whether any further attempt would end the same way."""

    sentence: str
    final: bool


@dataclass(frozen=True)
class _Case:
    words: tuple[str, ...]
    what: str
    final: bool
    knobs: Mapping[bool, str]  # by whether a finetune met it, or an engine


_SMALLER = (
    "lower runtime.per_device_batch_size, set runtime.gradient_checkpointing: true, or spread the weights over more "
    "runtime.workers_per_finetune by runtime.strategy: fsdp"
)
_FEWER = (
    "lower runtime.concurrent_finetunes, raise runtime.cpus_per_finetune so fewer share a node, or take larger nodes"
)
_CASES = (
    _Case(
        ("No available memory for the cache blocks", "larger than the available KV cache memory"),
        "the memory left beside the weights does not hold the keys and values of one request",
        True,
        {
            False: "raise runtime.gpu_memory_utilization, or runtime.kv_cache_gib if the sweep sets it, lower "
            "runtime.max_model_len, or split the weights over runtime.tensor_parallel GPUs"
        },
    ),
    _Case(
        ("less than desired GPU memory utilization",),
        "other processes hold memory of this GPU",
        False,
        {False: "lower runtime.gpu_memory_utilization, or end them (nvidia-smi lists them)"},
    ),
    _Case(
        (
            "CUDA out of memory",
            "CUDA error: out of memory",
            "HIP out of memory",
            "CUBLAS_STATUS_ALLOC_FAILED",
            "not enough GPU memory",
        ),
        "the GPU's memory ran out",
        True,
        {
            True: _SMALLER,
            False: "lower runtime.gpu_memory_utilization (what vLLM does not take is left to what it computes with) or "
            "runtime.max_model_len, or split the weights over runtime.tensor_parallel GPUs",
        },
    ),
    _Case(
        (
            "due to the node running low on memory",
            "DefaultCPUAllocator: can't allocate memory",
            "Cannot allocate memory",
        ),
        "the node's memory ran out",
        False,
        {
            True: f"{_FEWER}; on CPUs {_SMALLER}",
            False: "lower runtime.engines, raise runtime.cpus_per_engine so that fewer share a node, on CPUs lower "
            "runtime.kv_cache_gib, or take larger nodes",
        },
    ),
    _Case(
        ("Worker unexpectedly exits with a connection error code 2",),
        "the process was killed from outside, by the kernel if the node's memory ran out (dmesg tells)",
        False,
        {True: f"then {_FEWER}", False: "then lower runtime.engines or runtime.kv_cache_gib, or take larger nodes"},
    ),
)


def exhaustion(text: str, finetune: bool) -> Exhaustion | None:
    """Return what an error's text, or a whole trace, says of memory that ran out; None if it says nothing of it.

    ``finetune`` tells whether it was met by a finetune, else by an engine.
    """
    for case in _CASES:
        if finetune in case.knobs and any(words in text for words in case.words):
            return Exhaustion(f"{case.what}: {case.knobs[finetune]}", case.final)
    return None
