"""Solvers of needle prompts (Kamradt 2023): the one sentence that answers, anywhere in a text."""

import re

from kvray.audit.reading import Knobs, Reading, Solver, Unsolved

_TAIL = re.compile(r"\n\n(What is (.+?)\?) Don't give information outside the document or repeat your findings\Z")
_END = re.compile(r"[.!?][\"')]*\s")
_DAY = " on a sunny day"  # of Kamradt's needle; what to do is asked, not when


def needle(knobs: Knobs) -> Solver:
    """Return the solver of needle, whichever its needles and its haystack."""
    classic = knobs["needles"] == "classic"

    def solve(prompt: str) -> Reading:
        asked = _TAIL.search(prompt)
        if asked is None:
            raise Unsolved(f"found the end {prompt[-80:]!r}")
        text = prompt[: asked.start()]
        subject = asked[2][0].upper() + asked[2][1:]
        found = [part for part in re.finditer(rf"(?:\A|\s){re.escape(subject)} is ([^.\n]+)\.", text)]
        if len(found) != 1:
            raise Unsolved(f"found {len(found)} sentences about {asked[2]}, expected one")
        value = found[0][1]
        sentence = found[0][0].strip()
        rest = text[found[0].end() :]
        before, behind = found[0].start(), _END.search(rest, 1)
        percent = 100 / max(1, before + len(rest))
        depths = before * percent, (before + (behind.end() if behind else len(rest))) * percent
        facts = tuple(value.removesuffix(_DAY).split(" and ")) if classic else (value,)
        # Of the same form, and so of the same kind: in a haystack of the made-up world, a person's one relation.
        kind = re.escape(subject).rsplit(r"\ of\ ", 1)[0]
        others = re.findall(rf"(?:\A|\s){kind} of (\w+ \w+) is (\w+)\.", text)
        return Reading(
            asked[1],
            sentence,
            (facts,),
            depths=depths,
            hits={"random fact of the kind": 1 / len(others)} if others and knobs["source"] == "tiny" else {},
        )

    return Solver(solve, length=True)
