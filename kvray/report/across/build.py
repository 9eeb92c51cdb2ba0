"""The page on two sweeps: report.md, report.html, the figure, and pairs.parquet with all numbers."""

import hashlib
import json
import os
from dataclasses import dataclass

from kvray.errors import StoreError
from kvray.report.across.sections import blocks, command
from kvray.report.across.terminal import lines
from kvray.report.blocks import name_figures, to_markdown
from kvray.report.build import FIGURES, NOTE, earlier_figures
from kvray.report.page.html import to_html
from kvray.results.across.compare import Comparison
from kvray.store import output
from kvray.store.content import encode


@dataclass(frozen=True)
class Paths:
    """Local paths, or URIs in a bucket, of the directory and its files; ``page`` is the content of ``html``.

    ``summary`` are the lines of :mod:`kvray.report.across.terminal`.
    """

    directory: str
    markdown: str
    html: str
    pairs: str
    figures: tuple[str, ...]
    page: str
    summary: tuple[str, ...]


def write(compared: Comparison, out_dir: str | os.PathLike[str] | None = None) -> Paths:
    """Write the page, replacing an older one.

    ``out_dir`` is a directory or the URI of one in a bucket; None writes to :func:`folder_name` in the first sweep's
    store. Raises InputError if ``out_dir`` cannot be written, and StoreError, which says how to write elsewhere, if the
    store cannot be.
    """
    store = compared.first.store
    folder = store.folder(folder_name(compared)) if out_dir is None else output.folder(out_dir)
    parts = blocks(compared)
    figures: dict[str, bytes] = {}
    for figure in name_figures(parts):
        figures |= {f"{FIGURES}{figure.name}.png": figure.png, f"{FIGURES}{figure.name}.svg": figure.svg}
    page = to_html(f"kvray: {' and '.join(compared.names)}", parts)
    files = {"report.md": to_markdown(parts).encode(), "pairs.parquet": bytes(encode(compared.table.to_arrow()))}
    files |= {**figures, "report.html": page.encode()}  # last: whoever sees it has the rest
    try:
        old = [name for name in earlier_figures(folder) if name not in files]
        for name, data in files.items():
            folder.put(name, data)
        for name in old:
            folder.delete(name)
        folder.put(NOTE, (json.dumps({"files": list(files)}, indent=1) + "\n").encode())
    except StoreError as error:
        if out_dir is not None:
            raise
        raise StoreError(f"{error}; to write the page elsewhere: {command(compared)} --out DIRECTORY") from error
    markdown, html, pairs, *drawn = (
        f"{folder.place}/{name}" for name in ("report.md", "report.html", "pairs.parquet", *figures)
    )
    return Paths(folder.place, markdown, html, pairs, tuple(drawn), page, tuple(lines(compared)))


def folder_name(compared: Comparison) -> str:
    """Return where a comparison lies in the first sweep's store: "reports/A+B", which no sweep can be called.

    With another store "reports/A+B-<8 hex digits>", those of its URI.
    """
    first, second = compared.first, compared.second
    name = f"reports/{first.sweep}+{second.sweep}"
    if second.store.uri == first.store.uri:
        return name
    return f"{name}-{hashlib.sha256(second.store.uri.encode()).hexdigest()[:8]}"
