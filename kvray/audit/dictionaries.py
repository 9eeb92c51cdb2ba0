"""Solvers of prompts with dictionaries of integers (arXiv 2406.19292, section 2) and of Liu et al.'s JSON of UUIDs."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from kvray.audit.reading import Knobs, Reading, Solver, Unsolved, entries, only

_LINE = re.compile(r"Dictionary \[(\d+)\] \{(.+)\}")
_PAIR = re.compile(r"(\d+): (\d+)")
_TUPLE = re.compile(r"\(([\d, ]+)\): (\d+)")
_ONE = re.compile(r"Report the value of key (\d+) and the dictionary it is in\.")
_SEVERAL = re.compile(
    r"Report the values of keys ([\d, ]+), in this order, and the dictionary that each of them is in\."
)
_SUBKEYS = re.compile(r"Report the key that contains the integers ([\d, ]+) \(not necessarily in order\)")
_SENTENCE = "The value of key {} is {} and it is in Dictionary [{}]."
_SUBKEY_SENTENCE = "The key that contains the integers {} is ({}). Its value is {} and it is in Dictionary [{}]."
_JSON = re.compile(r"JSON data:\n(\{.*?\})\n", re.DOTALL)
_ASKED = re.compile(r'Key: "([^"\n]+)"\nCorresponding value:')


class Pair(NamedTuple):
    """A key with its value, and the line (from 0) of its dictionary."""

    key: str
    value: str
    at: int


def simple(knobs: Knobs) -> Solver:
    """Return the solver of simple_kv; under its published law, what two dictionaries answer is ambiguous."""

    def solve(prompt: str) -> Reading:
        lines = _lines(prompt)
        asked = only(_ONE, prompt, "the question")
        pairs = list(_pairs(lines, _PAIR))
        found = [at for at, pair in enumerate(pairs) if pair.key == asked[1]]
        if not found:
            raise Unsolved(f"no dictionary has the key {asked[1]}")
        gold = pairs[found[0]]
        sizes = _sizes(lines, pairs, {gold.at})
        sizes["digits of a key"] = [len(pair.key) for pair in pairs]
        sizes["digits of a value"] = [len(pair.value) for pair in pairs]
        sentences = [_SENTENCE.format(*pairs[at][:2], pairs[at].at + 1) for at in found]
        return _reading(asked[0], lines, pairs, found, sentences, sizes)

    return Solver(solve, ambiguous=knobs["law"] == "paper", most_tokens=knobs["max_tokens"])


def several(knobs: Knobs) -> Solver:
    """Return the solver of several_kv."""

    def solve(prompt: str) -> Reading:
        lines = _lines(prompt)
        asked = only(_SEVERAL, prompt, "the question")
        pairs = list(_pairs(lines, _PAIR))
        by_key: dict[str, list[Pair]] = {}
        for pair in pairs:
            by_key.setdefault(pair.key, []).append(pair)
        gold = []
        for key in asked[1].split(", "):
            if len(found := by_key.get(key, [])) != 1:
                raise Unsolved(f"{len(found)} dictionaries have the key {key}")
            gold += found
        if len({pair.at for pair in gold}) < len(gold):
            raise Unsolved("two of the keys are in one dictionary")
        sizes = _sizes(lines, pairs, set())
        sizes["digits of a key"] = [len(pair.key) for pair in pairs]
        sizes["digits of a value"] = [len(pair.value) for pair in pairs]
        return Reading(
            asked[0],
            "\n".join(lines[pair.at] for pair in gold),
            (("\n".join(_SENTENCE.format(pair.key, pair.value, pair.at + 1) for pair in gold),),),
            units=len(lines),
            place=tuple((pair.at, len(lines)) for pair in gold),
            hits={"random entry": 1 / len(pairs)},
            sizes=sizes,
        )

    return Solver(solve, most_tokens=knobs["max_tokens"])


def subkeys(knobs: Knobs) -> Solver:
    """Return the solver of multi_subkey_kv; under its published law, what two keys answer is ambiguous."""

    def solve(prompt: str) -> Reading:
        lines = _lines(prompt)
        asked = only(_SUBKEYS, prompt, "the question")
        pairs = list(_pairs(lines, _TUPLE))
        numbers = asked[1].split(", ")
        wanted = set(numbers)
        shared = [len(wanted.intersection(pair.key.split(", "))) for pair in pairs]
        found = [at for at, number in enumerate(shared) if number == len(wanted)]
        if len(wanted) < len(numbers):  # an integer that is asked for twice is in the key twice
            found = [at for at in found if not Counter(numbers) - Counter(pairs[at].key.split(", "))]
        if not found:
            raise Unsolved(f"no key has all of {asked[1]}")
        gold = pairs[found[0]]
        sizes = _sizes(lines, pairs, {gold.at})
        others = [at for at in range(len(pairs)) if at != found[0]]
        sizes["subkeys of a key"] = [1 + pairs[at].key.count(",") for at in others]
        sizes["asked subkeys in another key"] = [shared[at] for at in others]
        sentences = [_SUBKEY_SENTENCE.format(asked[1], *pairs[at][:2], pairs[at].at + 1) for at in found]
        return _reading(asked[0], lines, pairs, found, sentences, sizes)

    return Solver(solve, ambiguous=knobs["law"] == "paper", most_tokens=knobs["max_tokens"])


def records(knobs: Knobs) -> Solver:
    """Return the solver of kv_retrieval."""

    def solve(prompt: str) -> Reading:
        asked = only(_ASKED, prompt, "the question")
        pairs: list[tuple[str, str]] = json.loads(only(_JSON, prompt, "the JSON object")[1], object_pairs_hook=list)
        found = [at for at, (key, _) in enumerate(pairs) if key == asked[1]]
        if len(found) != 1:
            raise Unsolved(f"{len(found)} records have the key {asked[1]}")
        key, value = pairs[found[0]]
        return Reading(
            asked[0],
            f"{key}: {value}",
            ((value,),),
            position=found[0] + 1,
            units=len(pairs),
            hits=entries(len(pairs), found[0]),
        )

    return Solver(solve)


def _lines(prompt: str) -> list[str]:
    """Return the lines of the dictionaries; Unsolved unless they are numbered from 1."""
    lines = [line for line in prompt.split("\n") if line.startswith("Dictionary [")]
    for number, line in enumerate(lines, start=1):
        found = _LINE.fullmatch(line)
        if found is None or found[1] != str(number):
            raise Unsolved(f"line {number} of the dictionaries is {line[:60]!r}")
    return lines


def _pairs(lines: list[str], pattern: re.Pattern[str]) -> Iterator[Pair]:
    for at, line in enumerate(lines):
        for key, value in pattern.findall(line, line.index("{")):
            yield Pair(key, value, at)


def _reading(
    question: str,
    lines: list[str],
    pairs: list[Pair],
    found: list[int],
    sentences: list[str],
    sizes: dict[str, list[int]],
) -> Reading:
    """Return the reading of a question about one key: ``found`` are the pairs that answer it, by these sentences."""
    gold = pairs[found[0]].at
    return Reading(
        question,
        lines[gold],
        tuple((sentence,) for sentence in sentences),
        position=gold + 1,
        units=len(lines),
        hits=entries(len(pairs), found[0]),
        sizes=sizes,
    )


def _sizes(lines: list[str], pairs: list[Pair], but: set[int]) -> dict[str, list[int]]:
    sizes = [0] * len(lines)
    for pair in pairs:
        sizes[pair.at] += 1
    return {"keys of a dictionary": [size for at, size in enumerate(sizes) if at not in but]}
