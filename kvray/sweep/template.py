"""The text of a new sweep file: a small answer to "where do I start", with what one changes next beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from kvray.errors import InputError
from kvray.models.reference import API, BUNDLED
from kvray.sweep.model import NAME
from kvray.sweep.schema import EDITOR_LINE
from kvray.sweep.yaml import dump
from kvray.tasks import load_all
from kvray.tasks.base import REGISTRY
from kvray.tasks.problems import unknown

OWN_ROWS = "messages"
"""The task of rows of one's own: its source is a file that the user names."""
QUESTIONS = (
    "${NQ_OPEN:-https://raw.githubusercontent.com/nelson-liu/lost-in-the-middle/main/qa_data/nq-open-oracle.jsonl.gz}"
)
"""Real questions with their documents, for models that know the world; $NQ_OPEN names a copy."""
_TINY: Mapping[str, Mapping[str, Any]] = {
    "simple_kv": {"dictionaries": 20},
    "several_kv": {"dictionaries": 20},
    "multi_subkey_kv": {"dictionaries": 12},
    "in2": {"segment_tokens": 48, "length_min": 250, "length_max": 600},
    "needle": {"split": "train", "lengths": [600]},
    "kv_retrieval": {"keys": 8, "questions": 70},
    "mdqa": {"split": "train", "positions": "random", "questions": 350},
    "ruler": {"tasks": ["niah_single_1", "niah_multikey_1"], "lengths": [600]},
}
_LARGE: Mapping[str, Mapping[str, Any]] = {
    "needle": {"split": "train"},
    "mdqa": {"split": "train", "positions": "random", "questions": 500, "source": QUESTIONS},
    "ruler": {"tasks": ["niah_single_1", "niah_multikey_1", "vt"], "lengths": [4096]},
}
"""What differs from a task's own defaults, for the bundled model's short window and for any other model."""
_SHARED = "\0"  # in the text where the questions stand, which YAML writes once, by an anchor
_MARGIN = 34  # columns before a comment


@dataclass(frozen=True)
class Wishes:
    """What a new sweep is to have.

    Attributes:
        name: the sweep's name.
        base_model: as in a sweep file.
        tasks: to train on, each alone.
        gpus: for the whole sweep at a time; 0 runs on CPUs, None leaves it to the machine.
        data: a file of rows of one's own to train on, too; None for none.
    """

    name: str
    base_model: str
    tasks: Sequence[str]
    gpus: int | None = None
    data: str | None = None

    @property
    def tiny(self) -> bool:
        return self.base_model in BUNDLED

    @property
    def api(self) -> bool:
        return self.base_model.startswith(API)


def trainable() -> list[str]:
    """Return the names of the tasks that :func:`sweep_text` can train on by themselves."""
    load_all()
    return sorted(name for name, cls in REGISTRY.items() if cls.TRAINABLE and name != OWN_ROWS)


def name_of(file: str) -> str:
    """Return the name of a sweep in a file: the file's, with - for what no name may have."""
    found = re.sub(r"[^A-Za-z0-9._-]+", "-", PurePath(file).stem)[:80].strip("._-")
    return found if NAME.fullmatch(found) else "sweep"


def sweep_text(wishes: Wishes) -> str:
    """Return a sweep file as text.

    Raises InputError for a task that is unknown or cannot be trained on, without any task or data, and for GPUs with a
    model behind an API.
    """
    known = trainable()
    for task in wishes.tasks:
        if task == OWN_ROWS:
            raise InputError(f"--task: found {task}, which reads a file of yours; expected --data FILE for it")
        if task not in known:
            raise InputError(f"--task: {unknown(task, known, 'one of the tasks to train on')}")
    if not wishes.tasks and wishes.data is None:
        raise InputError(f"--task: found none; expected one of {', '.join(known)}, or --data FILE")
    if wishes.api and wishes.gpus is not None:
        raise InputError(f"--gpus: found {wishes.gpus} with {wishes.base_model}; a model behind an API takes none")
    parts = [_head(wishes), _datasets(wishes), _finetune(wishes), _evaluate(wishes), _runtime(wishes)]
    first, *others = ("\n\n".join("\n".join(part) for part in parts) + "\n").split(_SHARED)
    return f'{first}&nq "{QUESTIONS}"{"*nq".join(others)}' if others else first


