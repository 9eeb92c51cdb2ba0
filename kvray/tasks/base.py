"""What a task is: frozen parameters (pydantic), examples as Arrow tables, a wording and a scorer; no Ray, no torch."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema

from kvray.errors import InvalidValueError
from kvray.store.schemas import EXAMPLE_SCHEMA
from kvray.tasks import code
from kvray.tasks.problems import explain, misread_booleans

EXAMPLE_FORMAT = 2
"""Version of the columns of examples; part of every dataset's identity."""
Measure = Literal["retrieval", "length", "knowledge", "ceiling", "benchmark", "other"]
"""What is measured: "length" is holding up with it, "knowledge" has no context, "ceiling" the gold document alone."""
RIGHT, WRONG = "right", "wrong"
"""Outcomes of an answer where a task tells no more apart."""

_T = TypeVar("_T")
_LISTED = re.compile(r"\s*\d+(\.\d+)?\s*(,\s*\d+(\.\d+)?\s*)+")


def examples(columns: Mapping[str, Any]) -> pa.Table:
    """Return examples as a table of :data:`EXAMPLE_SCHEMA`; nullable columns that are not given are null."""
    absent = pa.nulls(len(columns["example_id"]))
    nullable = {field.name: absent for field in EXAMPLE_SCHEMA if field.nullable}
    return pa.Table.from_pydict({**nullable, **columns}, schema=EXAMPLE_SCHEMA)


recipe: Callable[..., Any] = partial(Field, json_schema_extra={"identity": "recipe"})
"""Declare a pydantic field that decides content: it is part of the fingerprint."""
added: Callable[..., Any] = partial(Field, json_schema_extra={"identity": "recipe", "added": True})
"""As :func:`recipe`, for a field that a class got after users had stores: the fingerprint leaves out its default, which
must make the bytes that were made without the field, so that older artefacts stay valid."""
runtime: Callable[..., Any] = partial(Field, json_schema_extra={"identity": "runtime"})
"""Declare a pydantic field that decides where or how fast, never what: it is outside every fingerprint."""


def listed(value: Any) -> Any:
    """Return a number, or a text like ``1,5,10`` (command line), as a tuple; leave anything else to pydantic."""
    if isinstance(value, str) and _LISTED.fullmatch(value):
        return tuple(part.strip() for part in value.split(","))
    return (value,) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def distinct(values: tuple[_T, ...]) -> tuple[_T, ...]:
    """Return the values; a ValueError, for pydantic, if there are none or one comes twice."""
    if not values or len(set(values)) != len(values):
        raise ValueError(f"found {list(values)}, expected at least one, and each once")
    return values


def _as_tuple(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else listed(value)


class OneOrMore:
    """Says in the JSON schema of a list that one item alone may stand for it: :func:`listed` and others make it one."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        described: dict[str, Any] = handler(schema)
        return {"anyOf": [described["items"], described]}


Many = Annotated[tuple[_T, ...], BeforeValidator(_as_tuple), AfterValidator(distinct), OneOrMore]
"""One value or several different ones: ``4096``, ``[4096, 8192]``, or ``4096,8192`` as on a command line."""


def spread(size: int) -> tuple[int, ...]:
    """Return the default gold positions among ``size`` places, 1-based: the first, the quarters and the last."""
    return tuple(sorted({1, *(max(1, round(size * part / 4)) for part in (1, 2, 3, 4))}))


class Strict(BaseModel):
    """Base of every configuration model: frozen, closed, each field declared :func:`recipe` or :func:`runtime`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)

    if not TYPE_CHECKING:  # editors and type checkers take the fields for arguments

        def __init__(self, **values: Any) -> None:
            """Take the fields by name; an InvalidValueError has every problem, in the words that a sweep file gets."""
            problems = misread_booleans(type(self), values)
            try:
                super().__init__(**values)
            except ValidationError as error:
                problems += explain(error, type(self), values)
            if problems:
                raise InvalidValueError(problems) from None

        # Validation from plain values (model_validate) goes on without this constructor, and raises ValidationError.
        __init__.__pydantic_base_init__ = True

    def written(self) -> dict[str, Any]:
        """Return the JSON form of the fields that were given, without defaults, as in a sweep file."""
        return self.model_dump(mode="json", exclude_unset=True)

    def recipe(self) -> dict[str, Any]:
        """Return the JSON form of the fields that decide content; defaults too, except of :func:`added` fields."""
        values = self.model_dump(mode="json")
        left_out = {
            name
            for name, field in type(self).model_fields.items()
            if isinstance(field.json_schema_extra, dict)
            and field.json_schema_extra.get("added")
            and getattr(self, name) == field.get_default(call_default_factory=True)
        }
        return {
            name: value for name, value in values.items() if name not in left_out and self.identity(name) == "recipe"
        }

    @classmethod
    def identity(cls, name: str) -> str:
        """Return "recipe" or "runtime" for a field; a TypeError if it is declared as neither."""
        extra = cls.model_fields[name].json_schema_extra
        kind = extra.get("identity") if isinstance(extra, dict) else None
        if kind not in ("recipe", "runtime"):
            raise TypeError(f"{cls.__name__}.{name} must be declared with recipe(...) or runtime(...)")
        return str(kind)


