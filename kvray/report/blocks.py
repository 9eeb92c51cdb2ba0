"""A report as blocks, for Markdown and one HTML page; ``**bold**``, ``*emphasis*``, backticks alone are markup.

:mod:`kvray.report.page` makes the page, from a template for each class here.
"""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kvray.report.charts.style import render, render_for_page
from kvray.report.charts.tips import spots

_NAME_LENGTH = 120  # most characters of a figure's file name, without its suffix


def to_markdown(blocks: Sequence[Block]) -> str:
    """Return blocks as GitHub Markdown; figures refer to ``figures/<name>.png`` beside it."""
    return "\n\n".join(block._markdown() for block in blocks) + "\n"


def name_figures(blocks: Sequence[Block]) -> list[Figure]:
    """Return all figures, folded ones too; a name that occurred before gets a number (file systems may ignore case)."""
    figures: list[Figure] = []
    for block in blocks:
        figures += [block] if isinstance(block, Figure) else []
        figures += name_figures(block.blocks) if isinstance(block, Details) else []
    taken: set[str] = set()
    for figure in figures:
        numbered = (f"{figure.name}-{number}" for number in itertools.count(2))
        names = itertools.chain([figure.name], numbered)
        figure.name = next(name for name in names if name.lower() not in taken)
        taken.add(figure.name.lower())
    return figures


class Block(Protocol):
    """A part of a report."""

    def _markdown(self) -> str: ...


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title."""

    text: str
    level: int = 2

    def _markdown(self) -> str:
        return f"{'#' * self.level} {self.text}"


@dataclass(frozen=True)
class Text:
    """A paragraph; ``kind`` is "", "lead", "sub" or "warn"."""

    text: str
    kind: str = ""

    def _markdown(self) -> str:
        return f"> {self.text}" if self.kind == "warn" else self.text


@dataclass(frozen=True)
class Bullets:
    """A list of lines."""

    items: Sequence[str]

    def _markdown(self) -> str:
        return "\n".join(f"- {item}" for item in self.items)


@dataclass(frozen=True)
class Table:
    """A table of text cells: words in the first ``left`` and last ``words`` columns, right-aligned numbers between."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    words: int = 0

    def _markdown(self) -> str:
        numbers = range(self.left, len(self.header) - self.words)
        rule = ["---:" if i in numbers else "---" for i in range(len(self.header))]
        lines = [self.header, rule, *([cell.replace("|", "\\|") for cell in row] for row in self.rows)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True)
class Code:
    """Lines to copy into a shell."""

    text: str

    def _markdown(self) -> str:
        return f"```sh\n{self.text}\n```"


class Figure:
    """A matplotlib Figure, which ``about`` describes in words; ``key`` (kind and evaluations) names its files.

    ``svg`` and ``png`` are the files, with words as outlines. The page has ``drawn``, with words as text, and
    ``spots``, where something is told when it is pointed at.
    """

    def __init__(self, chart: Any, about: str, *key: str) -> None:
        self.about = about
        self.name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(key)).strip("-")[:_NAME_LENGTH]
        self.svg = render(chart, "svg")
        self.png = render(chart, "png")
        self.drawn = render_for_page(chart)
        self.spots = spots(chart)

    def _markdown(self) -> str:
        return f"![{self.about}](figures/{self.name}.png)"


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away until opened."""

    summary: str
    blocks: Sequence[Block]

    def _markdown(self) -> str:
        inner = "\n\n".join(block._markdown() for block in self.blocks)
        return f"<details><summary>{html.escape(self.summary)}</summary>\n\n{inner}\n\n</details>"
