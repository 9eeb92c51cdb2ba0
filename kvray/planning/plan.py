"""Sweep -> artefacts: what must exist, in dependency order, each under the fingerprint of its recipe. Pure.

An artefact's id is a function of its recipe alone, never of the names in the YAML: renaming a mixture, adding one, or
writing another sweep over the same data runs nothing twice. The names are its labels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvray.errors import InputError, Path, Problem, dotted
from kvray.planning import limits
from kvray.planning.artefacts import (
    FORMAT,
    NAME_LENGTH,
    Artefact,
    Counted,
    FinetuneJob,
    Kind,
    PlanDocument,
    PlannedArtefact,
    PredictionsJob,
    WritingJob,
    artefact_id,
    read_document,
)
from kvray.planning.epoch import counted_of, read_of
from kvray.planning.inputs import Facts, task_key
from kvray.planning.labels import block_changes, data_label, finetune_label, mixture_label, suffix
from kvray.planning.lengths import Lengths
from kvray.store.fingerprint import fingerprint
from kvray.sweep.load import Sweep, Variant, variants
from kvray.tasks.base import EXAMPLE_FORMAT, Task

__all__ = [
    "Artefact",
    "FinetuneJob",
    "Plan",
    "PlanDocument",
    "PlannedArtefact",
    "PredictionsJob",
    "WritingJob",
    "artefact_id",
    "dataset_recipe",
    "plan",
    "read_document",
]
KINDS: tuple[Kind, ...] = ("writing", "dataset", "finetune", "predictions")
"""Kinds of artefacts; each needs those before it alone."""


def plan(sweep: Sweep, facts: Facts) -> Plan:
    """Return every artefact of a sweep.

    Raises:
        InputError: two names of the sweep stand for one and the same artefact, an evaluation asks the very examples
            that a dataset trains on, or a run would refuse something: rows that do not fit the model, a mixture with
            too few tokens, and so on.
    """
    builder = _Builder(facts)
    for variant in variants(sweep):
        builder.add(variant)
    if builder.problems:
        raise InputError(list(builder.problems))
    ordered = tuple(artefact for kind in KINDS for artefact in builder.found.values() if artefact.kind == kind)
    return Plan(sweep, facts.base.name, ordered, facts.notes, tuple(builder.warnings))


def dataset_recipe(task: Task, sources: Mapping[str, str], tokenizer: str) -> dict[str, Any]:
    """Return the recipe of a dataset.

    Args:
        task: the parameters.
        sources: the sha256 of each source, by field name.
        tokenizer: identity of the model whose tokenizer counts.
    """
    return {
        "format": EXAMPLE_FORMAT,
        "task": task.recipe(),
        "law": task.VERSION,
        "sources": dict(sources),
        "tokenizer": tokenizer,
    }


def _shares(of: Sequence[tuple[Artefact, float]]) -> list[tuple[Artefact, float]]:
    """Return (dataset, share); the order and the unit of the weights in the YAML mean nothing, so neither stays."""
    total = sum(weight for _, weight in of)
    return sorted(((data, round(weight / total, 12)) for data, weight in of), key=lambda part: part[0].fingerprint)


@dataclass(frozen=True)
class Plan:
    """All artefacts of a sweep in dependency order: datasets, finetunes, predictions.

    Attributes:
        sweep: what was planned.
        base_model: the base model's name.
        artefacts: each once, though several variants may share it.
        notes: what could not be looked at and was assumed (:func:`kvray.planning.inputs.gather`); such a
            plan cannot be run.
        warnings: what can be run and is likely to be a mistake.
    """

    sweep: Sweep
    base_model: str
    artefacts: tuple[Artefact, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return the plan in plain values, for ``sweeps/<name>.json`` in the store."""
        keys = PlannedArtefact.__dataclass_fields__
        return {
            "format": FORMAT,
            "name": self.sweep.name,
            "base_model": self.base_model,
            "sweep": self.sweep.model_dump(mode="json"),
            "artefacts": [
                {key: list(artefact.needs) if key == "needs" else getattr(artefact, key) for key in keys}
                for artefact in self.artefacts
            ],
        }

    def to_json(self) -> bytes:
        """Return :meth:`document` as UTF-8 JSON, the same bytes for the same plan."""
        return (json.dumps(self.document(), indent=1, ensure_ascii=False) + "\n").encode()


