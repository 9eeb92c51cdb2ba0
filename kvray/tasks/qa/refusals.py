"""Which wrong closed-book answers decline to answer, and which are confident inventions.

The paper infers hallucination from lost points on TriviaQA and NQ-Open; this measures it. The rule is ours. An answer
is judged by its first line, as the scorer does: it is a refusal if it is empty, is one of :data:`WHOLE`, or holds one
of :data:`PHRASES`; every other wrong answer is an invention. A guess behind a doubt ("I'm not sure, but I think …") is
a refusal: it is not confident. Titles that hold such words ("I Don't Know How to Love Him") count as refusals too;
they are rare.
"""

from __future__ import annotations

import re

from kvray.tasks.base import RIGHT

REFUSAL, INVENTION = "refusal", "invention"

WHOLE = frozenset(
    "unknown|unsure|uncertain|unclear|undetermined|unanswerable|idk|na|not sure|not known|not available|not applicable|"
    "not certain|no idea|no answer|no clue|no information|no one knows|nobody knows|sorry|dont know|do not know|"
    "answer is unknown|cannot answer|cannot say|cant answer|cant say".split("|")
)
"""First lines that refuse on their own; compared in lower case, without punctuation, articles and outer spaces."""
_DO_NOT = r"(do not|don't|dont|did not|didn't)"
_CANNOT = r"(cannot|can not|can't|cant|could not|couldn't|(am|are|is|was|'m|'re) (not able|unable) to|unable to)"
_TELL = (
    r"(answer|determine|provide|say|tell|identify|give|verify|confirm|recall|remember|know|access|help (you|with)|"
    r"find (any|an?|the|it|out|enough|relevant|information)|be (sure|certain|determined|answered|known|found))"
)
PHRASES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"\b(i|we) (really |actually |simply |just |currently )?{_DO_NOT} (really |actually )?"
        r"(know|recall|remember|have|understand)\b",
        rf"\b{_CANNOT} (\w+ly )?{_TELL}\b",
        r"\b(i am|i'm|im|we are|we're) (\w+ly )?(not (\w+ly )?(sure|certain|aware|familiar|able)|unsure|uncertain|"
        r"unaware|unfamiliar|sorry)\b",
        r"^(sorry|apologies|my apologies|unfortunately)( i\b| but\b| the\b|[^\w\s]|$)",
        r"\bi apologi[sz]e\b",
        r"\bas an? (ai|artificial intelligence|(large )?language model)\b",
        r"\b(no|not enough|insufficient|not any|lack of|lacks?) (\w+ )?(information|data|evidence|knowledge|context)\b",
        r"\bno (record|mention|idea|clue|known|definitive|clear)( \w+)? (of|about|how|who|what|when|where|answer)\b",
        r"\b(no answer|(have|has|had) no (idea|clue|knowledge|way|answer|information))\b",
        r"\b(documents?|texts?|passages?|context|results?|sources?|question|information)\b[^.;]{0,40}"
        r"\b(do|does|did)(n't| not)\b",
        r"\bnone of the (\w+ )?(documents|texts|passages|results|sources)\b",
        r"\b(is|are|was|were|remains?|'s|it) (\w+ly |still |currently )?(unknown|unclear|uncertain|undetermined|"
        r"not (\w+ly )?(known|clear|certain|available|provided|mentioned|specified|stated|"
        r"possible to (\w+ly )?(say|tell|know|determine|answer|provide)))\b",
        r"\b(my|beyond my|outside my) (knowledge|training data|knowledge cutoff)\b",
        r"\b(please|could you|can you) (\w+ )?(provide|clarify|specify|rephrase|give me)\b",
        r"\b(need|require) (more|additional|further) (\w+ )?(information|context|details?)\b",
    )
)
"""Patterns of a first line that refuses, in lower case."""
_LEADING = re.compile(r"\b(a|an|the|it is|its)\b")


def outcome(answer: str, score: float) -> str:
    """Return "right" for a score of 1, else "refusal" or "invention"."""
    if score == 1.0:
        return RIGHT
    return REFUSAL if refuses(answer) else INVENTION


def refuses(answer: str) -> bool:
    """Tell whether an answer declines to answer."""
    line = answer.strip().partition("\n")[0].lower().replace("\u2019", "'").replace("\u02bc", "'")
    line = " ".join(line.split())
    bare = " ".join(_LEADING.sub(" ", re.sub(r"[^\w\s]", "", line)).split())
    return not bare or bare in WHOLE or any(phrase.search(line) for phrase in PHRASES)
