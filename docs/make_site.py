"""Hooks of the docs site (mkdocs.yml): pages that are written elsewhere, and links that lead out of the site.

The README is the site's first page and CHANGELOG.md its last; ``sweep-file.md`` is made from the models of a sweep.
Pages in docs/ that the navigation does not name come at its end, so that a new page is never lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from kvray.sweep.model import Finetune, Runtime, Sweep
from kvray.tasks.base import Strict

ROOT = Path(__file__).parents[1]
WRITTEN_ELSEWHERE = {"index.md": "README.md", "changelog.md": "CHANGELOG.md"}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
_ROLE = re.compile(r":(?:func|class|meth|data|mod|attr):<code>~?(?:kvray\.)?([^<]*)")
_DOUBLE = re.compile(r"::(?=</p>)")
_MARKER = re.compile(r"^<!-- .*? -->\n", re.MULTILINE)
_HEAD = """# The sweep file

Every key, as `kvray schema` tells editors. *Italic* keys say where and how fast; all others decide what is made, and
are part of its identity. What stands below `datasets:` and `evaluate:` is on the page of [tasks](tasks.md).
"""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of docs/ that the navigation does not name at its end."""
    assert config.nav is not None
    named = {page for entry in config.nav for page in (entry.values() if isinstance(entry, dict) else [entry])}
    further = sorted({path.name for path in Path(config.docs_dir).glob("*.md")} - named)
    config.nav = [*config.nav, *({"Experiments": name} if name == "LOG.md" else name for name in further)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are written elsewhere."""
    for page, source in WRITTEN_ELSEWHERE.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "sweep-file.md", content="\n".join(_sweep_file())))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leave out the marks of the docs' tests, and name files outside the site in place of a link to them."""

    def kept(match: re.Match[str]) -> str:
        _, text, target, _ = match.groups()
        if "://" in target or target.startswith("mailto:") or files.get_file_from_path(target):
            return match[0]
        if (ROOT / target).exists() or (ROOT / "docs" / target).exists():
            return text if target in text else f"{text} (`{target.removeprefix('../')}`)"
        return match[0]  # the build refuses it

    parts = re.split(r"(^```.*?^```$)", _MARKER.sub("", markdown), flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else _LINK.sub(kept, part) for part in parts)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Show the names in docstrings, which are written for other tools too (:func:`x`, a colon twice), as names."""
    return _DOUBLE.sub(":", _ROLE.sub(r"<code>\1", html))


def _sweep_file() -> Iterator[str]:
    yield _HEAD
    models: list[tuple[str, str, type[Strict]]] = [
        ("The file", "", Sweep),
        ("finetune", "finetune.", Finetune),
        ("runtime", "runtime.", Runtime),
    ]
    for title, prefix, cls in models:
        yield f"## {title}\n\n| key | default | |\n|---|---|---|"
        for name, field in cls.model_fields.items():
            key = f"`{prefix}{name}`" if cls.identity(name) == "recipe" else f"*`{prefix}{name}`*"
            inner = isinstance(field.default, Strict)
            default = "needed" if field.is_required() else "[below](#" + name + ")" if inner else _json(field.default)
            yield f"| {key} | {default} | {(field.description or '').replace('|', chr(92) + '|')} |"
        yield ""


def _json(value: Any) -> str:
    return f"`{json.dumps(value)}`"
