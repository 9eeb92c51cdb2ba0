"""What a plan must know of the world: the base model, the sources' sha256, the examples and their lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from kvray.errors import InputError, KvrayError, Path, Problem, SourceUnreachableError, dotted
from kvray.models.reference import API, BaseModelRef, files_of, resolve, unresolved
from kvray.planning.lengths import Counting, Lengths, counting, estimated, measure
from kvray.planning.limits import Limits, limits_of
from kvray.store.fingerprint import canonical_json
from kvray.sweep.load import Sweep, Variant, variants
from kvray.tasks.base import CountTokens, Task

UNKNOWN = "unresolved"
"""Stands for the sha256 of a source that could not be reached; it matches no artefact."""


def gather(sweep: Sweep, offline: bool = False) -> Facts:
    """Look at the base model and at every source of every variant of a sweep. Reads files; writes nothing.

    Args:
        sweep: what is planned.
        offline: go on without what is on the network and does not answer; it is noted, and assumed.

    Raises:
        InputError: a base model or a source cannot be read, or a task makes no example; all of them at once.
    """
    looked = _Look(offline)
    base = looked.model(sweep.base_model, sweep.tokenizer)
    if base is not None and sweep.trust_remote_code:
        # Another model code may run than without it, so it is another model.
        base = replace(base, trust_remote_code=True, identity=f"{base.identity}+remote_code")
    counted = base is not None and not looked.problems and not looked.notes
    count_tokens = _counter(base) if base is not None and counted else _no_tokens
    if base is not None and counted:
        looked.count_with(base, any(task.BRINGS_EXAMPLES for _, _, task in _tasks(sweep)))
    sources: dict[str, dict[str, str]] = {}
    counts: dict[str, int] = {}
    lengths: dict[str, Lengths] = {}
    written: dict[str, tuple[int, int]] = {}
    writers: dict[str, BaseModelRef] = {}
    for variant, place, task in _tasks(sweep):
        key = task_key(task)
        if key in counts:
            continue
        looked.variant = variant
        sources[key], lengths[key] = looked.task(place, task, count_tokens)
        counts[key] = lengths[key].rows
        writer = task.writer()
        if writer is not None:
            # Nothing is counted by a writer's tokenizer, so one behind an API takes the base model's.
            counting = (base.tokenizer or base).name if base is not None and writer.startswith(API) else None
            found = writers.get(writer) or looked.model(writer, counting, (*place, _writer_field(task)))
            writers[writer] = found or unresolved(writer)
            written[key] = looked.prompts(place, task, count_tokens, counts[key])
    if looked.problems or base is None:
        raise InputError(list(dict.fromkeys(looked.problems)))
    notes = tuple(dict.fromkeys(looked.notes))
    return Facts(base, sources, counts, writers, written, notes, lengths, looked.limits)


class _Look:
    """Looks at models and tasks, and keeps what is wrong with them apart from what does not answer."""

    def __init__(self, offline: bool) -> None:
        self.offline = offline
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.variant: Variant | None = None
        self.counting: Counting | None = None
        self.limits: Limits | None = None

    def count_with(self, base: BaseModelRef, rows: bool) -> None:
        """Count rows, if there are any, by a base model's tokenizer and template from now on, if they are at hand."""
        try:
            self.limits = limits_of(base, files_of(base))
            # Benchmarks of another library ask without the template, so a model need not have one for them.
            self.counting = counting(base) if rows else None
        except InputError as error:
            self.wrong(error, ("base_model",))

    def model(self, name: str, tokenizer: str | None, place: Path = ()) -> BaseModelRef | None:
        """Return a model, a stand-in if the hub does not answer and that is allowed, None for a problem."""
        try:
            return resolve(name, tokenizer)
        except SourceUnreachableError as error:
            if self.offline:
                at = place or error.found[0].path
                text = f"{error.found[0].text}: taken as new, its prompts are estimated, not counted"
                self.notes.append(str(Problem(at, text)))
                return unresolved(name, tokenizer)
            self.wrong(error, place)
        except InputError as error:
            self.wrong(error, place)
        return None

    def wrong(self, error: Exception, place: Path, task: Task | None = None) -> None:
        """Keep the problems of a model, or of a task: its errors may start with the name of a field."""
        for each in error.found if isinstance(error, InputError) else [Problem((), " ".join(str(error).split()))]:
            field, colon, text = each.text.partition(": ")
            path = place or each.path
            if task is None or not colon or field not in type(task).model_fields:
                field, text = "", each.text
            at = (*path, field) if field else path
            # Not where the block is varied: most mistakes of a task are there whatever the value of another knob.
            self.problems.append(Problem(self.variant.origins.get(at, at) if self.variant else at, text))

    def task(self, place: Path, task: Task, count_tokens: CountTokens) -> tuple[dict[str, str], Lengths]:
        """Return the sources of a task and its examples' number and lengths."""
        sources: dict[str, str] = {}
        try:
            sources = task.sources()
            if not task.BRINGS_EXAMPLES:
                return sources, estimated(task.expected_rows(), task.tokens_estimate())
            context = task.context(count_tokens)
            rows = task.count(context)
            if rows < 1:
                at = self.variant.written(place) if self.variant else place
                self.problems.append(Problem(at, "found no example; expected at least one"))
            elif self.counting is not None and task.writer() is None:
                return sources, measure(task, context, rows, self.counting)
            return sources, estimated(rows, task.tokens_estimate())
        except SourceUnreachableError as error:
            if self.offline:
                rows = max(1, task.expected_rows())
                self.notes.append(f"{dotted(place)}: {_first(error)}: {rows} examples assumed")
                return sources or {"source": UNKNOWN}, estimated(rows, task.tokens_estimate())
            self.wrong(error, place, task)
        except (OSError, KvrayError) as error:
            self.wrong(error, place, task)
        return sources, estimated(0, 0)

    def prompts(self, place: Path, task: Task, count_tokens: CountTokens, rows: int) -> tuple[int, int]:
        """Return how many prompts a task's writer answers, and their tokens."""
        try:
            texts = task.to_write(count_tokens)
            return len(texts), int(count_tokens(texts).sum())
        except SourceUnreachableError as error:
            if not self.offline:
                self.wrong(error, place, task)
        except InputError as error:
            self.wrong(error, place, task)
        return rows, 0


