"""IN2, information-intensive training (FILM: "Make Your LLM Fully Utilize the Context", An et al. 2024).

Questions on one short segment (fine-grained) or on several (integration), asked of a context in which these segments
are shuffled among many others, so that any place may hold what matters. FILM: segments of 128 tokens, contexts spread
evenly over 4K to 32K tokens, 1.1M fine-grained and 300K integration questions, 150K (a tenth) kept short; beside that
it trains on 200K general instructions, which a mixture adds here. The paper takes it as a baseline for Mistral-7B v0.1
and gives no lengths (section 4.3); ours keep to that model's window of 4K.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import model_validator

from kvray.errors import InputError, KvrayError
from kvray.tasks import writing
from kvray.tasks.base import Context, CountTokens, Task, recipe, register, runtime
from kvray.tasks.in2 import corpus
from kvray.tasks.in2.corpus import Asked, Corpus
from kvray.tasks.in2.fill import fill
from kvray.tasks.in2.tiny import Tiny
from kvray.tasks.qa import questions
from kvray.tasks.qa.base import DocumentsTask, QuestionTask
from kvray.tasks.rng import draws, key_of, shuffled, unit
from kvray.tasks.rows import table
from kvray.tasks.sources import read
from kvray.tasks.world import TINY, source_identity

_STEPS = np.sqrt(np.array([2.0, 3.0, 5.0]))
"""Kronecker's sequence: independent, so that kinds and lengths spread evenly in any stretch of rows, and together."""