class CountTokens(Protocol):
    """Counts the tokens of texts, without special tokens. Shape ``(len(texts),)``, int64."""

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Count."""


@dataclass(frozen=True)
class Context:
    """What building needs: ``count_tokens`` of the base model, and ``material`` that :meth:`Task.context` prepared."""

    count_tokens: CountTokens
    material: Any = None


class Task(Strict):
    """Parameters of one dataset or evaluation of a task family. Subclasses add their knobs and a ``task`` literal."""

    VERSION: ClassVar[int] = 1
    """Part of every fingerprint; to be raised with any change to a byte of the examples, or to the scorer."""
    UNIT: ClassVar[str] = "units"
    """What the ``units`` column counts, as a plural noun: documents, dictionaries, keys, segments."""
    MEASURES: ClassVar[Measure] = "other"
    """What an evaluation measures; :meth:`measures` where that depends on the units."""
    TRAINABLE: ClassVar[bool] = True
    MAX_OUTPUT_TOKENS: ClassVar[int] = 100
    """Tokens that an evaluation lets the model write."""
    WRITING_TOKENS: ClassVar[int] = 256
    """Tokens that the :meth:`writer` may write per message of :meth:`to_write`; a reply that is cut off is not used."""
    STOP: ClassVar[tuple[str, ...]] = ()
    """Texts that end an answer, beside the model's own end token."""

    EXAMPLES: ClassVar[pa.Schema] = EXAMPLE_SCHEMA
    """Columns of the examples: those of :data:`EXAMPLE_SCHEMA`, then perhaps more."""
    BRINGS_EXAMPLES: ClassVar[bool] = True
    """False for an evaluation whose questions another library brings: it has no dataset in the store."""

    MEAN_OF: ClassVar[frozenset[str]] = frozenset()
    """Subtasks that a published number over all is the mean of: it stands beside ours only where all were asked."""
    SAME_EXAMPLES: ClassVar[frozenset[str]] = frozenset({"rows"})
    """Fields that change how many examples there are or how they are asked, but not what is drawn for a row."""

    task: str = recipe()
    seed: int = recipe(0, ge=0, le=2**31 - 1, description="draws other examples of the same law")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        """Name a task from outside kvray by its class: ``module:Class``."""
        if isinstance(values, dict) and cls.model_fields["task"].is_required():
            return {**values, "task": code.name_of(cls)}
        return values

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle with the source of a class that other nodes have not installed."""
        source = code.carried(self)
        if source is None:
            return super().__reduce_ex__(protocol)
        return code.restore, (source, type(self).__qualname__), self.__getstate__()

    def written(self) -> dict[str, Any]:
        """As :meth:`Strict.written`, with the task's name first."""
        return {"task": self.task, **super().written()}

    def sources(self) -> dict[str, str]:
        """Return the sha256 of every file that decides content, by field name (paths are never identity)."""
        return {}

    def count(self, context: Context) -> int:
        """Return how many examples this task makes, which the writer's replies (:meth:`to_write`) do not change."""
        return self.expected_rows()

    def per_row(self) -> int:
        """Return how many examples there are for each of ``rows`` or ``questions``: positions, lengths, depths."""
        return 1

    def expected_rows(self) -> int:
        """Return about how many examples there are, for a plan where the sources cannot be reached."""
        return int(getattr(self, "rows", None) or getattr(self, "questions", None) or 0) * self.per_row()

    def writer(self) -> str | None:
        """Return the model that writes a part of the examples (a name as for ``base_model``), None if none does."""
        return None

    def to_write(self, count_tokens: CountTokens) -> list[str]:
        """Return the messages that the :meth:`writer` answers, more than needed; a pure function of the recipe."""
        return []

    def context(self, count_tokens: CountTokens, written: Sequence[str] | None = None) -> Context:
        """Read sources and prepare what :meth:`build` needs. May be slow; called once per worker.

        ``written`` has the replies to :meth:`to_write`, in order; None, before they exist, is enough to :meth:`count`.
        """
        return Context(count_tokens)

    def build(self, start: int, stop: int, context: Context) -> pa.Table:
        """Make examples ``[start, stop)`` as a table of :data:`EXAMPLE_SCHEMA`; a pure function of (recipe, row)."""
        raise NotImplementedError

    def overlaps(self, other: Task) -> str | None:
        """Describe the examples that an evaluation ``other`` would share with training data of this task, None if none.

        A row does not depend on how many are asked for. Families whose examples meet in other ways override this.
        """
        same = set(self.SAME_EXAMPLES)
        alike = type(self) is type(other) and self.model_dump(exclude=same) == other.model_dump(exclude=same)
        return "the same examples are drawn by the same seed; give one another seed" if alike else None

    def reseeded(self, by: int) -> Self:
        """Return the task with ``by`` added to its seed: other examples of the same law."""
        return self.model_copy(update={"seed": self.seed + by}) if by else self

    def with_rows(self, rows: int) -> Self:
        """Return the task with ``rows`` examples or few more; without a field ``rows`` or ``questions``, unchanged."""
        needed = dict.fromkeys(type(self).model_fields.keys() & {"rows", "questions"}, -(-rows // self.per_row()))
        return self.model_copy(update=needed)

    def distinct_questions(self, rows: int) -> int:
        """Return how many different questions ``rows`` examples ask: what a comparison of models counts."""
        return -(-rows // self.per_row())

    def tokens_estimate(self) -> int:
        """Return about how many tokens a prompt has, 0 if unknown; for the plan's estimates alone."""
        return 0

    def output_estimate(self) -> int:
        """Return about how many tokens a reply has, for the plan's estimates; by default half of the most."""
        return self.MAX_OUTPUT_TOKENS // 2

    def narrowed(self, subtask: str | None) -> Task:
        """Return the task as it asks and scores the examples of one ``subtask``, where these differ in that."""
        return self

    @property
    def max_output_tokens(self) -> int:
        """Tokens that an evaluation lets the model write: of a :meth:`narrowed` task, for its examples."""
        return self.MAX_OUTPUT_TOKENS

    def score(self, answer: str, references: Sequence[str]) -> float:
        """Score one model answer in [0, 1]."""
        raise NotImplementedError

    @classmethod
    def measures(cls, units: Collection[int]) -> Measure:
        """Return what an evaluation measures whose examples have these different ``units``."""
        return cls.MEASURES

    @classmethod
    def rule(cls) -> str:
        """Return how an answer is scored, in one line: the docstring of :meth:`score`."""
        return " ".join((inspect.getdoc(cls.score) or "").split()).replace("``", "`")

    def gold(self, row: Mapping[str, Any]) -> list[str]:
        """Return the pieces of a row's prompt that hold the answer, verbatim, for readers to mark; none if unknown.

        ``row`` is an example by column (:data:`EXAMPLE_SCHEMA`). The task may lack what a recipe leaves out: the paths
        of its sources are their defaults.
        """
        return []

    def outcome(self, answer: str, references: Sequence[str]) -> str:
        """Say what kind of answer it is: "right" (score 1) or "wrong"; families tell more kinds of wrong apart."""
        return RIGHT if self.score(answer, references) == 1.0 else WRONG

    def reasoning(self, answer: str, worked: str) -> tuple[float, bool] | None:
        """Tell how an answer reasons beside the example's own ``worked`` answer, None where it is not asked to.

        Returns the share of the key facts that it states, and whether it begins with its conclusion.
        """
        return None


REGISTRY: dict[str, type[Task]] = {}
"""Every task by name; sweeps read the tasks' knobs from here."""


def register(name: str) -> Callable[[type[Task]], type[Task]]:
    """Class decorator that adds a task under ``name``."""

    def add(cls: type[Task]) -> type[Task]:
        if name in REGISTRY:
            raise ValueError(f"task {name!r} is registered twice: {REGISTRY[name].__name__} and {cls.__name__}")
        REGISTRY[name] = cls
        return cls

    return add
