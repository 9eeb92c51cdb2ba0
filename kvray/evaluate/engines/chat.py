"""An engine that asks an OpenAI-compatible API, which has a chat template and a tokenizer of its own."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from kvray.errors import CellError
from kvray.evaluate.engines.base import Adapter, Engine, Key, ModelError, Reply, Request, Serving, too_long
from kvray.models.chat import conversation
from kvray.models.openai import MODEL_FILE, Api, ApiError, IncompleteError, RejectedError, plain

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal
    from openai import AsyncOpenAI

SEED = 0
"""Sent with every request, if the server takes one; greedy answers should not need it. Our choice."""
_REFUSED = (400, 413, 422)
_TOO_LONG = re.compile(
    r"context[ _-]?(length|size|window)|maximum (model|prompt|input) length|input tokens exceed|prompt is too long"
    r"|must have less than \d+ tokens|`max_new_tokens` must be <=",
    re.IGNORECASE,
)
"""How OpenAI, vLLM, SGLang, llama.cpp, TGI and others say that a prompt does not fit; only OpenAI has a code for it."""


class ChatEngine(Engine):
    """Asks an API, ``runtime.api_concurrency`` requests at a time, in a thread of its own: it works in a notebook."""

    READS_TEXT = True

    def __init__(self, serving: Serving) -> None:
        """Find the API, sending nothing yet; InputError if there is no key or no such URL."""
        super().__init__(serving)
        runtime = serving.runtime
        self._api = Api(runtime.api_base_url, runtime.api_timeout_s, runtime.api_retries)
        self._models: dict[str, str] = {}
        self._seed: dict[str, Any] = {"seed": SEED}
        self._served: defaultdict[str, set[str]] = defaultdict(set)
        self._portal: BlockingPortal | None = None
        self._open = ExitStack()

    def load(self, adapter: Adapter) -> None:
        """Read a finetuned model's name from its ``model.json``; CellError if no API made the finetune."""
        try:
            self._models[adapter.name] = str(json.loads((adapter.path / MODEL_FILE).read_bytes())["model"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CellError(
                f"finetunes/{adapter.name} holds no {MODEL_FILE} that names a model at an API ({error!r})"
            ) from error

    def start(self, length: int) -> None:
        """Start the event loop; the server checks lengths."""
        from anyio.from_thread import start_blocking_portal

        self._portal = self._open.enter_context(start_blocking_portal())
        self._open.callback(self._portal.call, self._portal.stop, True)
        self._open.callback(self._portal.call, self._api.aclose)

    def answer(self, requests: Iterable[tuple[Key, Request]]) -> Iterator[tuple[Key, Reply | CellError]]:
        """Answer requests; ApiError if the server will serve none.

        Where a prompt leaves less room than the task asks for, some (vLLM) answer in that room, others (OpenAI) refuse.
        """
        assert self._portal is not None
        waiting = iter(requests)
        running: dict[Future[Reply], Key] = {}
        try:
            while True:
                while len(running) < self.serving.runtime.api_concurrency and (item := next(waiting, None)) is not None:
                    running[self._portal.start_task_soon(self._ask, item[1])] = item[0]
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    key = running.pop(future)
                    try:
                        answered: Reply | CellError = future.result()
                    except CellError as error:
                        answered = error
                    yield key, answered
        finally:
            for future in running:
                future.cancel()

    def info(self, adapter: Adapter | None) -> dict[str, Any]:
        model = self._model(adapter)
        served = sorted(tuple(self._served[model]))
        return {"api": self._api.address.url, "model": model, "served": served, "client": f"openai {version('openai')}"}

    @property
    def note(self) -> str:
        return f"{self._api.retries} retries" if self._api.retries else ""

    def close(self) -> None:
        self._open.close()

    def _model(self, adapter: Adapter | None) -> str:
        return self._models[adapter.name] if adapter else self.serving.base.location

    async def _ask(self, request: Request) -> Reply:
        """Return the answer to one request, ``too_long`` for one that does not fit; errors fail it or the whole run."""
        model = self._model(request.adapter)
        body: dict[str, Any] = {
            "model": model,
            "messages": conversation(request.text, request.system),
            "temperature": 0.0,
            "max_tokens": request.max_tokens,
        }
        if request.stop:
            body["stop"] = list(request.stop)
        seed = self._seed

        async def send(client: AsyncOpenAI) -> dict[str, Any]:
            raw = await client.chat.completions.with_raw_response.create(**body, **seed)
            completion = plain(raw, "choices", "usage")
            read(completion)  # what is no whole completion is asked for again
            return completion

        try:
            completion = await self._api.call(send)
        except RejectedError as error:
            if seed and error.status in _REFUSED and re.search(r"\bseed\b", error.reason):
                self._seed = {}  # of no consequence: decoding is greedy
                return await self._ask(request)
            if error.code == "context_length_exceeded" or (error.status in _REFUSED and _TOO_LONG.search(error.reason)):
                return too_long()
            if error.status == 404:
                text = f"{error}: no model {model!r} for this key, or no chat at that URL (most end in /v1)"
                # With one model in all, nothing of this run will be served.
                raise (ApiError if self.serving.models == 1 else ModelError)(text) from None
            raise
        named = [str(completion[name]) for name in ("model", "system_fingerprint") if completion.get(name)]
        self._served[model].add(" ".join(named))
        return read(completion)


def read(completion: Mapping[str, Any]) -> Reply:
    """Return a chat completion as a reply; IncompleteError if a part is missing, CellError if it did not end well."""
    usage = completion["usage"]
    try:
        choice = completion["choices"][0]
        message, finish = choice["message"], choice["finish_reason"]
        prompt_tokens, output_tokens = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        # A missing text (or a refusal, which has a field of its own) is an empty answer.
        text = str(message["content"] or "")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise IncompleteError(f"an answer that is no whole chat completion ({error!r})") from None
    if finish not in ("stop", "length"):
        raise CellError(f"the API ended an answer with {finish!r}, expected stop or length")
    return Reply(prompt_tokens, None if cached is None else int(cached), output_tokens, text, finish)
