"""vLLM's settings and what it needs of the environment, computed before anything heavy is imported."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvray.errors import CellError, ResourceError, install_command
from kvray.evaluate.engines.base import ADAPTER_CONFIG
from kvray.models.lora import ENGINE_RANKS, LARGEST_RANK
from kvray.models.reference import BaseModelRef
from kvray.sweep.model import Runtime

CPU_SEQUENCES = 128
"""Requests in one batch of a CPU engine."""
CPU_BATCH_TOKENS = 4096
CPU_BLOCK = 32
"""Tokens per block of a CPU engine's prefix cache (vLLM's own 128 would share little of a 500-token prompt)."""
_CPU_CACHE_BYTES = (128 * 2**20, 2**30)


def prepare_environment(gpu: bool, cpus: float) -> None:
    """Set what vLLM, OpenMP and the hub's libraries read from the environment; call it before importing them.

    What the user has set stays, except for what this module's way of running needs.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    for name, value in {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "true",
        # Libraries that load benchmarks' data would report what is loaded.
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    }.items():
        os.environ.setdefault(name, value)
    if not gpu:
        # Binding to fixed cores would put two engines of one host on the same ones.
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        os.environ["OMP_NUM_THREADS"] = str(max(1, int(cpus)))
        # By default OpenMP threads spin at every barrier: with one busy neighbour that is ten times slower.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def lora_rank(real: int) -> int:
    """Return the smallest rank vLLM can be set to that holds ``real``: a higher one costs memory and time.

    Raises:
        CellError: vLLM serves no such rank.
    """
    for allowed in ENGINE_RANKS:
        if real <= allowed:
            return allowed
    raise CellError(f"LoRA rank {real}: vLLM serves at most rank {LARGEST_RANK}")


def adapter_rank(adapter: Path) -> int:
    """Return the largest rank of a peft adapter.

    Raises:
        CellError: its configuration is unreadable, or the rank is more than vLLM serves.
    """
    try:
        config = json.loads((adapter / ADAPTER_CONFIG).read_text())
        rank = max([int(config["r"]), *(int(other) for other in (config.get("rank_pattern") or {}).values())])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CellError(f"{adapter / ADAPTER_CONFIG} is no readable adapter configuration ({error!r})") from error
    lora_rank(rank)
    return rank


@dataclass(frozen=True)
class Settings:
    """An engine's settings, by the names of vLLM's options; recorded with the predictions.

    Attributes:
        tokenizer: always the base model's.
        revision: hub commit of the base model; None for a directory.
        max_loras: adapters in one batch; 0 for an engine without adapters.
        gpu_memory_utilization: share of each GPU that vLLM takes.
        kv_cache_bytes: None lets a GPU decide, and a CPU compute what its batch needs.
        max_model_len: tokens per request; None for the model's own.
    """

    model: str
    tokenizer: str
    revision: str | None
    trust_remote_code: bool
    gpu: bool
    max_loras: int
    max_lora_rank: int
    tensor_parallel: int
    gpu_memory_utilization: float
    kv_cache_bytes: int | None
    max_model_len: int | None


def settings(base: BaseModelRef, runtime: Runtime, gpus: float, full: Path | None, ranks: Sequence[int]) -> Settings:
    """Return the settings of an engine.

    A fraction of ``gpus`` takes that share of the memory. ``full`` holds the weights of a full finetune, served in
    place of the base; ``ranks`` are the real ranks of all adapters to serve.
    """
    gib = runtime.kv_cache_gib
    base = base.here()
    return Settings(
        model=str(full) if full else base.location,
        tokenizer=base.location,
        revision=base.revision,
        trust_remote_code=base.trust_remote_code,
        gpu=gpus > 0,
        max_loras=min(runtime.max_loras, len(ranks)),
        max_lora_rank=lora_rank(max(ranks, default=1)),
        tensor_parallel=runtime.tensor_parallel if gpus else 1,
        gpu_memory_utilization=runtime.gpu_memory_utilization * (min(gpus, 1.0) or 1.0),
        kv_cache_bytes=None if gib is None else int(gib * 2**30),
        max_model_len=runtime.max_model_len,
    )


def check_platform(gpu: bool) -> None:
    """Make sure that the installed vLLM runs on what was asked for.

    Raises:
        ResourceError: it is the other build, or lacks the compiler that the CPU build needs.
    """
    from vllm.platforms import current_platform

    if gpu and current_platform.is_cpu():
        raise ResourceError(f"GPU: vLLM on this node is the CPU build; on GPU nodes type {install_command('gpu')}")
    if not gpu and not current_platform.is_cpu():
        raise ResourceError(
            "GPU: vLLM on this node is not the CPU build, and no GPU was asked for; set runtime.gpus_per_engine, or "
            f"make an environment for the CPU: type {install_command('cpu')}"
        )
    compiler = os.environ.get("CXX", "g++").split()[0]  # what torch looks for
    if not gpu and shutil.which(compiler) is None:
        raise ResourceError(
            f"{compiler}: not found on this node, and vLLM on a CPU compiles parts of itself as it starts; install a "
            "C++ compiler (Debian and Ubuntu: apt install g++)"
        )


def model_config(settings: Settings) -> Any:
    """Return vLLM's ModelConfig (no weights are loaded); ``max_model_len`` is the length the model can take.

    Raises:
        ValueError: vLLM cannot serve the model, or not at this length.
    """
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(**common_options(settings, settings.max_model_len)).create_model_config()


def cache_bytes(config: Any, max_model_len: int) -> int:
    """Return a CPU engine's cache size: its whole batch, within 128 MiB and 1 GiB, but at least two requests.

    Without a size vLLM would ask for nine tenths of the machine's memory.
    """
    # Keys and values of every layer, in float32.
    per_token = 2 * 4 * config.get_total_num_hidden_layers() * config.get_total_num_kv_heads() * config.get_head_size()
    low, high = _CPU_CACHE_BYTES
    wanted = min(max(CPU_SEQUENCES * max_model_len * per_token, low), high)
    return int(max(wanted, 2 * (max_model_len + CPU_BLOCK) * per_token))


def common_options(settings: Settings, max_model_len: int | None) -> dict[str, Any]:
    """Return the options that vLLM's ModelConfig and its engine share."""
    return {
        "model": settings.model,
        "tokenizer": settings.tokenizer,
        # A full finetune's weights are files, which have no revision; the tokenizer is the base model's.
        "revision": settings.revision if settings.model == settings.tokenizer else None,
        "tokenizer_revision": settings.revision,
        "trust_remote_code": settings.trust_remote_code,
        "dtype": "auto" if settings.gpu else "float32",
        "max_model_len": max_model_len,
        "seed": 0,
        "enforce_eager": not settings.gpu,
    }
