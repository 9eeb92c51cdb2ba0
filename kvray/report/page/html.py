"""The page: its template filled in, its contents, and a policy that lets it run its own scripts and fetch nothing."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from kvray.report.blocks import Block, Details, Heading, name_figures
from kvray.report.charts.style import COLOURS
from kvray.report.page import svg
from kvray.report.page.answers import Answers
from kvray.report.text import Linked

_VERDICTS = {"better": "up", "worse": "down", "within noise": "noise", "not compared": "noise"}
_VERDICTS |= {f"this finetune: {verdict}": _VERDICTS[verdict] for verdict in ("better", "worse")}
_STATES = {"failed": "down", "missing": "noise", "damaged": "down"}
_JUDGING = {"verdict", "the first is", "the first finetune is", "state"}
"""Headers of the columns that hold verdicts and states; elsewhere "better" may be a mixture's name."""
_SCRIPTS = ("page.js", "answers.js")
_POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:; font-src data:; "
    "base-uri 'none'; form-action 'none'"
)


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """Return one HTML page in the reader's theme, light or dark, that brings all it needs and requests nothing.

    ``**bold**``, ``*emphasis*`` and backticks in texts are markup, all else is shown as it is. Cells and points that
    are :class:`~kvray.report.text.Linked` lead to their answers where the blocks have an
    :class:`~kvray.report.page.answers.Answers`.
    """
    figures = name_figures(blocks)
    drilled = any(isinstance(block, Answers) for block in blocks)
    scripts = [Markup(_file(name)) for name in (_SCRIPTS if drilled else _SCRIPTS[:1])]
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    colours = ";".join(f"--c{i}:{colour}" for i, colour in enumerate(COLOURS))
    headings = _anchors(blocks, {figure.name.lower() for figure in figures} | {"answers", "contents"})
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=title,
            blocks=blocks,
            drawings={id(figure): Markup(svg.inline(figure, f"f{i}-", drilled)) for i, figure in enumerate(figures)},
            anchors={id(heading): anchor for heading, anchor in headings},
            contents=_contents(headings),
            linked=drilled,
            style=Markup(_file("page.css").replace("@LIGHT@", colours) + svg.fonts(figures)),
            scripts=scripts,
            policy=_POLICY.format(scripts=" ".join(f"'sha256-{each}'" for each in hashes)),
        )
    )


@cache
def _file(name: str) -> str:
    return (resources.files("kvray.report.page") / name).read_text("utf-8")


@cache
def _environment() -> Environment:
    loader = PackageLoader("kvray.report.page", "templates")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {
        "inline": _inline,
        "address": svg.address,
        "type": lambda block: type(block).__name__,
        "identity": id,
    }
    made.filters["verdict"] = lambda text, header: (_VERDICTS | _STATES).get(text) if header in _JUDGING else None
    made.tests["linked"] = lambda text: isinstance(text, Linked)
    return made


def _inline(text: str) -> Markup:
    """Return text with its markup as HTML, and everything else escaped."""
    escaped = str(escape(text)).replace("&#34;", '"').replace("&#39;", "'")
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    escaped = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escaped)
    escaped = re.sub(r"(?<![\w*])\*([^*]+)\*(?![\w*])", r"<em>\1</em>", escaped)
    escaped = re.sub(r"(?<=\d) %", "\u00a0%", escaped)
    escaped = escaped.replace("\u25b2", '<span class="up">\u25b2</span>')
    return Markup(escaped.replace("\u25bc", '<span class="down">\u25bc</span>'))


def _anchors(blocks: Sequence[Block], taken: set[str]) -> list[tuple[Heading, str]]:
    """Return each heading below the title, folded ones too, with an id of its own."""
    found = []
    for heading in (each for each in _headings(blocks) if each.level > 1):
        slug = re.sub(r"[^a-z0-9]+", "-", heading.text.lower()).strip("-") or "section"
        anchor, number = slug, 2
        while anchor in taken:
            anchor, number = f"{slug}-{number}", number + 1
        taken.add(anchor)
        found.append((heading, anchor))
    return found


def _headings(blocks: Sequence[Block]) -> Iterator[Heading]:
    for block in blocks:
        if isinstance(block, Heading):
            yield block
        elif isinstance(block, Details):
            yield from _headings(block.blocks)


def _contents(headings: Sequence[tuple[Heading, str]]) -> list[dict[str, Any]]:
    """Return the sections with their parts, by title and anchor."""
    sections: list[dict[str, Any]] = []
    for heading, anchor in headings:
        line = {"text": heading.text, "anchor": anchor, "parts": []}
        if heading.level == 2:
            sections.append(line)
        elif heading.level == 3 and sections:
            sections[-1]["parts"].append(line)
    return sections
