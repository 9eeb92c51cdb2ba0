"""The inputs of a plan: the base model, the sources' sha256, the examples and their lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from kvray.errors import InputError, KvrayError, Path, Problem, SourceUnreachableError
from kvray.models.reference import API, BaseModelRef, files_of, resolve, tensor_names, unresolved
from kvray.models.tokenizer import token_counter
from kvray.planning import sizes
from kvray.planning.lengths import Counting, Lengths, counting, estimated, measure
from kvray.planning.limits import Limits, limits_of
from kvray.store.fingerprint import canonical_json
from kvray.sweep.grid import Variant, variants
from kvray.sweep.model import Sweep
from kvray.tasks.base import Task

UNKNOWN = "unresolved"  # stands for the sha256 of a source that could not be reached; it matches no artefact


def gather(sweep: Sweep, offline: bool = False, expanded: Sequence[Variant] | None = None) -> Inputs:
    """Read the base model and the sources of all variants of a sweep; writes nothing.

    With ``offline``, assumptions stand in for models and sources that do not answer; :attr:`Inputs.notes` lists them.
    ``expanded`` are the sweep's variants, if known already. Raises InputError with every base model or source that
    cannot be read and every task without examples.
    """
    expanded = variants(sweep) if expanded is None else expanded
    distinct, gatherer = list(_tasks(expanded)), _Gatherer(offline)
    adapters = any(each.sweep.mixtures and each.sweep.finetune.method == "lora" for each in expanded)
    gatherer.read_base(sweep, any(task.BRINGS_EXAMPLES for _, _, task in distinct), adapters)
    tasks: dict[str, TaskInputs] = {}
    for variant, place, task in distinct:
        if (key := task_key(task)) not in tasks:
            tasks[key] = gatherer.task(variant, place, task)
    gatherer.refuse_problems()
    assert gatherer.base is not None  # else that is a problem
    rows, found = gatherer.sized(sweep, expanded, tasks)
    gatherer.refuse_problems()
    limits = gatherer.limits or Limits(gatherer.base)
    notes = tuple(dict.fromkeys(gatherer.notes))
    return Inputs(gatherer.base, found, tasks, gatherer.writers, limits, notes, rows)


def task_key(task: Task) -> str:
    """Return the JSON of all parameters of a task, including those outside its identity (paths)."""
    return canonical_json(task.model_dump(mode="json")).decode()


def _tasks(expanded: Sequence[Variant]) -> Iterator[tuple[Variant, Path, Task]]:
    """Yield each distinct task with the first variant that has it and its path there."""
    seen: set[tuple[int, int]] = set()  # variants share the tasks that they do not vary
    for variant in expanded:
        found = [(("datasets", name), task, seed) for name, task, seed in variant.sweep.trained_on()]
        found += [(("evaluate", name), task, 0) for name, task in variant.sweep.evaluate.items()]
        for place, task, seed in found:
            if (id(task), seed) not in seen:
                seen.add((id(task), seed))
                yield variant, place, task.reseeded(seed)


@dataclass(frozen=True)
class TaskInputs:
    """Inputs of a task: sha256 of its sources by field name, its lengths, and (prompts, tokens) for its writer."""

    sources: Mapping[str, str]
    lengths: Lengths
    writing: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Inputs:
    """Inputs of a plan, from :func:`gather`."""

    base: BaseModelRef
    variants: tuple[Variant, ...]
    tasks: Mapping[str, TaskInputs]  # by :func:`task_key`
    writers: Mapping[str, BaseModelRef]  # the models that write parts of datasets, by name
    limits: Limits
    notes: tuple[str, ...] = ()  # what did not answer, and what is assumed instead; empty unless ``offline``
    sizes: Mapping[str, int] = field(default_factory=dict)  # rows of datasets that the sweep leaves open, if raised
    _known: dict[int, tuple[Task, TaskInputs]] = field(default_factory=dict, compare=False, repr=False)
    """Cache by the task's ``id``: variants share most tasks. It holds the task to keep that id taken."""

    def of(self, task: Task) -> TaskInputs:
        if id(task) not in self._known:
            self._known[id(task)] = task, self.tasks[task_key(task)]
        return self._known[id(task)][1]


