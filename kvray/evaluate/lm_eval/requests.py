"""A benchmark's requests -> readings of the model, and what the engine returns -> the harness's responses.

Tokens, truncation and stop texts are those of lm-evaluation-harness's own vLLM model class (lm_eval/models/
vllm_causallms.py, 0.4.13), with one difference in how much is computed: options that are single tokens (MMLU's letters)
are read off one distribution, where the class reads the whole prompt once per option.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kvray.errors import CellError
from kvray.evaluate.lm_eval.tasks import Row, generation
from kvray.tasks.lm_eval import LmEval

LABELS = 128
"""Single-token options that vLLM reads off one distribution (vllm/sampling_params.py, MAX_LOGPROB_TOKEN_IDS)."""
_BATCH = 256


@dataclass(frozen=True)
class Reading:
    """One request to the engine.

    Attributes:
        kind: "generate" a text, "score" the end of the prompt, or "choose" among next tokens.
        prompt: token ids.
        requests: which requests of the question it serves: one, or for "choose" one per label.
        context: for "score", tokens before those that are scored.
        labels: for "choose", the next token of each request.
        max_tokens: that may be written.
        stop: texts that end a generation.
        cut: tokens that the beginning of the prompt lost.
    """

    kind: Literal["generate", "score", "choose"]
    prompt: NDArray[np.int32]
    requests: tuple[int, ...]
    context: int = 0
    labels: tuple[int, ...] = ()
    max_tokens: int = 1
    stop: tuple[str, ...] = ()
    cut: int = 0


@dataclass(frozen=True)
class Read:
    """What came back of a reading.

    Attributes:
        responses: (request of the question, text | (log-probability, whether greedy)).
        cached_tokens: of the prompt, from the prefix cache.
        output_tokens: of a generation; 0 for the other kinds, whose token is not kept.
        finish_reason: stop or length.
    """

    responses: tuple[tuple[int, Any], ...]
    cached_tokens: int | None
    output_tokens: int
    finish_reason: str


class Encoder:
    """Makes readings of questions."""

    def __init__(self, tokenizer: Any, task: LmEval, limit: int) -> None:
        """Take what decides them.

        Args:
            tokenizer: of the base model.
            task: the knobs.
            limit: tokens that the model can take; the task's ``length`` may be less.
        """
        self._tokenizer = tokenizer
        self._task = task
        self.length = min(limit, task.length)
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        self._prefix = int(first)
        self._bos = tokenizer.decode([first])

    def encode(self, rows: Sequence[Row]) -> Iterator[list[Reading]]:
        """Yield the readings of each question.

        Raises:
            CellError: the answers leave no room for a prompt.
        """
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
            # The first token of all has nothing before it that would tell its probability.
            before = max(1, len(context) - cut)
            yield Reading("score", np.asarray(whole, np.int32), (number,), context=before, cut=cut)
        for shared, asked in labels.items():
            for start in range(0, len(asked), LABELS):
                numbers, tokens, cuts = zip(*asked[start : start + LABELS], strict=True)
                yield Reading("choose", np.asarray(shared, np.int32), numbers, labels=tokens, cut=max(cuts))

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
        stop = tuple(dict.fromkeys((*stop, self._tokenizer.eos_token or "")))
        return Reading(
            "generate",
            np.asarray(whole[-room:], np.int32),
            (number,),
            max_tokens=max_tokens,
            stop=tuple(each for each in stop if each),
            cut=max(0, len(whole) - room),
        )

    def _pair(self, request: Any, ids: dict[str, list[int]]) -> tuple[list[int], list[int]]:
        """Return the tokens of a context and of its continuation."""
        context, continuation = request.args
        if context == "":
            tokens = self._tokenizer(continuation, add_special_tokens=False).input_ids
            return (tokens[:1], tokens[1:]) if tokens[0] == self._prefix else ([self._prefix], tokens)
        before, whole = (ids[text] for text in _texts(request))
        return before, whole[len(before) :]

    def _ids(self, texts: Sequence[str]) -> dict[str, list[int]]:
        """Return the token ids of texts, with the tokenizer's special tokens unless the text begins with its first."""
        found: dict[str, list[int]] = {"": []}
        for special in (True, False):
            some = [text for text in dict.fromkeys(texts) if text and text.startswith(self._bos) != special]
            if some:
                found |= zip(some, self._tokenizer(some, add_special_tokens=special).input_ids, strict=True)
        return found


def params(reading: Reading) -> Any:
    """Return vLLM's ``SamplingParams`` of a reading."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    kind = RequestOutputKind.FINAL_ONLY
    if reading.kind == "generate":
        return SamplingParams(
            temperature=0.0,
            max_tokens=reading.max_tokens,
            stop=list(reading.stop),
            skip_special_tokens=False,
            spaces_between_special_tokens=False,
            output_kind=kind,
        )
    if reading.kind == "score":
        return SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False, output_kind=kind)
    labels = sorted(set(reading.labels))
    return SamplingParams(temperature=0.0, max_tokens=1, logprob_token_ids=labels, detokenize=False, output_kind=kind)


def read(reading: Reading, output: Any) -> Read:
    """Return what a vLLM ``RequestOutput`` says of a reading.

    Raises:
        RuntimeError: vLLM did not end the request well.
    """
    (written,) = output.outputs
    if written.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM ended a request with {written.finish_reason!r}, expected stop or length")
    tokens = 0
    found: list[Any]
    if reading.kind == "generate":
        tokens = len(written.token_ids)
        found = [cut_at(written.text, reading.stop)]
    elif reading.kind == "score":
        scored = [
            by_token[int(token)]
            for token, by_token in zip(reading.prompt, output.prompt_logprobs, strict=True)
            if by_token is not None
        ][reading.context - 1 :]
        found = [(sum(each.logprob for each in scored), all(each.rank == 1 for each in scored))]
    else:
        likeliest, (by_token,) = written.token_ids[0], written.logprobs
        found = [(by_token[label].logprob, label == likeliest) for label in reading.labels]
    responses = tuple(zip(reading.requests, found, strict=True))
    # The one token that is written because vLLM must write one is no answer that was cut off.
    ended = written.finish_reason if reading.kind == "generate" else "stop"
    return Read(responses, output.num_cached_tokens, tokens, ended)


def cut_at(text: str, stop: Sequence[str]) -> str:
    """Return what is before the first of the stop texts."""
    for each in stop:
        text = text.split(each, maxsplit=1)[0]
    return text


def responses(row: Row, reads: Sequence[Read]) -> list[Any]:
    """Return the harness's responses to the requests of a question, in their order."""
    given = dict(response for one in reads for response in one.responses)
    return [given[number] for number in range(len(row.requests))]


def _texts(request: Any) -> tuple[str, ...]:
    """Return the texts of a request that are tokenized: a prompt; or a context, and the same with its continuation."""
    if request.request_type != "loglikelihood":
        return (request.args[0],)
    context, continuation = request.args
    # Spaces at the end of the context belong to the first word of the continuation.
    return context.rstrip(), context + continuation
