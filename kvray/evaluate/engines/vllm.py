"""One vLLM engine in this process: the base model, any number of its adapters, and weights in the base model's place.

Without an engine-core child it starts in 3 s instead of 30 on CPU, and Ray watches the one process that can die.
Requests are a stream: the last slow answers of one adapter overlap with the first prompts of the next.
"""

import functools
import itertools
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kvray.errors import (
    CellError,
    InputError,
    KvrayError,
    MemoryExhaustedError,
    ResourceError,
    first_line,
    install_command,
    last_line,
)
from kvray.evaluate.engines.base import Adapter, Engine, Key, Reply, Request, Serving
from kvray.evaluate.engines.weights import ADAPTER, WeightExchange
from kvray.models.exhaustion import exhaustion
from kvray.models.lora import ENGINE_RANKS

CPU_SEQUENCES = 128
"""Requests in one batch of a CPU engine."""
CPU_BATCH_TOKENS = 4096
CPU_BLOCK = 32
"""Tokens per block of a CPU engine's prefix cache (vLLM's own 128 would share little of a 500-token prompt)."""
CPU_LORAS = 64
"""Most adapters kept in the host's memory, where each takes up to some hundred MB (7B model); others are read again."""
_CPU_CACHE_BYTES = (128 * 2**20, 2**30)


def model_options(serving: Serving) -> dict[str, Any]:
    """Return the options that vLLM's ModelConfig and its engine share."""
    base, gpu = serving.base.here(), serving.gpus > 0
    return {
        "model": base.location,
        "tokenizer": base.location,
        "revision": base.revision,
        "tokenizer_revision": base.revision,
        "trust_remote_code": base.trust_remote_code,
        # Where a model of Mistral's has its own format's files too, vLLM would take those, and of its finetune these.
        "config_format": "hf",
        "load_format": "safetensors",
        "tokenizer_mode": "hf",
        "dtype": "auto" if gpu else "float32",
        "max_model_len": serving.runtime.max_model_len,
        "seed": 0,
        "enforce_eager": not gpu,
    }


def engine_options(serving: Serving, length: int) -> dict[str, Any]:
    """Return an engine's options for requests of at most ``length`` tokens."""
    runtime = serving.runtime
    options = model_options(serving) | {"max_model_len": length, "enable_prefix_caching": True}
    options["worker_extension_cls"] = f"{WeightExchange.__module__}.{WeightExchange.__qualname__}"
    if serving.ranks:
        at_once = min(runtime.max_loras, len(serving.ranks))
        # By default as many are kept as are in one batch, and the others read from their files at every turn.
        kept = max(at_once, min(len(serving.ranks), CPU_LORAS))
        rank = min(allowed for allowed in ENGINE_RANKS if allowed >= max(serving.ranks))
        options |= {"enable_lora": True, "max_loras": at_once, "max_cpu_loras": kept, "max_lora_rank": rank}
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
    """Raise ResourceError if the installed vLLM is the other build, or lacks the compiler that the CPU build needs."""
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
    """Return vLLM's ModelConfig, without weights; ValueError if vLLM cannot serve the model, or not at this length."""
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


def sampling(request: Request) -> Any:
    """Return vLLM's ``SamplingParams`` of a request."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    common: dict[str, Any] = {"temperature": 0.0, "output_kind": RequestOutputKind.FINAL_ONLY}
    if request.kind == "generate":
        return SamplingParams(
            max_tokens=request.max_tokens,
            stop=list(request.stop) or None,
            skip_special_tokens=not request.special_tokens,
            spaces_between_special_tokens=not request.special_tokens,
            **common,
        )
    # Such requests never read the prefix cache. vLLM must write one token; it is not kept.
    if request.kind == "score":
        return SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False, **common)
    return SamplingParams(max_tokens=1, logprob_token_ids=sorted(set(request.labels)), detokenize=False, **common)


def reply(request: Request, output: Any) -> Reply:
    """Return a finished vLLM ``RequestOutput`` as a reply; RuntimeError if vLLM did not end the request well."""
    (written,) = output.outputs
    if written.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM ended a request with {written.finish_reason!r}, expected stop or length")
    length, cached = len(request.tokens), output.num_cached_tokens
    if request.kind == "generate":
        return Reply(length, cached, len(written.token_ids), written.text, written.finish_reason)
    if request.kind == "score":
        pairs = zip(request.tokens, output.prompt_logprobs, strict=True)
        likely = [by_token[int(token)] for token, by_token in pairs if by_token is not None][request.context - 1 :]
        scored = tuple((each.logprob, each.rank == 1) for each in likely)
    else:
        (likeliest,), (by_token,) = written.token_ids, written.logprobs
        scored = tuple((by_token[label].logprob, label == likeliest) for label in request.labels)
    return Reply(length, cached, 0, None, "stop", scored)


def explained(error: Exception, final: type[KvrayError]) -> Exception:
    """Return an error of vLLM's with what to change if it says that memory ran out: ``final`` if it always would."""
    found = exhaustion(str(error), finetune=False)
    if found is None:
        return error
    return (final if found.final else RuntimeError)(f"{found.sentence} ({first_line(error)})")


