"""The fixed wordings of prompts (``prompts.toml``, with their sources): tasks fill them in.

Those of the dictionary tasks, MDQA and closed-book questions are also what the bundled tokenizer learned merges from.
"""

import tomllib
from importlib import resources
from typing import Any


def load(path: str) -> dict[str, Any]:
    """Return a TOML file of this package: texts of one family of tasks alone."""
    return tomllib.loads(resources.files("kvray.tasks").joinpath(path).read_text("utf-8"))


TEXTS: dict[str, dict[str, Any]] = load("prompts.toml")
# In the order of the file.
# In the order of the file.
WORDINGS: tuple[str, ...] = tuple(TEXTS["learned"].values())
MDQA, DOCUMENT, CLOSED_BOOK = WORDINGS[:3]
KV_HEAD, KV_TAIL, KV_TEMPLATE, KV_ANSWER = WORDINGS[3:7]
SUBKEY_TAIL, SUBKEY_TEMPLATE, SUBKEY_ANSWER = WORDINGS[7:]
