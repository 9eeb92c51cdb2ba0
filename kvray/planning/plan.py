"""Sweep -> artefacts in dependency order, each identified by the fingerprint of its recipe.

An id never depends on the names in the YAML, which are labels: after renaming or adding a mixture, or in another sweep
over the same data, nothing runs twice.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvray.errors import InputError, Path, Problem, dotted
from kvray.models.lora import MERGED_ROWS
from kvray.planning import benchmarks, limits, movement
from kvray.planning.artefacts import KINDS, Artefact, Counted, FinetuneJob, Kind, Plan, PredictionsJob, WritingJob
from kvray.planning.inputs import Inputs
from kvray.planning.lengths import Lengths
from kvray.planning.mixture import counted_of, read_per_epoch
from kvray.planning.sizes import resized
from kvray.store.fingerprint import canonical_json, fingerprint
from kvray.store.store import artefact_id, readable_name
from kvray.sweep.grid import Variant
from kvray.sweep.model import Sweep
from kvray.tasks import code
from kvray.tasks.base import EXAMPLE_FORMAT, Task
from kvray.tasks.lm_eval import LmEval

Shares = Sequence[tuple[Artefact, float]]  # datasets with their shares of a mixture
Size = tuple[int, int, Counted]  # rows, tokens and their basis, as of :class:`~kvray.planning.artefacts.Artefact`
_BASE_MODEL = {"mixture": None, "finetune": None, "seed": None}  # labels of the base model in place of a finetune's


def plan(sweep: Sweep, inputs: Inputs) -> Plan:
    """Return every artefact of a sweep, given its inputs (:func:`~kvray.planning.inputs.gather`).

    Raises:
        InputError: two names stand for one artefact, an evaluation asks the examples that a dataset trains on, or a run
            would refuse something, such as rows that do not fit the model or a mixture with too few tokens.
    """
    builder = _Builder(sweep, inputs)
    for variant in inputs.variants:
        builder.add(variant)
    if builder.problems:
        raise InputError(list(builder.problems))
    for problem in benchmarks.warnings(sweep.evaluate):
        builder.warnings.setdefault(str(problem))
    ordered = tuple(artefact for kind in KINDS for artefact in builder.artefacts.values() if artefact.kind == kind)
    gentle = () if inputs.base.api else movement.too_gentle(ordered, inputs.limits.width)
    whole = resized(sweep, inputs.sizes)
    return Plan(whole, inputs.base.name, ordered, inputs.notes, (*builder.warnings, *gentle), inputs.sizes)


def plain_name(task: Task) -> str:
    """Return a task's name as a part of an artefact's id: ``shouting-Shout`` for ``shouting:Shout``."""
    return task.task.replace(":", "-").replace(".", "-")


def dataset_recipe(task: Task, sources: Mapping[str, str], tokenizer: str) -> dict[str, Any]:
    """Return the recipe of a dataset: ``sources`` are sha256 by field name, ``tokenizer`` is its model's identity."""
    return {
        "format": EXAMPLE_FORMAT,
        "task": task.recipe(),
        "law": task.VERSION,
        **code.digest_of(task),
        "sources": dict(sources),
        "tokenizer": tokenizer,
    }


