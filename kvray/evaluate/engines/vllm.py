"""One vLLM engine in this process: the base model and any number of its adapters, or one full finetune.

Without an engine-core child it starts in 3 s instead of 30 on CPU, and Ray watches the one process that can die.
Requests are a stream: the last slow answers of one adapter overlap with the first prompts of the next.
"""

import functools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kvray.errors import CellError, InputError, last_line
from kvray.evaluate.engines import vllm_settings
from kvray.evaluate.engines.base import Adapter, Engine, Key, Reply, Request, Serving


class VllmEngine(Engine):
    """vLLM on the GPUs of this process, or on its CPUs."""

    def __init__(self, serving: Serving) -> None:
        super().__init__(serving)
        self._ranks: list[int] = []
        self._next = 0

    @classmethod
    def prepare(cls, gpus: float, cpus: float) -> None:
        """Set the environment of vLLM, OpenMP and the hub's libraries."""
        vllm_settings.prepare_environment(gpus > 0, cpus)

    @functools.cached_property
    def limit(self) -> int:
        """Tokens that the model can take; ResourceError or InputError if vLLM does not run here or cannot serve it."""
        vllm_settings.check_platform(self.serving.gpus > 0)
        try:
            return int(vllm_settings.model_config(self.serving).max_model_len)
        except (ValueError, OSError) as error:
            raise InputError(f"model {self.serving.base.name}: vLLM cannot serve it: {error}") from error

    def add(self, adapter: Adapter) -> None:
        """Make room for the adapter's rank; CellError if it is unreadable or higher than vLLM serves."""
        self._ranks.append(vllm_settings.adapter_rank(adapter.path))

    def start(self, length: int) -> None:
        """Load the weights. After an error the process is of no use."""
        import torch
        import vllm

        from kvray.evaluate.engines import cpu_lora

        cpu_lora.install()
        options = vllm_settings.engine_options(self.serving, self._ranks, length)
        llm = vllm.LLM(use_tqdm_on_load=False, **options)
        self._engine = llm.llm_engine
        # Twice the batch keeps the scheduler's queue filled without holding every prompt of the sweep in it.
        self._window = 2 * self._engine.vllm_config.scheduler_config.max_num_seqs
        gpu = torch.cuda.get_device_name() if self.serving.gpus else ""
        places = {name: options[name] for name in ("model", "tokenizer")}
        self._info: dict[str, Any] = {
            "vllm": vllm.__version__,
            "device": gpu or f"cpu, {torch.get_num_threads()} threads",
            "dtype": str(llm.model_config.dtype).removeprefix("torch."),
            "flags": options | {name: Path(at).name if os.path.isabs(at) else at for name, at in places.items()},
        }

    def info(self, adapter: Adapter | None) -> dict[str, Any]:
        """Return vLLM's version, the device, the type of the weights and every option; no paths."""
        return self._info

    def load(self, adapter: Adapter) -> None:
        """Load an adapter; CellError if vLLM refuses it. A bad one at request time would kill the engine."""
        try:
            loaded = self._engine.add_lora(_lora_request(adapter))
        except Exception as error:
            # vLLM, safetensors and torch each raise kinds of their own for a damaged or unsupported adapter.
            raise CellError(f"adapter {adapter.name}: vLLM cannot load it: {last_line(error)}") from error
        if not loaded:
            raise CellError(f"adapter {adapter.name}: vLLM did not load it (and did not say why)")

    def answer(self, requests: Iterable[tuple[Key, Request]]) -> Iterator[tuple[Key, Reply | CellError]]:
        """Answer requests in about their order, each as soon as it is done."""
        from vllm.inputs.engine import tokens_input

        waiting = iter(requests)
        running: dict[str, tuple[Key, Request]] = {}
        more = True
        while more or running:
            while more and len(running) < self._window:
                item = next(waiting, None)
                if item is None:
                    more = False
                    break
                request, name = item[1], str(self._next)
                self._next += 1
                lora = _lora_request(request.adapter) if request.adapter else None
                prompt = tokens_input(request.tokens.tolist())
                self._engine.add_request(name, prompt, sampling(request), lora_request=lora)
                running[name] = item
            for output in self._engine.step() if running else ():
                if output.finished:
                    key, request = running.pop(output.request_id)
                    yield key, reply(request, output)


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
    """Return a finished vLLM ``RequestOutput`` as a reply.

    Raises:
        RuntimeError: vLLM did not end the request well.
    """
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


def _lora_request(adapter: Adapter) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(adapter.name, adapter.number, str(adapter.path))
