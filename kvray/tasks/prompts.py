"""The fixed wordings of prompts, in one place: tasks fill them in, the bundled tokenizer learns its merges from them.

Sources: the paper's official prompt files (dictionary tasks), lost-in-the-middle (MDQA, closed book); the multi-subkey
wording is ours, since none was published.
"""

import tomllib
from importlib import resources
from typing import Any

MDQA = (
    "Write a high-quality answer for the given question using only the provided search results "
    "(some of which might be irrelevant).\n\n{documents}\n\nQuestion: {question}\nAnswer:"
)
DOCUMENT = "Document [{index}](Title: {title}) {text}"
CLOSED_BOOK = "Question: {question}\nAnswer:"
KV_HEAD = "Do a task using the list of dictionaries below.\n\n"
KV_TAIL = (
    "\n\nAbove is a list of dictionaries such that each key and value is an integer. "
    "Report the value of key {key} and the dictionary it is in."
)
KV_TEMPLATE = (
    " Answer in the following template:\n"
    "The value of key {key} is <fill-in-value> and it is in Dictionary [<fill-in-dictionary-name>]."
)
KV_ANSWER = "The value of key {key} is {value} and it is in Dictionary [{dictionary}]."
SUBKEY_TAIL = (
    "\n\nAbove is a list of dictionaries such that each key is a tuple of integers and each value is an integer. "
    "Report the key that contains the integers {subkeys} (not necessarily in order), its value, "
    "and the dictionary it is in."
)
SUBKEY_TEMPLATE = (
    " Answer in the following template:\n"
    "The key that contains the integers {subkeys} is <fill-in-key>. "
    "Its value is <fill-in-value> and it is in Dictionary [<fill-in-dictionary-name>]."
)
SUBKEY_ANSWER = (
    "The key that contains the integers {subkeys} is {key}. "
    "Its value is {value} and it is in Dictionary [{dictionary}]."
)
WORDINGS = (
    MDQA, DOCUMENT, CLOSED_BOOK, KV_HEAD, KV_TAIL, KV_TEMPLATE, KV_ANSWER, SUBKEY_TAIL, SUBKEY_TEMPLATE, SUBKEY_ANSWER,
)  # fmt: skip


def load(path: str) -> dict[str, Any]:
    """Return a TOML file of this package: texts of one family of tasks alone."""
    return tomllib.loads(resources.files("kvray.tasks").joinpath(path).read_text("utf-8"))
