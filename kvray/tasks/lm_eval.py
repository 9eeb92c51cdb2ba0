"""General benchmarks through lm-evaluation-harness: MMLU, HellaSwag, GSM8K, TriviaQA, NQ-Open and any other it has.

The harness brings questions, prompts, filters and metrics (github.com/EleutherAI/lm-evaluation-harness; pinned, and
its task versions are in the manifest), so that the numbers compare with published ones. Shots and harness of the
paper's tables are not known; the defaults are the harness's own. :mod:`kvray.evaluate.lm_eval` asks the questions.

Its benchmarks of long contexts are asked like any other: RULER at lengths of one's choice
(``benchmark: ruler, metadata: {max_seq_lengths: [4096, 8192]}``; the base model's tokenizer measures them, and each row
has its length), BABILong (``metadata: {max_seq_lengths: 8k}``), LongBench v2, InfiniteBench, GraphWalks.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, JsonValue, field_validator

from kvray.errors import InputError
from kvray.models.reference import find
from kvray.tasks.base import Context, CountTokens, Task, added, recipe, register, runtime

FEWSHOT_SEED = 1234
"""The harness's own seed of the few-shot examples; a task's ``seed`` is added to it."""
UNKNOWN_ROWS = 1000
"""Questions assumed, for the plan's estimates alone, for a benchmark that is not listed here."""
SHORT = 4096
"""Most tokens of prompt and answer of benchmarks of short questions, and of task files of one's own without metadata:
what every benchmark had at first, so that what was asked then stays valid."""