def _head(wishes: Wishes) -> list[str]:
    return [
        "# A sweep of kvray: which of the data below make the model retrieve better, and what does it forget?",
        "# `kvray plan` with this file says what a run takes, `kvray run` with it runs it. To have keys completed and",
        "# mistakes marked while you type: `kvray schema --out sweep.schema.json`, then make this the first line:",
        f"#   {EDITOR_LINE.format('sweep.schema.json')}",
        f"name: {_value(wishes.name)}",
        _line(f"base_model: {_value(wishes.base_model)}", "or a directory, a Hugging Face id, openai:NAME"),
    ]


def _datasets(wishes: Wishes) -> list[str]:
    sizes = _TINY if wishes.tiny else _LARGE
    lines = [_line("datasets:", "what can be trained on; every knob of a task: docs/tasks.md, `kvray sample TASK`")]
    names = [*dict.fromkeys(wishes.tasks), *(["mine"] if wishes.data is not None else [])]
    for task in dict.fromkeys(wishes.tasks):
        says = " ".join((REGISTRY[task].__doc__ or "").split("\n\n")[0].split()).partition(" (")[0]
        lines.append(_line(f"  {task}:", says))
        lines += [f"    {key}: {_value(value)}" for key, value in {"task": task, **sizes.get(task, {})}.items()]
    if wishes.data is not None:
        lines.append(_line("  mine:", "rows of your own: messages, or prompt and answer"))
        lines += [f"    {key}: {_value(value)}" for key, value in {"task": OWN_ROWS, "source": wishes.data}.items()]
    other = "simple_kv" if "in2" in names else "in2"
    if len(names) == 1:
        block = _value({"task": other, **sizes.get(other, {})})
        lines.append(f"  # {other}: {block} # a second one is compared with the first")
    lines += ["# mixtures:                        # what is trained on; left out, each dataset alone"]
    lines += [f"#   {names[0]}: {{{names[0]}: 1}}"]
    lines += [f"#   both: {{{names[0]}: 1, {names[1] if len(names) > 1 else other}: 1}}"]
    return lines


def _finetune(wishes: Wishes) -> list[str]:
    lines = ["finetune:"]
    if not wishes.api:
        lines.append(_line("  method: lora", "attention (the paper's) and full train whole weights"))
    lines.append(_line("  epochs: 2", "the paper's"))
    if wishes.tiny:
        lines.append(_line("  learning_rate: 3.0e-3", "the bundled model is narrow, and wants a high one"))
    elif not wishes.api:
        lines.append(_line("  # learning_rate: 1.0e-4", "left out: one at which the method learns"))
    if not wishes.api:
        lines.append(_line("  batch_size: 16", "rows per step"))
    lines.append(_line("  seeds: [0]", "[0, 1, 2]: three finetunes of each, so that the report speaks of mixtures"))
    if not wishes.api:
        lines.append(_line("# grid: {finetune.epochs: [1, 2, 4]}", "every combination of such lists is run"))
    return lines


def _evaluate(wishes: Wishes) -> list[str]:
    source = {} if wishes.tiny else {"source": QUESTIONS}
    positions = {"documents": 20, "positions": [1, 5, 10, 15, 20]}
    retrieval = {"task": "mdqa", **source, **positions, "questions": 100 if wishes.tiny else 500}
    recall = {"task": "recall", **source, **({} if wishes.tiny else {"questions": 1000})}
    return [
        _line("evaluate:", "what the base model and every finetune are asked"),
        _line("  mdqa:", "the answer in one of 20 documents, by its position"),
        *(f"    {key}: {_value(value)}" for key, value in retrieval.items()),
        _line("  recall:", "what the model knew by heart: is it forgotten?"),
        *(f"    {key}: {_value(value)}" for key, value in recall.items()),
    ]


def _runtime(wishes: Wishes) -> list[str]:
    lines = [_line("runtime:", "where and how fast; never changes a result's identity")]
    if wishes.api:
        return [*lines, _line("  api_concurrency: 8", "requests at a time")]
    if wishes.gpus:
        lines.append(_line(f"  max_gpus: {wishes.gpus}", "at a time"))
    elif wishes.gpus == 0 and not wishes.tiny:
        lines.append(_line("  gpus_per_finetune: 0", "on CPUs: slow for all but the smallest models"))
        lines.append("  gpus_per_engine: 0")
    if wishes.tiny and not wishes.gpus:
        lines.append(_line("  concurrent_finetunes: 2", "at a time, a CPU each"))
        lines.append("  per_device_batch_size: 8")
    return [*lines, _line("  retries: 2", "of work whose process died without getting on")]


def _value(value: object) -> str:
    """Return a value as YAML on one line; the shared questions as a mark, for their anchor."""
    return _SHARED if value == QUESTIONS else dump(value, line=True)


def _line(text: str, comment: str) -> str:
    return f"{text:<{_MARGIN}} # {comment}"
