"""Every recipe of docs/extending.md, followed to the letter in a temporary folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from made_sweeps import commit_sweep

import kvray
from kvray.store.store import Store

PAGE = Path(kvray.__file__).parents[1] / "docs" / "extending.md"
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"(?:#|//) (\S+\.\w+)(?:\s|$)")


def recipe(heading: str, folder: Path) -> list[list[str]]:
    """Write the files of a recipe into a folder.

    Args:
        heading: of the page's section.
        folder: where its files go; a block's first line names its file, ``# shouting.py``.

    Returns:
        The words of each command in its blocks of ``sh``, in order.
    """
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE))
    commands = []
    for language, text in _FENCE.findall(sections[heading]):
        named = _FILE.match(text)
        if language == "sh":
            commands += [shlex.split(line, comments=True) for line in text.splitlines() if line.strip()]
        elif named:
            file = folder / named[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    return commands


def test_a_recipe_becomes_files_and_commands(tmp_path: Path) -> None:
    for heading in re.findall(r"^## (.+)$", PAGE.read_text(), re.MULTILINE):
        assert all(words[0] for words in recipe(heading, tmp_path))


def python(*words: str, folder: Path) -> str:
    """Run a Python program in a folder; return what it prints."""
    root = str(PAGE.parents[1])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_section_of_the_report(tmp_path: Path) -> None:
    ((program, *words),) = recipe("A section of the report", tmp_path)
    commit_sweep(Store(str(tmp_path / "store")), "quickstart", mixtures=["ours"], seeds=(0,), questions=6)
    assert program == "python"
    assert python(*words, folder=tmp_path) == "report/report.html\n"
    text = (tmp_path / "report" / "report.md").read_text()
    section = text[text.index("## How long the answers are") :]
    assert "![Mean tokens per answer, per model](figures/answer-lengths.png)" in section
    assert "| ours | 7.0 |" in section and text.index("## Provenance") < text.index("## How long the answers are")
    assert (tmp_path / "report" / "figures" / "answer-lengths.svg").is_file()
    assert 'id="answer-lengths"' in (tmp_path / "report" / "report.html").read_text()
