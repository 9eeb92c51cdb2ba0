"""One question to a model behind an API, as a chat completion, and what came back as a :class:`Reply`.

The server applies its own chat template and counts by its own tokenizer: its ``usage`` is what is recorded.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvray.errors import CellError
from kvray.evaluate.chunks import Reply, too_long
from kvray.evaluate.prompts import Decoding
from kvray.models.openai import Api, IncompleteError, RejectedError, plain

if TYPE_CHECKING:
    from openai import AsyncOpenAI

SEED = 0
"""Sent with every request, as far as the server takes one: greedy answers should not need it. Ours."""
_REFUSED = (400, 413, 422)
_TOO_LONG = re.compile(
    r"context[ _-]?(length|size|window)|maximum (model|prompt|input) length|input tokens exceed|prompt is too long"
    r"|must have less than \d+ tokens|`max_new_tokens` must be <=",
    re.IGNORECASE,
)
"""How OpenAI, vLLM, SGLang, llama.cpp, TGI and others say that a prompt does not fit; only OpenAI has a code for it."""


@dataclass(frozen=True)
class Ask:
    """One question.

    Attributes:
        model: its name at the API.
        prompt: the user message.
        decoding: greedy, within these limits.
        system: the message before it; None for none.
        prompt_tokens: by the tokenizer that counts for the data; recorded where the server did not run it.
    """

    model: str
    prompt: str
    decoding: Decoding
    system: str | None = None
    prompt_tokens: int = 0


class NoModelError(CellError):
    """The API has no such model, or no chat completions at all."""


class Chat:
    """Asks an API.

    Attributes:
        served: by model, what the server said it is: its full name and fingerprint.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._seed: dict[str, Any] = {"seed": SEED}
        self.served: defaultdict[str, set[str]] = defaultdict(set)

    async def ask(self, ask: Ask) -> Reply:
        """Return the answer to a question; one that does not fit the model gives the reply ``too_long``.

        A prompt that fits, with less room behind it than the task asks for, is answered in that room by some servers
        (vLLM) and refused by others (OpenAI).

        Raises:
            ApiError: no request of this run will be served.
            NoModelError: there is no such model.
            CellError: this question cannot be answered.
        """
        first = [{"role": "system", "content": ask.system}] if ask.system else []
        body: dict[str, Any] = {
            "model": ask.model,
            "messages": [*first, {"role": "user", "content": ask.prompt}],
            "temperature": 0.0,
            "max_tokens": ask.decoding.max_tokens,
        }
        if ask.decoding.stop:
            body["stop"] = list(ask.decoding.stop)
        reply: Reply | None = None
        seed = self._seed

        async def send(client: AsyncOpenAI) -> dict[str, Any]:
            nonlocal reply
            raw = await client.chat.completions.with_raw_response.create(**body, **seed)
            answer = plain(raw, "choices", "usage")
            reply = read(answer)
            return answer

        try:
            answer = await self._api.call(send)
        except RejectedError as error:
            if seed and error.status in _REFUSED and re.search(r"\bseed\b", error.reason):
                self._seed = {}  # of no consequence: decoding is greedy
                return await self.ask(ask)
            if error.code == "context_length_exceeded" or (error.status in _REFUSED and _TOO_LONG.search(error.reason)):
                return too_long(ask.prompt_tokens)
            if error.status == 404:
                raise NoModelError(
                    f"{error}: no model {ask.model!r} for this key, or no chat at that URL (most end in /v1)"
                ) from None
            raise
        named = [str(answer[name]) for name in ("model", "system_fingerprint") if answer.get(name)]
        self.served[ask.model].add(" ".join(named))
        assert reply is not None
        return reply


def read(answer: Mapping[str, Any]) -> Reply:
    """Return a chat completion as a reply.

    Raises:
        IncompleteError: a part of it is missing.
        CellError: it ended in another way than by its end or by its limit.
    """
    usage = answer["usage"]
    try:
        choice = answer["choices"][0]
        message, finish = choice["message"], choice["finish_reason"]
        prompt_tokens, output_tokens = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        # A model that said nothing, or refused by a field of its own, has answered with nothing.
        text = str(message["content"] or "")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise IncompleteError(f"an answer that is no whole chat completion ({error!r})") from None
    if finish not in ("stop", "length"):
        raise CellError(f"the API ended an answer with {finish!r}, expected stop or length")
    return Reply(prompt_tokens, None if cached is None else int(cached), output_tokens, text, finish)
