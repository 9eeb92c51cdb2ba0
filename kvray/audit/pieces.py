"""Solvers of VaL probing (An et al. 2024): which of the sentences, functions or entities of a context answers."""

import re
from collections.abc import Callable

from kvray.audit.reading import Knobs, Reading, Solver, Unread, Unsolved, entries

_PROMPT = re.compile(r"### Context:\n(.*)\n\n### Instruction:\n(.*)\Z", re.DOTALL)
_ASKED = {
    "document": re.compile(r'What is the sentence that contains the piece "(.+)"\? Answer with the whole sentence\.'),
    "code": re.compile(r'What is the name of the function that contains the code snip "(.+)"\?'),
    "database": re.compile(r"What are the label and the description for the query with id (.+)\?"),
}
_PIECE = {
    "document": re.compile(r"(.+)"),
    "code": re.compile(r"def (.+)\(\):\n(?:    .*(?:\n|\Z))+"),
    "database": re.compile(r"<id: (?:Q?\d+), label: (.+), description: (.+)>"),
}


def pieces(knobs: Knobs) -> Solver:
    """Return the solver of val_probing; published prompts, whose wording nobody here has read, are passed over."""
    probe, ours = knobs["probe"], knobs["source"] == "tiny"
    holds: Callable[[str, str], bool] = {
        "document": lambda piece, key: key in piece,
        "code": lambda piece, key: f"    {key}" in piece.split("\n")[1:],
        "database": lambda piece, key: piece.startswith(f"<id: {key}, "),
    }[probe]

    def solve(prompt: str) -> Reading:
        parts = _PROMPT.search(prompt)
        asked = _ASKED[probe].fullmatch(parts[2]) if parts else None
        if parts is None or asked is None:
            raise Unsolved(f"found the end {prompt[-80:]!r}") if ours else Unread
        found = list(_PIECE[probe].finditer(parts[1]))
        gold = [at for at, piece in enumerate(found) if holds(piece[0], asked[1])]
        if len(gold) != 1:
            raise Unsolved(f"{len(gold)} pieces hold {asked[1]!r}, expected one")
        piece = found[gold[0]]
        hits = entries(len(found), gold[0])
        return Reading(asked[0], piece[0], (piece.groups(),), position=gold[0] + 1, units=len(found), hits=hits)

    return Solver(solve)
