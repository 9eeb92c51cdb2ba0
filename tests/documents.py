"""Commands and snippets of Markdown pages, each with the reason that its page gives for not being run, if it gives one.

A comment ``<!-- not run: reason -->`` on a line of its own speaks for the lines below it up to an empty one (a
paragraph, a list, a table, a fence); in the first line of a page it speaks for the page.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("kvray", "make", "python", "pip", "ray", "git", "aws", "docker", "kubectl", ".venv/bin/kvray")
MARKER = re.compile(r"<!-- not run: (?P<reason>.+?) -->")
_CODE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
_ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")
_COMMAND = re.compile(rf"(?:[A-Z_]+=\S* )*(?:{'|'.join(map(re.escape, PROGRAMS))}) +\S")
"""A program's name alone is a word of its sentence, not a command."""


@dataclass(frozen=True)
class Command:
    """A command as a reader would type it.

    Attributes:
        page: name of the file.
        words: the program first, variables of the environment left out.
        environment: those variables.
        reason: why it is not run; None if it is to be.
    """

    page: str
    words: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"

    @property
    def concrete(self) -> bool:
        """Whether it can be typed as it is: no word of it stands for something else (FILE, NAME, …)."""
        return not any(re.fullmatch(r"[A-Z][A-Z_-]+…?|.*…", word) for word in self.words[1:])


@dataclass(frozen=True)
class Snippet:
    """A fenced block: its language and text."""

    page: str
    language: str
    text: str
    reason: str | None


def commands(page: Path) -> list[Command]:
    """Return every command of a page, in code spans, indented blocks and fences of a shell."""
    found = []
    for block, reason in _blocks(page.read_text()):
        for text in _typed(block):
            for part in text.split("&&") if _COMMAND.match(text) else ():
                words = shlex.split(part, comments=True)
                variables = []
                while words and _ASSIGNMENT.fullmatch(words[0]):
                    name, _, value = words.pop(0).partition("=")
                    variables.append((name, value))
                if len(words) > 1 and words[0] in PROGRAMS:
                    found.append(Command(page.name, tuple(words), tuple(variables), reason))
    return found


def snippets(page: Path) -> list[Snippet]:
    """Return every fenced block of a page."""
    found = []
    for block, reason in _blocks(page.read_text()):
        fence = re.fullmatch(r"```(\w*)\n(.*)```", block.strip(), re.DOTALL)
        if fence:
            found.append(Snippet(page.name, fence[1], fence[2], reason))
    return found


def examples(docstring: str) -> list[Command]:
    """Return the commands of a docstring: its lines that start with a program's name."""
    lines = [line.strip() for line in docstring.splitlines()]
    return [Command("--help", tuple(shlex.split(line)), (), None) for line in lines if line.startswith("kvray ")]


def _typed(block: str) -> Iterator[str]:
    if block.startswith("```"):
        language, _, text = block.removeprefix("```").partition("\n")
        if language in ("sh", "bash", "console"):
            yield from text.removesuffix("```").splitlines()
        return
    for line in block.splitlines():
        if line.startswith("    ") and not re.match(r"\s*[-*\d]", line):
            yield line.strip()
    yield from (" ".join(span.split()) for span in _CODE.findall(block))


def _blocks(text: str) -> Iterator[tuple[str, str | None]]:
    """Yield runs of lines without empty ones between them, a fence whole, each with the marker before it."""
    whole_page = MARKER.match(text)
    reason: str | None = None
    for block in _runs(text.splitlines()):
        marker = MARKER.fullmatch(block)
        if marker:
            reason = marker["reason"]
            continue
        yield block, reason or (whole_page["reason"] if whole_page else None)
        reason = None


def _runs(lines: Sequence[str]) -> Iterator[str]:
    run: list[str] = []
    fenced = False
    for line in [*lines, ""]:
        opens = line.startswith("```")
        alone = not fenced and (not line.strip() or opens or MARKER.fullmatch(line) is not None)
        if alone and run:
            yield "\n".join(run)
            run = []
        if line.strip() or fenced:
            run.append(line)
        if (fenced and opens) or MARKER.fullmatch(line):
            yield "\n".join(run)
            run = []
        fenced = fenced != opens
