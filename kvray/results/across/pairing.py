"""Which model of one sweep stands beside which model of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvray.errors import InputError
from kvray.results.across.shared import Apart
from kvray.results.across.side import Side
from kvray.results.frames import BASE
from kvray.tasks.problems import nearest

BY_HAND, SAME_FINETUNE, ALONE = "paired by hand", "the same finetune", "the only finetuned models"
"""Why two models of different names are a pair."""


@dataclass(frozen=True)
class Pair:
    """A model of the first sweep beside one of the second; ``why`` says why, unless they have one name."""

    first: str
    second: str
    why: str = ""
    by_hand: bool = False

    @property
    def name(self) -> str:
        """Both names, or the one that they share: "ours", "ours → ours-long"."""
        return self.first if self.first == self.second else f"{self.first} \u2192 {self.second}"


def pair(first: Side, second: Side, asked: Sequence[tuple[str, str] | str] = ()) -> tuple[list[Pair], list[Apart]]:
    """Return the pairs of models, the base models first, and the models that have no partner.

    By hand, as ``asked`` ("ours=theirs" is a pair, too); else by name; else where both sweeps label mixture and
    finetune alike, or have the same finetunes; else where either sweep has a single finetuned model. A model paired by
    hand has no other partner.

    Raises InputError for a pair by hand of a model that its sweep has not, or that is given twice.
    """
    by_hand = [_parts(each, first, second) if isinstance(each, str) else each for each in asked]
    _check(first, second, by_hand)
    pairs = [Pair(one, other, "" if one == other else BY_HAND, by_hand=True) for one, other in by_hand]
    ours, theirs = ([BASE, *side.models] if side.of(BASE) else side.models for side in (first, second))
    left, right = [m for m in ours if m not in dict(by_hand)], [m for m in theirs if m not in {o for _, o in by_hand}]
    pairs += [Pair(model, model) for model in left if model in right]
    left, right = [m for m in left if m not in right], [m for m in right if m not in left]
    known = {model: _labels(second, model) for model in right}
    for model in list(left):
        own = _labels(first, model)
        other = next((each for each in right if own & known[each]), None)
        if other is not None:
            pairs.append(Pair(model, other, SAME_FINETUNE))
            left.remove(model)
            right.remove(other)
    if len(first.models) == len(second.models) == 1 and first.models[0] in left and second.models[0] in right:
        pairs.append(Pair(first.models[0], second.models[0], ALONE))
        left.remove(first.models[0])
        right.remove(second.models[0])
    order = {model: place for place, model in enumerate([BASE, *first.models])}
    apart = [Apart(model, "a model of the first sweep alone") for model in left]
    apart += [Apart(model, "a model of the second sweep alone") for model in right]
    return sorted(pairs, key=lambda each: order[each.first]), apart


def _labels(side: Side, model: str) -> set[tuple[str, str] | str]:
    """Return what a finetuned model is known by in any sweep: its finetunes' ids, and (mixture, finetune)."""
    cells = side.of(model)
    known: set[tuple[str, str] | str] = {cell.finetune for cell in cells if cell.finetune}
    return known | {(str(cell.artefact["labels"]["mixture"]), cell.label) for cell in cells if cell.finetune}


def _parts(text: str, first: Side, second: Side) -> tuple[str, str]:
    """Split "ours=theirs", where names may have a = in them, too ("ours [learning_rate=0.001]")."""
    splits = [(text[:at], text[at + 1 :]) for at, letter in enumerate(text) if letter == "="]
    if not splits:
        raise InputError(
            f"pair: found {text!r}; expected MODEL=OTHER, a model of {first.sweep} and one of {second.sweep}"
        )
    known = [{BASE, *side.models} for side in (first, second)]
    return next((each for each in splits if each[0] in known[0] and each[1] in known[1]), splits[0])


def _check(first: Side, second: Side, by_hand: Sequence[tuple[str, str]]) -> None:
    for side, which, asked in ((first, "first", [a for a, _ in by_hand]), (second, "second", [b for _, b in by_hand])):
        known = [BASE, *side.models]
        for model in asked:
            if model not in known:
                near = nearest(model, known)
                hint = f"; did you mean {near!r}?" if near else ""
                raise InputError(
                    f"pair: found {model!r}; expected a model of the {which} sweep, {side.sweep}: "
                    f"{', '.join(known)}{hint}"
                )
            if asked.count(model) > 1:
                raise InputError(f"pair: found {model!r} of the {which} sweep, {side.sweep}, twice; expected it once")
