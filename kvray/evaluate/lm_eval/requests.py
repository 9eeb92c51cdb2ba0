"""A benchmark's requests -> requests to the engine, and its replies -> the responses that lm-evaluation-harness takes.

Tokens, truncation and stop texts are those of its vLLM model class (lm_eval/models/vllm_causallms.py, 0.4.13). But
options that are single tokens (MMLU's letters) are read off one distribution, not by one prompt each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvray.errors import CellError
from kvray.evaluate.engines.base import Reply, Request
from kvray.evaluate.lm_eval.tasks import Row, generation
from kvray.evaluate.questions import NO_TOKENS
from kvray.tasks.lm_eval import LmEval

LABELS = 128
"""Single-token options that vLLM reads off one distribution (vllm/sampling_params.py, MAX_LOGPROB_TOKEN_IDS)."""
MOST_STOPS = 4
"""Stop texts that OpenAI's API takes; like lm_eval's own model class we send as many and cut at the others here."""
_BATCH = 256


@dataclass(frozen=True)
class Reading(Request):
    """One request to the engine for the ``numbers`` of a question's requests: one, or for "choose" one per label.

    ``ends`` are texts that end an answer, not all known to the engine; ``cut`` counts tokens that the prompt lost.
    """

    numbers: tuple[int, ...] = (0,)
    ends: tuple[str, ...] = ()
    cut: int = 0


class Encoder:
    """Makes readings of questions, cut to the engine's ``limit`` of tokens or the task's own, if that is less."""

    def __init__(self, tokenizer: Any, task: LmEval, limit: int) -> None:
        self._tokenizer = tokenizer
        self._task = task
        self.length = min(limit, task.most_tokens() or limit)
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        self._prefix = int(first)
        self._bos = tokenizer.decode([first])

    def encode(self, rows: Sequence[Row]) -> Iterator[list[Reading]]:
        """Yield the readings of each question; CellError if the answers leave no room for a prompt."""
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            ids = self._ids([text for row in batch for request in row.requests for text in _texts(request)])
            for row in batch:
                yield list(self._readings(row, ids))

    def _readings(self, row: Row, ids: dict[str, list[int]]) -> Iterator[Reading]:
        labels: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}
        for number, request in enumerate(row.requests):
            if request.request_type == "generate_until":
                yield self._generation(number, request, ids)
                continue
            context, continuation = self._pair(request, ids)
            whole = (context + continuation)[-(self.length - 1) :]
            cut = len(context) + len(continuation) - len(whole)
            if len(continuation) == 1 and len(whole) > 1:
                labels.setdefault(tuple(whole[:-1]), []).append((number, whole[-1], cut))
                continue
            # The first token of all has nothing before it, so no probability.
            before = max(1, len(context) - cut)
            yield Reading(np.asarray(whole, np.int32), kind="score", context=before, numbers=(number,), cut=cut)
        for shared, asked in labels.items():
            for start in range(0, len(asked), LABELS):
                numbers, tokens, cuts = zip(*asked[start : start + LABELS], strict=True)
                prompt = np.asarray(shared, np.int32)
                yield Reading(prompt, kind="choose", labels=tokens, numbers=numbers, cut=max(cuts))

    def _generation(self, number: int, request: Any, ids: dict[str, list[int]]) -> Reading:
        text, settings = request.args
        max_tokens, stop = generation(self._task, settings)
        room = self.length - max_tokens
        if room < 1:
            raise CellError(
                f"benchmark {self._task.benchmark}: an answer of {max_tokens} tokens leaves no room for a prompt in "
                f"{self.length}; raise length, or lower max_tokens"
            )
        whole = ids[text]
        stop = tuple(each for each in dict.fromkeys((*stop, self._tokenizer.eos_token or "")) if each)
        tokens = np.asarray(whole[-room:], np.int32)
        cut = max(0, len(whole) - room)
        return Reading(
            tokens, max_tokens=max_tokens, stop=stop, special_tokens=True, numbers=(number,), ends=stop, cut=cut
        )

    def _pair(self, request: Any, ids: dict[str, list[int]]) -> tuple[list[int], list[int]]:
        context, continuation = request.args
        if context == "":
            tokens = self._tokenizer(continuation, add_special_tokens=False).input_ids
            return (tokens[:1], tokens[1:]) if tokens[0] == self._prefix else ([self._prefix], tokens)
        before, whole = (ids[text] for text in _texts(request))
        return before, whole[len(before) :]

    def _ids(self, texts: Sequence[str]) -> dict[str, list[int]]:
        """Return the token ids of texts, with special tokens unless the text begins with the first of them."""
        ids: dict[str, list[int]] = {"": []}
        for special in (True, False):
            some = [text for text in dict.fromkeys(texts) if text and text.startswith(self._bos) != special]
            if some:
                ids |= zip(some, self._tokenizer(some, add_special_tokens=special).input_ids, strict=True)
        return ids


def as_text(task: LmEval, row: Row) -> Reading:
    """Return the reading of a question with a written answer, for an engine that reads text."""
    text, settings = row.requests[0].args
    max_tokens, stop = generation(task, settings)
    return Reading(NO_TOKENS, text, max_tokens=max_tokens, stop=stop[:MOST_STOPS], ends=stop)


def responses(row: Row, readings: Sequence[Reading], replies: Sequence[Reply]) -> list[Any]:
    """Return a question's responses as lm_eval takes them: texts, or (log-probability, greedy?) of continuations."""
    given: dict[int, Any] = {}
    for reading, reply in zip(readings, replies, strict=True):
        kind, values = reading.kind, list[Any](reply.scored)
        if kind == "generate":
            values = [cut_at(reply.answer or "", reading.ends)]
        elif kind == "score":
            values = [(sum(value for value, _ in reply.scored), all(greedy for _, greedy in reply.scored))]
        given |= zip(reading.numbers, values, strict=True)
    return [given[number] for number in range(len(row.requests))]


def cut_at(text: str, stop: Sequence[str]) -> str:
    """Return the text before the first of the stop texts."""
    for each in stop:
        text = text.split(each, maxsplit=1)[0]
    return text


def _texts(request: Any) -> tuple[str, ...]:
    """Return the texts of a request to tokenize: a prompt; or a context, and the same with its continuation."""
    if request.request_type != "loglikelihood":
        return (request.args[0],)
    context, continuation = request.args
    # Spaces at the end of the context belong to the first word of the continuation.
    return context.rstrip(), context + continuation