def _lora_request(adapter: Adapter) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(adapter.name, adapter.number, str(adapter.path))


class VllmEngine(Engine):
    """vLLM on the GPUs of this process, or on its CPUs."""

    def __init__(self, serving: Serving) -> None:
        super().__init__(serving)
        self._names = map(str, itertools.count())

    @classmethod
    def prepare(cls, gpus: float, cpus: float) -> None:
        """Set the environment of vLLM, OpenMP and the hub; the user's own stays, except for what is needed here."""
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
        if not gpus:
            # Binding to fixed cores would put two engines of one host on the same ones.
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
            os.environ["OMP_NUM_THREADS"] = str(max(1, int(cpus)))
            # By default OpenMP threads spin at every barrier: with one busy neighbour that is ten times slower.
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    @functools.cached_property
    def limit(self) -> int:
        """Tokens that the model can take; ResourceError or InputError if vLLM does not run here or cannot serve it."""
        check_platform(self.serving.gpus > 0)
        try:
            return int(model_config(self.serving).max_model_len)
        except (ValueError, OSError) as error:
            raise InputError(f"model {self.serving.base.name}: vLLM cannot serve it: {error}") from error

    def start(self, length: int) -> None:
        """Load the weights; ResourceError if they do not fit. After an error the process is of no use."""
        import torch
        import vllm

        from kvray.evaluate.engines import cpu_lora

        cpu_lora.install()
        options = engine_options(self.serving, length)
        try:
            llm = vllm.LLM(use_tqdm_on_load=False, **options)
        except (RuntimeError, ValueError) as error:
            raise explained(error, ResourceError) from error
        self._engine = llm.llm_engine
        self._engine.collective_rpc("expose_stacks")
        # Twice the batch keeps the scheduler's queue filled without holding every prompt of the sweep in it.
        self._window = 2 * self._engine.vllm_config.scheduler_config.max_num_seqs
        gpu = torch.cuda.get_device_name() if self.serving.gpus else ""
        places = {name: options[name] for name in ("model", "tokenizer")}
        self._info: dict[str, Any] = {
            "id": uuid.uuid4().hex[:8],
            "vllm": vllm.__version__,
            "device": gpu or f"cpu, {torch.get_num_threads()} threads",
            "dtype": str(llm.model_config.dtype).removeprefix("torch."),
            "flags": options | {name: Path(at).name if os.path.isabs(at) else at for name, at in places.items()},
        }

    def info(self, adapter: Adapter | None) -> dict[str, Any]:
        """Return a name of this engine alone, vLLM's version, device, type of the weights, every option; no paths."""
        return self._info

    def load(self, adapter: Adapter) -> None:
        """Load an adapter; CellError if vLLM refuses it. A bad one at request time would kill the engine."""
        if not (adapter.path / ADAPTER).is_file():  # vLLM would read a pickled one
            raise CellError(f"adapter {adapter.name}: found no {ADAPTER}; expected safetensors")
        try:
            loaded = self._engine.add_lora(_lora_request(adapter))
        except Exception as error:
            # vLLM, safetensors and torch each raise kinds of their own for a damaged or unsupported adapter.
            raise CellError(f"adapter {adapter.name}: vLLM cannot load it: {last_line(error)}") from error
        if not loaded:
            raise CellError(f"adapter {adapter.name}: vLLM did not load it (and did not say why)")

    def exchange(self, weights: Path | None) -> None:
        """Load a finetune's weights, or the base model's again, into the memory of those that are served."""
        wrong, *_ = self._engine.collective_rpc("exchange_weights", args=(str(weights) if weights else None,))
        if wrong:
            raise CellError(f"{weights.name if weights else 'the base model'}: {wrong}")
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM kept a prefix cache of the weights before")

    def answer(self, requests: Iterable[tuple[Key, Request]]) -> Iterator[tuple[Key, Reply | CellError]]:
        from vllm.inputs.engine import tokens_input

        waiting = iter(requests)
        running: dict[str, tuple[Key, Request]] = {}
        while True:
            for item in itertools.islice(waiting, self._window - len(running)):
                request, name = item[1], next(self._names)
                lora = _lora_request(request.adapter) if request.adapter else None
                prompt = tokens_input(request.tokens.tolist())
                self._engine.add_request(name, prompt, sampling(request), lora_request=lora)
                running[name] = item
            if not running:
                return
            try:
                outputs = self._engine.step()
            except RuntimeError as error:
                raise explained(error, MemoryExhaustedError) from error
            self.on_step()
            for output in outputs:
                if output.finished:
                    key, request = running.pop(output.request_id)
                    yield key, reply(request, output)