@register("in2")
class In2(Task):
    """Questions on segments of a corpus, shuffled among its other segments."""

    UNIT = "segments"
    MEASURES = "length"

    task: Literal["in2"] = recipe("in2")
    rows: int = recipe(700, ge=1, description="examples")
    source: str = runtime(
        TINY,
        description="'tiny' (passages of the bundled model's world, questions by templates), rows of your own with "
        "text or segments, question and answer, or, with question_writer, a corpus (.txt, 'text' of rows, directory)",
    )
    split: Literal["train", "test"] = recipe("train", description="people of the tiny world that it is about")
    question_writer: str | None = recipe(None, description="model that writes questions on a corpus, as for base_model")
    segment_tokens: int = recipe(128, ge=16, le=4096, description="most tokens of a segment; cut at sentences' ends")
    length_min: int = recipe(1024, ge=64, description="shortest prompt in tokens, of those not kept short (FILM 4K)")
    length_max: int = recipe(4000, ge=64, description="longest prompt in tokens (FILM 32K)")
    short_share: float = recipe(0.1, ge=0, le=1, description="share asked of their own segments alone (FILM 0.1)")
    integration_share: float = recipe(0.214, ge=0, le=1, description="share on several segments (FILM 0.214)")
    integration_segments: int = recipe(
        4, ge=2, le=64, description="written questions: neighbouring segments of a text per question, 2 to this"
    )
    corpus_segments: int = recipe(20_000, ge=2, description="segments cut of a corpus, of texts drawn by the seed")
    writer_surplus: float = recipe(0.5, ge=0, le=20, description="written questions beyond those needed, as a share")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.length_max < self.length_min:
            raise ValueError(f"length_max: found {self.length_max}; expected at least length_min, {self.length_min}")
        if self.question_writer is not None and self.source == TINY:
            raise ValueError(
                "question_writer: it writes on a corpus, the tiny world's questions are templates; give source"
            )
        return self

    def sources(self) -> dict[str, str]:
        return {"source": source_identity(self.source)}

    def overlaps(self, other: Task) -> str | None:
        if not isinstance(other, (In2, QuestionTask)) or self.sources() != other.sources():
            return None
        if self.source != TINY:
            return "it trains on the source that it is evaluated on; give the evaluation another"
        # Closed-book questions of the tiny world are about people that no training shows.
        if isinstance(other, (In2, DocumentsTask)) and (self.split == "train") == (other.split == "train"):
            return (
                "it trains on people that it is evaluated on; give the dataset 'split: train' and the evaluation 'test'"
            )
        return None

    def tokens_estimate(self) -> int:
        long = (self.length_min + self.length_max - self.segment_tokens) / 2
        return round((1 - self.short_share) * long + self.short_share * (self.segment_tokens + 60))

    def output_estimate(self) -> int:
        return 40

    def writer(self) -> str | None:
        return self.question_writer

    def to_write(self, count_tokens: CountTokens) -> list[str]:
        """Fine-grained questions come first; an InputError if the corpus cannot be read, or has too few segments."""
        return [] if self.question_writer is None else self._writable(count_tokens)[2]

    def context(self, count_tokens: CountTokens, written: Sequence[str] | None = None) -> Context:
        """Find a question for every row; an InputError if the source is unreadable or gives too few of a kind."""
        if self.source == TINY:
            key = self._key("tiny", self.split)
            return Context(count_tokens, Tiny(key, self.split, self.segment_tokens, self.length_max, count_tokens))
        if self.question_writer is None:
            return Context(count_tokens, self._own(count_tokens))
        return Context(count_tokens, None if written is None else self._written(count_tokens, written))

    def build(self, start: int, stop: int, context: Context) -> pa.Table:
        short, integration, lengths = self.kinds(stop)
        numbers = np.where(integration, np.cumsum(integration), np.cumsum(~integration)) - 1
        made = []
        for row in range(start, stop):
            several, length = bool(integration[row]), None if short[row] else int(lengths[row])
            draft = context.material.draft(row, several, int(numbers[row]))
            kind = "short" if short[row] else "integration" if several else "fine_grained"
            filled = fill(draft, length, context.count_tokens)
            made.append(replace(filled, subtask=kind, example_id=f"in2-{row:07d}"))
        return table(made, context.count_tokens)

    def score(self, answer: str, references: Sequence[str]) -> float:
        """Score 1 if the answer's first line contains every reference; the rule is ours, as IN2 is made to train on.

        What is stripped is what MDQA's rule strips: ends, then case, ASCII punctuation, articles and white space.
        """
        return float(all(questions.best_subspan_em(answer, [part]) == 1.0 for part in references))

    def kinds(self, rows: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]:
        """Return, per row from 0, whether it is kept short, asks about several segments, and its length in tokens."""
        shift = unit(draws(self._key("kinds"), 0, 1, 3)[0])
        at = (shift + np.arange(rows)[:, None] * _STEPS) % 1.0
        lengths = self.length_min + (at[:, 2] * (self.length_max - self.length_min + 1)).astype(np.int64)
        return at[:, 0] < self.short_share, at[:, 1] < self.integration_share, lengths

    def _needed(self) -> dict[bool, int]:
        several = int(self.kinds(self.rows)[1].sum())
        return {False: self.rows - several, True: several}

    def _own(self, count_tokens: CountTokens) -> Corpus:
        segments, asked = corpus.from_rows(self.source, self.segment_tokens, count_tokens)
        own = Corpus(segments, shuffled(asked, self._key("questions")), self._key("context"), count_tokens)
        for several, needed in self._needed().items():
            if needed > (has := len(own.asked[several])):
                kind = "several segments (integration)" if several else "one segment (fine-grained)"
                raise InputError(
                    f"rows: {self.rows} with integration_share {self.integration_share} ask {needed} on {kind}; "
                    f"{self.source} has {has} questions. Lower rows, or change integration_share"
                )
        return own

    def _written(self, count_tokens: CountTokens, written: Sequence[str]) -> Corpus:
        segments, asked_on, prompts = self._writable(count_tokens)
        if len(written) != len(prompts):
            raise KvrayError(f"in2: {len(written)} replies to {len(prompts)} prompts; expected one each")
        chosen: list[Asked] = []
        replies = iter(written)
        for several, needed in self._needed().items():
            of_kind = list(islice(replies, len(asked_on[several])))
            reader = partial(corpus.read_reply, asked_on[several], count_tokens)
            what = "integration questions" if several else "fine-grained questions"
            chosen += writing.choose(of_kind, needed, reader, writer=self.question_writer, what=what)
        return Corpus(segments, chosen, self._key("context"), count_tokens)

    def _writable(self, count_tokens: CountTokens) -> tuple[list[str], dict[bool, list[tuple[int, ...]]], list[str]]:
        """Return the segments, those that each question is to be about (by kind), and the prompts."""
        texts = read.texts(self.source)
        by_text = corpus.pool(texts, self.segment_tokens, self.corpus_segments, self._key("corpus"), count_tokens)
        segments = [segment for of_text in by_text for segment in of_text]
        asked_on: dict[bool, list[tuple[int, ...]]] = {
            False: [(at,) for at in range(len(segments))],
            True: corpus.windows(by_text, self.integration_segments, self._key("windows")),
        }
        for several, needed in self._needed().items():
            wanted = writing.asked(needed, self.writer_surplus)
            if wanted > len(asked_on[several]):
                kind = "runs of neighbouring segments" if several else "segments"
                raise InputError(
                    f"rows: {self.rows} and writer_surplus {self.writer_surplus} ask about {wanted} {kind}; "
                    f"{self.source} has {len(asked_on[several])}. Give a longer source, or lower rows"
                )
            asked_on[several] = shuffled(asked_on[several], self._key("asked", str(several)))[:wanted]
        prompts = [corpus.prompt_of([segments[at] for at in run]) for runs in asked_on.values() for run in runs]
        return segments, asked_on, prompts

    def _key(self, *purpose: str) -> int:
        return key_of("in2", self.VERSION, self.seed, *purpose)
