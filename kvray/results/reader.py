"""Committed predictions of a store's sweeps, labelled by the sweep's plan: sweeps may name shared ones differently."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from kvray.errors import DamagedArtefactError, InputError, StoreError
from kvray.results import comparisons, frames, recovery
from kvray.results.examples import COLUMNS, Choice, Flip, with_prompts
from kvray.store.schemas import ANSWERS_SCHEMA, ARTEFACT, PREDICTIONS_SCHEMA
from kvray.store.store import Store

EVERY = "*"
"""Every model, in :meth:`Results.compare`."""
EMPTY = pl.DataFrame(PREDICTIONS_SCHEMA.append(ARTEFACT).empty_table())
_LABELS = ("evaluation", "mixture", "finetune", "seed")


def open(store: Store | str | os.PathLike[str]) -> Results:
    """Return the results in a store, given as such or by path or URI (``s3://…``); InputError if that is invalid."""
    return Results(store if isinstance(store, Store) else Store(store))


@dataclass(frozen=True)
class Results:
    """Predictions, accuracies and comparisons of the sweeps of one store."""

    store: Store

    def sweeps(self) -> list[str]:
        """Return the names of the store's sweeps, sorted."""
        return self.store.sweeps()

    def document(self, sweep: str) -> dict[str, Any]:
        """Return the plan document; InputError if the store has no such sweep, StoreError if it is unreadable."""
        return self.store.plan_document(sweep)

    def predictions(self, sweep: str | None = None, *, skip_damaged: bool = False) -> pl.LazyFrame:
        """Return the committed predictions of a sweep (None: of every sweep), lazily.

        Rows shared by sweeps occur once per sweep; ``.unique(["artefact", "example_id"])`` leaves each once. Columns
        that a file of an earlier kvray lacks are null. Raises InputError if there is no such sweep, or its plan, of an
        earlier kvray, gives two models one name; DamagedArtefactError if a committed artefact lacks a file or rows,
        unless ``skip_damaged`` leaves it out.
        """
        names = self.sweeps() if sweep is None else [sweep]
        parts = []
        for name in names:
            planned = [a for a in self.document(name)["artefacts"] if a["kind"] == "predictions"]
            self._check_labels(name, planned)
            states = self.store.states([artefact["id"] for artefact in planned])
            for artefact in planned:
                if states[artefact["id"]] == "damaged" and not skip_damaged:
                    raise DamagedArtefactError(f"{artefact['id']} is damaged; kvray run makes it again")
                if states[artefact["id"]] == "committed":
                    parts.append(self._scan(name, artefact))
        return pl.concat(parts, how="diagonal_relaxed") if parts else EMPTY.lazy()

    def accuracy(self, by: Sequence[str] = ("evaluation", "model"), sweep: str | None = None) -> pl.DataFrame:
        """Return accuracies by any columns of the predictions, or ``model``; see :func:`kvray.results.frames.accuracy`.

        ``accuracy(by=["model", "position"])`` is a curve over gold positions, ``by=["evaluation", "model", "length",
        "depth"]`` a heatmap; an axis (:data:`kvray.results.profile.AXES`) is null where an evaluation lacks it. By
        ``outcome``, ``n`` counts each kind of answer. ``sweep=None`` reads all sweeps and counts shared rows once.
        Raises InputError for an unknown sweep or column, or if all sweeps are read without ``sweep`` in ``by`` though
        one name stands for different things in them.
        """
        rows = self._models(sweep)
        if sweep is None and "sweep" not in by:
            frames.check_columns(rows, by)
            check_names({name: self.document(name) for name in self.sweeps()})
            rows = rows.unique(list(dict.fromkeys([*by, "artefact", "example_id"])), keep="first", maintain_order=True)
        return frames.accuracy(rows, by)

    def compare(
        self, a: str | None = EVERY, b: str | None = EVERY, by: Sequence[str] = (), sweep: str | None = None
    ) -> pl.DataFrame:
        """Return paired differences b - a per evaluation, with interval, p, Holm's p over the table, and verdict.

        ``compare("base", "kv")`` compares two models; ``compare()`` alone makes all comparisons of a report, with
        Holm's correction within each family of them (:func:`kvray.results.comparisons.compare_all`). None stands for
        the base model, ``a="*"`` too, and ``b="*"`` for every other finetuned one. ``by`` are further columns to split
        by, such as ``position``, ``length`` or ``subtask``; ``sweep`` may be None where the store has only one. Raises
        InputError for an unknown sweep, model or column, or if the store has several sweeps and none is named.
        """
        rows = self._models(self._one(sweep))
        if a == EVERY and b == EVERY and not by:
            return comparisons.compare_all(rows)
        first = frames.BASE if a in (None, EVERY) else str(a)
        others = [m for m in frames.models(rows) if m != first] if b == EVERY else [str(b or frames.BASE)]
        tables = [frames.compare(rows, first, other, by) for other in others]
        if not tables:
            raise InputError("nothing to compare: the sweep has no predictions of a finetuned model yet")
        return frames.judge(pl.concat(tables))

    def examples(
        self,
        evaluation: str | None = None,
        model: str | None = None,
        seed: int | None = None,
        position: int | None = None,
        length: int | None = None,
        depth: float | None = None,
        subtask: str | None = None,
        condition: str | None = None,
        outcome: str | None = None,
        right: bool | None = None,
        flipped: Flip | None = None,
        sweep: str | None = None,
        limit: int | None = None,
    ) -> pl.DataFrame:
        """Return single answers with what was asked, what the base model answered, and where the answer stands.

        ``examples("mdqa", "in2", position=20, flipped="lost", limit=5)`` are five of those that the base model has
        right at position 20 and the finetune on in2 has not. What is left out takes all; models are those of
        :meth:`accuracy`, "base" among them; a condition may be one of several ("padding=books"). ``right`` is a score
        of 1; ``flipped="won"`` is the reverse of "lost". ``sweep`` may be None where the store has only one, and
        ``limit`` takes the first rows, before any prompt is read.

        Columns: evaluation, task, model, seed, example_id, question_id; position, length, depth, subtask and condition;
        prompt (the user message; null where lm-evaluation-harness asks), history (of chats, the messages before it, as
        JSON), answer_prefix (of RULER, what the answer goes on from), answer, base_answer, references (accepted
        answers), gold (pieces of the prompt that hold the answer, verbatim; empty where the task tells none), outcome,
        base_outcome, score, base_score, finish_reason, dataset and artefact (ids in the store). Answers and scores are
        null where the prompt was too long to be run.

        Raises InputError for an unknown sweep, or a name or number that no row has (with those that there are), if the
        store has several sweeps and none is named, or for ``flipped`` without answers of the base model.
        """
        choice = Choice(evaluation, model, seed, position, length, depth, subtask, condition, outcome, right, flipped)
        rows = choice.answers(choice.places(self._models(self._one(sweep))))
        return with_prompts(self.store, rows.head(rows.height if limit is None else limit)).select(COLUMNS)

    def recovery(self, by: Sequence[str] = (), sweep: str | None = None) -> pl.DataFrame:
        """Return (with context - closed book) / (oracle - closed book) of every model, with 95 % intervals.

        ``by=["position"]`` splits it; :func:`kvray.results.recovery.recovery` has the columns. ``sweep`` may be None
        where the store has only one. Raises InputError for an unknown sweep or column, or if the store has several
        sweeps and none is named.
        """
        return recovery.recovery(self._models(self._one(sweep)), by)

    def _one(self, sweep: str | None) -> str | None:
        known = self.sweeps()
        if sweep is None and len(known) != 1:
            raise InputError(f"name a sweep (sweep=…): the store has {len(known)}: {', '.join(known)}")
        return sweep or known[0]

    def _check_labels(self, sweep: str, planned: Sequence[dict[str, Any]]) -> None:
        """Refuse a plan of an earlier kvray that gives two predictions the same labels."""
        counts = Counter(tuple(artefact["labels"].get(name) for name in _LABELS) for artefact in planned)
        twice = next((labels for labels, number in counts.items() if number > 1), None)
        if twice:
            raise InputError(
                f"the plan of sweep {sweep!r} in {self.store.uri} calls two models {twice[1]} on {twice[0]}: kvray run "
                "with its file names them apart, and makes nothing anew"
            )

    def _models(self, sweep: str | None) -> pl.DataFrame:
        return frames.with_models(self.predictions(sweep).collect())

    def _scan(self, sweep: str, artefact: dict[str, Any]) -> pl.LazyFrame:
        import pyarrow.dataset as pads  # brings pandas in where it is installed: 0.8 s

        manifest = self.store.manifest(artefact["id"])
        if manifest is None:
            raise StoreError(f"{artefact['id']} was discarded while it was read; try again")
        files = [file.name for file in manifest.files if file.name.endswith(".parquet")]
        if not files:
            return EMPTY.lazy()
        paths = [self.store.path(artefact["id"], name) for name in files]
        stored = pads.dataset(paths, schema=ANSWERS_SCHEMA, filesystem=self.store.fs, format="parquet")
        adapter, dataset = (
            next((need for need in artefact["needs"] if need.startswith(folder)), None)
            for folder in ("finetunes/", "datasets/")
        )
        labels = {name: artefact["labels"].get(name) for name in _LABELS}
        labels |= {"sweep": sweep, "adapter": adapter and adapter.rpartition("/")[2]}
        labels |= {"dataset": dataset, "artefact": artefact["id"]}
        columns = [pl.lit(value, dtype=EMPTY.schema[name]).alias(name) for name, value in labels.items()]
        return pl.scan_pyarrow_dataset(stored).with_columns(columns).select(EMPTY.columns)


def check_names(documents: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse plan documents, by sweep, in which one name stands for different things: no number may mix them.

    An evaluation stands for the base model's predictions in it, a model for its finetunes by seed. Where two sweeps
    share a name, the artefacts that both have under it must be the same, and they must share at least one.
    """
    clashes: dict[str, tuple[str, str]] = {}
    for (first, one), (second, other) in itertools.combinations(documents.items(), 2):
        ours, theirs = _named(one), _named(other)
        common = {name: ids for name, ids in ours.items() if name in theirs}
        same = {name for name, ids in common.items() if _agree(ids, theirs[name])}
        names = [name for name in common if name not in same]
        if one.get("base_model") != other.get("base_model") and not any(
            name.startswith("evaluation ") for name in same
        ):
            names.append("the base model")
        for name in names:
            clashes.setdefault(name, (first, second))
    if clashes:
        listed = ", ".join(f"{name} (in {first} and {second})" for name, (first, second) in clashes.items())
        raise InputError(
            f"one name stands for different things in different sweeps: {listed}; name a sweep "
            f"(sweep={next(iter(clashes.values()))[0]!r}), or tell them apart (by=[…, 'sweep'])"
        )


def _named(document: Mapping[str, Any]) -> dict[str, dict[int | None, str]]:
    """Return the ids of the artefacts that each name of a sweep stands for, by seed."""
    names: dict[str, dict[int | None, str]] = {}
    for artefact in document["artefacts"]:
        labels = artefact["labels"]
        if artefact["kind"] == "finetune":
            name = f"mixture {labels['mixture']} ({labels['finetune']})"
        elif artefact["kind"] == "predictions" and labels.get("mixture") is None:
            name = f"evaluation {labels['evaluation']}"
        else:
            continue
        names.setdefault(name, {})[labels.get("seed")] = artefact["id"]
    return names


def _agree(ids: Mapping[int | None, str], others: Mapping[int | None, str]) -> bool:
    seeds = ids.keys() & others.keys()
    return bool(seeds) and all(ids[seed] == others[seed] for seed in seeds)
