"""VaL probing: what a model retrieves from every position of a long context of many pieces (An et al. 2024, FILM).

The three probes of "Make Your LLM Fully Utilize the Context" (arXiv 2404.16811), 32K tokens each: *document*, 800
sentences, one is asked for by 8 of its words (in both directions); *code*, 800 Python functions, the name of one is
asked for by a line of it (backward); *database*, 750 entities, label and description of one are asked for by its id
(forward). The authors' figure 1 has means over every 50 positions and 4 sets; here accuracy is by position.

Scorers, output limit (128 tokens) and skip lists are those of the repository microsoft/FILM (``VaLProbing/plot.py``,
``README.md``; the document's skip list could not be read). Sources are the published rows, asked as they are; the
authors' raw pieces, of which contexts of any size are made here; or pieces of the made-up world. The published prompts
could not be read: the wording of the contexts made here is ours, within FILM's published layout.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import pyarrow as pa
from pydantic import model_validator

from kvray.errors import InputError
from kvray.tasks.base import Context, CountTokens, Many, Task, recipe, register, runtime, spread
from kvray.tasks.rng import key_of
from kvray.tasks.rows import Example, table
from kvray.tasks.val import published
from kvray.tasks.val.contexts import Contexts, Probe, gold_piece, raw, tiny
from kvray.tasks.world import TINY, source_identity

PIECES: dict[Probe, int] = {"document": 800, "code": 800, "database": 750}
"""Pieces of a published context (``total_len`` of ``plot.py``)."""
_TOKENS = {"document": 40, "code": 40, "database": 43}  # of a piece: 32K in all


@register("val_probing")
class ValProbing(Task):
    """FILM's VaL probing: a sentence, a function's name or an entity, from any position of a context of such pieces."""

    UNIT = "pieces"
    MEASURES = "retrieval"
    TRAINABLE = False
    # As in the authors' README.
    MAX_OUTPUT_TOKENS = 128
    SAME_EXAMPLES = frozenset({"questions", "positions"})

    task: Literal["val_probing"] = recipe("val_probing")
    probe: Probe = recipe("document", description="document (sentences), code (functions) or database (entities)")
    pieces: int | None = recipe(
        None, ge=2, le=1_000_000, description="per context made here; null: as published, 800, of the database 750"
    )
    positions: Many[int] | None = recipe(None, description="1-based; each question at each; default five, spread")
    questions: int = recipe(4, ge=1, description="contexts; of published rows, sets (there are 4)")
    source: str = runtime(
        TINY,
        description="'tiny', the published rows (hf://datasets/In2Training/VaLProbing-32K or a file), or raw pieces",
    )

    @model_validator(mode="after")
    def _positions_fit(self) -> Self:
        if wrong := [position for position in self.positions or () if not 1 <= position <= self.units()]:
            raise ValueError(f"positions: found {wrong}, expected 1 to pieces ({self.units()})")
        return self

    def units(self) -> int:
        """Return the pieces of a context."""
        return self.pieces or PIECES[self.probe]

    def gold_positions(self) -> tuple[int, ...]:
        """Return the 1-based gold positions of each question."""
        return self.positions or spread(self.units())

    def sources(self) -> dict[str, str]:
        return {"source": source_identity(self.source)}

    def per_row(self) -> int:
        return len(self.gold_positions())

    def count(self, context: Context) -> int:
        return len(context.material) if isinstance(context.material, list) else self.expected_rows()

    def tokens_estimate(self) -> int:
        return 60 + self.units() * _TOKENS[self.probe]

    def context(self, count_tokens: CountTokens, written: Sequence[str] | None = None) -> Context:
        """Read the source; an InputError if it has too few pieces or sets, or not those of this probe."""
        if self.source != TINY and published.is_published(self.source):
            return Context(count_tokens, self._published())
        supply = tiny(self.probe, self.seed) if self.source == TINY else raw(self.source, self.probe)
        if len(supply) < self.units():
            raise InputError(
                f"pieces: {self.units()} in a context, but {self.source} has {len(supply)}; type pieces: {len(supply)}"
            )
        key = key_of("val_probing", self.VERSION, self.seed, self.probe)
        return Context(count_tokens, Contexts(self.probe, supply, self.units(), key))

    def build(self, start: int, stop: int, context: Context) -> pa.Table:
        """Questions in turn, each at every position."""
        if isinstance(context.material, list):
            return table(context.material[start:stop], context.count_tokens)
        contexts: Contexts = context.material
        at = self.gold_positions()
        made: list[Example] = []
        for row in range(start, stop):
            number, index = divmod(row, len(at))
            if not made or index == 0:
                gold, others = contexts.asked(number)
            name = f"{self.probe}-{number:05d}"
            prompt = contexts.prompt(gold, others, at[index])
            where, units = at[index], self.units()
            answer, accepted = gold.references[0], gold.references
            made.append(Example(prompt, answer, accepted, name, where, units, example_id=f"{name}-{where}"))
        return table(made, context.count_tokens)

    def gold(self, row: Mapping[str, Any]) -> list[str]:
        """Return the piece that is asked for: of contexts made here, and published sentences."""
        piece = gold_piece(self.probe, row["references"])
        found = piece.search(row["prompt"])
        return [found[0]] if found else []

    def score(self, answer: str, references: Sequence[str]) -> float:
        """Score as FILM's authors do: by the words, the name, or one of label and description that the answer has.

        Document: the share of the sentence's different words, lower-cased and cut at white space, that are words of the
        answer. Code: 1.0 if the function's name is in the answer. Database: 1.0 if the label or the description is, in
        any case. For code and database a reference is stripped of the full stops at its ends.
        """
        if self.probe == "document":
            wanted, said = (set(text.strip().lower().split()) for text in (references[0], answer))
            return len(wanted & said) / len(wanted)
        if self.probe == "code":
            return float(references[0].strip(".") in answer)
        return float(any(reference.strip(".").lower() in answer.lower() for reference in references))

    def _published(self) -> list[Example]:
        """Choose the first sets, at the gold positions; an InputError if there are fewer."""
        by_set = published.sets(self.source, self.probe)
        if self.questions > len(by_set):
            raise InputError(
                f"questions: {self.questions} sets asked for, but {self.source} has {len(by_set)}; type questions: "
                f"{len(by_set)}"
            )
        chosen = [each for examples in list(by_set.values())[: self.questions] for each in examples]
        at = set(self.positions or spread(chosen[0].units))
        placed = [each for each in chosen if each.position in at]
        if not placed:
            raise InputError(f"positions: found {sorted(at)}, none of which {self.source} has")
        return placed
