"""The model card of kvray-tiny: what it is, how it was made, and what it scores, by greedy generation."""

from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kvray.finetune.pretrain.pretrain import Recipe
from kvray.models.tokenizer import TokenCounter
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
"""What the card reports: test questions about people that no training shows, at several gold positions."""


def write_card(directory: Path, recipe: Recipe, record: dict[str, Any]) -> str:
    """Score the model that ``pretrain`` made of ``recipe``, with ``record``; write its card and return its text."""
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
    template = resources.files("kvray.finetune.pretrain").joinpath("card.md").read_text("utf-8")
    card = template.format(
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
    context = task.context(TokenCounter(tokenizer.backend_tokenizer))
    return task.build(0, task.count(context), context)


def score(task: Task, table: pa.Table, replies: Sequence[str]) -> Any:
    """Score answers by the task's rule; float array of shape ``(rows,)``."""
    return np.array([task.score(*pair) for pair in zip(replies, table["references"].to_pylist(), strict=True)])


def answers(model: Any, tokenizer: Any, prompts: Sequence[str], batch: int = 50, tokens: int = 40) -> list[str]:
    """Answer prompts greedily through the chat template, in left-padded batches."""
    from transformers import pipeline

    ask = pipeline("text-generation", model=model, tokenizer=tokenizer, batch_size=batch)
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    replies = ask(chats, max_new_tokens=tokens, do_sample=False, return_full_text=False)
    return [str(reply[0]["generated_text"]) for reply in replies]
