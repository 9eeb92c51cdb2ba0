"""Solver of FLenQA's prompts (Levy et al. 2024) over facts of our own: deduction from all that the text states.

- MonoRel: "A is older than B." as edges of a graph; the question is true where A reaches C, false where C reaches A.
- PIR: the person's room, and what the text says that this room is.
- RuleTaker: whether the text states both conditions of the rule about the person.
"""

import re

from kvray.audit.reading import Knobs, Reading, Solver, Unsolved

_NAME = r"[A-Z]\w+ [A-Z]\w+"
_MONO = re.compile(
    rf"based on the text: (Is ({_NAME}) (\w+) than ({_NAME})\?) Answer the question as it appears exactly\."
)
_PIR = re.compile(rf"\nTrue/False Question: (({_NAME}) is in an? ([\w-]+) room\.)\n")
_RULE = re.compile(rf"Answer whether the statement (({_NAME}) is (\w+)\.) can be derived from the rule and the facts\.")
_IF = re.compile(r"\nRule: (If someone is (\w+) and (\w+) then they are (\w+)\.)\nFacts: ")
_KINDS = ("MonoRel", "PIR", "RuleTaker")

Deduced = tuple[bool, str, str, list[str]]
"""The label, the question, the text, and the facts that it follows from."""


def flenqa(knobs: Knobs) -> Solver | None:
    """Return the solver of the made instances, None for the published ones, whose facts GPT-4 has reworded."""
    if knobs["source"] != "tiny":
        return None

    def solve(prompt: str) -> Reading:
        kinds = zip(_KINDS, (_MONO, _PIR, _RULE), (_older, _room, _ruled), strict=True)
        found = ((subtask, asked, deduce) for subtask, kind, deduce in kinds if (asked := kind.search(prompt)))
        subtask, asked, deduce = next(found, (None, None, None))
        if subtask is None or asked is None or deduce is None:
            raise Unsolved("found none of FLenQA's three prompts")
        label, question, text, evidence = deduce(prompt, asked)
        lines = text.split("\n")
        at = sorted({number for number, line in enumerate(lines) for fact in evidence if _holds(line, fact)})
        return Reading(
            question,
            " ".join(evidence),
            ((str(label),),),
            subtask=subtask,
            layouts=_layouts(at, len(lines)),
            sizes={f"{subtask} that is true": [int(label)]},
        )

    return Solver(solve)


def _older(prompt: str, asked: re.Match[str]) -> Deduced:
    text = prompt[asked.end() :]
    relation = asked[3]
    edges: dict[str, set[str]] = {}
    for upper, lower in re.findall(rf"({_NAME}) is {relation} than ({_NAME})\.", text):
        edges.setdefault(upper, set()).add(lower)
    for label, start, end in ((True, asked[2], asked[4]), (False, asked[4], asked[2])):
        between = [one for one in edges.get(start, ()) if end in edges.get(one, ())]
        if between:
            steps = [f"{start} is {relation} than {between[0]}.", f"{between[0]} is {relation} than {end}."]
            return label, asked[1], _body(text, asked[1]), steps
    raise Unsolved(f"neither {asked[2]} nor {asked[4]} comes before the other")


def _room(prompt: str, asked: re.Match[str]) -> Deduced:
    text = prompt[: asked.start()].removeprefix("Show your steps then answer with ’true’ or ’false’.\n")  # noqa: RUF001
    rooms = set(re.findall(rf"(?:^|[\n ]){asked[2]} is in ([A-Z]\w+'s [\w ]+?)\.", text))
    if len(rooms) != 1:
        raise Unsolved(f"{asked[2]} is in {len(rooms)} rooms")
    room = rooms.pop()
    # Not "The hallway next to Al's study is …": a sentence of its own.
    looks = set(re.findall(rf"(?:\A|\n|[.!?] ){re.escape(room)} is ([\w-]+)\.", text))
    if len(looks) != 1:
        raise Unsolved(f"{room} is {len(looks)} things")
    own = looks.pop()
    return own == asked[3], asked[1], text, [f"{asked[2]} is in {room}.", f"{room} is {own}."]


def _ruled(prompt: str, asked: re.Match[str]) -> Deduced:
    rule = _IF.search(prompt)
    if rule is None or rule[4] != asked[3]:
        raise Unsolved("the rule does not conclude what is asked")
    text = prompt[rule.end() :].rpartition('\nAnswer with either "True')[0]
    has = set(re.findall(rf"(?:\A|\n|[.!?] ){asked[2]} is (\w+)\.", text))
    if asked[3] in has:
        raise Unsolved("a fact says what the rule is to conclude")
    return {rule[2], rule[3]} <= has, asked[1], text, [f"{asked[2]} is {one}." for one in sorted(has)]


def _body(text: str, question: str) -> str:
    """Return the facts of a MonoRel prompt: what follows the head, up to the question asked again."""
    return text.rpartition(f"\n{question}\n")[0].rpartition("or ’false’.\n")[2].lstrip("\n")  # noqa: RUF001


def _holds(line: str, fact: str) -> bool:
    return line.startswith(fact) or f" {fact}" in line


def _layouts(at: list[int], lines: int) -> frozenset[str]:
    """Return which dispersions two key paragraphs at these lines can have."""
    layouts = {"random"}
    if len(at) == 2 and at[1] == at[0] + 1:
        layouts |= {"middle"} | ({"first"} if at[0] == 0 else set()) | ({"last"} if at[1] == lines - 1 else set())
    return frozenset(layouts)
