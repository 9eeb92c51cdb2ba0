"""A report as blocks, for Markdown and one HTML page; ``**bold**``, ``*emphasis*``, backticks alone are markup."""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from string import Template
from typing import Any, Protocol

from kvray.report.charts.style import COLOURS, GRID, INK, MUTED, PAPER, render

_VERDICTS = {"better": "up", "worse": "down", "within noise": "noise", "not compared": "noise"}
_VERDICTS |= {f"this finetune: {verdict}": _VERDICTS[verdict] for verdict in ("better", "worse")}
_STATES = {"failed": "down", "missing": "noise", "damaged": "down"}
_JUDGING = {"verdict", "the first is", "the first finetune is", "state"}
"""Headers of the columns that hold verdicts and states; elsewhere "better" may be a mixture's name."""
_NAME_LENGTH = 120  # most characters of a figure's file name, without its suffix
_INKS = {"ink": INK, "muted": MUTED, "grid": GRID, "paper": PAPER} | {f"c{i}": c for i, c in enumerate(COLOURS)}
_MARKED = {word: f'<span class="{kind}">{word}</span>' for word, kind in (_VERDICTS | _STATES).items()}


def to_markdown(blocks: Sequence[Block]) -> str:
    """Return blocks as GitHub Markdown; figures refer to ``figures/<name>.png`` beside it."""
    return "\n\n".join(block._markdown() for block in blocks) + "\n"


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """Return one HTML page (``page.html``) in the reader's theme, light or dark, with inline styles and figures."""
    body = "\n".join(block._html(str(i)) for i, block in enumerate(blocks))
    colours = ";".join(f"--c{i}:{colour}" for i, colour in enumerate(COLOURS))
    page, style = ((resources.files("kvray.report") / name).read_text("utf-8") for name in ("page.html", "page.css"))
    return Template(page).substitute(title=html.escape(title), style=style.replace("@LIGHT@", colours), body=body)


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


def _inline(text: str) -> str:
    escaped = html.escape(text, quote=False)
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    escaped = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escaped)
    escaped = re.sub(r"(?<![\w*])\*([^*]+)\*(?![\w*])", r"<em>\1</em>", escaped)
    escaped = re.sub(r"(?<=\d) %", "\u00a0%", escaped)
    escaped = escaped.replace("\u25b2", '<span class="up">\u25b2</span>')
    return escaped.replace("\u25bc", '<span class="down">\u25bc</span>')


def _inline_svg(svg: str, prefix: str, about: str) -> str:
    """Return an SVG for use in a page: unique ids, no fixed size, colours of the page's theme, a description."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}\1"', svg)
    root, rest = svg.split(">", 1)
    root = re.sub(r'\s(?:width|height)="[^"]*"', "", root)
    for name, colour in _INKS.items():
        rest = rest.replace(colour.lower(), f"var(--{name})")
    return f'{root} role="img" aria-label="{html.escape(about)}">{rest}'


class Block(Protocol):
    """A part of a report."""

    def _markdown(self) -> str: ...

    def _html(self, key: str) -> str: ...  # key is unique in the page


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title."""

    text: str
    level: int = 2

    def _markdown(self) -> str:
        return f"{'#' * self.level} {self.text}"

    def _html(self, key: str) -> str:
        return f"<h{self.level}>{_inline(self.text)}</h{self.level}>"


@dataclass(frozen=True)
class Text:
    """A paragraph; ``kind`` is "", "lead", "sub" or "warn"."""

    text: str
    kind: str = ""

    def _markdown(self) -> str:
        return f"> {self.text}" if self.kind == "warn" else self.text

    def _html(self, key: str) -> str:
        return f'<p class="{self.kind}">{_inline(self.text)}</p>' if self.kind else f"<p>{_inline(self.text)}</p>"


@dataclass(frozen=True)
class Bullets:
    """A list of lines."""

    items: Sequence[str]

    def _markdown(self) -> str:
        return "\n".join(f"- {item}" for item in self.items)

    def _html(self, key: str) -> str:
        return "<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in self.items) + "</ul>"


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

    def _html(self, key: str) -> str:
        def cell(tag: str, place: int, text: str) -> str:
            number = self.left <= place < len(self.header) - self.words
            long = len(text) > (60 if place < self.left else 40)
            kind = ' class="r"' if number else ' class="long"' if long else ""
            marked = _MARKED.get(text) if self.header[place] in _JUDGING else None
            return f"<{tag}{kind}>{marked or _inline(text)}</{tag}>"

        head, *body = (
            f"<tr>{''.join(cell(tag, place, text) for place, text in enumerate(row))}</tr>"
            for tag, row in [("th", self.header), *(("td", row) for row in self.rows)]
        )
        rows = "\n".join(body)
        return f'<div class="wide"><table><thead>{head}</thead>\n<tbody>\n{rows}\n</tbody></table></div>'


@dataclass(frozen=True)
class Code:
    """Lines to copy into a shell."""

    text: str

    def _markdown(self) -> str:
        return f"```sh\n{self.text}\n```"

    def _html(self, key: str) -> str:
        return f"<pre><code>{html.escape(self.text)}</code></pre>"


class Figure:
    """A matplotlib Figure, which ``about`` describes in words; ``key`` (kind and evaluations) names its files."""

    def __init__(self, chart: Any, about: str, *key: str) -> None:
        self.about = about
        self.name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(key)).strip("-")[:_NAME_LENGTH]
        self.svg = render(chart, "svg")
        self.png = render(chart, "png")

    def _markdown(self) -> str:
        return f"![{self.about}](figures/{self.name}.png)"

    def _html(self, key: str) -> str:
        svg = _inline_svg(self.svg.decode(), f"f{key}-", self.about)
        return f'<figure id="{html.escape(self.name)}">{svg}</figure>'


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away until opened."""

    summary: str
    blocks: Sequence[Block]

    def _markdown(self) -> str:
        inner = "\n\n".join(block._markdown() for block in self.blocks)
        return f"<details><summary>{html.escape(self.summary)}</summary>\n\n{inner}\n\n</details>"

    def _html(self, key: str) -> str:
        inner = "\n".join(block._html(f"{key}-{i}") for i, block in enumerate(self.blocks))
        return f"<details><summary>{_inline(self.summary)}</summary>\n{inner}\n</details>"
