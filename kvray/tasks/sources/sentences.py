"""Cutting texts: into sentences for haystacks, and at any mark for corpora and padding."""

import re
from collections.abc import Iterator

LONGEST = 1000
"""Most characters of a sentence; longer ones are tables or listings."""

_PARAGRAPH = re.compile(r"\n\s*\n")
_ABBREVIATIONS = ("[A-Z]", "Mr", "Mrs", "Ms", "Dr", "Prof", "St", "No", "vs", "cf", r"e\.g", r"i\.e")
_FULL_STOP = "".join(rf"(?<!\b{before})" for before in _ABBREVIATIONS) + r"\."
_CLOSING = r"[\"'\u2019\u201d)\]]"
END = re.compile(rf"{_FULL_STOP}(?=\s)|[!?](?=\s)|[.!?]{_CLOSING}+(?=\s)|[\u3002\uff01\uff1f]")
"""The end of a sentence: a mark that white space follows, after closing quotes and brackets if any, or a CJK mark."""


def cut_after(end: re.Pattern[str], text: str) -> Iterator[str]:
    """Yield the pieces of a text, each up to and including a match of ``end``; together they are the text."""
    start = 0
    for match in end.finditer(text):
        yield text[start : match.end()]
        start = match.end()
    if start < len(text):
        yield text[start:]


def split_sentences(text: str) -> list[str]:
    """Cut a text into sentences, each with what stands before it: a blank line or a space (nothing in scripts without).

    Line ends become spaces; initials and common abbreviations end none; those over :data:`LONGEST` are left out.
    """
    pieces = []
    for paragraph in _PARAGRAPH.split(text):
        before = "\n\n"
        for sentence in cut_after(END, " ".join(paragraph.split())):
            bare = sentence.lstrip()
            if bare and len(bare) <= LONGEST:
                pieces.append(before + bare if before else sentence)
                before = ""
    return pieces
