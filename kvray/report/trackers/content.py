"""What trackers are sent: of each finetune its curve, of the sweep its scores and figures. From the store alone."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl

import kvray
from kvray.errors import without_secrets
from kvray.report import build
from kvray.results.frames import with_models
from kvray.results.losses import FILE
from kvray.results.profile import unsplit
from kvray.store.manifest import Manifest
from kvray.store.store import Store
from kvray.sweep.yaml import dump

SERIES = ("loss", "loss_integers", "loss_words", "learning_rate", "grad_norm", "tokens", "epoch")
"""Columns of a loss log that are curves, by step; see :data:`kvray.store.schemas.LOSS_SCHEMA`."""
BOUNDS = ("accuracy", "low", "high")
"""Of a score: the accuracy, and its 95 % interval."""
_SCORES, _KEY = "scores.parquet", 16


@dataclass(frozen=True)
class Curve:
    """A committed finetune; ``steps`` and every value of ``series`` are of one length, 0 where there is no loss log.

    Attributes:
        key: 16 hex digits, the same whenever this finetune of this sweep and store is sent.
        sweep_key: the same of the sweep; see :class:`Scores`.
        name: mixture, variant of the finetune and seed; unique in the sweep.
        config: plain values by name: labels, hyperparameters, the ids of the finetune and of its data, measurements.
        times: of each step, in seconds since the epoch; as measured, the last one being the commit.
    """

    key: str
    sweep_key: str
    name: str
    config: Mapping[str, Any]
    steps: Sequence[int]
    times: Sequence[float]
    series: Mapping[str, Sequence[float | None]]


@dataclass(frozen=True)
class Scores:
    """A sweep as it stands.

    Attributes:
        key: as of a curve.
        config: plain values by name; ``artefacts`` holds the ids of all artefacts.
        yaml: the sweep as a file, without secrets.
        rows: by evaluation and model, in the report's order: the columns of scores.parquet, and ``model``.
        figures: PNGs by the name of the report's figure.
        digest: of all that is here.
    """

    key: str
    config: Mapping[str, Any]
    yaml: str
    rows: Sequence[Mapping[str, Any]]
    figures: Mapping[str, bytes]
    digest: str

    def values(self) -> dict[str, float]:
        """Return accuracies and the ends of their intervals, by ``accuracy/<evaluation>/<model>`` and so on."""
        named = ((f"{bound}/{row['evaluation']}/{row['model']}", row[bound]) for row in self.rows for bound in BOUNDS)
        return {name: float(value) for name, value in named if value is not None}

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Return the scores as a header and rows."""
        header = ["evaluation", "model", *BOUNDS, "n", "seeds", "difference", "verdict"]
        return header, [[row[name] for name in header] for row in self.rows]


def curves(store: Store, sweep: str, only: Sequence[str] | None = None) -> list[Curve]:
    """Return the committed finetunes of a sweep, or ``only`` those of these ids; InputError for an unknown sweep."""
    document = store.plan_document(sweep)
    planned = [each for each in document["artefacts"] if each["kind"] == "finetune"]
    wanted = [each for each in planned if only is None or each["id"] in only]
    manifests = store.read_manifests([each["id"] for each in wanted])
    found = []
    for each in wanted:
        if manifest := manifests.get(each["id"]):
            found.append(_curve(store, sweep, document.get("base_model"), each, manifest))
    return found


def scores(store: Store, sweep: str) -> Scores:
    """Return the scores and figures of a sweep from its report, which is written if it is not up to date."""
    if not build.current(store, sweep):
        build.write(store, sweep)
    folder, document = store.folder(f"reports/{sweep}"), store.plan_document(sweep)
    names = sorted(name for name in folder.names() if name.startswith(build.FIGURES) and name.endswith(".png"))
    figures = {name.removeprefix(build.FIGURES).removesuffix(".png"): folder.read(name) or b"" for name in names}
    table = folder.read(_SCORES) or b""
    rows = with_models(unsplit(pl.read_parquet(io.BytesIO(table)))).to_dicts() if table else []
    yaml = without_secrets(dump(document["sweep"])) if document.get("sweep") else ""
    config = {
        "sweep": sweep,
        "base_model": document.get("base_model"),
        "store": store.uri,
        "kvray": kvray.__version__,
        "artefacts": [each["id"] for each in document["artefacts"]],
    }
    parts = [table, yaml.encode(), json.dumps(config).encode(), *(figures[name] for name in sorted(figures))]
    digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    return Scores(_key(store, sweep), config, yaml, rows, figures, digest)


def _curve(store: Store, sweep: str, base_model: Any, planned: Mapping[str, Any], manifest: Manifest) -> Curve:
    labels = planned["labels"]
    name = f"{labels['mixture']}-{labels['finetune']}-s{labels['seed']}"
    keys = _key(store, sweep, manifest.id), _key(store, sweep)
    config = {"sweep": sweep, "base_model": base_model, **labels, "artefact": manifest.id}
    hyperparameters = manifest.recipe.get("finetune")
    if isinstance(hyperparameters, Mapping):
        config |= hyperparameters
    measured = {name: value for name, value in manifest.measurements.items() if isinstance(value, int | float | str)}
    config |= {"needs": manifest.needs, "measured": measured}
    listed = any(file.name == FILE for file in manifest.files)
    table = store.read_file_table(manifest.id, FILE) if listed else None
    if table is None or "step" not in table.column_names:
        return Curve(*keys, name, config, [], [], {})
    columns = table.to_pydict()
    steps = [int(step) for step in columns["step"]]
    seconds = columns.get("seconds") or [0.0] * len(steps)
    ended = datetime.fromisoformat(manifest.created).timestamp()
    times = [ended - (seconds[-1] - second) for second in seconds]
    series = {name: columns[name] for name in SERIES if name in columns}
    return Curve(*keys, name, config, steps, times, series)


def _key(store: Store, sweep: str, *more: str) -> str:
    return hashlib.sha256("\0".join([store.uri, sweep, *more]).encode()).hexdigest()[:_KEY]