@dataclass
class _Builder:
    sweep: Sweep  # the variant whose artefacts are being added
    inputs: Inputs
    artefacts: dict[str, Artefact] = field(default_factory=dict)
    lengths: dict[str, Lengths] = field(default_factory=dict)  # lengths of datasets by id
    shared: dict[tuple[int, str, str], Artefact] = field(default_factory=dict)  # datasets by task and labels
    problems: dict[Problem, None] = field(default_factory=dict)
    warnings: dict[str, None] = field(default_factory=dict)
    doubled: set[str] = field(default_factory=set)
    """Artefacts with two names. Those made from them have two names as well, which is not reported again."""
    labelled: dict[tuple[Any, ...], str] = field(default_factory=dict)

    def add(self, variant: Variant) -> None:
        self.sweep = variant.sweep
        for problem in limits.problems(self.sweep, self.inputs.limits, self.lengths_of):
            self.problems.setdefault(Problem(variant.written(problem.path), problem.text))
        for problem in limits.warnings(self.sweep, self.inputs.limits, self.lengths_of):
            self.warnings.setdefault(str(problem))
        finetunes = self.finetunes(variant)
        for name, task in self.sweep.evaluate.items():
            label, path = variant.evaluation_label(name), variant.written(("evaluate", name))
            self.predictions(task, label, finetunes, path)

    def lengths_of(self, task: Task) -> Lengths:
        return self.inputs.of(task).lengths

    def finetunes(self, variant: Variant) -> list[Artefact]:
        sweep, found = variant.sweep, []
        data = {
            (name, seed): self.dataset(
                task.reseeded(seed), variant.data_label(name, seed), "train", variant.written(("datasets", name))
            )
            for name, task, seed in sweep.trained_on()
        }
        label = variant.finetune_label(self.inputs.base.api)
        absent = {name: {name: 1.0} for name in sweep.datasets} == sweep.mixtures  # the default, as if absent
        for mixture in sweep.mixtures:
            path = variant.written(("datasets" if absent else "mixtures", mixture))
            for seed in sweep.finetune.seeds:
                own = seed if sweep.finetune.reseed_data else 0
                parts, first = (
                    _shares([(data[name, own], weight) for name, weight in sweep.mixtures[each].items()])
                    for each in (mixture, next(iter(sweep.mixtures)))
                )
                budget = first if sweep.finetune.match == "tokens" and parts != first else []
                name = variant.mixture_label(mixture, bool(budget))
                labels = {"mixture": name, "finetune": label, "seed": seed}
                found.append(self.finetune(seed, parts, budget, labels, path))
        return found

    def dataset(self, task: Task, label: str, role: str, path: Path) -> Artefact:
        known = self.inputs.of(task)
        if (id(known), label, role) in self.shared:
            return self.shared[id(known), label, role]
        recipe = dataset_recipe(task, known.sources, self.inputs.base.token_identity)
        labels = {"dataset": label, "role": role}
        needs = []
        if writer := task.writer():
            written = {**recipe, "writer": self.inputs.writers[writer].identity}
            size: Size = (*known.writing, "rows" if known.writing[1] else "estimate")
            name = f"{plain_name(task)}-writing"
            needs = [self.artefact("writing", name, written, (), labels, WritingJob(task, writer), path, size)]
        lengths = known.lengths
        size = lengths.rows, lengths.total(lengths.prompts), counted_of([lengths])
        found = self.artefact("dataset", plain_name(task), recipe, needs, labels, task, path, size)
        self.lengths[found.id] = lengths
        self.shared[id(known), label, role] = found
        return found

    def finetune(self, seed: int, parts: Shares, budget: Shares, labels: dict[str, Any], path: Path) -> Artefact:
        finetune, api = limits.resolved(self.sweep.finetune, self.inputs.limits), self.inputs.base.api
        recipe = {
            "base": self.inputs.base.identity,
            "finetune": finetune.recipe(api),
            "seed": seed,
            "mixture": [share for _, share in parts],
            **self.system_message(),
        }
        if budget:
            # Needs alone would not tell this mixture from one over the same datasets without a budget.
            recipe["budget"] = [[data.fingerprint, share] for data, share in budget]
        tasks = dict.fromkeys(data.name for data, _ in parts)
        name = "-".join([*tasks, "api" if api else finetune.method, f"s{seed}"])
        needs = list({data.id: data for data, _ in [*parts, *budget]}.values())
        mixture, first = (tuple((data.id, share) for data, share in each) for each in (parts, budget))
        job = FinetuneJob(finetune, seed, mixture, first)
        epoch = read_per_epoch(job, self.lengths)
        names = {data.id: str(data.labels["dataset"]) for data in needs}
        for text in epoch.problems:
            named = re.sub("|".join(map(re.escape, names)), lambda found: names[found[0]], text)
            self.problems.setdefault(Problem(path, named))
        size = epoch.rows, round(finetune.epochs * epoch.tokens), epoch.counted
        return self.artefact("finetune", name, recipe, needs, labels, job, path, size)

    def predictions(self, task: Task, evaluation: str, finetunes: Sequence[Artefact], path: Path) -> None:
        """Add the predictions of the base model and of finetunes on a task.

        Finetunes have one recipe, that of the base model but for how adapters are asked: needs differ.
        """
        known, lengths = self.inputs.of(task), self.lengths_of(task)
        examples = self.dataset(task, evaluation, "evaluate", path) if task.BRINGS_EXAMPLES else None
        recipe = {
            "base": self.inputs.base.identity,
            "decoding": {"temperature": 0.0, "max_tokens": task.MAX_OUTPUT_TOKENS, "stop": list(task.STOP)},
            "scorer": {"task": task.task, "law": task.VERSION, **code.digest_of(task)},
            **self.system_message(),
        }
        if examples is None:
            recipe |= {"task": task.recipe(), "sources": dict(known.sources)}
            if self.inputs.base.api and isinstance(task, LmEval) and task.metadata is not None:
                recipe["tokenizer"] = self.inputs.base.token_identity  # measures what the benchmark generates
        own = recipe | self.merged(lengths.rows)
        texts = canonical_json(recipe), canonical_json(own)
        size = lengths.rows, lengths.total(lengths.asked), counted_of([lengths])
        data_id = examples.id if examples else None
        for finetune in (None, *finetunes):
            labels = {"evaluation": evaluation, **(finetune.labels if finetune else _BASE_MODEL)}
            settings = self.sweep.finetune if finetune else None
            job = PredictionsJob(task, data_id, finetune.id if finetune else None, settings)
            needs = [need for need in (examples, finetune) if need is not None]
            name = f"{plain_name(task)}-{finetune.name if finetune else 'base'}"
            asked, written = (own, texts[1]) if finetune else (recipe, texts[0])
            self.artefact("predictions", name, asked, needs, labels, job, path, size, written)

    def merged(self, rows: int) -> dict[str, Any]:
        """Return the part of a recipe that only an adapter merged into the base model's weights has.

        By the rows of one evaluation alone: a sweep that grows asks nothing anew.
        """
        asked = self.sweep.adapters
        wanted = asked == "merged" or (asked == "auto" and rows >= MERGED_ROWS)
        adapter = self.sweep.finetune.method == "lora" and not self.inputs.base.api
        return {"adapters": "merged"} if wanted and adapter else {}

    def system_message(self) -> dict[str, Any]:
        """Return the part of a recipe that only models behind an API have."""
        message = self.sweep.system_message if self.inputs.base.api else None
        return {"system_message": message} if message else {}

    def artefact(
        self,
        kind: Kind,
        name: str,
        recipe: dict[str, Any],
        needs: Sequence[Artefact],
        labels: dict[str, Any],
        job: WritingJob | Task | FinetuneJob | PredictionsJob,
        path: Path,
        size: Size,
        written: bytes | None = None,
    ) -> Artefact:
        """Add an artefact; return the first one with its id. Problems with its labels are reported at ``path``.

        ``written`` is the recipe's canonical JSON, where it is known.
        """
        digest = fingerprint(written or recipe, [need.fingerprint for need in needs])
        need_ids = tuple(need.id for need in needs)
        new_id, name, (rows, tokens, counted) = artefact_id(kind, name, digest), readable_name(name), size
        new = Artefact(new_id, kind, name, digest, need_ids, rows, tokens, labels, recipe, job, counted)
        known = self.artefacts.setdefault(new.id, new)
        if known.labels != labels:
            if not self.doubled & set(need_ids):
                self.problems.setdefault(_clash(known, labels, path))
            self.doubled.add(new.id)
        # Results distinguish artefacts by labels: two of one kind with the same labels would be averaged.
        if self.labelled.setdefault((kind, *labels.values()), known.id) != known.id:
            shown = ", ".join(f"{key} {value}" for key, value in labels.items() if value is not None)
            self.problems.setdefault(Problem(path, f"found two {kind} artefacts named {shown}; expected one"))
        return known


def _shares(of: Shares) -> list[tuple[Artefact, float]]:
    """Normalise weights to shares, in an order independent of the YAML's."""
    total = sum(weight for _, weight in of)
    return sorted(((data, round(weight / total, 12)) for data, weight in of), key=lambda part: part[0].fingerprint)


def _clash(known: Artefact, labels: Mapping[str, Any], path: Path) -> Problem:
    """Return why an artefact with two names is refused: results would count twice, or training would see the test."""
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
