"""One vLLM engine in this process: the base model and any number of its adapters, or one full finetune.

The engine runs in process (no engine-core child): it starts in 3 s instead of 30 on CPU, and a death is the death of
the one process that Ray watches. Requests are fed as a stream and answers come back as they finish, so the last slow
answers of one adapter overlap with the first prompts of the next.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kvray.errors import CellError, last_line
from kvray.evaluate.chunks import Reply
from kvray.evaluate.engines import vllm_settings as settings_
from kvray.evaluate.engines.vllm_settings import Settings
from kvray.evaluate.prompts import Decoding

Key = TypeVar("Key")


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter on a local disk.

    Attributes:
        name: unique; vLLM's prefix cache tells adapters apart by it.
        number: unique, from 1.
        path: directory with adapter_config.json and safetensors.
    """

    name: str
    number: int
    path: Path


@dataclass(frozen=True)
class Question:
    """One request: token ids, for the base model or an adapter."""

    prompt: NDArray[np.int32]
    decoding: Decoding
    adapter: Adapter | None = None


@dataclass(frozen=True)
class Request:
    """One request with vLLM's own ``SamplingParams``, whose output must be of kind FINAL_ONLY."""

    prompt: NDArray[np.int32]
    params: Any
    adapter: Adapter | None = None


