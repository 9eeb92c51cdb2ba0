"""Every recipe of docs/extending.md, followed to the letter in a temporary folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import kvray

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
