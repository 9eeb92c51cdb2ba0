"""Token counts: by the tokenizer, and cheaply for texts of integers between fixed pieces of text; both exact.

Tokenizing a prompt of integers takes about a hundred times longer than making it. Its count is a sum, the fixed pieces
once plus one table entry per integer, if no token reaches from one integer into another. :meth:`TokenCounter.separates`
proves that from the tokenizer; a task also compares its sum with the tokenizer on real prompts before relying on it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvray.errors import InputError, first_line
from kvray.models.chat import Message
from kvray.models.reference import BaseModelRef, files_of, load_tokenizer

Counts = NDArray[np.int64]

_DIGITS = re.compile(r"[0-9]+")
_BYTE_FALLBACK = re.compile(r"<0x[0-9A-F]{2}>")
_BATCH = 8192
_PROBES = 256
_CHATS = 256


def chat_tokens(tokenizer: Any, chats: Sequence[list[Message]], *, prompt: bool) -> Iterator[list[int]]:
    """Yield token ids of chats by the tokenizer's template; ``prompt`` asks for an answer. InputError without it.

    A prompt that ends in a message of the assistant is left open, for the model to go on from there.
    """
    if not tokenizer.chat_template:
        raise InputError(f"the tokenizer of {tokenizer.name_or_path} has no chat template; kvray trains and asks by it")
    for start in range(0, len(chats), _CHATS):  # fast tokenizers encode a batch in parallel
        for begun, batch in groupby(
            chats[start : start + _CHATS], key=lambda chat: prompt and chat[-1]["role"] == "assistant"
        ):
            how = {"continue_final_message": True} if begun else {"add_generation_prompt": prompt}
            yield from tokenizer.apply_chat_template(list(batch), return_dict=True, **how)["input_ids"]


@lru_cache(maxsize=4)
def token_counter(base: BaseModelRef) -> TokenCounter:
    """Return a model's token counter, loaded once per process; InputError if it has no fast, readable tokenizer.

    A model without ``tokenizer.json`` takes transformers to read, which the light install has not got: an InputError.
    """
    from tokenizers import Tokenizer

    base = (base.tokenizer or base).here()
    file = Path(base.location) / "tokenizer.json"
    if base.revision is not None and (held := files_of(base)) is not None:
        file = held.directory / "tokenizer.json"
    try:
        if file.is_file():  # read without transformers, whose import would cost seconds per worker
            return TokenCounter(Tokenizer.from_file(str(file)))
        tokenizer = load_tokenizer(base)
    except InputError:
        raise
    except Exception as error:
        # tokenizers raises bare Exceptions, transformers whatever its many tokenizers raise.
        raise InputError(f"the tokenizer of {base.name} cannot be read: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise InputError(f"{base.name} has neither tokenizer.json nor a fast transformers tokenizer")
    return TokenCounter(Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))


class TokenCounter:
    """Counts tokens with a ``tokenizers.Tokenizer``, without special tokens; satisfies ``CountTokens``."""

    def __init__(self, tokenizer: Any) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer

    def __call__(self, texts: Sequence[str]) -> Counts:
        """Return the number of tokens of each text, of shape ``(len(texts),)``."""
        counts = np.empty(len(texts), np.int64)
        for start in range(0, len(texts), _BATCH):
            batch = self.tokenizer.encode_batch_fast(list(texts[start : start + _BATCH]), add_special_tokens=False)
            counts[start : start + len(batch)] = [len(encoding) for encoding in batch]
        return counts

    @cached_property
    def first_tokens(self) -> int:
        """Special tokens that the tokenizer itself puts before a text: 1 where it adds BOS, 0 where it adds none."""
        return int(self.tokenizer.encode("1").special_tokens_mask.index(0))

    def separates(self, text: str) -> bool:
        """Return whether no token of texts like this one can depend on two integers at once.

        Either the pre-tokenizer cuts the text into pieces of at most one integer, each tokenized alone. Or every
        vocabulary entry with a digit consists of digits only, so that no token crosses the edge of an integer.
        """
        return self._cuts_between_integers(text) or self._digits_stand_alone(text)

    def integer_table(self, contexts: Sequence[tuple[str, str]], low: int, limit: int) -> Counts:
        """Return what each integer adds in each context, beyond what ``low`` adds: int64, ``(len(contexts), limit)``.

        ``contexts`` are the fixed text to the left and right of the integer, to the next integers and beyond. Integers
        are ``low <= n < limit``; entries below ``low`` are 0. A context that agrees with the first on a few hundred
        integers of every size shares its row.
        """
        table = np.zeros((len(contexts), limit), np.int64)
        probes = np.unique(np.geomspace(low, limit - 1, _PROBES).astype(np.int64))
        everything = np.arange(low, limit)
        for row, (left, right) in enumerate(contexts):
            if row and np.array_equal(self._added(left, right, low, probes), table[0, probes]):
                table[row] = table[0]
            else:
                table[row, low:] = self._added(left, right, low, everything)
        return table

    def _added(self, left: str, right: str, low: int, integers: NDArray[np.int64]) -> Counts:
        counts = self([f"{left}{low}{right}", *(f"{left}{n}{right}" for n in integers.tolist())])
        added: Counts = counts[1:] - counts[0]
        return added

    def _cuts_between_integers(self, text: str) -> bool:
        if self.tokenizer.pre_tokenizer is None:
            return False
        if self.tokenizer.normalizer is not None:
            text = self.tokenizer.normalizer.normalize_str(text)
        return all(len(_DIGITS.findall(piece)) <= 1 for piece, _ in self.tokenizer.pre_tokenizer.pre_tokenize_str(text))

    def _digits_stand_alone(self, text: str) -> bool:
        added = {token.content for token in self.tokenizer.get_added_tokens_decoder().values()}
        if any(content in text for content in added):
            return False
        learned = [token for token in self.tokenizer.get_vocab(with_added_tokens=False) if token not in added]
        with_digits = [t for t in learned if _DIGITS.search(t) and not _BYTE_FALLBACK.fullmatch(t)]
        return {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"} <= set(with_digits) and all(
            _DIGITS.fullmatch(token) for token in with_digits
        )
