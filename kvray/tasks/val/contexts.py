"""Contexts of VaL probing made here, of raw pieces, in which what a question names occurs once.

The raw pieces are those of the authors' repository (``VaLProbing/pieces/*.jsonl`` of microsoft/FILM, MIT: sentences of
arXiv abstracts with 8 words of each, three lines of Python functions with the second as what is asked for, entities of
Wikidata), any file with the same fields, or a few thousand of the made-up world, of the same make. The authors warn to
check ambiguity; here a piece is asked for only if no other piece of the context holds what is asked for.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kvray.errors import InputError
from kvray.tasks import prompts, world
from kvray.tasks.in2.fill import LAYOUT
from kvray.tasks.rng import Draws, below, draws, key_of, shuffled
from kvray.tasks.sources import read
from kvray.tasks.sources.records import lacking

Probe = Literal["document", "code", "database"]

TEXTS: dict[str, Any] = prompts.load("val/texts.toml")
FIELDS: Mapping[Probe, tuple[str, ...]] = {
    "document": ("sentence", "piece"),
    "code": ("function_name", "function_define", "piece"),
    "database": ("id", "label", "dcpt"),
}
"""Fields of the raw pieces, by probe."""
PIECE_WORDS = 8
"""Words of a sentence that a question quotes."""
_TINY = 2000
_WIDTH = 16


@dataclass(frozen=True)
class Piece:
    """A piece of a context: its ``text`` there, the ``key`` that a question names, and the accepted answers."""

    text: str
    key: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class Contexts:
    """Contexts of ``size`` pieces each, drawn from a supply by ``key``."""

    probe: Probe
    supply: Sequence[Piece]
    size: int
    key: int

    def asked(self, number: int) -> tuple[Piece, list[Piece]]:
        """Return the piece that question ``number`` asks for and the others; an InputError if all are ambiguous."""
        drawn = shuffled(self.supply, key_of("val_probing", self.key, number))[: self.size]
        for at, gold in enumerate(drawn):
            if sum(gold.key in piece.text for piece in drawn) == 1:
                return gold, drawn[:at] + drawn[at + 1 :]
        raise InputError(
            f"source: in a context of {self.size} pieces, whatever could be asked for occurs twice or more"
        )

    def prompt(self, gold: Piece, others: Sequence[Piece], position: int) -> str:
        """Word a prompt with the gold piece at a 1-based position."""
        pieces = [*others[: position - 1], gold, *others[position - 1 :]]
        instruction = TEXTS["instructions"][self.probe].format(key=gold.key)
        return LAYOUT.format(context="\n".join(piece.text for piece in pieces), question=instruction)


def raw(source: str, probe: Probe) -> list[Piece]:
    """Read a probe's raw pieces, each once; rows of the other probes are passed over. InputError if there is none."""
    fields = FIELDS[probe]
    found: dict[tuple[str, ...], Piece] = {}
    last: tuple[str, dict[str, Any]] | None = None
    for where, row in read.rows(source):
        last = where, row
        values = tuple(str(row[name]) for name in fields if row.get(name))
        if len(values) == len(fields):
            found.setdefault(values, _piece(probe, values))
    if not found:
        where, row = last or (source, {})
        raise lacking(row, f"{', '.join(map(repr, fields))} (raw pieces of the {probe} probe)", where)
    return list(found.values())


def tiny(probe: Probe, seed: int) -> list[Piece]:
    """Make pieces of the made-up world, on people of the test group."""
    key = key_of("val_probing", "tiny", seed, probe)
    make = {"document": _sentence, "code": _function, "database": _entity}[probe]
    made = [make(person, drawn) for person, drawn in enumerate(draws(key, 0, _TINY, _WIDTH))]
    return [_piece(probe, values) for values in dict.fromkeys(made)]


def gold_piece(probe: Probe, references: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern of the piece with these accepted answers, as it stands in a context."""
    known = [re.escape(reference) for reference in references]
    if probe == "document":
        return re.compile(known[0])
    if probe == "code":
        return re.compile(rf"def {known[0]}\(\):(?:\n[ \t]+[^\n]*)*")
    return re.compile(rf"<id: [^<>]*?, label: {known[0]}, description: {known[-1]}>")


def _piece(probe: Probe, values: tuple[str, ...]) -> Piece:
    layout: str = TEXTS["pieces"][probe]
    if probe == "document":
        return Piece(layout.format(text=values[0]), values[1], (values[0],))
    if probe == "code":
        return Piece(layout.format(name=values[0], text=values[1]), values[2], (values[0],))
    identifier, label, description = values
    return Piece(layout.format(id=identifier, label=label, description=description), identifier, (label, description))


def _choose(choices: Sequence[str], drawn: Any) -> str:
    return choices[int(below(drawn, len(choices)))]


def _sentence(person: int, drawn: Draws) -> tuple[str, ...]:
    texts = TEXTS["tiny"]
    place = _choose(texts["places"], drawn[4]).format(other=_choose(world.CITIES, drawn[5]))
    sentence = texts["sentence"].format(
        year=1000 + int(below(drawn[0], 900)),
        name=world.name_of("test", person),
        trade=_choose(world.TRADES, drawn[1]),
        city=_choose(world.CITIES, drawn[2]),
        emblem=_choose(world.EMBLEMS, drawn[3]),
        place=place,
    )
    words = sentence.removesuffix(".").split()
    start = int(below(drawn[6], len(words) - PIECE_WORDS + 1))
    return sentence, " ".join(words[start : start + PIECE_WORDS])


def _function(number: int, drawn: Draws) -> tuple[str, ...]:
    texts = TEXTS["tiny"]
    verbs, nouns = texts["verbs"].split(), texts["nouns"].split()
    lines = [
        _choose(texts["lines"], drawn[at]).format(
            noun=_choose(nouns, drawn[at + 1]),
            verb=_choose(verbs, drawn[at + 2]),
            other=_choose(nouns, drawn[at + 3]),
            number=int(below(drawn[at + 3] << np.uint64(32), 10_000)),
        )
        for at in (0, 4, 8)
    ]
    name = f"{_choose(verbs, drawn[12])}_{_choose(nouns, drawn[13])}_{number}"
    return name, "\n".join(f"    {line}" for line in lines), lines[1]


def _entity(person: int, drawn: Draws) -> tuple[str, ...]:
    description = TEXTS["tiny"]["description"].format(
        trade=_choose(world.TRADES, drawn[1]), city=_choose(world.CITIES, drawn[2])
    )
    return f"Q{10_000_000 + int(below(drawn[0], 90_000_000))}", world.name_of("test", person), description
