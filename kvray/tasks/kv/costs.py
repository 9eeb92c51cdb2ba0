"""Tokens of a simple_kv prompt as a sum of table entries, where the tokenizer makes that exact."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from kvray.models.tokenizer import TokenCounter
from kvray.tasks.kv.base import Draft
from kvray.tasks.kv.draws import Ints
from kvray.tasks.prompts import KV_HEAD


@dataclass(frozen=True)
class Costs:
    """Tokens that each piece adds to a prompt: ``fixed`` by what every prompt holds, ``query`` by the key's mentions.

    ``labels`` go by dictionary label minus 1 (a line with the smallest integers, one pair), ``pieces`` by entry of the
    layout's table, 0 for the empty one.
    """

    fixed: int
    query: Ints
    labels: Ints
    pieces: Ints

    def total(self, draft: Draft) -> Ints:
        """Tokens of each prompt with all of its dictionaries. Shape ``(rows,)``."""
        entries: Ints = self.pieces.take(draft.index.reshape(len(draft), -1)).sum(axis=1)
        return entries + int(self.labels.sum()) + self.fixed + self.query[draft.query[:, 0]]

    def sums(self, draft: Draft) -> Ints:
        """Tokens of each prompt with 1, 2, … of its dictionaries. Shape ``(rows, dictionaries)``."""
        lines = self.pieces.take(draft.index).sum(axis=2) + self.labels
        return np.cumsum(lines, axis=1) + (self.fixed + self.query[draft.query[:, 0]])[:, None]


def measure_costs(
    counter: TokenCounter, question: str, integers: tuple[int, int], slots: int, dictionaries: int
) -> Costs | None:
    """Measure every piece of a prompt in its context, for entries in the order of kv/simple.py's ``AROUND``.

    ``integers`` are the smallest key or value and one past the largest; ``slots`` the most pairs of a dictionary;
    ``question``, with ``{key}``, follows the dictionaries, of which there are at most ``dictionaries``. None where the
    tokens of the pieces do not add up to those of a prompt.
    """
    one = integers[0]
    tail = question.replace("{key}", str(one))

    def text(*sizes: int) -> str:
        lines = [f"Dictionary [1] {{{', '.join([f'{one}: {one}'] * size)}}}\n" for size in sizes]
        return KV_HEAD + "".join(lines) + tail

    if not counter.separates(text(2, 3)):
        return None
    by_size = np.diff(counter([text(size) for size in range(1, max(slots, 2) + 1)]))
    by_line = np.diff(counter([text(), text(1), text(1, 1), text(1, 1, 1)]))
    if np.any(by_size != by_size[0]) or by_line[1] != by_line[2]:
        return None
    pieces = counter.integer_table(
        [
            ("Dictionary [1] {", f": {one}, {one}: {one}}}\n"),
            (f"{{{one}: {one}, ", f": {one}, {one}: {one}}}\n"),
            (f"{{{one}: ", f", {one}: {one}}}\n"),
            (f"{{{one}: {one}, {one}: ", "}\nDictionary [2] {"),
        ],
        *integers,
    )
    pieces[1, one:] += by_size[0]
    asked = question.split("{key}")
    query = counter.integer_table(list(pairwise(asked)), *integers).sum(axis=0)
    labels = counter.integer_table([(f": {one}}}\nDictionary [", f"] {{{one}: {one}")], 1, dictionaries + 1)
    return Costs(
        fixed=int(counter([text(1)])[0] - by_line[1]),
        query=query,
        labels=labels[0, 1:] + by_line[1],
        pieces=np.append(pieces.reshape(-1), 0),
    )