def _first(error: InputError) -> str:
    return error.problems[0] if error.problems else str(error)


def task_key(task: Task) -> str:
    """Return the JSON of all of a task's parameters, those outside its identity (paths) included."""
    return canonical_json(task.model_dump(mode="json")).decode()


def _tasks(sweep: Sweep) -> Iterator[tuple[Variant, Path, Task]]:
    for variant in variants(sweep):
        used = {name for weights in variant.sweep.mixtures.values() for name in weights}
        for name, task in variant.sweep.datasets.items():
            for seed in variant.sweep.finetune.data_seeds() if name in used else ():
                yield variant, ("datasets", name), task.reseeded(seed)
        for name, task in variant.sweep.evaluate.items():
            yield variant, ("evaluate", name), task


def _writer_field(task: Task) -> str:
    """Return the field that names a task's writer."""
    return next((name for name in type(task).model_fields if getattr(task, name) == task.writer()), "task")


def _no_tokens(texts: Sequence[str]) -> NDArray[np.int64]:
    """Stand in for the tokenizer of a base model that was not found, so that the sources are looked at all the same."""
    return np.zeros(len(texts), np.int64)


def _counter(base: BaseModelRef) -> CountTokens:
    """Return a counter that loads the tokenizer when a task first asks it; most tasks know their size without."""

    def count(texts: Sequence[str]) -> NDArray[np.int64]:
        from kvray.models.tokenizer import token_counter

        return token_counter(base)(texts)

    return count


@dataclass(frozen=True)
class Facts:
    """What :func:`gather` found.

    Attributes:
        base: the base model.
        sources: per task (by :func:`task_key`) the sha256 of each source, by field name.
        counts: per task (by :func:`task_key`) how many examples it makes.
        writers: the models that write parts of datasets, by name.
        written: per task that a model writes for, its prompts and their tokens.
        notes: what did not answer, and what is assumed instead; empty unless that was allowed.
        lengths: per task (by :func:`task_key`) the tokens of its rows, counted or estimated.
        limits: what the base model can take; None where its files were not looked at.
    """

    base: BaseModelRef
    sources: Mapping[str, Mapping[str, str]]
    counts: Mapping[str, int]
    writers: Mapping[str, BaseModelRef] = field(default_factory=dict)
    written: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    lengths: Mapping[str, Lengths] = field(default_factory=dict)
    limits: Limits | None = None

    def lengths_of(self, task: Task) -> Lengths:
        """Return the lengths of a task's rows."""
        key = task_key(task)
        return self.lengths.get(key) or estimated(self.counts[key], task.tokens_estimate())

    def of(self, task: Task) -> tuple[Mapping[str, str], int]:
        """Return a task's sources and its number of examples."""
        key = task_key(task)
        return self.sources[key], self.counts[key]
