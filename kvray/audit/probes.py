"""Solvers of FILM's VaL probing over pieces of which contexts are made here (An et al. 2024)."""

import re

from kvray.audit.reading import Knobs, Reading, Solver, Unread, Unsolved, entries, only

_LAYOUT = re.compile(r"\n### Context:\n(.*)\n\n### Instruction:\n(.*)\Z", re.DOTALL)
_SENTENCE = re.compile(r'What is the sentence that contains the piece "(.+)"\? Answer with the whole sentence\.')
_FUNCTION = re.compile(r'What is the name of the function that contains the code snip "(.+)"\?')
_ENTITY = re.compile(r"What are the label and the description for the query with id (\S+)\?")
_DEFINED = re.compile(r"^def (\w+)\(\):$", re.MULTILINE)
_RECORD = re.compile(r"<id: (\S+), label: (.+), description: (.+)>")


def val_probing(knobs: Knobs) -> Solver:
    """Return the solver of the three probes; the published prompts have a wording of their own, and are not read."""

    def solve(prompt: str) -> Reading:
        layout = only(_LAYOUT, prompt, "a context with its instruction")
        context, question = layout[1], layout[2]
        if asked := _SENTENCE.fullmatch(question):
            pieces = context.split("\n")
            found = [(at, (piece,)) for at, piece in enumerate(pieces) if asked[1] in piece]
        elif asked := _FUNCTION.fullmatch(question):
            starts = [start.start() for start in _DEFINED.finditer(context)]
            pieces = [context[a:b] for a, b in zip(starts, [*starts[1:], len(context)], strict=True)]
            found = [(at, (piece[4 : piece.index("(")],)) for at, piece in enumerate(pieces) if asked[1] in piece]
        elif asked := _ENTITY.fullmatch(question):
            pieces = context.split("\n")
            records = [_RECORD.fullmatch(piece) for piece in pieces]
            found = [(at, (one[2], one[3])) for at, one in enumerate(records) if one and one[1] == asked[1]]
        else:
            raise Unread("a published prompt")
        if len(found) != 1:
            raise Unsolved(f"{len(found)} pieces hold what is asked for")
        at, references = found[0]
        return Reading(
            question,
            pieces[at],
            (references,),
            position=at + 1,
            units=len(pieces),
            hits=entries(len(pieces), at),
        )

    return Solver(solve)