class Engine:
    """A running vLLM engine.

    Attributes:
        facts: versions and flags, for the record.
    """

    def __init__(self, settings: Settings, max_model_len: int) -> None:
        """Load the weights.

        Args:
            settings: what to load.
            max_model_len: tokens of the longest request, prompt and answer.

        Raises:
            ResourceError: the installed vLLM does not run here.
            Exception: whatever vLLM raises when it cannot start; the process is of no use then.
        """
        settings_.check_platform(settings.gpu)
        import vllm

        from kvray.evaluate.engines import cpu_lora

        options = settings_.common_options(settings, max_model_len)
        cache = settings.kv_cache_bytes
        if settings.max_loras:
            options |= {
                "enable_lora": True,
                "max_loras": settings.max_loras,
                "max_lora_rank": settings.max_lora_rank,
            }
        if settings.gpu:
            options["gpu_memory_utilization"] = settings.gpu_memory_utilization
            if settings.tensor_parallel > 1:
                # Ray has given this process all GPUs of the engine, so their workers are its children.
                options |= {
                    "tensor_parallel_size": settings.tensor_parallel,
                    "distributed_executor_backend": "mp",
                }
        else:
            cpu_lora.install()
            cache = cache or settings_.cache_bytes(settings_.model_config(settings), max_model_len)
            options |= {
                "max_num_seqs": settings_.CPU_SEQUENCES,
                "max_num_batched_tokens": max(settings_.CPU_BATCH_TOKENS, settings_.CPU_SEQUENCES),
                "block_size": settings_.CPU_BLOCK,
            }
        if cache is not None:
            options["kv_cache_memory_bytes"] = cache
        self._llm = vllm.LLM(enable_prefix_caching=True, use_tqdm_on_load=False, **options)
        self._engine = self._llm.llm_engine
        # Twice the batch keeps the scheduler's queue filled without holding every prompt of the sweep in it.
        self._window = 2 * self._engine.vllm_config.scheduler_config.max_num_seqs
        self._next = 0
        self.facts: dict[str, Any] = {
            "vllm": vllm.__version__,
            "device": _device(settings.gpu),
            "dtype": str(self._llm.model_config.dtype).removeprefix("torch."),
            "flags": {
                **asdict(settings),
                "model": Path(settings.model).name if full_path(settings.model) else settings.model,
                "tokenizer": Path(settings.tokenizer).name if full_path(settings.tokenizer) else settings.tokenizer,
                "max_model_len": max_model_len,
                "kv_cache_bytes": cache,
            },
        }

    def load(self, adapter: Adapter) -> None:
        """Load an adapter before it is used: a bad one at request time would take the engine with it.

        Raises:
            CellError: vLLM refuses the adapter.
        """
        try:
            loaded = self._engine.add_lora(_lora_request(adapter))
        except Exception as error:
            # vLLM, safetensors and torch each raise kinds of their own for a damaged or unsupported adapter.
            raise CellError(f"adapter {adapter.name}: vLLM cannot load it: {last_line(error)}") from error
        if not loaded:
            raise CellError(f"adapter {adapter.name}: vLLM did not load it (and did not say why)")

    def answer(self, questions: Iterable[tuple[Key, Question]]) -> Iterator[tuple[Key, Reply]]:
        """Answer questions in about their order, each as soon as it is done; greedy decoding.

        Args:
            questions: (key, question); taken lazily, a window ahead of the answers.

        Yields:
            The key of a question and its reply.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        def request(question: Question) -> Request:
            stop = list(question.decoding.stop) or None
            kind = RequestOutputKind.FINAL_ONLY
            most = question.decoding.max_tokens
            params = SamplingParams(temperature=0.0, max_tokens=most, stop=stop, output_kind=kind)
            return Request(question.prompt, params, question.adapter)

        for key, output in self.stream((key, request(question)) for key, question in questions):
            yield key, _reply(output)

    def stream(self, requests: Iterable[tuple[Key, Request]]) -> Iterator[tuple[Key, Any]]:
        """Do requests of any kind in about their order; yield each key with vLLM's ``RequestOutput`` when it is done.

        Args:
            requests: (key, request); taken lazily, a window ahead of the outputs.
        """
        waiting = iter(requests)
        keys: dict[str, Key] = {}
        more = True
        while more or keys:
            while more and len(keys) < self._window:
                item = next(waiting, None)
                if item is None:
                    more = False
                    break
                key, request = item
                keys[self._add(request.prompt, request.params, request.adapter)] = key
            for output in self._engine.step() if keys else ():
                if output.finished:
                    yield keys.pop(output.request_id), output

    def log_probabilities(self, prompts: Sequence[NDArray[np.int32]], adapter: Adapter | None) -> NDArray[np.float64]:
        """Return the log-probability of every token of the prompts but their first, given those before it.

        Such requests never read the prefix cache. Shape: ``(sum(len(prompt) - 1),)``.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        kind = RequestOutputKind.FINAL_ONLY
        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, output_kind=kind)
        # One at a time: the same batch shape for every adapter leaves the arithmetic of the batch out of it.
        found: list[float] = []
        for prompt in prompts:
            self._add(prompt, params, adapter)
            while self._engine.has_unfinished_requests():
                for output in self._engine.step():
                    for token, by_token in zip(prompt[1:], output.prompt_logprobs[1:], strict=True):
                        found.append(by_token[int(token)].logprob)
        return np.array(found)

    def _add(self, prompt: NDArray[np.int32], params: Any, adapter: Adapter | None) -> str:
        from vllm.inputs.engine import tokens_input

        name = str(self._next)
        self._next += 1
        lora = _lora_request(adapter) if adapter else None
        self._engine.add_request(name, tokens_input(prompt.tolist()), params, lora_request=lora)
        return name


def full_path(location: str) -> bool:
    """Return whether a location is a directory rather than a hub id."""
    return os.path.isabs(location)


def _lora_request(adapter: Adapter) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(adapter.name, adapter.number, str(adapter.path))


def _reply(output: Any) -> Reply:
    written = output.outputs[0]
    if written.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM ended a request with {written.finish_reason!r}, expected stop or length")
    return Reply(
        prompt_tokens=len(output.prompt_token_ids),
        cached_tokens=output.num_cached_tokens,
        output_tokens=len(written.token_ids),
        answer=written.text,
        finish_reason=written.finish_reason,
    )


def _device(gpu: bool) -> str:
    import torch

    return str(torch.cuda.get_device_name()) if gpu else f"cpu, {torch.get_num_threads()} threads"
