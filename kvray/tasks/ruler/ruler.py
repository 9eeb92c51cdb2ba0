"""RULER (Hsieh et al. 2024, "What's the Real Context Size of Your Long-Context Language Models?"): its 13 tasks.

Eight of needles, variable tracking, common and frequent words, SQuAD and HotpotQA, with the wordings, numbers and
scores of NVIDIA/RULER (``scripts/data/synthetic``, ``scripts/synthetic.yaml``), drawn by our own generator. As there, a
length includes the answer's tokens, the chat template and the answer prefix, with which the assistant's turn begins and
which the model goes on from. A haystack is as long as fits (RULER's grow in steps; its fwe leaves out the answer's
tokens). RULER's essays are Paul Graham's: those that gkamradt/LLMTest_NeedleInAHaystack has, and further ones;
``source`` is whatever of them you have. With ``tiny``, texts are the bundled model's made-up world: that is not RULER's
haystack, and no published number stands beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Literal

import pyarrow as pa

from kvray.errors import InputError
from kvray.store.schemas import PREFIX_SCHEMA
from kvray.tasks.base import RIGHT, WRONG, Context, CountTokens, Many, Task, recipe, register, runtime
from kvray.tasks.needle import haystack
from kvray.tasks.rng import key_of
from kvray.tasks.rows import Example, table
from kvray.tasks.ruler import aggregation, fit, qa, retrieval, tracing, words
from kvray.tasks.ruler.qa import PER_SEED, Questions
from kvray.tasks.ruler.retrieval import Essays
from kvray.tasks.ruler.subtasks import NAMES, SUBTASKS, Draft, Haystack, Name, Subtask
from kvray.tasks.sources.read import texts
from kvray.tasks.world import TINY, source_identity

PARTIAL = "partial"
TINY_TEXT = f"text={TINY}"
"""The condition of rows whose text is of the made-up world."""


@dataclass(frozen=True)
class Material:
    """What the tasks asked for read: the essays, and questions by the haystack of their task."""

    essays: Essays | None
    questions: Mapping[Haystack, Questions]


@register("ruler")
class Ruler(Task):
    """RULER's 13 tasks: needles, variable tracking, common and frequent words, questions; by length."""

    VERSION = 2
    MEASURES = "retrieval"
    MAX_OUTPUT_TOKENS = 128
    EXAMPLES: ClassVar[pa.Schema] = PREFIX_SCHEMA
    SAME_EXAMPLES = frozenset({"rows", "tasks", "lengths", "template_tokens", "source", "squad", "hotpot"})
    MEAN_OF: ClassVar[frozenset[str]] = frozenset(NAMES)

    task: Literal["ruler"] = recipe("ruler")
    tasks: Many[Name] = recipe(NAMES, description="which of RULER's tasks; by default all 13")
    rows: int = recipe(500, ge=1, description="of each task; each at every length (RULER: 500)")
    lengths: Many[int] = recipe(
        (4096, 8192, 16384, 32768), description="tokens of prompt, answer prefix, answer and chat template, at most"
    )
    template_tokens: int = recipe(
        48, ge=0, description="tokens of a length that are left to the chat template, whatever it takes of them"
    )
    source: str = runtime(
        TINY, description="the essays: any text (.txt, .zip, .jsonl with 'text', …); 'tiny' is not RULER's haystack"
    )
    squad: str = runtime(TINY, description="of qa_1: SQuAD's dev-v2.0.json; 'tiny' is not RULER's")
    hotpot: str = runtime(TINY, description="of qa_2: HotpotQA's hotpot_dev_distractor_v1.json; 'tiny' is not RULER's")

    def sources(self) -> dict[str, str]:
        wanted = {name: getattr(self, name, None) for each in self.tasks for name in SUBTASKS[each].sources}
        return {name: words.digest() if path is None else source_identity(path) for name, path in wanted.items()}

    def per_row(self) -> int:
        return len(self.tasks) * len(self.lengths)

    def distinct_questions(self, rows: int) -> int:
        return -(-rows // len(self.lengths))

    def tokens_estimate(self) -> int:
        return max(1, sum(self.lengths) // len(self.lengths) - self.max_output_tokens - self.template_tokens - 20)

    def overlaps(self, other: Task) -> str | None:
        """Rows of a task that both ask are alike under one seed; questions also where one seed's reach another's."""
        if not isinstance(other, Ruler) or not (both := set(self.tasks) & set(other.tasks)):
            return None
        apart = abs(self.seed - other.seed) * PER_SEED
        first = self if self.seed <= other.seed else other
        questions = any(SUBTASKS[name].category == "qa" for name in both) and apart < first.rows
        return "the same examples are drawn by these seeds; give one another seed" if questions or not apart else None

    def narrowed(self, subtask: str | None) -> Task:
        return _narrowed(self, subtask) if subtask in self.tasks else self

    @property
    def max_output_tokens(self) -> int:
        return max(SUBTASKS[name].answer_tokens for name in self.tasks)

    def context(self, count_tokens: CountTokens, written: Sequence[str] | None = None) -> Context:
        """Read what the tasks need; an InputError if that cannot be done or a set has fewer questions than ``rows``."""
        stacks = {SUBTASKS[name].haystack for name in self.tasks}
        essays = None
        if "essays" in stacks:
            of_tiny = self.source == TINY
            # Its people are those of training: no ruler question on essays is about a person.
            essays = retrieval.read(haystack.tiny("train", self.seed) if of_tiny else texts(self.source))
        files: dict[Haystack, str] = {"squad": self.squad, "hotpot": self.hotpot}
        questions = {name: qa.read(path, name) for name, path in files.items() if name in stacks}
        for name, each in questions.items():
            if self.rows > len(each.asked):
                raise InputError(f"rows: found {self.rows}; expected at most {len(each.asked)}: {name} has no more")
        return Context(count_tokens, Material(essays, questions))

    def build(self, start: int, stop: int, context: Context) -> pa.Table:
        """A row has all lengths, a length all tasks; needles, names and questions of a row are the same at each length.

        Raises InputError if a length has no room for the least haystack of a task.
        """
        made: list[tuple[Example, Draft, Subtask]] = []
        for row in range(start, stop):
            number, cell = divmod(row, self.per_row())
            length, name = self.lengths[cell // len(self.tasks)], self.tasks[cell % len(self.tasks)]
            subtask = SUBTASKS[name]
            draft = self._draft(name, number, length, context.material)
            question = f"ruler-{name}-{number:06d}"
            tiny = any(getattr(self, source, None) == TINY for source in subtask.sources)
            example = Example(
                "",
                answer=f"{draft.prefix} {draft.said}",
                references=draft.references,
                question_id=question,
                length=length,
                depth=draft.depth,
                subtask=name,
                condition=TINY_TEXT if tiny else None,
                example_id=f"{question}-{length}",
            )
            made.append((example, draft, subtask))
        prefixes = [draft.prefix for _, draft, _ in made]
        begun = context.count_tokens([f" {prefix}" for prefix in prefixes]).tolist()
        rooms = [
            (example.length or 0) - subtask.answer_tokens - self.template_tokens - tokens
            for (example, _, subtask), tokens in zip(made, begun, strict=True)
        ]
        drafts = [draft for _, draft, _ in made]
        names = [f"{example.subtask} of {example.length} tokens" for example, *_ in made]
        filled = fit.fill(drafts, rooms, names, context.count_tokens)
        examples = [
            replace(example, prompt=prompt, prompt_tokens=tokens)
            for (example, *_), prompt, tokens in zip(made, *filled, strict=True)
        ]
        column = pa.array(prefixes, pa.string())
        return table(examples, context.count_tokens).append_column(PREFIX_SCHEMA.field("answer_prefix"), column)

    def gold(self, row: Mapping[str, Any]) -> list[str]:
        """Return the needles of what is asked for, or the chain of assignments; of the other tasks nothing."""
        name = row["subtask"]
        category = SUBTASKS[name].category if name in SUBTASKS else None
        find = {"retrieval": retrieval.needle_of, "tracing": tracing.assignment_of}.get(category or "")
        found = [find(row["prompt"], reference) for reference in row["references"]] if find else []
        return [piece for piece in found if piece is not None]

    def score(self, answer: str, references: Sequence[str]) -> float:
        """Return the share of the references that the answer contains, in whatever case (RULER's ``string_match_all``).

        Of the tasks ``qa_1`` and ``qa_2`` alone, return 1 if it contains any (``string_match_part``). Case is stripped
        and every line counts; that RULER strips ends and control characters too changes no score.
        """
        contained = [reference.lower() in answer.lower() for reference in references]
        if all(SUBTASKS[name].match == "any" for name in self.tasks):
            return float(any(contained))
        return sum(contained) / len(contained)

    def outcome(self, answer: str, references: Sequence[str]) -> str:
        """Return "right" for a score of 1, "partial" if some references are in the answer, "wrong" if none is."""
        score = self.score(answer, references)
        return RIGHT if score == 1.0 else PARTIAL if score > 0 else WRONG

    def _draft(self, name: Name, number: int, length: int, material: Material) -> Draft:
        subtask = SUBTASKS[name]
        key = key_of("ruler", self.VERSION, self.seed, name, number)
        if subtask.category == "qa":
            questions = material.questions[subtask.haystack]
            return qa.draft(questions, questions.at(self.seed, number), key)
        if subtask.category == "tracing":
            return tracing.draft(key)
        if subtask.category == "aggregation":
            return (aggregation.common if name == "cwe" else aggregation.frequent)(key, length)
        return retrieval.draft(subtask, key, material.essays if subtask.haystack == "essays" else None)


@lru_cache(maxsize=64)
def _narrowed(task: Ruler, subtask: str) -> Ruler:
    return task.model_copy(update={"tasks": (subtask,)})
