"""What an engine is: whatever answers requests for one model and its adapters.

:class:`~kvray.evaluate.engines.vllm.VllmEngine` runs models in this process,
:class:`~kvray.evaluate.engines.chat.ChatEngine` asks an API. Another is a subclass of :class:`Engine` in any installed
module, chosen by ``runtime.engine: module:Class`` or by the name of an entry point in :data:`GROUP`.
"""

import pkgutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from kvray.errors import CellError, InputError
from kvray.models.chat import Prompt
from kvray.models.reference import BaseModelRef
from kvray.sweep.model import Runtime

GROUP = "kvray.engines"
"""Entry-point group in which a package names its engines."""
TOO_LONG = "too_long"
ADAPTER_CONFIG = "adapter_config.json"
"""The file that makes a directory a LoRA adapter."""
MODEL_CONFIG = "config.json"
"""The file that makes a directory a whole model."""
_VLLM = "kvray.evaluate.engines.vllm:VllmEngine"
_CHAT = "kvray.evaluate.engines.chat:ChatEngine"
Key = TypeVar("Key")


@dataclass(frozen=True)
class Adapter:
    """A finetune on a local disk, served beside the base model.

    Its ``name``, which vLLM's prefix cache goes by, and its ``number``, from 1, are unique in the life of an engine;
    ``path`` holds its files.
    """

    name: str
    number: int
    path: Path


@dataclass(frozen=True)
class Request:
    """One request, decoded greedily.

    Attributes:
        tokens: the prompt's token ids, int32; empty for an engine that reads text.
        text: the user message, or a chat that ends in one, for an engine that reads text.
        system: the message before it, unless the chat has its own.
        kind: "generate" writes an answer; "score" takes the log-probabilities of the prompt's tokens from number
            ``context`` (at least 1) on, each given those before it; "choose" those of ``labels`` as the next token.
        max_tokens: tokens of the answer.
        stop: texts that end the answer and are not part of it.
        special_tokens: whether special tokens are kept in the answer's text.
        adapter: the model that answers; None for the base model, or what was exchanged for it.
    """

    tokens: NDArray[np.int32]
    text: Prompt = ""
    system: str | None = None
    kind: Literal["generate", "score", "choose"] = "generate"
    max_tokens: int = 1
    stop: tuple[str, ...] = ()
    special_tokens: bool = False
    context: int = 1
    labels: tuple[int, ...] = ()
    adapter: Adapter | None = None


@dataclass(frozen=True)
class Reply:
    """The answer to a request, or its log-probabilities.

    Attributes:
        prompt_tokens: chat template included; 0 if unknown.
        cached_tokens: how many of them the prefix cache served; None if unknown or not run.
        output_tokens: of the answer; 0 where there is none.
        answer: the raw text; None where none was asked for, or the prompt was too long.
        finish_reason: stop, length or too_long (the prompt was not run).
        scored: per token scored, or per label: (log-probability in nats, whether greedy decoding would write it).
    """

    prompt_tokens: int
    cached_tokens: int | None
    output_tokens: int
    answer: str | None
    finish_reason: str
    scored: tuple[tuple[float, bool], ...] = ()


@dataclass(frozen=True)
class Serving:
    """What an engine is to serve in its life, and on what.

    Attributes:
        base: the model whose weights it starts with, and whose tokenizer all its models share.
        runtime: the sweep's.
        gpus: that this process has.
        cpus: threads to compute with.
        models: how many different ones may be asked.
        ranks: of the LoRA adapters among them, one each.
    """

    base: BaseModelRef
    runtime: Runtime
    gpus: float = 0.0
    cpus: float = 1.0
    models: int = 1
    ranks: tuple[int, ...] = ()


class ModelError(CellError):
    """The engine has no such model: every request to it would end the same way."""


