"""Solvers of RULER's prompts (Hsieh et al. 2024, NVIDIA/RULER): needles, variables, word counts, questions.

A worked example comes before the prompts of variable tracking and common words; the last list or text is the asked one.
Of its questions, those over the made-up world are answered; of SQuAD's, one document at least holds an accepted answer;
HotpotQA's want more than a text search, and are not read.
"""

import re
from collections import Counter

from kvray.audit.documents import WHAT, facts, stated
from kvray.audit.reading import Knobs, Reading, Solver, Unread, Unsolved

_ASKED = re.compile(r"What (?:is|are all) the special magic \w+? for (.+?) mentioned in the provided text\?\Z")
_NEEDLE = re.compile(r"One of the special magic \w+ for ([^:\n]+?) is: (\S+?)\.(?=\s|\Z)")
_VARIABLES = re.compile(r"Question: Find all variables that are assigned the value (\d+) in the text above\.\Z")
_ASSIGNED = re.compile(r"VAR (\w+) = (?:VAR )?(\w+)")
_COMMON = re.compile(r"\nQuestion: What are the 10 most common words in the above list\?\Z")
_FREQUENT = re.compile(r"coded words\. (.+)\nQuestion: Do not provide any explanation\.", re.DOTALL)
_DOCUMENT = re.compile(r"(?:\A|\n)Document \d+:\n")
_WHICH = re.compile(r"Is (\w+) the (\w+) of (\w+ \w+) or of (\w+ \w+)\?")
_TINY = "tiny"


def ruler(knobs: Knobs) -> Solver:
    """Return the solver of all 13 tasks."""

    def solve(prompt: str) -> Reading:
        if asked := _ASKED.search(prompt):
            return _needles(prompt[: asked.start()], asked)
        if asked := _VARIABLES.search(prompt):
            return _variables(prompt, asked)
        if asked := _COMMON.search(prompt):
            listed = prompt[: asked.start()].rpartition("Memorize the ones that appear most often.\n")[2]
            return _most(re.split(r"(?:^| )\d+\. ", listed)[1:], 10, asked[0].strip(), "cwe")
        if asked := _FREQUENT.search(prompt):
            coded = [word for word in asked[1].split(" ") if word != "..."]
            return _most(coded, 3, prompt[asked.end() :], "fwe")
        _, of_documents, rest = prompt.partition("The following are given documents.\n\n")
        listed, of_question, question = rest.rpartition("\n\nQuestion: ")
        if not of_documents or not of_question:
            raise Unsolved(f"found none of RULER's questions; the end is {prompt[-80:]!r}")
        documents = _DOCUMENT.split(listed.rpartition("\n\nAnswer the question based on")[0])[1:]
        return _question(knobs, documents, question)

    # Several paragraphs of an article can hold the answer that is asked of one.
    return Solver(solve, ambiguous=True, length=True)


def _needles(text: str, asked: re.Match[str]) -> Reading:
    names = re.split(r", and |, ", asked[1])
    found = list(_NEEDLE.finditer(text))
    several = asked[0].startswith("What are")
    gold = [(at, one) for at, one in enumerate(found) if one[1] in names]
    if {one[1] for _, one in gold} != set(names) or (len(gold) > 1) != several:
        raise Unsolved(f"found {len(gold)} needles for {', '.join(names)}")
    if len(names) > 1 and len(gold) != len(names):
        raise Unsolved(f"found {len(gold)} values of {len(names)} keys")
    lines = text.split("\n")
    # Among lines, noise or needles, RULER puts the one needle before any of the others; essays have no lines.
    among = [at for at, line in enumerate(lines[1:-1]) for _, one in gold if line == one[0]]
    return Reading(
        asked[0],
        " ".join(one[0] for _, one in gold),
        (tuple(one[2] for _, one in gold),),
        place=tuple((at, len(lines) - 3) for at in among),
        hits={"random needle": len(gold) / len(found)} if len(found) > len(gold) else {},
    )


def _variables(prompt: str, asked: re.Match[str]) -> Reading:
    text = prompt.rpartition("Memorize and track the chain(s) of variable assignment hidden in the following text.")[2]
    values: dict[str, str] = {}
    for name, given in _ASSIGNED.findall(text):
        if name in values:
            raise Unsolved(f"{name} is assigned twice")
        values[name] = given if given.isdigit() else values.get(given, "")
    having = tuple(name for name, value in values.items() if value == asked[1])
    evidence = " ".join(found[0] for found in _ASSIGNED.finditer(text))
    return Reading(asked[0], evidence, (having,), subtask="vt")


def _most(words: list[str], most: int, question: str, subtask: str) -> Reading:
    ranked = Counter(words).most_common()
    if len(ranked) <= most or ranked[most - 1][1] == ranked[most][1]:
        raise Unsolved(f"no {most} words come more often than all others")
    hits = {"random word of the prompt": sum(number for _, number in ranked[:most]) / len(words)}
    return Reading(question, "", (tuple(word for word, _ in ranked[:most]),), subtask=subtask, hits=hits)


def _question(knobs: Knobs, documents: list[str], question: str) -> Reading:
    which, what = _WHICH.fullmatch(question), WHAT.fullmatch(question)
    if knobs["hotpot"] == _TINY and which:
        told = {name: stated(facts(documents), which[2], name)[0] for name in (which[3], which[4])}
        having = tuple(name for name, value in told.items() if value == which[1])
        return Reading(question, " ".join(told.values()), (having,), subtask="qa_2")
    if knobs["squad"] == _TINY and what:
        value, at = stated(facts(documents), what[1], what[2])
        return Reading(question, documents[at], ((value,),), place=((at, len(documents)),), subtask="qa_1")
    if "\n" in documents[0].strip() and knobs["hotpot"] != _TINY and "qa_1" not in knobs["tasks"]:
        raise Unread("HotpotQA's questions join two texts")
    return Reading(question, "", documents=tuple(documents))
