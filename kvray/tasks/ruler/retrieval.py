"""RULER's eight needle tasks (niah_single, niah_multikey, niah_multivalue, niah_multiquery; its ``niah.py``).

A needle registers a value under a key. The haystack is the beginning of the essays, cut after a word, with needles at
sentence breaks; or lines of noise, or of further needles, with the needles among them.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, count, cycle, islice

from kvray.tasks import prompts
from kvray.tasks.rng import Draws, below, draws, key_of, permutation, unit, uuids
from kvray.tasks.ruler import words
from kvray.tasks.ruler.subtasks import Draft, Kind, Subtask
from kvray.tasks.sources.sentences import END, cut_after

NOISE: str = prompts.load("ruler/ruler.toml")["noise"]
DEPTHS = tuple(round(100 * step / 39) for step in range(40))
"""RULER's depths of needles in essays, in percent of the sentences; no two needles have the same."""
_TEXTS = prompts.load("ruler/ruler.toml")["retrieval"]
_BEGINNING = _TEXTS["needle"].partition("{kind}")[0]
_DRAWN = 64  # records drawn at a time
_SMALLEST, _NUMBERS = 1_000_000, 9_000_000

Record = tuple[str, str]


@dataclass(frozen=True)
class Essays:
    """The essays as one text without line breaks: its words, and after how many words its sentences end."""

    words: Sequence[str]
    ends: Sequence[int]

    def first(self, size: int) -> list[str]:
        """Return the first ``size`` words; those of a text that is shorter come over and over."""
        return list(islice(cycle(self.words), size))

    def breaks(self, size: int) -> list[int]:
        """Return before which of the first ``size`` words a sentence begins, from 0; and ``size``, their end."""
        rounds, rest = divmod(size, len(self.words))
        found = [0, *(turn * len(self.words) + end for turn in range(rounds) for end in self.ends)]
        found += [rounds * len(self.words) + end for end in self.ends[: bisect_right(self.ends, rest)]]
        return found if found[-1] == size else [*found, size]


def read(texts: Sequence[str]) -> Essays:
    """Return essays from their texts in order, white space made single spaces."""
    together = " ".join(" ".join(texts).split())
    sentences = [sentence.split() for sentence in cut_after(END, together)]
    ends = list(accumulate(len(sentence) for sentence in sentences if sentence))
    return Essays([word for sentence in sentences for word in sentence], ends)


def draft(subtask: Subtask, key: int, essays: Essays | None) -> Draft:
    """Return an example of one of the needle tasks, a pure function of its random key."""
    records = _records(key, subtask.key, subtask.value)
    pairs = list(islice(records, subtask.keys * subtask.values))
    if subtask.values > 1:
        pairs = [(pairs[0][0], value) for _, value in pairs]
    # The needles stand in the order drawn, so what is asked is drawn too.
    asked = [pairs[at] for at in permutation(key_of("ruler", "asked", key), len(pairs)).tolist()[: subtask.queries]]
    if subtask.values > 1:
        asked = pairs
    names = list(dict.fromkeys(name for name, _ in asked))
    said = [value for _, value in asked]
    query = names[0] if len(names) == 1 else f"{', '.join(names[:-1])}, and {names[-1]}"
    form = "one" if len(asked) == 1 else "several"
    needles = [_sentence(pair, subtask.value) for pair in pairs]
    context, depth = _context(subtask, key, needles, records, essays)

    def worded(size: int) -> str:
        return str(_TEXTS[form].format(kind=subtask.value, query=query, context=context(size)))

    listed = said[0] if len(said) == 1 else f"{', '.join(said[:-1])}, and {said[-1]}"
    prefix = _TEXTS[f"{form}_prefix"].format(kind=subtask.value, query=query)
    return Draft(worded, max(1, len(needles)), None, prefix, f"{listed}.", tuple(said), depth)


def _context(
    subtask: Subtask, key: int, needles: Sequence[str], records: Iterator[Record], essays: Essays | None
) -> tuple[Callable[[int], str], float | None]:
    """Return the haystack of a size (words, lines) with its needles, and the depth in essays of the only needle."""
    if essays is not None:
        depths = sorted(DEPTHS[at] for at in permutation(key_of("ruler", "depths", key), 40).tolist()[: len(needles)])

        def in_essays(size: int) -> str:
            shown, starts = essays.first(size), essays.breaks(size)
            parts, begun = [], 0
            for depth, needle in zip(depths, needles, strict=True):
                at = starts[(len(starts) - 1) * depth // 100]
                parts += [*shown[begun:at], needle]
                begun = at
            return " ".join([*parts, *shown[begun:]])

        return in_essays, float(depths[0]) if len(needles) == 1 else None

    places = sorted(unit(draws(key, 0, len(needles), 4, 1)[:, 0]).tolist())
    further: list[str] = []

    def in_lines(size: int) -> str:
        if subtask.haystack == "needles":
            more = islice(records, max(0, size - len(further)))
            further.extend(_sentence(record, subtask.value) for record in more)
        lines = further[:size] if subtask.haystack == "needles" else [NOISE] * size
        return "\n".join(among(lines, needles, places))

    return in_lines, None


def among(lines: Sequence[str], inserted: Sequence[str], places: Sequence[float]) -> list[str]:
    """Return lines with others before them, no two before one line; ``places`` are ascending shares of the lines."""
    ats = [int(place * (len(lines) - len(inserted) + 1)) + order for order, place in enumerate(places)]
    parts, begun = [], 0
    for at, line in zip(ats, inserted, strict=True):
        parts += [*lines[begun:at], line]
        begun = at
    return [*parts, *lines[begun:]]


def needle_of(prompt: str, value: str) -> str | None:
    """Return the needle that registers a value, None if the prompt has none."""
    end = f" is: {value}."
    head, found, _ = prompt.partition(end)
    start = head.rfind(_BEGINNING)
    return head[start:] + end if found and start >= 0 else None


def _sentence(record: Record, kind: Kind) -> str:
    name, value = record
    return str(_TEXTS["needle"].format(kind=kind, key=name, value=value))


def _records(key: int, of_key: Kind, of_value: Kind) -> Iterator[Record]:
    """Yield (key, value) of these kinds without end, no text in two of them."""
    taken: set[str] = set()
    for start in count(0, _DRAWN):
        drawn = draws(key, start, start + _DRAWN, 4)
        for pair in zip(_labels(of_key, drawn[:, :2]), _labels(of_value, drawn[:, 2:]), strict=True):
            if pair[0] != pair[1] and taken.isdisjoint(pair):
                taken.update(pair)
                yield pair


def _labels(kind: Kind, drawn: Draws) -> list[str]:
    """Return labels of one kind, as RULER draws them, from draws of shape ``(labels, 2)``."""
    if kind == "uuid":
        return uuids(drawn)
    if kind == "number":
        return [str(n) for n in (_SMALLEST + below(drawn[:, 0], _NUMBERS)).tolist()]
    adjectives, nouns = words.lists()["adjectives"], words.lists()["nouns"]
    firsts, seconds = below(drawn[:, 0], len(adjectives)).tolist(), below(drawn[:, 1], len(nouns)).tolist()
    return [f"{adjectives[first]}-{nouns[second]}" for first, second in zip(firsts, seconds, strict=True)]
