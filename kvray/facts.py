"""What a plan must know of the world: the base model's identity, the sources' sha256, the numbers of examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kvray.base_model import BaseModelRef, resolve
from kvray.errors import InputError, KvrayError
from kvray.fingerprint import canonical_json
from kvray.spec import Sweep, variants
from kvray.tasks.base import CountTokens, Task


def gather(sweep: Sweep) -> Facts:
    """Look at the base model and at every source of every variant of a sweep. Reads files; writes nothing.

    Raises:
        InputError: a base model or a source cannot be read, or a task makes no example; all of them at once.
    """
    problems: list[str] = []
    base = BaseModelRef(sweep.base_model, "", None, "")
    try:
        base = resolve(sweep.base_model)
        if sweep.trust_remote_code:
            # Another model code may run than without it, so it is another model.
            base = replace(base, trust_remote_code=True, identity=f"{base.identity}+remote_code")
    except InputError as error:
        problems += error.problems
    count_tokens = _counter(base) if not problems else _no_tokens
    sources: dict[str, dict[str, str]] = {}
    counts: dict[str, int] = {}
    for place, task in _tasks(sweep):
        key = task_key(task)
        if key in counts:
            continue
        counts[key], sources[key] = 0, {}
        try:
            sources[key] = task.sources()
            counts[key] = task.count(task.context(count_tokens))
            if counts[key] < 1:
                problems.append(f"{place}: found no example; expected at least one")
        except InputError as error:
            problems += [f"{place}: {problem}" for problem in error.problems]
        except (OSError, KvrayError) as error:
            problems.append(f"{place}: {error}")
    if problems:
        raise InputError(list(dict.fromkeys(problems)))
    return Facts(base, sources, counts)


def task_key(task: Task) -> str:
    """Return the JSON of all of a task's parameters, those outside its identity (paths) included."""
    return canonical_json(task.model_dump(mode="json")).decode()


def _tasks(sweep: Sweep) -> Iterator[tuple[str, Task]]:
    for variant in variants(sweep):
        used = {name for weights in variant.sweep.mixtures.values() for name in weights}
        for name, task in variant.sweep.datasets.items():
            if name in used:
                yield f"datasets.{name}", task
        for name, task in variant.sweep.evaluate.items():
            yield f"evaluate.{name}", task


def _no_tokens(texts: Sequence[str]) -> NDArray[np.int64]:
    """Stand in for the tokenizer of a base model that was not found, so that the sources are looked at all the same."""
    return np.zeros(len(texts), np.int64)


def _counter(base: BaseModelRef) -> CountTokens:
    """Return a counter that loads the tokenizer when a task first asks it; most tasks know their size without."""

    def count(texts: Sequence[str]) -> NDArray[np.int64]:
        from kvray.tasks.tokens import token_counter

        return token_counter(base)(texts)

    return count


@dataclass(frozen=True)
class Facts:
    """What :func:`gather` found.

    Attributes:
        base: the base model.
        sources: per task (by :func:`task_key`) the sha256 of each source, by field name.
        counts: per task (by :func:`task_key`) how many examples it makes.
    """

    base: BaseModelRef
    sources: Mapping[str, Mapping[str, str]]
    counts: Mapping[str, int]

    def of(self, task: Task) -> tuple[Mapping[str, str], int]:
        """Return a task's sources and its number of examples."""
        key = task_key(task)
        return self.sources[key], self.counts[key]
