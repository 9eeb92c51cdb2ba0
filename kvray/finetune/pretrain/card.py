"""The model card of kvray-tiny: what it is, how it was made, and what it scores, by greedy generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kvray.errors import InputError
from kvray.finetune.pretrain.pretrain import Recipe
from kvray.tasks import load_all
from kvray.tasks.base import REGISTRY, Task

SCORED: dict[str, dict[str, Any]] = {
    "closed book, 480 facts": {"task": "recall"},
    "2 documents": {"task": "mdqa", "documents": 2, "questions": 100},
    "4 documents": {"task": "mdqa", "documents": 4, "questions": 60},
    "10 documents": {"task": "mdqa", "documents": 10, "questions": 50},
    "20 documents": {"task": "mdqa", "documents": 20, "questions": 50},
    "2 dictionaries": {"task": "simple_kv", "rows": 100, "dictionaries": 2, "law": "strict"},
    "8 dictionaries": {"task": "simple_kv", "rows": 100, "dictionaries": 8, "law": "strict"},
}
"""What the card reports: test questions on people that no training shows; the documents' gold positions are spread."""
_CARD = """---
license: apache-2.0
library_name: transformers
tags: [kvray, tiny, retrieval]
---
# kvray-tiny

A Mistral-architecture model of {parameters:,} parameters, made from scratch by `kvray pretrain`, so that a whole kvray
sweep runs on a laptop. It knows 480 facts of a made-up world by heart and answers questions from a few short documents;
at 20 documents it is worse, which is what finetuning is to mend. It knows nothing of the real world.

Seed {seed}; {tokens:,} training tokens in {minutes:.0f} minutes on {device}. Recipe: `{recipe}`.
Curriculum at the end: `{stage}` (kvray/tiny/curriculum.py tells what these mean).

| greedy, whole answer scored by the task's own rule | examples | accuracy |
|---|---|---|
{rows}

| 20 documents, by gold position | {positions} |
|---|{rule}|
| accuracy | {by_position} |
"""


def write_card(directory: Path, recipe: Recipe, record: dict[str, Any]) -> str:
    """Score the model directory that :func:`kvray.finetune.pretrain.pretrain.pretrain` wrote, and write its card.

    ``recipe`` is what made it and ``record`` what that call returned. Returns the text of its ``README.md``.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    load_all()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(directory).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    rows, positions = [], {}
    for label, block in SCORED.items():
        task = REGISTRY[block["task"]].model_validate(block)
        table = examples(task, tokenizer)
        scores = score(task, table, answers(model, tokenizer, table["prompt"].to_pylist()))
        rows.append(f"| {label} | {len(scores)} | {scores.mean():.3f} |")
        if block.get("documents") == 20:
            at = table["position"].to_numpy()
            positions = {int(position): float(scores[at == position].mean()) for position in np.unique(at)}
    card = _CARD.format(
        parameters=model.num_parameters(),
        seed=recipe.seed,
        tokens=record["tokens"],
        minutes=record["seconds"] / 60,
        device=record["device"],
        recipe=asdict(recipe),
        stage=record["stage"],
        rows="\n".join(rows),
        positions=" | ".join(map(str, positions)),
        rule="|".join("---" for _ in positions),
        by_position=" | ".join(f"{value:.2f}" for value in positions.values()),
    )
    (directory / "README.md").write_text(card)
    return card


def examples(task: Task, tokenizer: Any) -> pa.Table:
    """Return every example of a task."""

    def count(texts: Sequence[str]) -> Any:
        return np.array([len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]])

    context = task.context(count)
    return task.build(0, task.count(context), context)


def score(task: Task, table: pa.Table, said: Sequence[str]) -> Any:
    """Score answers by the task's rule; float array of shape ``(rows,)``."""
    if len(said) != table.num_rows:
        raise InputError(f"{len(said)} answers for {table.num_rows} examples")
    return np.array([task.score(*pair) for pair in zip(said, table["references"].to_pylist(), strict=True)])


def answers(model: Any, tokenizer: Any, prompts: Sequence[str], batch: int = 50, tokens: int = 40) -> list[str]:
    """Answer prompts greedily through the chat template, in left-padded batches."""
    import torch

    said: list[str] = []
    for start in range(0, len(prompts), batch):
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts[start : start + batch]]
        encoded = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        ).to(model.device)
        with torch.inference_mode():
            made = model.generate(**encoded, max_new_tokens=tokens, do_sample=False)
        said += tokenizer.batch_decode(made[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    return said
