"""VaL probing as its authors published it: rows of ``hf://datasets/In2Training/VaLProbing-32K`` (An et al. 2024).

What is read of a row: ``prompt``, ``position_id`` (from 0), ``set_id``, and ``completion`` (document, code) or
``label`` and ``description`` (database); a field that is one space is absent (their ``download.py``). A prompt is in
FILM-7B's layout between ``[INST]`` and ``[/INST]``, which are taken off: every model here gets its own chat template,
as the authors ask. Rows in their skip lists (what is asked for stands in the context twice) are left out.
"""

import re
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from kvray.errors import InputError
from kvray.tasks.rows import Example
from kvray.tasks.sources import read
from kvray.tasks.sources.records import lacking
from kvray.tasks.val.contexts import TEXTS, Probe

SPLITS: dict[Probe, str] = {"document": "document_bi", "code": "code_backward", "database": "database_forward"}
"""How the names of the published files begin, by probe."""
_INST = re.compile(r"\s*(?:<s>)?\s*\[INST\]\s*(.*?)\s*\[/INST\]\s*", re.DOTALL)


def is_published(source: str) -> bool:
    """Tell published rows, which have a ``prompt``, from raw pieces, by the first row of a source."""
    first = next(iter(read.rows(source)), None)
    return first is not None and "prompt" in first[1]


def sets(source: str, probe: Probe) -> dict[str, list[Example]]:
    """Read a probe's rows by set, without those of its skip list; files of the other probes are passed over.

    Raises InputError if a row lacks a field, or no row is left.
    """
    others = [split for other, split in SPLITS.items() if other != probe]
    skipped: Collection[int] = set(TEXTS["skipped"][probe])
    read_rows = [(where, row) for where, row in read.rows(source) if not any(split in where for split in others)]
    made = [_example(row, where, probe) for at, (where, row) in enumerate(read_rows) if at not in skipped]
    if not made:
        raise InputError(f"{source}: no row of the {probe} probe; expected a file like {SPLITS[probe]}_32k.jsonl")
    units = max(example.position or 0 for _, example in made)
    by_set: dict[str, list[Example]] = {}
    for name, example in made:
        by_set.setdefault(name, []).append(replace(example, units=units))
    return dict(sorted(by_set.items()))


def _example(row: dict[str, Any], where: str, probe: Probe) -> tuple[str, Example]:
    """Return the set of a row, and its example."""
    present = {name: value for name, value in row.items() if value not in (None, " ")}
    wanted = ("label", "description") if probe == "database" else ("completion",)
    for name in ("prompt", "position_id", "set_id", *wanted):
        if name not in present:
            raise lacking(present, f"{name!r} (a published row of the {probe} probe)", where)
    prompt = str(present["prompt"])
    bare = _INST.fullmatch(prompt)
    references = tuple(str(present[name]) for name in wanted)
    of_set, position = str(present["set_id"]), int(present["position_id"]) + 1
    name = f"{probe}-{of_set}-{position}"
    text = bare[1] if bare else prompt
    return of_set, Example(text, references[0], references, name, position, example_id=name)
