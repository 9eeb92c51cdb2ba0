"""What a death cost: a store is compared with that of an undisturbed run, row by row."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from kvray.errors import KvrayError
from kvray.store.store import Store

KEY = "example_id"
UNSTEADY = {"seconds", "prompt_tokens", "cached_tokens", "output_tokens"}
"""Columns that differ between two undisturbed runs; answers of a real model are told apart by ``steady``."""


@dataclass
class Counts:
    """Rows and cells that should not be as they are; all zero is the promise.

    Attributes:
        lost: rows that an undisturbed run has.
        doubled: rows that are there more than once, or that no undisturbed run has.
        stale: rows with other contents than in an undisturbed run.
        unreadable: artefacts whose files do not match their manifest, or whose manifest cannot be read.
        failed: artefacts that a run gave up without any fault of their own.
        twice: artefacts that two runs both say they made.
    """

    lost: int = 0
    doubled: int = 0
    stale: int = 0
    unreadable: int = 0
    failed: int = 0
    twice: int = 0

    def __add__(self, other: Counts) -> Counts:
        """Return the sums."""
        return Counts(**{name: value + getattr(other, name) for name, value in asdict(self).items()})

    def __bool__(self) -> bool:
        return any(asdict(self).values())


Rows = dict[str, list[tuple[str, str]]]
"""By artefact: the key and the contents of every row of its Parquet files, or of every other file."""


def rows(store: Store, ids: list[str], steady: bool) -> Rows:
    """Read every artefact that is committed and readable; ``steady``: answers follow from the recipe alone."""
    found: Rows = {}
    for one in ids:
        try:
            manifest = store.manifest(one)
            if manifest is None:
                continue
            others = [entry for entry in manifest.files if not entry.name.endswith(".parquet")]
            found[one] = [(entry.name, entry.sha256 if steady else "") for entry in others]
            found[one] += [_row(row, steady) for row in store.read_table(one).to_pylist()]
        except KvrayError:
            continue
    return found


def _row(row: dict[str, Any], steady: bool) -> tuple[str, str]:
    key = str(row.get(KEY, row.get("step")))
    kept = {name: value for name, value in row.items() if name not in UNSTEADY and (steady or name in ("references",))}
    return key, json.dumps(kept, sort_keys=True, default=str)


def compare(expected: Rows, store: Store, steady: bool) -> Counts:
    """Count what is wrong with a store in which everything is said to be made."""
    ids = list(expected)
    counts = unreadable(store, ids)
    there = rows(store, ids, steady)
    for one, wanted in expected.items():
        found = Counter(key for key, _ in there.get(one, []))
        contents = dict(there.get(one, []))
        counts.lost += sum(key not in found for key, _ in wanted)
        counts.doubled += sum(number - 1 for number in found.values()) + len(found.keys() - dict(wanted).keys())
        counts.stale += sum(key in contents and contents[key] != row for key, row in wanted)
    return counts


def unreadable(store: Store, ids: list[str]) -> Counts:
    """Count committed artefacts whose bytes are not what their manifests say; at any instant there are to be none."""
    states = store.states(ids, verify=True)
    return Counts(unreadable=sum(state == "damaged" for state in states.values()))
