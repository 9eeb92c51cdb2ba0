"""Figures in the page: colours of its theme, words as text, spots that tell what they show, and the font for both."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urlencode

from kvray.report.blocks import Figure
from kvray.report.charts.style import COLOURS, GRID, INK, MUTED, PAPER
from kvray.report.charts.tips import Spot

_INKS = {"ink": INK, "muted": MUTED, "grid": GRID, "paper": PAPER} | {f"c{i}": c for i, c in enumerate(COLOURS)}
_RADIUS = 7  # points around a point that count as pointing at it
_FACES = {"DejaVuSans.ttf": "", "DejaVuSans-Bold.ttf": "font-weight:700", "DejaVuSans-Oblique.ttf": "font-style:italic"}
"""Files of the fonts that matplotlib brings and draws with, and how the page tells them apart."""


def inline(figure: Figure, prefix: str, linked: bool) -> str:
    """Return a figure's SVG for a page: unique ids, no fixed size, the page's colours, a description, and its spots.

    These lead to their answers if ``linked``.
    """
    svg = figure.drawn[figure.drawn.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}\1"', svg)
    svg = re.sub(rf'<g id="{prefix}halo-\d+">', '<g class="halo">', svg)
    root, rest = svg.split(">", 1)
    root = re.sub(r'\s(?:width|height)="[^"]*"', "", root)
    for name, colour in _INKS.items():
        rest = rest.replace(colour.lower(), f"var(--{name})")
    spots = "".join(_spot(spot, linked) for spot in figure.spots)
    rest = rest.replace("</svg>", f'<g class="spots">{spots}</g></svg>') if spots else rest
    return f'{root} role="group" aria-label="{html.escape(figure.about)}">{rest}'


def address(to: Mapping[str, Any]) -> str:
    """Return the link to answers: "#answers?evaluation=mdqa&position=20"."""
    return f"#answers?{urlencode({name: value(each) for name, each in to.items()}, quote_via=quote)}"


def value(each: Any) -> str:
    """Return a filter's value as links and the page's data write it, without the tail of digits of a float32."""
    return f"{each:g}" if isinstance(each, float) else str(each)


def fonts(figures: Sequence[Figure]) -> str:
    """Return the CSS of the fonts that the figures' words need, with the letters that occur alone; "" without figures.

    Widths are those that the words were laid out with, so that none overlaps another on any machine.
    """
    words = "".join(
        text for figure in figures for text in re.findall(r"<text[^>]*>(.*?)</text>", figure.drawn, re.DOTALL)
    )
    letters = frozenset(html.unescape(re.sub(r"<[^>]+>", "", words)))
    if not letters:
        return ""
    return "\n".join(
        f"@font-face{{font-family:'DejaVu Sans';{look};src:url(data:font/woff;base64,{_subset(file, letters)})}}"
        for file, look in _FACES.items()
    )


@lru_cache(maxsize=8)
def _subset(file: str, letters: frozenset[str]) -> str:
    from fontTools import subset
    from matplotlib import get_data_path

    options = subset.Options(
        flavor="woff", hinting=False, notdef_outline=True, layout_features=["kern"], drop_tables=["FFTM"]
    )
    font = subset.load_font(f"{get_data_path()}/fonts/ttf/{file}", options)
    chosen = subset.Subsetter(options)
    chosen.populate(text="".join(sorted(letters)))
    chosen.subset(font)
    font["head"].modified = font["head"].created  # the same letters give the same bytes
    stream = io.BytesIO()
    subset.save_font(font, stream, options)
    return base64.b64encode(stream.getvalue()).decode()


def _spot(spot: Spot, linked: bool) -> str:
    to = f' data-to="{html.escape(address(spot.to))}"' if spot.to and linked else ""
    said = f"{to}><title>{html.escape(spot.said)}</title>"
    if not spot.width:
        return f'<circle cx="{spot.left:.1f}" cy="{spot.top:.1f}" r="{_RADIUS}"{said}</circle>'
    box = f'x="{spot.left:.1f}" y="{spot.top:.1f}" width="{spot.width:.1f}" height="{spot.height:.1f}"'
    return f"<rect {box}{said}</rect>"
