"""The docs site: it builds strictly, has the pages that the README promises, and loads nothing from elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data", "link": "href"}
"""Tags by which a page loads something, with the attribute that says what."""


class Loaded(HTMLParser):
    """Collects what a page loads, what it links to, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := given.get(name))}
        if tag in LOADS and (loaded := given.get(LOADS[tag])) and given.get("rel") not in ("next", "prev"):
            self.loads.append(loaded)
        if tag == "a" and (link := given.get("href")):
            self.links.append(link)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("mkdocs") is None or find_spec("mkdocstrings") is None:
        pytest.skip("mkdocs is not installed")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_it_has_a_page_for_every_one_of_docs_and_those_that_are_made(site: Path) -> None:
    pages = {path.stem for path in site.glob("*.html")}
    made = {"index", "tutorial", "tasks", "sweep-file", "extending", "architecture", "security", "api", "changelog"}
    assert made | {path.stem for path in (ROOT / "docs").glob("*.md")} <= pages
    navigated = Loaded((site / "index.html").read_text()).links
    assert {f"{page}.html" for page in pages - {"404"}} <= set(navigated)


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        for loaded in Loaded(page.read_text()).loads:
            parts = urlsplit(loaded)
            assert not parts.scheme and not parts.netloc, f"{page.name} loads {loaded}"
            if not loaded.startswith("/"):  # the page of errors alone is written for a server's root
                assert (page.parent / unquote(parts.path)).exists(), f"{page.name} loads {loaded}, which is not there"
    for sheet in site.rglob("*.css"):
        assert "@import" not in sheet.read_text() and "url(http" not in sheet.read_text(), sheet.name


def test_links_within_the_site_lead_somewhere(site: Path) -> None:
    pages = {page.name: Loaded(page.read_text()) for page in site.glob("*.html") if page.name != "404.html"}
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link in (".", "#"):
                continue
            target = unquote(parts.path) or name
            assert target in pages or (site / target).exists(), f"{name} links to {link}"
            if parts.fragment and target in pages and parts.fragment != "__codelineno-0-1":
                assert unquote(parts.fragment) in pages[target].anchors, f"{name} links to {link}"


def test_the_reference_shows_docstrings_and_the_sweep_file_every_key(site: Path) -> None:
    from kvray.sweep.model import Runtime

    api = (site / "api.html").read_text()
    assert "Return what a run would do" in api and "Make the artefacts of a sweep that the store lacks" in api
    assert ":func:" not in api and ":class:" not in api and "::</p>" not in api
    keys = (site / "sweep-file.html").read_text()
    assert all(f"runtime.{name}" in keys for name in Runtime.model_fields)


def test_marks_for_tests_are_not_shown(site: Path) -> None:
    assert not [page.name for page in site.glob("*.html") if "<!-- not run" in page.read_text()]