@dataclass(frozen=True)
class Size:
    """Published size of a benchmark, and about what one question costs.

    ``limit`` holds for each of the ``subtasks``; ``shots`` is the harness's default; ``tokens`` are those of a question
    with its options, and of one more as an example with its answer; ``requests`` are readings of the prompt per
    question (one per option, unless options are single tokens); ``reply`` is what is written, 0 for options.
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
    "ifeval": Size(541, 1, 0, (50, 0), 1, 350),
    "ruler": Size(6500, 13, 0, (0, 0), 1, 64),
}
"""The paper's general benchmarks (section 4.3; paper, Tables 1 and 2), IFEval (arXiv 2311.07911), whose tokens are a
guess, and RULER, whose questions are those of one length and whose tokens its lengths say."""


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
    benchmark: str = recipe(
        min_length=1, description="a task or group of the harness: mmlu, hellaswag, gsm8k, triviaqa, nq_open, …"
    )
    shots: int | None = recipe(None, ge=0, description="solved examples before each question; null for the task's own")
    limit: int | None = recipe(
        None, ge=1, description="questions per subtask, and per length of several, the first ones; null for all"
    )
    metric: str | None = recipe(
        None,
        min_length=1,
        description="scores a question: 'metric' or 'metric,filter'; null for the task's first of both",
    )
    max_tokens: int | None = recipe(None, ge=1, description="tokens of an answer; null for the task's own, or 256")
    length: int | None = recipe(
        None,
        ge=16,
        description="most tokens of prompt and answer; longer prompts lose their beginning, as in lm-eval. null: what "
        "the model takes; 4096 for short benchmarks and for task files of your own without metadata",
    )
    metadata: dict[str, JsonValue] | None = added(
        None,
        description="what the harness's --metadata takes, such as max_seq_lengths; pretrained and tokenizer are the "
        "base model's, and tokenizer may name another",
    )
    chat_template: bool = recipe(False, description="ask by the model's chat template, shots as earlier turns")
    include_path: Annotated[str, AfterValidator(lambda path: os.path.abspath(os.path.expanduser(path)))] | None = (
        runtime(None, description="directory of task files of your own; relative paths in them start there")
    )

    @field_validator("metadata")
    @classmethod
    def _checked(cls, metadata: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
        """Refuse what names the model that is asked: it is the sweep's."""
        for key in ("pretrained", "model"):
            if metadata and key in metadata:
                raise ValueError(f"found {key}; expected it left out: it is the model that is asked")
        if metadata and not isinstance(metadata.get("tokenizer", ""), str):
            raise ValueError("tokenizer: expected a model's name or directory")
        return metadata

    @property
    def tokenizer(self) -> str | None:
        """The model whose tokenizer measures generated lengths, None for the base model's."""
        name = (self.metadata or {}).get("tokenizer")
        return str(name) if name else None

    def most_tokens(self) -> int | None:
        """Return the most tokens of a prompt and its answer, None for what the engine serves."""
        if self.length is not None:
            return self.length
        size = SIZES.get(self.benchmark)
        # No question is as long as thrice the mean and its examples.
        short = size is not None and 3 * self._prompt(size) <= SHORT
        return SHORT if self.metadata is None and (short or self.include_path is not None) else None

    def recipe(self) -> dict[str, Any]:
        """Return the JSON form of what decides content: the length that holds; another tokenizer by its content."""
        values = super().recipe() | {"length": self.most_tokens()}
        if self.tokenizer and self.metadata:
            values["metadata"] = {key: value for key, value in self.metadata.items() if key != "tokenizer"}
        return values

    def sources(self) -> dict[str, str]:
        """Return the sha256 over the files of ``include_path``, and what tells another tokenizer from any other.

        Raises InputError if the path is no directory of task files, or there is no such tokenizer.
        """
        found = {} if self.include_path is None else {"include_path": _digest(Path(self.include_path))}
        if self.tokenizer:
            found["tokenizer"] = find(self.tokenizer, "metadata", weights=False).identity
        return found

    def code(self) -> list[str]:
        """Return the names of task files of one's own that bring Python code, which loading them runs."""
        if self.include_path is None or not os.path.isdir(self.include_path):
            return []
        files = [path for path in sorted(Path(self.include_path).rglob("*")) if path.is_file()]
        return [path.name for path in files if path.suffix == ".py" or b"!function" in path.read_bytes()]

    def context(self, count_tokens: CountTokens, written: Sequence[str] | None = None) -> Context:
        raise InputError(
            f"lm_eval: {self.benchmark} is asked by lm-evaluation-harness, which brings the questions; "
            "kvray makes no examples of it"
        )

    @classmethod
    def rule(cls) -> str:
        return "By lm-evaluation-harness, with the benchmark's own metric and filter, which says what is stripped."

    def lengths(self) -> tuple[int, ...]:
        """Return the lengths, in tokens, that ``metadata`` asks for by numbers; none where it names them otherwise."""
        given = (self.metadata or {}).get("max_seq_lengths")
        return tuple(each for each in given if isinstance(each, int)) if isinstance(given, list) else ()

    def expected_rows(self) -> int:
        size, times = SIZES.get(self.benchmark), max(1, len(self.lengths()))
        if size is None:
            return times * (self.limit or UNKNOWN_ROWS)
        return times * (min(size.questions, size.subtasks * self.limit) if self.limit else size.questions)

    def with_rows(self, rows: int) -> Self:
        size, times = SIZES.get(self.benchmark), max(1, len(self.lengths()))
        return self.model_copy(update={"limit": -(-rows // (times * (size.subtasks if size else 1)))})

    def tokens_estimate(self) -> int:
        if lengths := self.lengths():
            return sum(lengths) // len(lengths)
        size = SIZES.get(self.benchmark)
        return size.requests * min(self._prompt(size), self.most_tokens() or self._prompt(size)) if size else 0

    def output_estimate(self) -> int:
        size = SIZES.get(self.benchmark)
        return size.reply if size else super().output_estimate()

    def _prompt(self, size: Size) -> int:
        """Return the mean tokens of a prompt with its examples."""
        question, shot = size.tokens
        return question + (size.shots if self.shots is None else self.shots) * shot


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
