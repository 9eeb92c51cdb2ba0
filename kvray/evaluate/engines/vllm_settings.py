"""vLLM's settings and what it needs of the environment, computed before anything heavy is imported."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvray.errors import CellError, ResourceError, install_command
from kvray.evaluate.engines.base import ADAPTER_CONFIG, Serving
from kvray.models.lora import ENGINE_RANKS, LARGEST_RANK

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


def model_options(serving: Serving) -> dict[str, Any]:
    """Return the options that vLLM's ModelConfig and its engine share.

    The tokenizer is always the base model's. ``max_model_len`` is tokens per request; None for the model's own length.
    """
    base, gpu = serving.base.here(), serving.gpus > 0
    return {
        "model": str(serving.weights or base.location),
        "tokenizer": base.location,
        # A full finetune's weights are files, which have no revision.
        "revision": None if serving.weights else base.revision,
        "tokenizer_revision": base.revision,
        "trust_remote_code": base.trust_remote_code,
        "dtype": "auto" if gpu else "float32",
        "max_model_len": serving.runtime.max_model_len,
        "seed": 0,
        "enforce_eager": not gpu,
    }


def engine_options(serving: Serving, ranks: Sequence[int], length: int) -> dict[str, Any]:
    """Return the options of an engine for requests of at most ``length`` tokens.

    ``ranks`` are the real ranks of all adapters to serve. A fraction of a GPU takes that share of its memory.

    Raises:
        CellError: vLLM serves no such rank.
    """
    runtime = serving.runtime
    options = model_options(serving) | {"max_model_len": length, "enable_prefix_caching": True}
    if ranks:
        at_once = min(runtime.max_loras, len(ranks))
        options |= {"enable_lora": True, "max_loras": at_once, "max_lora_rank": lora_rank(max(ranks))}
    if serving.gpus > 0:
        options["gpu_memory_utilization"] = runtime.gpu_memory_utilization * min(serving.gpus, 1.0)
        if runtime.tensor_parallel > 1:
            # Ray has given this process all GPUs of the engine, so their workers are its children.
            options |= {"tensor_parallel_size": runtime.tensor_parallel, "distributed_executor_backend": "mp"}
    else:
        batch_tokens = max(CPU_BATCH_TOKENS, CPU_SEQUENCES)
        options |= {"max_num_seqs": CPU_SEQUENCES, "max_num_batched_tokens": batch_tokens, "block_size": CPU_BLOCK}
    if runtime.kv_cache_gib is not None:
        options["kv_cache_memory_bytes"] = int(runtime.kv_cache_gib * 2**30)
    elif serving.gpus == 0:
        options["kv_cache_memory_bytes"] = cache_bytes(model_config(serving), length)
    return options


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


def model_config(serving: Serving) -> Any:
    """Return vLLM's ModelConfig (no weights are loaded); ``max_model_len`` is the length the model can take.

    Raises:
        ValueError: vLLM cannot serve the model, or not at this length.
    """
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(**model_options(serving)).create_model_config()


def cache_bytes(config: Any, max_model_len: int) -> int:
    """Return a CPU engine's cache size: its whole batch, within 128 MiB and 1 GiB, but at least two requests.

    Without a size vLLM would ask for nine tenths of the machine's memory.
    """
    # Keys and values of every layer, in float32.
    per_token = 2 * 4 * config.get_total_num_hidden_layers() * config.get_total_num_kv_heads() * config.get_head_size()
    low, high = _CPU_CACHE_BYTES
    wanted = min(max(CPU_SEQUENCES * max_model_len * per_token, low), high)
    return int(max(wanted, 2 * (max_model_len + CPU_BLOCK) * per_token))