@dataclass
class _Gatherer:
    """Reads models and tasks, and collects their problems and what does not answer."""

    offline: bool
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    writers: dict[str, BaseModelRef] = field(default_factory=dict)
    base: BaseModelRef | None = None
    counting: Counting | None = None
    limits: Limits | None = None
    readable: bool = False

    def count_tokens(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Count by the base model's tokenizer; as 0 if it cannot be read, so that sources are checked all the same."""
        # It is loaded here, on first use: most tasks know their size without it.
        return token_counter(self.base)(texts) if self.base and self.readable else np.zeros(len(texts), np.int64)

    def read_base(self, sweep: Sweep, examples: bool, adapters: bool) -> None:
        """Read the base model and its limits: for ``adapters`` its modules, for ``examples`` its template."""
        base = self.model(sweep.base_model, sweep.tokenizer)
        if base is not None and sweep.trust_remote_code:
            # Other model code may run than without it, so it is another model.
            base = replace(base, trust_remote_code=True, identity=f"{base.identity}+remote_code")
        self.base = base
        if base is None or self.notes:
            return
        self.readable = True
        try:
            self.limits = limits_of(base, files_of(base), self.tensors(base) if adapters else ())
            # Benchmarks of another library ask without the template, so a model need not have one for them.
            self.counting = counting(base) if examples else None
        except InputError as error:
            self.refuse(error, ("base_model",))

    def tensors(self, base: BaseModelRef) -> frozenset[str]:
        """Return the names of a model's weights; none, with a note, if the hub does not answer while offline."""
        try:
            return tensor_names(base)
        except InputError as error:
            self.refuse(error, ("base_model",), "its modules are taken to be named as Llama's")
            return frozenset()

    def model(
        self, name: str, tokenizer: str | None, place: Path = (), variant: Variant | None = None
    ) -> BaseModelRef | None:
        """Return a model, a stand-in if the hub does not answer while offline, None for a problem."""
        try:
            return resolve(name, tokenizer)
        except InputError as error:
            assumed = self.refuse(error, place, "taken as new, its prompts are estimated, not counted", variant=variant)
            return unresolved(name, tokenizer) if assumed else None

    def task(self, variant: Variant, place: Path, task: Task) -> TaskInputs:
        """Return the inputs of a task, meaningless if it has a problem."""
        rows = max(1, task.expected_rows())
        sources: Mapping[str, str] = {}
        lengths = estimated(rows, task.tokens_estimate())
        try:
            sources = task.sources()
            lengths = self.lengths(variant, place, task)
        except (OSError, KvrayError) as error:
            self.refuse(error, place, f"{rows} examples assumed", task, variant)
            sources = sources or {"source": UNKNOWN}
        writing = self.writing(variant, place, task, lengths.rows) if task.writer() else (0, 0)
        return TaskInputs(sources, lengths, writing)

    def sized(
        self, sweep: Sweep, expanded: Sequence[Variant], tasks: dict[str, TaskInputs]
    ) -> tuple[dict[str, int], tuple[Variant, ...]]:
        """Raise the sizes that a sweep leaves out to what its mixtures need (:mod:`kvray.planning.sizes`).

        Returns the rows of the datasets that needed more, and the variants with these; adds to ``tasks`` what was
        counted on the way. Without the tokenizer no size changes: the estimate warns of those that look too small.
        """
        open_ones = sizes.left_out(sweep, expanded)

        def known(task: Task) -> Lengths:
            return tasks[task_key(task)].lengths

        for variant, place, task in list(sizes.to_count(expanded, known, open_ones)):
            if not known(task).whole:
                tasks[task_key(task)] = replace(tasks[task_key(task)], lengths=self.lengths(variant, place, task, True))
        rows = sizes.needed(expanded, known, open_ones)
        expanded = [replace(variant, sweep=sizes.resized(variant.sweep, rows)) for variant in expanded]
        for variant, place, task in list(_tasks(expanded)) if rows else ():
            if (key := task_key(task)) not in tasks:
                before = len(self.problems)
                tasks[key] = self.task(variant, place, task)
                why = f"({open_ones[str(place[1])]} is left out, and so many match the sweep's first mixture by tokens)"
                self.problems[before:] = [Problem(each.path, f"{each.text} {why}") for each in self.problems[before:]]
        return rows, tuple(expanded)

    def refuse_problems(self) -> None:
        """Raise the problems, if there are any, together."""
        if self.problems:
            raise InputError(list(dict.fromkeys(self.problems)))

    def lengths(self, variant: Variant, place: Path, task: Task, whole: bool = False) -> Lengths:
        if not task.BRINGS_EXAMPLES:
            return estimated(task.expected_rows(), task.tokens_estimate())
        context = task.context(self.count_tokens)
        rows = task.count(context)
        if rows < 1:
            self.problems.append(Problem(variant.written(place), "found no example; expected at least one"))
        elif self.counting is not None and task.writer() is None:
            return measure(task, context, rows, self.counting, whole)
        return estimated(rows, task.tokens_estimate())

    def writing(self, variant: Variant, place: Path, task: Task, rows: int) -> tuple[int, int]:
        """Resolve a task's writer; return how many prompts it answers, and their tokens."""
        writer = str(task.writer())
        if writer not in self.writers:
            # Nothing is counted by a writer's tokenizer, so one behind an API takes the base model's.
            counting = (self.base.tokenizer or self.base).name if self.base and writer.startswith(API) else None
            field = next((name for name in type(task).model_fields if getattr(task, name) == writer), "task")
            self.writers[writer] = self.model(writer, counting, (*place, field), variant) or unresolved(writer)
        try:
            texts = task.to_write(self.count_tokens)
            return len(texts), int(self.count_tokens(texts).sum())
        except InputError as error:
            self.refuse(error, place, f"{rows} examples assumed", task, variant)
            return rows, 0

    def refuse(
        self, error: Exception, place: Path, assumed: str = "", task: Task | None = None, variant: Variant | None = None
    ) -> bool:
        """Collect a model's or task's problems; offline, note what is ``assumed`` for a silent one and return True."""
        problems = error.found if isinstance(error, InputError) else [Problem((), " ".join(str(error).split()))]
        if self.offline and isinstance(error, SourceUnreachableError):
            self.notes.append(str(Problem(place or problems[0].path, f"{problems[0].text}: {assumed}")))
            return True
        for each in problems:
            at, text = place or each.path, each.text
            field, colon, rest = text.partition(": ")
            if task is not None and colon and field in type(task).model_fields:
                at, text = (*at, field), rest
            # Not where the block is varied: most mistakes of a task do not depend on another knob's value.
            self.problems.append(Problem(variant.origins.get(at, at) if variant else at, text))
        return False
