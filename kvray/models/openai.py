"""Client of an OpenAI-compatible API: its address and key, the only layer of retries, errors that never show the key.

Answers are read as plain JSON, since the client library builds objects from half a body too. Temporary failures (429,
5xx, timeouts, broken connections, half a body) are retried; failures of all requests (key, quota, no server) end the
run with one error; failures of one request are left to the caller.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

from kvray.errors import USED_UP, CellError, InputError, ResourceError, need, status_passes

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAIError

OPENAI_URL = "https://api.openai.com/v1"
URL_VARIABLE = "OPENAI_BASE_URL"
KEY_VARIABLE = "OPENAI_API_KEY"
OPENAI_SYSTEM = "Write a response that appropriately completes the request."
"""System message of the OpenAI fine-tuning format (official code of the paper, OpenAI file)."""
NO_KEY = "EMPTY"  # sent where no key is set: a private server asks for none, but the client library needs one
HIDDEN = "<key>"  # replaces the key, or a piece of it, in every message
MODEL_FILE = "model.json"  # of a finetune made by an API: the model that answers, and how it was made
FIRST_WAIT_S = 0.5  # before the second attempt if the server names no delay; doubled at each further attempt
LONGEST_WAIT_S = 60.0
LONGEST_NAMED_WAIT_S = 120.0  # longest delay accepted from the server
CONNECT_S = 15.0

Result = TypeVar("Result")
_KEY_PIECE = 6
_MESSAGE_LENGTH = 300
_GOLDEN = 0.6180339887498949
_UNREACHABLE = {"ConnectError", "ConnectTimeout"}
_MASKED_KEY = re.compile(r"\bsk-[^\s\"',;]+")


def run_async(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Return a coroutine's result, also beside the event loop of a notebook; Ctrl-C cancels it."""
    from anyio.from_thread import start_blocking_portal

    with start_blocking_portal() as portal:
        result: Result = portal.call(lambda: coroutine)
        return result


class ApiError(ResourceError):
    """The API serves no request of this run: the key is refused, the quota used up, or no server answers."""


