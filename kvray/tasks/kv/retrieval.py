"""Key-value retrieval (Liu et al. 2023, "Lost in the Middle", section 3): a JSON object of UUIDs, one value asked for.

Prompt, rule and rearrangement are lost-in-the-middle's: the asked record moves to the gold position, the others keep
their order. Sources are its ``kv-retrieval-{75,140,300}_keys.jsonl.gz``, or rows drawn here in the same way (every key
and value a UUID of its own).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, Self

import pyarrow as pa
from pydantic import BaseModel, ValidationError, model_validator

from kvray.errors import InputError
from kvray.tasks import prompts
from kvray.tasks.base import Context, CountTokens, Many, Task, added, recipe, register, runtime, spread
from kvray.tasks.rng import draws, key_of, shuffled, uuids
from kvray.tasks.rows import Example, table
from kvray.tasks.sources import read
from kvray.tasks.world import TINY

PROMPT: str = prompts.TEXTS["kv_retrieval"]["prompt"]
_QUERY_AWARE = PROMPT.replace("JSON data:", 'Key: "{key}"\n\nJSON data:')
DRAWN = "drawn-1"
"""Identity of the rows that are drawn here."""

Record = tuple[str, str]


@dataclass(frozen=True)
class Asked:
    """One question: the ``gold`` record (key and value) and the others in order; ``id`` is unique within its source."""

    id: str
    gold: Record
    others: tuple[Record, ...]


class _Row(BaseModel):
    ordered_kv_records: list[Record]
    key: str
    value: str


@register("kv_retrieval")
class KVRetrieval(Task):
    """A JSON object of UUIDs; each question is asked with its record at every gold position."""

    UNIT = "keys"
    MEASURES = "retrieval"
    MAX_OUTPUT_TOKENS = 100

    task: Literal["kv_retrieval"] = recipe("kv_retrieval")
    source: str = runtime(TINY, description="'tiny' (UUIDs drawn here), or a path or URL of lost-in-the-middle's file")
    keys: int = recipe(75, ge=2, le=100_000, description="records in a prompt; a file's own number of them")
    positions: Many[int] | None = recipe(None, description="1-based; each question at each; default five, spread")
    questions: int = recipe(500, ge=1, description="questions")
    query_aware: bool = added(False, description="the key also before the records")

    @model_validator(mode="after")
    def _positions_fit(self) -> Self:
        if wrong := [position for position in self.positions or () if not 1 <= position <= self.keys]:
            raise ValueError(f"positions: found {wrong}, expected 1 to keys ({self.keys})")
        return self

    def gold_positions(self) -> tuple[int, ...]:
        """Return the 1-based gold positions of each question."""
        return spread(self.keys) if self.positions is None else self.positions

    def sources(self) -> dict[str, str]:
        return {"source": DRAWN if self.source == TINY else read.digest(self.source)}

    def overlaps(self, other: Task) -> str | None:
        if not isinstance(other, KVRetrieval) or self.sources() != other.sources():
            return None
        if self.source != TINY:
            return "both ask about the rows of one file; train on 'source: tiny' or on another file"
        return "the same records are drawn by the same seed; give one another seed" if self.seed == other.seed else None

    def per_row(self) -> int:
        return len(self.gold_positions())

    def tokens_estimate(self) -> int:
        """About 60 tokens a record: 50 by GPT's tokenizer, 72 by LLaMA's (Liu et al., appendix E)."""
        return 40 + 60 * self.keys

    def context(self, count_tokens: CountTokens, written: Sequence[str] | None = None) -> Context:
        """Read the file, if there is one; an InputError names a bad row, or says that there are too few."""
        return Context(count_tokens, None if self.source == TINY else self._chosen())

    def build(self, start: int, stop: int, context: Context) -> pa.Table:
        at = self.gold_positions()
        made = []
        for number, rows in groupby(range(start, stop), key=lambda row: row // len(at)):
            asked = self._drawn(number) if context.material is None else context.material[number]
            for position in (at[row % len(at)] for row in rows):
                records = [*asked.others[: position - 1], asked.gold, *asked.others[position - 1 :]]
                text = prompt(records, asked.gold[0], self.query_aware)
                value, name = asked.gold[1], f"{asked.id}-{position}"
                made.append(Example(text, value, (), asked.id, position, self.keys, example_id=name))
        return table(made, context.count_tokens)

    def gold(self, row: Mapping[str, Any]) -> list[str]:
        """Return the record that is asked for, as it stands in the JSON object."""
        key = row["prompt"].rpartition('Key: "')[2].rpartition('"\n')[0]
        return [piece for piece in (f'"{key}": "{row["answer"]}"',) if piece in row["prompt"]]

    def score(self, answer: str, references: Sequence[str]) -> float:
        """Return 1.0 if the value is contained in the answer, both in lower case, else 0.0.

        Nothing is stripped and every line counts, as in lost-in-the-middle's ``evaluate_kv_responses.py``.
        """
        return float(any(reference.lower() in answer.lower() for reference in references))

    def _drawn(self, number: int) -> Asked:
        key = key_of("kv_retrieval", self.VERSION, self.seed, number)
        texts = uuids(draws(key, 0, self.keys, 4).reshape(-1, 2))
        gold, *others = zip(texts[::2], texts[1::2], strict=True)
        return Asked(f"kv-{number:06d}", gold, tuple(others))

    def _chosen(self) -> list[Asked]:
        by_id: dict[str, Asked] = {}
        for where, row in read.rows(self.source):
            asked = self._read(row, where)
            by_id.setdefault(asked.id, asked)
        if self.questions > (has := len(by_id)):
            asked_for = f"questions: {self.questions} asked for"
            raise InputError(f"{asked_for}, but {self.source} has {has}; type questions: {has}")
        order = shuffled(sorted(by_id), key_of("kv_retrieval", self.VERSION, self.seed, "order"))
        return [by_id[name] for name in order[: self.questions]]

    def _read(self, row: dict[str, Any], where: str) -> Asked:
        try:
            fields = _Row.model_validate(row)
        except ValidationError:
            raise InputError(
                f"{where}: expected 'ordered_kv_records' (a list of pairs of texts), 'key' and 'value'; "
                f"found the fields {', '.join(row) or 'none'}"
            ) from None
        pairs, key, value = fields.ordered_kv_records, fields.key, fields.value
        if len(pairs) != self.keys:
            raise InputError(f"{where}: found {len(pairs)} records, expected {self.keys}; type keys: {len(pairs)}")
        if len(dict(pairs)) != len(pairs) or (key, value) not in pairs:
            raise InputError(f"{where}: expected different keys, one of them 'key' with its 'value'; found {key!r}")
        name = hashlib.sha256(key.encode()).hexdigest()[:12]
        return Asked(f"kv-{name}", (key, value), tuple(pair for pair in pairs if pair[0] != key))


def prompt(records: Sequence[Record], key: str, query_aware: bool = False) -> str:
    """Word a prompt exactly as lost-in-the-middle does: the records in order, and the key whose value is asked for.

    ``query_aware`` names the key before the records too (its query-aware contextualization, section 4.2).
    """
    lines = ",\n ".join(f'"{name}": "{value}"' for name, value in records)
    return (_QUERY_AWARE if query_aware else PROMPT).format(records=f"{{{lines}}}", key=key)
