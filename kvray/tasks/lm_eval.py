"""General benchmarks through lm-evaluation-harness: MMLU, HellaSwag, GSM8K, TriviaQA, NQ-Open and any other it has.

The harness brings questions, prompts, filters and metrics (github.com/EleutherAI/lm-evaluation-harness; pinned, and
its task versions are in the manifest), so that the numbers compare with published ones. This module has the knobs;
:mod:`kvray.evaluate.lm_eval` asks. Shots and harness of the paper's general-benchmark tables are not known; the
defaults here are the harness's own.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator

from kvray.errors import InputError
from kvray.tasks.base import Context, CountTokens, Task, recipe, register, runtime

FEWSHOT_SEED = 1234
"""The harness's own seed of the few-shot examples; a task's ``seed`` is added to it."""
UNKNOWN_ROWS = 1000
"""Questions assumed, for the plan's estimates alone, for a benchmark that is not listed here."""


@dataclass(frozen=True)
class Size:
    """Published size of a benchmark, and about what one question costs.

    Attributes:
        questions: of the split that is asked.
        subtasks: that ``limit`` holds for each.
        shots: the harness's default.
        tokens: of one question with its options, and of one more as an example with its answer.
        requests: readings of the prompt per question (one per option, unless the options are single tokens).
        reply: tokens that are written per question; 0 where options are only read.
    """

    questions: int
    subtasks: int
    shots: int
    tokens: tuple[int, int]
    requests: int
    reply: int


SIZES = {
    "mmlu": Size(14042, 57, 0, (110, 110), 1, 0),
    "hellaswag": Size(10042, 1, 0, (100, 100), 4, 0),
    "gsm8k": Size(1319, 1, 5, (70, 190), 1, 150),
    "triviaqa": Size(17944, 1, 0, (25, 30), 1, 10),
    "nq_open": Size(3610, 1, 0, (25, 20), 1, 10),
}
"""The paper's general benchmarks (section 4.3; paper, Tables 1 and 2)."""


@register("lm_eval")
class LmEval(Task):
    """One benchmark of lm-evaluation-harness."""

    VERSION = 1
    """Raised also with every other version of the harness that is pinned."""
    MEASURES = "benchmark"
    TRAINABLE = False
    BRINGS_EXAMPLES = False
    MAX_OUTPUT_TOKENS = 256
    """Where neither the sweep nor the harness's task has a limit: the default of the harness's own model classes."""

    task: Literal["lm_eval"] = recipe("lm_eval")
    benchmark: str = recipe(min_length=1, description="the harness's task or group: mmlu, hellaswag, gsm8k, nq_open, …")
    shots: int | None = recipe(None, ge=0, description="solved examples before each question; null for the task's own")
    limit: int | None = recipe(None, ge=1, description="questions per subtask, the first ones; null for all")
    metric: str | None = recipe(None, min_length=1, description="'metric' or 'metric,filter'; null: the task's first")
    max_tokens: int | None = recipe(None, ge=1, description="tokens of an answer; null for the task's own, or 256")
    length: int = recipe(
        4096, ge=16, description="most tokens of prompt and answer; longer prompts lose their beginning"
    )
    chat_template: bool = recipe(False, description="ask by the model's chat template, shots as earlier turns")
    include_path: Annotated[str, AfterValidator(lambda path: os.path.abspath(os.path.expanduser(path)))] | None = (
        runtime(None, description="directory of task files of your own; relative paths in them start there")
    )

    def sources(self) -> dict[str, str]:
        """Return the sha256 over the names and contents of the files of ``include_path``.

        Raises:
            InputError: it is no directory, or holds no task file.
        """
        return {} if self.include_path is None else {"include_path": _digest(Path(self.include_path))}

    def context(self, count_tokens: CountTokens, written: Sequence[str] | None = None) -> Context:
        """Raise an InputError: kvray makes no examples of its own here."""
        raise InputError(
            f"lm_eval: {self.benchmark} is asked by lm-evaluation-harness, which brings the questions; "
            "kvray makes no examples of it"
        )

    @classmethod
    def rule(cls) -> str:
        """Return who scores: not kvray."""
        return "By lm-evaluation-harness, with the benchmark's own metric and filter."

    def expected_rows(self) -> int:
        """Return the number of questions: published, or ``limit`` for each subtask."""
        size = SIZES.get(self.benchmark)
        if size is None:
            return self.limit or UNKNOWN_ROWS
        return min(size.questions, size.subtasks * self.limit) if self.limit else size.questions

    def with_rows(self, rows: int) -> Self:
        size = SIZES.get(self.benchmark)
        return self.model_copy(update={"limit": -(-rows // (size.subtasks if size else 1))})

    def tokens_estimate(self) -> int:
        """Return about the prompt tokens read for one question; 0 for a benchmark not in :data:`SIZES`."""
        size = SIZES.get(self.benchmark)
        if size is None:
            return 0
        question, shot = size.tokens
        shots = size.shots if self.shots is None else self.shots
        return size.requests * min(question + shots * shot, self.length)

    def output_estimate(self) -> int:
        size = SIZES.get(self.benchmark)
        return size.reply if size else super().output_estimate()


def _digest(directory: Path) -> str:
    """Return the sha256 over all files of a directory, except Python's caches, hidden files and ``*.md``."""
    if not directory.is_dir():
        raise InputError(f"include_path: {directory} is no directory; expected one that holds task files (*.yaml)")
    hidden = re.compile(r"(^|/)(\.|__pycache__)|\.md$")
    paths = {path.relative_to(directory): path for path in sorted(directory.rglob("*")) if path.is_file()}
    files = {name.as_posix(): path for name, path in paths.items() if not hidden.search(name.as_posix())}
    if not any(name.endswith((".yaml", ".yml")) for name in files):
        raise InputError(f"include_path: {directory} holds no task file (*.yaml)")
    lines = [f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n" for name, path in files.items()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