@dataclass
class _Builder:
    """Collects the artefacts of all variants, each once."""

    facts: Facts
    found: dict[str, Artefact] = field(default_factory=dict)
    lengths: dict[str, Lengths] = field(default_factory=dict)
    problems: dict[Problem, None] = field(default_factory=dict)
    warnings: dict[str, None] = field(default_factory=dict)
    doubled: set[str] = field(default_factory=set)
    """Artefacts that stand under two names; what is made from them is doubled with them, and not told again."""
    labelled: dict[tuple[Any, ...], str] = field(default_factory=dict)

    def add(self, variant: Variant) -> None:
        """Add everything that one variant needs."""
        sweep = variant.sweep
        known = self.facts.limits or limits.Limits(self.facts.base)
        for problem in limits.problems(sweep, known, self.facts.lengths_of):
            self.problems.setdefault(Problem(variant.written(problem.path), problem.text))
        for problem in limits.warnings(sweep, known, self.facts.lengths_of):
            self.warnings.setdefault(str(problem))
        label = finetune_label(variant, self.facts.base.api)
        used = {name for weights in sweep.mixtures.values() for name in weights}
        data = {
            (name, seed): self.dataset(
                task.reseeded(seed), data_label(variant, name, seed), "train", variant.written(("datasets", name))
            )
            for name, task in sweep.datasets.items()
            for seed in (sweep.finetune.data_seeds() if name in used else ())
        }
        finetunes: list[Artefact | None] = [None]  # None is the base model
        section = "datasets" if _one_mixture_per_dataset(sweep) else "mixtures"
        for mixture in sweep.mixtures:
            written = variant.written((section, mixture))
            for seed in sweep.finetune.seeds:
                own = seed if sweep.finetune.reseed_data else 0
                mixtures = {
                    each: _shares([(data[name, own], weight) for name, weight in weights.items()])
                    for each, weights in sweep.mixtures.items()
                }
                parts, first = mixtures[mixture], next(iter(mixtures.values()))
                budget = first if sweep.finetune.match == "tokens" and parts != first else []
                name = mixture_label(variant, mixture, bool(budget))
                labels = {"mixture": name, "finetune": label, "seed": seed}
                finetunes.append(self.finetune(sweep, seed, parts, budget, labels, written))
        for name, task in sweep.evaluate.items():
            evaluation = name + suffix(block_changes(variant, "evaluate", name))
            written = variant.written(("evaluate", name))
            examples = self.dataset(task, evaluation, "evaluate", written) if task.BRINGS_EXAMPLES else None
            for finetune in finetunes:
                self.predictions(sweep, task, evaluation, examples, finetune, written)

    def dataset(self, task: Task, label: str, role: str, path: Path) -> Artefact:
        sources, rows = self.facts.of(task)
        recipe = dataset_recipe(task, sources, self.facts.base.token_identity)
        labels = {"dataset": label, "role": role}
        lengths = self.facts.lengths_of(task)
        written = self.writing(task, recipe, labels, path)
        needs = [written] if written else []
        found = self.artefact(
            "dataset",
            task.task,
            recipe,
            needs,
            rows=rows,
            tokens=lengths.total(lengths.prompts),
            labels=labels,
            params=task,
            path=path,
            counted=counted_of([lengths]),
        )
        self.lengths[found.id] = lengths
        return found

    def writing(self, task: Task, dataset: dict[str, Any], labels: dict[str, Any], path: Path) -> Artefact | None:
        """Add what a model writes for a dataset, if one does."""
        writer = task.writer()
        if writer is None:
            return None
        recipe = {**dataset, "writer": self.facts.writers[writer].identity}
        rows, tokens = self.facts.written[task_key(task)]
        job = WritingJob(task, writer)
        name = f"{task.task}-writing"
        return self.artefact(
            "writing",
            name,
            recipe,
            (),
            rows=rows,
            tokens=tokens,
            labels=labels,
            params=job,
            path=path,
            counted="rows" if tokens else "estimate",
        )

    def finetune(
        self,
        sweep: Sweep,
        seed: int,
        parts: Sequence[tuple[Artefact, float]],
        budget: Sequence[tuple[Artefact, float]],
        labels: dict[str, Any],
        path: Path,
    ) -> Artefact:
        finetune, api = sweep.finetune, self.facts.base.api
        recipe = {
            "base": self.facts.base.identity,
            "finetune": finetune.api_recipe() if api else finetune.recipe(),
            "seed": seed,
            "mixture": [share for _, share in parts],
            **self.spoken(sweep),
        }
        if budget:
            # Not as needs alone: a mixture over the very datasets of the budget is another one without it.
            recipe["budget"] = [[data.fingerprint, share] for data, share in budget]
        tasks = list(dict.fromkeys(data.name for data, _ in parts))
        name = "-".join([*tasks, "api" if api else finetune.method, f"s{seed}"])
        job = FinetuneJob(
            finetune,
            seed,
            tuple((data.id, share) for data, share in parts),
            tuple((data.id, share) for data, share in budget),
        )
        needs = list({data.id: data for data, _ in [*parts, *budget]}.values())
        read = read_of(job, self.lengths)
        for problem in read.problems:
            self.problems.setdefault(Problem(path, self.named(problem)))
        return self.artefact(
            "finetune",
            name,
            recipe,
            needs,
            rows=read.rows,
            tokens=round(finetune.epochs * read.tokens),
            labels=labels,
            params=job,
            path=path,
            counted=read.counted,
        )

    def named(self, problem: str) -> str:
        """Return a problem of a mixture with the names of the sweep in place of ids."""
        for data in self.lengths:
            problem = problem.replace(data, str(self.found[data].labels["dataset"]))
        return problem

    def predictions(
        self,
        sweep: Sweep,
        task: Task,
        evaluation: str,
        examples: Artefact | None,
        finetune: Artefact | None,
        path: Path,
    ) -> None:
        recipe = {
            "base": self.facts.base.identity,
            "decoding": {"temperature": 0.0, "max_tokens": task.MAX_OUTPUT_TOKENS, "stop": list(task.STOP)},
            "scorer": {"task": task.task, "law": task.VERSION},
            **self.spoken(sweep),
        }
        if examples is None:
            recipe["task"] = task.recipe()
            recipe["sources"] = dict(self.facts.of(task)[0])
        nobody = {"mixture": None, "finetune": None, "seed": None}
        labels = {"evaluation": evaluation, **(finetune.labels if finetune else nobody)}
        settings = finetune.params.finetune if finetune and isinstance(finetune.params, FinetuneJob) else None
        job = PredictionsJob(
            task, examples.id if examples else None, finetune.id if finetune else None, evaluation, settings
        )
        needs = [need for need in (examples, finetune) if need is not None]
        name = f"{task.task}-{finetune.name if finetune else 'base'}"
        rows = examples.rows if examples else self.facts.of(task)[1]
        lengths = self.lengths[examples.id] if examples else self.facts.lengths_of(task)
        self.artefact(
            "predictions",
            name,
            recipe,
            needs,
            rows=rows,
            tokens=lengths.total(lengths.asked),
            labels=labels,
            params=job,
            path=path,
            counted=counted_of([lengths]),
        )

    def spoken(self, sweep: Sweep) -> dict[str, Any]:
        """Return the part of a recipe that says what a model behind an API is told first."""
        return {"system_message": sweep.system_message} if self.facts.base.api and sweep.system_message else {}

    def artefact(
        self,
        kind: Kind,
        name: str,
        recipe: dict[str, Any],
        needs: Sequence[Artefact],
        *,
        rows: int,
        tokens: int,
        labels: dict[str, Any],
        params: WritingJob | Task | FinetuneJob | PredictionsJob,
        path: Path,
        counted: Counted = "estimate",
    ) -> Artefact:
        digest = fingerprint(recipe, [need.fingerprint for need in needs])
        name = name[:NAME_LENGTH].rstrip("-._")
        new = Artefact(
            id=artefact_id(kind, name, digest),
            kind=kind,
            name=name,
            fingerprint=digest,
            recipe=recipe,
            needs=tuple(need.id for need in needs),
            rows=rows,
            tokens=tokens,
            labels=labels,
            params=params,
            counted=counted,
        )
        known = self.found.setdefault(new.id, new)
        if known.labels != labels:
            if not self.doubled & set(new.needs):
                self.problems.setdefault(_clash(known, labels, path))
            self.doubled.add(new.id)
        # Results tell artefacts apart by their labels: two of one kind with the same would be averaged.
        if self.labelled.setdefault((kind, *labels.values()), known.id) != known.id:
            shown = ", ".join(f"{key} {value}" for key, value in labels.items() if value is not None)
            self.problems.setdefault(Problem(path, f"found two {kind} artefacts named {shown}; expected one"))
        return known


def _one_mixture_per_dataset(sweep: Sweep) -> bool:
    """Return whether the mixtures are those of a file that writes none."""
    return {name: {name: 1.0} for name in sweep.datasets} == sweep.mixtures


def _clash(known: Artefact, labels: Mapping[str, Any], path: Path) -> Problem:
    """Say why one artefact under two names is refused: results would count twice, or training would see the test."""
    if known.kind in ("writing", "dataset"):
        section = {"train": "datasets", "evaluate": "evaluate"}
        first, second = (f"{section[of['role']]}.{of['dataset']}" for of in (known.labels, labels))
        text = f"found the same examples as {first}; expected one of the two, or another seed"
        if known.labels["role"] != labels["role"]:
            text = f"found the very examples that {first} trains on; expected others, by another seed say"
        return Problem(path, text if second == dotted(path) else f"{second}: {text}")
    differ = [key for key in labels if labels[key] != known.labels[key]]
    first, second = (", ".join(f"{key} {of[key]}" for key in differ) for of in (known.labels, labels))
    text = f"found the same {known.kind} as {first}; expected one of the two"
    return Problem(path, text if [labels[key] for key in differ] == [path[-1]] else f"{second}: {text}")
