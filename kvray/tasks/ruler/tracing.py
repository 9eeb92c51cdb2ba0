"""RULER's variable tracking (vt; its ``variable_tracking.py``): a chain of assignments among lines of noise.

The first variable gets a number, each further one the variable before it; asked is for all that have the number. One
worked example, with shorter names, comes first.
"""

import re
from collections.abc import Sequence
from itertools import pairwise

from kvray.tasks import prompts
from kvray.tasks.rng import below, draws, key_of, unit
from kvray.tasks.ruler.retrieval import NOISE, among
from kvray.tasks.ruler.subtasks import Draft

VARIABLES = 5
"""Variables of the one chain: RULER's four hops."""
_TEXTS = prompts.load("ruler/ruler.toml")["tracing"]
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_EXAMPLE_LINES = 10  # what RULER's 500 tokens hold of the worked example
_LINE = f"{NOISE}\n"


def draft(key: int) -> Draft:
    """Return an example of vt, a pure function of its random key."""
    names, value, places = _chain(key_of("ruler", "chain", key), 5)
    shown, shown_value, shown_places = _chain(key_of("ruler", "example", key), 3)
    prefix = _TEXTS["prefix"].format(number=VARIABLES, value=value)
    example = _worded(shown, shown_value, shown_places, _EXAMPLE_LINES)
    example += f" {_TEXTS['prefix'].format(number=VARIABLES, value=shown_value)}  {' '.join(shown)}"

    def worded(size: int) -> str:
        return f"{example}\n\n\n\n{_worded(names, value, places, size)}"

    return Draft(worded, VARIABLES + 1, None, prefix, " ".join(names), tuple(names))


def assignment_of(prompt: str, name: str) -> str | None:
    """Return the assignment to a variable, None if the prompt has none."""
    found = re.search(rf"\bVAR {re.escape(name)} = (?:VAR [A-Z]+|\d+)", prompt)
    return found[0] if found else None


def _worded(names: Sequence[str], value: str, places: Sequence[float], lines: int) -> str:
    first = _TEXTS["first"].format(name=names[0], value=value)
    chain = [first, *(_TEXTS["next"].format(name=name, before=before) for before, name in pairwise(names))]
    context = " ".join(among([_LINE] * lines, chain, places))
    return str(_TEXTS["prompt"].format(context=context, value=value))


def _chain(key: int, letters: int) -> tuple[list[str], str, list[float]]:
    """Return different names of so many letters, the number that they have, and ascending places in the noise."""
    names: list[str] = []
    row = 0
    while len(names) < VARIABLES:
        drawn = below(draws(key, row, row + 1, 8)[0, :letters], len(_LETTERS)).tolist()
        name = "".join(_LETTERS[letter] for letter in drawn)
        names += [name] if name not in names else []
        row += 1
    more = draws(key, 0, 1, 8, 1)[0]
    return names, str(10_000 + int(below(more[0], 89_999))), sorted(unit(more[1 : 1 + VARIABLES]).tolist())