class Engine:
    """Answers requests for one model, its adapters, and other weights of the same shape.

    In this order: :meth:`prepare`, the constructor (nothing is loaded yet), :attr:`limit`, :meth:`start`; then
    :meth:`load`, :meth:`exchange` and :meth:`answer` any number of times, and :meth:`close`. A
    :class:`~kvray.errors.CellError` from ``load`` or ``exchange`` fails the cells of that model alone, any other
    :class:`~kvray.errors.KvrayError` all cells; other exceptions count as the engine's death: it is started again.
    """

    READS_TEXT: ClassVar[bool] = False
    """Whether requests are sent as text, for a server to tokenize; such an engine only writes answers."""

    def __init__(self, serving: Serving) -> None:
        self.serving = serving
        self.on_step: Callable[[], None] = lambda: None
        """To be called whenever something was computed, though no answer may be whole: an engine is ended that neither
        does so nor answers for ``runtime.stall_minutes``."""

    @classmethod
    def prepare(cls, gpus: float, cpus: float) -> None:
        """Set what the engine's libraries read from the environment; called before any of them is imported."""

    @property
    def limit(self) -> int:
        """Tokens of prompt and answer that the model can take; asked unless the engine reads text."""
        raise NotImplementedError

    def start(self, length: int) -> None:
        """Load the model for requests of at most ``length`` tokens, prompt and answer."""
        raise NotImplementedError

    def load(self, adapter: Adapter) -> None:
        """Load an adapter; CellError if it cannot be loaded."""
        raise CellError(f"adapter {adapter.name}: this engine, {type(self).__name__}, serves none")

    def exchange(self, weights: Path | None) -> None:
        """Serve other weights in the base model's place, None: its own again; CellError if they cannot be loaded.

        ``weights`` is the directory of a finetune: ``changed.safetensors`` holds the tensors that differ from the
        base's, by the names in the base's files, other ``*.safetensors`` hold a whole model, and those of an adapter
        are to be merged. No request is under way. Nothing computed from the old weights may be used again (a prefix
        cache); adapters are loaded anew before they are asked.
        """
        raise CellError(f"{type(self).__name__} serves adapters alone: it cannot exchange the base model's weights")

    def answer(self, requests: Iterable[tuple[Key, Request]]) -> Iterator[tuple[Key, Reply | CellError]]:
        """Yield each request's key with its reply as soon as it comes, or with what is wrong with this request.

        Requests are to be taken lazily, not far ahead of the replies. A KvrayError means that none will be answered.
        """
        raise NotImplementedError

    def info(self, adapter: Adapter | None) -> dict[str, Any]:
        """Return versions and settings as JSON values, recorded with what the adapter or base model answered."""
        raise NotImplementedError

    @property
    def note(self) -> str:
        """What the progress line shows beside the rate."""
        return ""

    def close(self) -> None:
        """Free what the engine holds beyond this process."""


def engine_class(base: BaseModelRef, runtime: Runtime) -> type[Engine]:
    """Return a model's engine: the chat API for ``openai:``, else ``runtime.engine``; InputError if it is unusable."""
    name = runtime.engine
    path = _CHAT if base.api else _VLLM if name == "vllm" else name
    if ":" not in path:
        known = {entry.name: entry.value for entry in entry_points(group=GROUP)}
        if name not in known:
            raise InputError(
                f"runtime.engine: found {name!r}; expected {', '.join(['vllm', *sorted(known)])} or module:Class"
            )
        path = known[name]
    try:
        engine = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"runtime.engine: {path} cannot be imported: {error}") from error
    if not (isinstance(engine, type) and issubclass(engine, Engine)):
        raise InputError(f"runtime.engine: {path} is no subclass of kvray.evaluate.engines.base.Engine")
    return engine


def too_long(prompt_tokens: int = 0) -> Reply:
    """Return the reply to a prompt that does not fit the model: its row has no score, the others stand."""
    return Reply(prompt_tokens, None, 0, None, TOO_LONG)
