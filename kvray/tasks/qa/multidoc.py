"""The MultiDocQA baseline: questions over several documents, answered by restating the original text first.

After Yu 2024, "Training With 'Paraphrasing the Original Text' Improves Long-Context Performance" (arXiv 2312.11193):
the answer first repeats what the documents say about the question, then concludes. Which part of whose data the paper
took is unknown, as are its number of samples and its length limit; the wording, ``restate``, ``rows`` and
``max_tokens`` are ours. Three kinds of sources:

- ``tiny``: people of the made-up world that no evaluation asks about.
- Questions with gold passages (:mod:`kvray.tasks.qa.questions`), with random distractors of their own split.
- Instruction rows that already restate (chats, or texts in fields), taken as they are: any rows but those
  with a ``question`` and ``ctxs`` or ``text``. On the hub there are ``yuyijiong/Long-Instruction-with-Paraphrasing``
  (cc-by-sa-4.0; Chinese and English; 4K to 32K tokens; zip archives, of which ``long_instruction_paraphrasing.zip`` is
  the one to name; its training script reads ``context``, ``questions`` and ``answers``, or ``messages``) and
  ``yuyijiong/Multi-Doc-QA-CommonCrawl`` (cc-by-nc-4.0; English; ``chatml/*.csv``, more than 8K tokens each, and raw
  documents in ``raw/*.jsonl.zst``). That much is from their cards, listings and script; their rows were not at hand.
  Give ``split: all``, and a ``max_tokens`` that leaves enough of them.
"""

import hashlib
import re
import string
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice, product
from typing import Any, Literal

import pyarrow as pa

from kvray.errors import InputError
from kvray.tasks import prompts
from kvray.tasks.base import Context, CountTokens, Many, Measure, recipe, register
from kvray.tasks.qa import passages, questions
from kvray.tasks.qa.base import DocumentsTask, Material, listed
from kvray.tasks.qa.distractors import RandomDistractors, TinyQuestions
from kvray.tasks.qa.questions import Question, Split, best_subspan_em
from kvray.tasks.rng import key_of, shuffled
from kvray.tasks.rows import Example, table
from kvray.tasks.sources import read
from kvray.tasks.world import TINY

_TEXTS = prompts.load("qa/texts.toml")["multidoc"]
PROMPT = ("instruction", "prompt", "context", "input", "question", "questions")
ANSWER = ("output", "answer", "answers", "response")
ENGLISH = 0.9
"""Least share of ASCII letters among all letters of an English text; ours."""
_CHATML = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL)
_ASCII = re.compile(r"[\x00-\x7f]+")
_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "model": "assistant"}
# Not behind an initial or a title: "John F. Kennedy", "St. Louis".
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\b[A-Z]\.)(?<!\b(?:Mr|Dr|St|Jr|Sr|No|vs)\.)\s+(?=[\W_]?[A-Z])")
_AT_ONCE = 32


