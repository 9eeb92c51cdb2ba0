"""Solvers of prompts with documents (Liu et al. 2023) and of FILM's context of segments (An et al. 2024).

In the made-up world, a document states facts in one form, "The birthplace of Belda Cranford is Velmora.", and a
question is answered by reading them. What a real question asks is not understood here: of its documents, the gold one
alone may hold an accepted answer.
"""

import re

from kvray.audit.reading import Knobs, Reading, Solver, Unread, Unsolved, entries, only

TINY = "tiny"
_DOCUMENT = re.compile(r"(?:^|\n)Document \[(\d+)\]\(Title: ")
_QUESTION = re.compile(r"\n\nQuestion: ((?:(?!\n\nQuestion: ).)+?)(?:\nAnswer:)?$", re.DOTALL)
FACT = re.compile(r"The (\w+) of (\w+ \w+) is (\w+)\.")
WHAT = re.compile(r"What is the (\w+) of (\w+ \w+)\?")
_BOTH = re.compile(r"What is the (\w+) of (\w+ \w+) and the (\w+) of (\w+ \w+)\?")
_SAME = re.compile(r"Is the (\w+) of (\w+ \w+) the same as the \1 of (\w+ \w+)\? Conclude with .*", re.DOTALL)
_WHO = re.compile(r"Who has the (\w+) (\w+), (\w+ \w+) or (\w+ \w+)\? Conclude with .*")
_IN2 = re.compile(r"\n### Context:\n(.*)\n\n### Instruction:\n(.*)\Z", re.DOTALL)
_RESTATED = 'According to Document [{}]: "{}" So the answer is: {}.'

Facts = dict[tuple[str, str], list[tuple[str, int]]]
"""The values of a relation and a name, each with the number (from 0) of the text that states it."""


def mdqa(knobs: Knobs) -> Solver | None:
    """Return the solver of mdqa, None closed book."""
    return _documents(knobs) if knobs["documents"] else None


def multidoc(knobs: Knobs) -> Solver:
    """Return the solver of multidoc_qa's questions over documents, whose answers restate the gold one."""
    return _documents(knobs, restates=True)


def in2(knobs: Knobs) -> Solver | None:
    """Return the solver of in2 over the made-up world, None for questions of one's own or a model's."""
    return Solver(_in2, length=True) if knobs["source"] == TINY else None


def facts(texts: list[str]) -> Facts:
    """Return all facts that texts of the made-up world state."""
    found: Facts = {}
    for at, text in enumerate(texts):
        for relation, name, value in FACT.findall(text):
            found.setdefault((relation, name), []).append((value, at))
    return found


def stated(found: Facts, relation: str, name: str) -> tuple[str, int]:
    """Return the one value of a relation and a name, and which text states it; Unsolved if none or several do."""
    values = found.get((relation, name), [])
    if len(values) != 1:
        raise Unsolved(f"found {len(values)} statements of the {relation} of {name}, expected one")
    return values[0]


def split(prompt: str) -> tuple[list[str], str]:
    """Return the texts of the documents, titles included, and the question; Unsolved if the layout is another one."""
    starts = list(_DOCUMENT.finditer(prompt))
    asked = _QUESTION.search(prompt)
    if not starts or asked is None or [int(start[1]) for start in starts] != [*range(1, len(starts) + 1)]:
        raise Unsolved(f"found {len(starts)} documents, expected them numbered from 1, and then the question")
    ends = [start.start() for start in starts[1:]] + [asked.start()]
    return [prompt[start.end() : end] for start, end in zip(starts, ends, strict=True)], asked[1]


def _documents(knobs: Knobs, restates: bool = False) -> Solver:
    def tiny(prompt: str) -> Reading:
        documents, question = split(prompt)
        asked = WHAT.fullmatch(question)
        if asked is None:
            raise Unsolved(f"found the question {question!r}")
        found = facts(documents)
        value, at = stated(found, asked[1], asked[2])
        passage = documents[at].partition(") ")[2]
        sentence = passage if knobs.get("restate") == "passage" else f"The {asked[1]} of {asked[2]} is {value}."
        entry = [(name, one) for (_, name), of in found.items() for one, _ in of]
        same = [at for (relation, _), of in found.items() if relation == asked[1] for _, at in of]
        return Reading(
            question,
            documents[at],
            ((value,),),
            answer=_RESTATED.format(at + 1, sentence, value) if restates else None,
            documents=tuple(documents),
            position=at + 1,
            units=len(documents),
            hits={
                **entries(len(documents), at),
                "random fact": 1 / len(entry),
                "random fact of the kind": 1 / len(same),
            },
        )

    def real(prompt: str) -> Reading:
        if restates and not _DOCUMENT.search(prompt):
            raise Unread("an instruction row, whose layout is its own")
        documents, question = split(prompt)
        return Reading(question, "", documents=tuple(documents), units=len(documents))

    # Retrieved distractors are about the question, so one of them can hold an accepted answer in another sense.
    made = knobs["source"] == TINY
    return Solver(tiny if made else real, any_of=True, ambiguous=knobs.get("distractors") == "retrieved")


def _in2(prompt: str) -> Reading:
    layout = only(_IN2, prompt, "a context with its instruction")
    segments, question = layout[1].split("\n"), layout[2]
    found = facts(segments)
    people: list[tuple[str, str]]
    conclusion = ""
    if one := WHAT.fullmatch(question):
        people = [(one[1], one[2])]
    elif both := _BOTH.fullmatch(question):
        people = [(both[1], both[2]), (both[3], both[4])]
    elif same := _SAME.fullmatch(question):
        people = [(same[1], same[2]), (same[1], same[3])]
    elif who := _WHO.fullmatch(question):
        people = [(who[1], who[3]), (who[1], who[4])]
    else:
        raise Unsolved(f"found the question {question!r}")
    told = [stated(found, *of) for of in people]
    values = [value for value, _ in told]
    if question.startswith("Is "):
        conclusion = f"They are {'the same' if values[0] == values[1] else 'different'}"
    elif question.startswith("Who "):
        having = [name for (_, name), value in zip(people, values, strict=True) if f" {value}," in question]
        if len(having) != 1:
            raise Unsolved(f"{len(having)} of the two have what is asked for")
        conclusion = f"It is {having[0]}"
    at = sorted({of for _, of in told})
    restated = [f"The {relation} of {name} is {value}" for (relation, name), value in zip(people, values, strict=True)]
    whole = len(at) == len(segments)
    statements = [value for (relation, _), of in found.items() if relation == people[0][0] for value, _ in of]
    return Reading(
        question,
        " ".join(segments[number] for number in at),
        ((conclusion,) if conclusion else tuple(values),),
        answer=". ".join([*restated, conclusion] if conclusion else restated),
        units=len(segments),
        place=() if whole else tuple((number, len(segments)) for number in at),
        subtask="short" if whole else "integration" if len(people) > 1 else "fine_grained",
        hits={} if len(people) > 1 else {"random fact of the kind": statements.count(values[0]) / len(statements)},
    )