class RejectedError(CellError):
    """The API refuses this one request for good: HTTP status, the API's code ("" for none), reason without the key."""

    def __init__(self, message: str, status: int, code: str, reason: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.reason = reason


class IncompleteError(Exception):
    """A response with status 200 that is cut off or lacks a needed field; it is requested again."""


def plain(response: Any, *needs: str) -> dict[str, Any]:
    """Return a ``with_raw_response``'s JSON object; IncompleteError if it is none or lacks a field of ``needs``."""
    try:
        body = json.loads(response.text)
    except ValueError:
        raise IncompleteError(f"half a body: {len(response.text)} characters that are no JSON") from None
    lacking = [name for name in needs if not isinstance(body, dict) or body.get(name) is None]
    if lacking or not isinstance(body, dict):
        raise IncompleteError(f"an answer without {', '.join(lacking) or 'any field'}: {_message(body)}")
    return body


@dataclass(frozen=True)
class Address:
    """The URL of an API, and its key."""

    url: str  # with the version, without a final slash; holds no secret
    key: str = field(repr=False)

    def redact(self, text: str) -> str:
        """Hide the key in a text: whole, URL-encoded, in pieces, or half masked as OpenAI's errors quote it."""
        if self.key != NO_KEY:
            for form in dict.fromkeys((self.key, quote(self.key, safe=""))):
                text = _without_pieces(text.replace(form, HIDDEN), form)
        return _MASKED_KEY.sub(HIDDEN, text)


def address(base_url: str | None = None) -> Address:
    """Return the address of a run's API: ``base_url`` (``runtime.api_base_url``), $OPENAI_BASE_URL, or OpenAI's.

    Raises InputError if it is no http URL, holds a secret, or is OpenAI's without a key in $OPENAI_API_KEY.
    """
    url = (base_url or os.environ.get(URL_VARIABLE) or OPENAI_URL).strip().rstrip("/")
    where = "runtime.api_base_url" if base_url else URL_VARIABLE
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query or parts.fragment:
        # Refused, and not shown: a URL is written to the store with the sweep, and into errors.
        raise InputError(f"{where}: found a URL with a name, a password or a query; expected http(s)://HOST/v1")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"{where}: found {url!r}; expected a URL such as http://127.0.0.1:8000/v1")
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key and parts.hostname.endswith("openai.com"):
        raise InputError(
            f"{KEY_VARIABLE} is not set, and {url} asks for a key; type export {KEY_VARIABLE}=…, or set "
            "runtime.api_base_url to a server of your own"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(f"{KEY_VARIABLE}: found blanks or characters that no key has; expected the key alone")
    return Address(url, key or NO_KEY)


class Api:
    """A connection to the API at :func:`address`, which may raise an InputError.

    ``timeout_s`` and the ``retries`` allowed are per request; the attribute ``retries`` counts those of all calls.
    """

    def __init__(self, base_url: str | None, timeout_s: float, retries: int) -> None:
        need("a model behind an API", "openai", extra="run")
        import openai

        self.address = address(base_url)
        self.retries = 0
        self._timeout_s = timeout_s
        self._retries = retries
        self._calls = 0
        self._open_at = 0.0
        self._client = openai.AsyncOpenAI(
            api_key=self.address.key,
            base_url=self.address.url,
            timeout=openai.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s)),
            max_retries=0,  # they are counted here alone
        )

    async def aclose(self) -> None:
        await self._client.close()

    async def call(self, send: Callable[[AsyncOpenAI], Awaitable[Result]]) -> Result:
        """Call ``send``, which sends once and returns :func:`plain` of the response, until it succeeds.

        Raises ApiError if no request of this run will be served, RejectedError if this one is refused for good,
        CellError if it failed at every attempt.
        """
        from openai import OpenAIError

        self._calls += 1
        # Spreads the retries of requests that failed together, without random numbers.
        spread = self._calls * _GOLDEN % 1
        started = time.monotonic()
        for attempt in range(self._retries + 1):
            while (closed := self._open_at - time.monotonic()) > 0:
                await asyncio.sleep(closed + spread * min(1.0, closed))
            try:
                return await send(self._client)
            except (OpenAIError, IncompleteError) as error:
                text, delay, everybody = self._temporary(error)
            if attempt == self._retries:
                break
            self.retries += 1
            if delay is None:
                await asyncio.sleep(min(FIRST_WAIT_S * 2**attempt, LONGEST_WAIT_S) * (0.75 + spread / 2))
            else:
                # The limit is the account's, so all requests wait for it.
                self._open_at = max(self._open_at, time.monotonic() + delay)
        tries, seconds = self._retries + 1, time.monotonic() - started
        failure = ApiError if everybody else CellError
        raise failure(
            f"the API at {self.address.url} failed {tries} times in {seconds:.0f} s (runtime.api_retries), at last "
            f"with {text}; what was answered is kept: run again to go on"
        ) from None

    def _temporary(self, error: OpenAIError | IncompleteError) -> tuple[str, float | None, bool]:
        """Describe a temporary failure, the wait it asks for (seconds), and if it fails all; raise any other."""
        import openai

        if isinstance(error, openai.APITimeoutError) and type(error.__cause__).__name__ not in _UNREACHABLE:
            return f"no answer within {self._timeout_s:g} s (runtime.api_timeout_s)", None, False
        if isinstance(error, openai.APIConnectionError):
            cause = error.__cause__ or error
            text = self.address.redact(f"{type(cause).__name__}: {cause}".rstrip(": "))
            return text, None, type(cause).__name__ in _UNREACHABLE
        if isinstance(error, IncompleteError):
            return self.address.redact(str(error)), None, False
        if not isinstance(error, openai.APIStatusError):
            raise CellError(self.address.redact(f"{type(error).__name__}: {error}")) from None
        status, code = error.status_code, error.code or ""
        reason = self.address.redact(_message(error.body, 4 * _MESSAGE_LENGTH))[:_MESSAGE_LENGTH]
        text = f"{status}: {reason}" if reason else f"{status}"
        if status == 401:
            unset = self.address.key == NO_KEY
            key = f"{KEY_VARIABLE} is not set" if unset else f"the key in {KEY_VARIABLE} is not one of its"
            raise ApiError(f"the API at {self.address.url} refuses the key ({text}); {key}") from None
        if status == 403:
            raise ApiError(f"the API at {self.address.url} forbids this to the key ({text})") from None
        if status == 429 and code in USED_UP:
            raise ApiError(f"the API at {self.address.url} serves this account no more ({text})") from None
        if status_passes(status):
            delay = self._client._parse_retry_after_header(error.response.headers)
            if delay is not None:
                delay = None if math.isnan(delay) else min(max(delay, 0.0), LONGEST_NAMED_WAIT_S)
            return text, delay, status == 429
        raise RejectedError(f"the API at {self.address.url} refuses a request ({text})", status, code, reason) from None


def _message(body: object, length: int = _MESSAGE_LENGTH) -> str:
    while isinstance(body, dict):
        inner = next((body[name] for name in ("message", "error", "detail") if body.get(name)), None)
        if inner is None:
            break
        body = inner
    text = " ".join(("" if body is None else str(body)).split())
    # A proxy's HTML page says no more than the status.
    return "" if text.startswith("<") else text[:length]


def _without_pieces(text: str, key: str) -> str:
    while (piece := SequenceMatcher(None, text, key, autojunk=False).find_longest_match()).size >= _KEY_PIECE:
        text = text[: piece.a] + HIDDEN + text[piece.a + piece.size :]
    return text
