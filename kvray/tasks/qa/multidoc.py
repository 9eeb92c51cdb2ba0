"""The MultiDocQA baseline: questions over several documents, answered by restating the original text first.

After Yu 2024, "Training With 'Paraphrasing the Original Text' Improves Long-Context Performance" (arXiv 2312.11193):
the answer first repeats what the documents say about the question, then concludes. Which part of whose data the paper
took is unknown, as are its number of samples and its length limit; the wording, ``restate``, ``rows`` and
``max_tokens`` are ours. Three kinds of sources:

- ``tiny``: people of the made-up world that no evaluation asks about.
- Questions with gold passages (:mod:`kvray.tasks.qa.questions`), with random distractors of their own split.
- Instruction rows that already restate (:mod:`kvray.tasks.qa.instructions`), taken as they are: any rows but those
  with a ``question`` and ``ctxs`` or ``text``. On the hub there are ``yuyijiong/Long-Instruction-with-Paraphrasing``
  (cc-by-sa-4.0; Chinese and English; 4K to 32K tokens; zip archives, of which ``long_instruction_paraphrasing.zip`` is
  the one to name; its training script reads ``context``, ``questions`` and ``answers``, or ``messages``) and
  ``yuyijiong/Multi-Doc-QA-CommonCrawl`` (cc-by-nc-4.0; English; ``chatml/*.csv``, more than 8K tokens each, and raw
  documents in ``raw/*.jsonl.zst``). That much is from their cards, listings and script; their rows were not at hand.
  Give ``split: all``, and a ``max_tokens`` that leaves enough of them.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from itertools import product
from typing import Any, Literal

import pyarrow as pa

from kvray.errors import InputError
from kvray.tasks.base import Context, CountTokens, Measure, examples, recipe, register
from kvray.tasks.qa import instructions, questions
from kvray.tasks.qa.base import Asked, DocumentsTask, Material, listed
from kvray.tasks.qa.distractors import RandomDistractors, TinyQuestions
from kvray.tasks.qa.questions import Question, Split, best_subspan_em
from kvray.tasks.rng import key_of, permutation
from kvray.tasks.sources import read
from kvray.tasks.world import TINY

PROMPT = (
    "Below are documents, of which one answers the question. Name it, repeat what it says about the question, "
    "and then give the answer.\n\n{documents}\n\nQuestion: {question}"
)
ANSWER = 'According to Document [{position}]: "{text}" So the answer is: {answer}.'
# Not behind an initial or a title: "John F. Kennedy", "St. Louis".
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\b[A-Z]\.)(?<!\b(?:Mr|Dr|St|Jr|Sr|No|vs)\.)\s+(?=[\W_]?[A-Z])")
_AT_ONCE = 32


@register("multidoc_qa")
class MultiDocQa(DocumentsTask):
    """Questions over documents whose answers restate the original text; made to be trained on."""

    VERSION = 1
    MAX_OUTPUT_TOKENS = 300
    task: Literal["multidoc_qa"] = recipe("multidoc_qa")
    split: Split = recipe("train", description="test, train (a fifth of a file's questions or rows, by hash) or all")
    rows: int = recipe(500, ge=1, description="examples; ours: enough to match 350 of simple_kv by tokens")
    positions: tuple[int, ...] | Literal["random"] | None = recipe(
        "random",
        description="1-based gold positions, each question at each; 'random': one per question; null: five, spread",
    )
    restate: Literal["sentence", "passage"] = recipe(
        "sentence", description="what an answer repeats: the first sentence that holds the answer, or the whole passage"
    )
    max_tokens: int | None = recipe(
        4096, ge=16, description="tokens of prompt and answer; a file's longer rows are passed by; null: of any length"
    )
    english_only: bool = recipe(
        True, description="of instruction rows, take those whose letters are nine tenths ASCII; ours"
    )

    @classmethod
    def measures(cls, units: Collection[int]) -> Measure:
        """Return "retrieval", or "other" for instruction rows, whose documents nobody counted."""
        return "other" if set(units) == {0} else cls.MEASURES

    def context(self, count_tokens: CountTokens, written: Sequence[str] | None = None) -> Context:
        """Read the source and choose what fits; an InputError if rows or passages are too few."""
        per_question = len(self.gold_positions())
        wanted = -(-self.rows // per_question)
        if self.source == TINY:
            return Context(count_tokens, Material(TinyQuestions(self), wanted))
        first = next((row for _, row in read.rows(self.source, tables=True)), {})
        if "question" not in first or not ("ctxs" in first or "text" in first):
            return Context(count_tokens, self._instructions(count_tokens))
        # Passages that the other split asks about are no distractors here: training shows none of them.
        chosen = self.pick(questions.read(self.source), None)
        self.refuse_missing_passages(chosen)
        asks = RandomDistractors(self, chosen, chosen)
        whole = Material(asks, len(chosen))
        sizes = (
            self._longest(number * per_question, per_question, whole, count_tokens) for number in range(len(chosen))
        )
        numbers = self._fitting(sizes, wanted, len(chosen), per_question)
        return Context(count_tokens, Material(asks, wanted, numbers))

    def build(self, start: int, stop: int, context: Context) -> pa.Table:
        rows: dict[str, list[Any]] = defaultdict(list)
        if isinstance(context.material, list):
            for name, prompt, answer in context.material[start:stop]:
                _append(rows, name, name, None, 0, prompt, answer, [answer])
        else:
            for _, asked, position in self.placed(start, stop, context.material):
                question = asked.question
                prompt, answer = self._worded(asked, position or 1)
                name = f"{question.id}-{position}"
                _append(rows, name, question.id, position, self.documents, prompt, answer, list(question.answers))
        rows["prompt_tokens"] = context.count_tokens(rows["prompt"]).tolist()
        return examples(rows)

    def _worded(self, asked: Asked, position: int) -> tuple[str, str]:
        question = asked.question
        prompt = PROMPT.format(documents=listed(asked, position), question=question.text)
        sentence, answer = restated(question)
        # One line, so that scorers which read the first line alone see the conclusion.
        text = " ".join((question.passage if self.restate == "passage" else sentence).split())
        return prompt, ANSWER.format(position=position, text=text, answer=answer.strip().removesuffix("."))

    def _longest(self, start: int, rows: int, material: Material, count_tokens: CountTokens) -> int:
        """Return the tokens of the longest of a question's examples, prompt and answer; 0 where there is no limit."""
        if self.max_tokens is None:
            return 0
        placed = self.placed(start, start + rows, material)
        pairs = [self._worded(asked, position or 1) for _, asked, position in placed]
        flat = count_tokens([text for pair in pairs for text in pair])
        return int((flat[0::2] + flat[1::2]).max())

    def _fitting(self, sizes: Iterator[int], wanted: int, of: int, per_question: int = 1) -> list[int]:
        """Return the first ``wanted`` numbers whose size is within ``max_tokens``; an InputError if there are fewer."""
        found: list[int] = []
        for number, size in enumerate(sizes):
            if self.max_tokens is None or size <= self.max_tokens:
                found.append(number)
            if len(found) == wanted:
                return found
        raise self._too_few(len(found) * per_question, {f"max_tokens: {self.max_tokens}": of - len(found)})

    def _too_few(self, has: int, passed_by: dict[str, int]) -> InputError:
        split = "" if self.split == "all" else f" in split {self.split!r}"
        reasons = [f"; {number} more are passed by for {knob}" for knob, number in passed_by.items() if number]
        ways = [f"rows: {has}"] * (has > 0) + ["split: all"] * (self.split != "all")
        ways += [f"another {knob.partition(':')[0]}" for knob, number in passed_by.items() if number]
        return InputError(
            f"rows: {self.rows} asked for, but {self.source} gives {has}{split}{''.join(reasons)}; "
            f"type {' or '.join(ways) or 'another source'}"
        )

    def _instructions(self, count_tokens: CountTokens) -> list[tuple[str, str, str]]:
        """Return (id, prompt, answer) of the chosen instruction rows; an InputError if too few are usable."""
        pool: dict[str, tuple[str, str, str]] = {}
        foreign = 0
        for where, row in read.rows(self.source, tables=True):
            prompt, answer = instructions.pair(row, where)
            name = hashlib.sha256(prompt.encode()).hexdigest()[:12]
            if not prompt or not answer or not questions.in_split(Question(name, prompt, (answer,)), self.split):
                continue
            if self.english_only and not instructions.is_english(f"{prompt} {answer}"):
                foreign += 1
                continue
            pool.setdefault(name, (name, prompt, answer))
        # Sorted by id first, so that the order of the lines does not matter.
        ordered = [pool[name] for name in sorted(pool)]
        if len(ordered) < self.rows:
            raise self._too_few(len(ordered), {"english_only: true": foreign})
        shuffled = permutation(key_of(self.task, self.VERSION, self.seed, "rows"), len(ordered))
        ordered = [ordered[at] for at in shuffled.tolist()]
        numbers = self._fitting(_sizes(ordered, count_tokens), self.rows, len(ordered))
        return [ordered[number] for number in numbers]


def restated(question: Question) -> tuple[str, str]:
    """Return the first sentence of the gold passage that holds an accepted answer, and that answer.

    Answers are tried in the file's order. Where no sentence holds one: the whole passage and the first answer.
    """
    sentences = _SENTENCE_END.split(" ".join(question.passage.split()))
    for answer, sentence in product(question.answers, sentences):
        if best_subspan_em(sentence, [answer]):
            return sentence, answer
    return question.passage, question.answers[0]


def _sizes(ordered: Sequence[tuple[str, str, str]], count_tokens: CountTokens) -> Iterator[int]:
    """Yield the tokens of prompt and answer of each row, counted only as far as the caller reads."""
    for start in range(0, len(ordered), _AT_ONCE):
        some = ordered[start : start + _AT_ONCE]
        prompts, answers = [prompt for _, prompt, _ in some], [answer for *_, answer in some]
        yield from (count_tokens(prompts) + count_tokens(answers)).tolist()


def _append(rows: dict[str, list[Any]], *values: Any) -> None:
    names = ("example_id", "question_id", "position", "units", "prompt", "answer", "references")
    for name, value in zip(names, values, strict=True):
        rows[name].append(value)