@register("multidoc_qa")
class MultiDocQa(DocumentsTask):
    """Questions over documents whose answers restate the original text; made to be trained on."""

    MAX_OUTPUT_TOKENS = 300
    task: Literal["multidoc_qa"] = recipe("multidoc_qa")
    split: Split = recipe("train", description="test, train (a fifth of a file's questions or rows, by hash) or all")
    rows: int = recipe(500, ge=1, description="examples; ours: enough to match 350 of simple_kv by tokens")
    positions: Many[int] | Literal["random"] | None = recipe(
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
        True, description="of instruction rows, those whose letters are nine tenths ASCII; ours"
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
            return Context(count_tokens, Material(TinyQuestions(self), range(wanted)))
        first = next((row for _, row in read.rows(self.source, tables=True)), {})
        if "question" not in first or not ("ctxs" in first or "text" in first):
            return Context(count_tokens, self._instructions(count_tokens))
        # Passages that the other split asks about are no distractors here: training shows none of them.
        chosen = self.pick(questions.read(self.source), None)
        every = Material(RandomDistractors(self, passages.of_questions(chosen, None), chosen), range(len(chosen)))
        starts = range(0, per_question * len(chosen), per_question)
        made = (self._made(start, start + per_question, every) for start in starts)
        return Context(count_tokens, Material(every.asks, self._fitting(made, wanted, count_tokens, per_question)))

    def build(self, start: int, stop: int, context: Context) -> pa.Table:
        material: list[Example] | Material = context.material
        made = material[start:stop] if isinstance(material, list) else self._made(start, stop, material)
        return table(made, context.count_tokens)

    def _made(self, start: int, stop: int, material: Material) -> list[Example]:
        made = []
        for _, (question, documents), position in self.placed(start, stop, material):
            sentence, answer = restated(question)
            # One line, so that scorers which read the first line alone see the conclusion.
            text = " ".join((question.passage if self.restate == "passage" else sentence).split())
            prompt = _TEXTS["prompt"].format(documents=listed(documents, position or 1), question=question.text)
            answer = _TEXTS["answer"].format(position=position, text=text, answer=answer.strip().removesuffix("."))
            name = f"{question.id}-{position}"
            made.append(
                Example(prompt, answer, question.answers, question.id, position, self.documents, example_id=name)
            )
        return made

    def _fitting(
        self, groups: Iterator[Sequence[Example]], wanted: int, count_tokens: CountTokens, per_group: int = 1
    ) -> list[int]:
        """Return the numbers of the first ``wanted`` groups within ``max_tokens``; an InputError if there are fewer."""
        sizes = (0 for _ in groups) if self.max_tokens is None else _sizes(groups, count_tokens)
        fitting: list[int] = []
        passed_by = 0
        for number, size in enumerate(sizes):
            if size <= (self.max_tokens or 0):
                fitting.append(number)
            else:
                passed_by += 1
            if len(fitting) == wanted:
                return fitting
        raise self._too_few(len(fitting) * per_group, passed_by, f"max_tokens: {self.max_tokens}")

    def _too_few(self, has: int, passed_by: int, knob: str) -> InputError:
        """Return the error for a source that gives ``has`` rows, and ``passed_by`` more at another value of a knob."""
        split = "" if self.split == "all" else f" in split {self.split!r}"
        more = f"; {passed_by} more are passed by for {knob}" if passed_by else ""
        ways = [f"rows: {has}"] * (has > 0) + ["split: all"] * (self.split != "all")
        ways += [f"another {knob.partition(':')[0]}"] * (passed_by > 0)
        return InputError(
            f"rows: {self.rows} asked for, but {self.source} gives {has}{split}{more}; "
            f"type {' or '.join(ways) or 'another source'}"
        )

    def _instructions(self, count_tokens: CountTokens) -> list[Example]:
        pool: dict[str, Example] = {}
        foreign = 0
        for where, row in read.rows(self.source, tables=True):
            prompt, answer = pair(row, where)
            name = hashlib.sha256(prompt.encode()).hexdigest()[:12]
            if not prompt or not answer or not questions.in_split(name, self.split):
                continue
            if self.english_only and not is_english(f"{prompt} {answer}"):
                foreign += 1
                continue
            pool.setdefault(name, Example(prompt, answer, example_id=name))
        if len(pool) < self.rows:
            raise self._too_few(len(pool), foreign, "english_only: true")
        # Sorted by id first, so that the order of the lines does not matter.
        ordered = shuffled([pool[name] for name in sorted(pool)], key_of(self.task, self.VERSION, self.seed, "rows"))
        return [ordered[at] for at in self._fitting(([one] for one in ordered), self.rows, count_tokens)]


def restated(question: Question) -> tuple[str, str]:
    """Return the first sentence of the gold passage that holds an accepted answer, and that answer.

    Answers are tried in the file's order. Where no sentence holds one: the whole passage and the first answer.
    """
    sentences = _SENTENCE_END.split(" ".join(question.passage.split()))
    for answer, sentence in product(question.answers, sentences):
        if best_subspan_em(sentence, [answer]):
            return sentence, answer
    return question.passage, question.answers[0]


def _sizes(groups: Iterator[Sequence[Example]], count_tokens: CountTokens) -> Iterator[int]:
    """Yield the tokens of each group's longest example, prompt and answer, counted only as far as the caller reads."""
    while some := list(islice(groups, _AT_ONCE)):
        made = [example for group in some for example in group]
        tokens = count_tokens([each.prompt for each in made]) + count_tokens([each.answer for each in made])
        yield from tokens.reshape(len(some), -1).max(axis=1).tolist()


def pair(row: Mapping[str, Any], where: str) -> tuple[str, str]:
    """Return (prompt, answer) of an instruction row, either perhaps blank; an InputError if it has neither form.

    Accepted, in this order: chat messages (``messages`` or ``conversations``, of ``role``/``content`` or
    ``from``/``value``; or a ``text`` in ChatML), of which the first question and its answer are taken; or any of
    :data:`PROMPT`, joined in this order, and the first of :data:`ANSWER`; of lists of these the first one.
    """
    chat = row.get("messages") or row.get("conversations") or _chatml(row.get("text"))
    if chat:
        return _first_turns(chat, where)
    asked = [text for name in PROMPT if (text := _text(row.get(name))) is not None]
    answers = [text for name in ANSWER if (text := _text(row.get(name))) is not None]
    if not asked or not answers:
        raise InputError(
            f"{where}: found the fields {', '.join(row) or 'none'}; expected messages, conversations, or one of "
            f"{', '.join(PROMPT)} with one of {', '.join(ANSWER)}"
        )
    return "\n\n".join(text for text in asked if text), answers[0]


def is_english(text: str) -> bool:
    """Tell whether at least :data:`ENGLISH` of a text's letters are ASCII; a text without letters is not English."""
    plain = sum(map(text.count, string.ascii_letters))
    return plain > 0 and plain >= ENGLISH * (plain + sum(map(str.isalpha, _ASCII.sub("", text))))


def _first_turns(chat: Any, where: str) -> tuple[str, str]:
    turns = []
    for turn in chat if isinstance(chat, Sequence) and not isinstance(chat, str) else ():
        fields = turn if isinstance(turn, Mapping) else {}
        role = _ROLES.get(str(fields.get("role") or fields.get("from")))
        turns.append((role, fields.get("content", fields.get("value"))))
    first = next((at for at, (role, _) in enumerate(turns) if role == "user"), len(turns))
    pair = turns[first : first + 2]
    if [role for role, _ in pair] != ["user", "assistant"] or not all(isinstance(text, str) for _, text in pair):
        raise InputError(f"{where}: expected a conversation with a text of the user and then one of the assistant")
    return pair[0][1].strip(), pair[1][1].strip()


def _chatml(text: Any) -> list[dict[str, str]]:
    if not isinstance(text, str):
        return []
    return [{"role": role, "content": content} for role, content in _CHATML.findall(text)]


def _text(value: Any) -> str | None:
    if isinstance(value, (list, tuple)) and value:
        value = value[0]
    return value.strip() if isinstance(value, str) else None
