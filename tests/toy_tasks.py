"""Two small tasks for tests of the kernel: one that can be trained on, one that only asks."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import model_validator

from kvray.tasks.base import Context, Task, examples, recipe, runtime


class Toy(Task):
    """Makes ``rows`` examples of about ``size`` tokens (at least four)."""

    VERSION = 1

    task: Literal["toy"] = recipe("toy")
    rows: int = recipe(10, ge=1, description="examples")
    size: int = recipe(8, ge=1, le=100, description="tokens of a prompt")
    law: Literal["paper", "strict"] = recipe("paper", description="which law")
    positions: tuple[int, ...] = recipe((1,), description="1-based")

    @model_validator(mode="after")
    def _inside(self) -> Toy:
        if max(self.positions) > self.size:
            raise ValueError(f"positions: found {max(self.positions)}; expected at most size = {self.size}")
        return self

    def count(self, context: Context) -> int:
        return self.rows

    def tokens_estimate(self) -> int:
        return self.size

    def build(self, start: int, stop: int, context: Context) -> pa.Table:
        rows = range(start, stop)
        prompts = [f"{self.seed} {row}" + " a" * (self.size - 4) for row in rows]
        return examples(
            {
                "example_id": [f"toy-{row}" for row in rows],
                "question_id": [f"toy-{row}" for row in rows],
                "units": [0] * len(rows),
                "prompt": prompts,
                "answer": ["b"] * len(rows),
                "references": [["b"]] * len(rows),
                "prompt_tokens": context.count_tokens(prompts).tolist(),
            }
        )


class Quiz(Task):
    """Asks the lines of a file; its questions are out of bounds for training."""

    VERSION = 3
    TRAINABLE = False
    MAX_OUTPUT_TOKENS = 7

    task: Literal["quiz"] = recipe("quiz")
    source: str = runtime(description="a file of questions, one per line")

    def sources(self) -> dict[str, str]:
        return {"source": hashlib.sha256(Path(self.source).read_bytes()).hexdigest()}

    def count(self, context: Context) -> int:
        return len(Path(self.source).read_text().splitlines())
