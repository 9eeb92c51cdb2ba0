"""Which wrong closed-book answers decline to answer, and which are confident inventions.

The paper infers hallucination from lost points on TriviaQA and NQ-Open; this measures it. The rule is ours. An answer
is judged by its first line, as the scorer does: it is a refusal if it is empty, is one of :data:`LINES`, or holds one
of :data:`PHRASES`; every other wrong answer is an invention. A guess behind a doubt ("I'm not sure, but I think …") is
a refusal: it is not confident. Titles that hold such words ("I Don't Know How to Love Him") count as refusals too;
they are rare.
"""

import re

from kvray.tasks import prompts
from kvray.tasks.base import RIGHT

REFUSAL, INVENTION = "refusal", "invention"
_TEXTS = prompts.load("qa/texts.toml")["refusals"]
LINES = frozenset(_TEXTS["lines"])
"""First lines that refuse on their own; compared in lower case, without punctuation, articles and outer spaces."""
PHRASES = [re.compile("".join(pieces)) for pieces in _TEXTS["phrases"]]
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
    return not bare or bare in LINES or any(phrase.search(line) for phrase in PHRASES)
