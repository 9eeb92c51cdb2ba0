"""Answers in the page: which rows it holds, with their prompts, and how they are packed."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from kvray.report.blocks import Block, Heading
from kvray.report.page.svg import value
from kvray.report.text import notes
from kvray.results.examples import with_prompts
from kvray.results.frames import BASE
from kvray.results.outcomes import ordered
from kvray.results.profile import AXES, CONDITION, by_condition
from kvray.results.snapshot import Snapshot
from kvray.tasks.base import REGISTRY

LIMIT = 4 * 2**20
"""Most bytes of the packed answers in a page."""
_PACKED = 3  # bytes of JSON that give about one byte in the page
_FILLED, _ATTEMPTS = 0.7, 3  # share of the limit that is enough, and how often it is tried for
_ROW, _EXAMPLE = 60, 120  # bytes of JSON of a row and of an example, without their texts
_PROMPT, _KEPT = 12_000, 2_000
"""Characters of a prompt that is held whole; of a longer one, those kept at its ends and around each gold passage."""
_KEY = ["evaluation", "example_id"]
_GOLDEN = 0.6180339887498949  # steps of this share spread any number of questions evenly


@dataclass(frozen=True)
class Answers:
    """Answers that one filters and opens; ``packed`` is base64 of their gzipped JSON.

    ``about`` says what is in and what not, ``without`` how to look at them where scripts do not run, and in Markdown.
    """

    packed: str
    about: str
    without: str

    def _markdown(self) -> str:
        return f"report.html shows the answers one by one. {self.without}"


def answer_by_answer(snapshot: Snapshot) -> list[Block]:
    """Every answer behind the numbers: the prompt, the base's answer beside it, the references, the rule of scoring."""
    rows = _rows(snapshot.predictions)
    if not rows.height:
        return []
    chosen, packed = fill(snapshot, rows, LIMIT)
    return [Heading("Answer by answer"), Answers(packed, _about(rows, chosen), _without(snapshot.sweep))]


def fill(snapshot: Snapshot, rows: pl.DataFrame, limit: int) -> tuple[pl.DataFrame, str]:
    """Return the rows that a page of ``limit`` bytes holds, and these packed; prompts of others are not read."""
    bytes_of_json, best = _PACKED * limit, None
    prompts: dict[tuple[str, str], dict[str, Any]] = {}
    for attempt in itertools.count(1):  # how well texts pack is known only then
        chosen = choose(rows, bytes_of_json)
        prompts |= _prompts(snapshot, chosen, prompts)
        packed = pack(document(snapshot, chosen, prompts))
        if len(packed) <= limit:
            best = chosen, packed
            if chosen.height == rows.height or len(packed) > _FILLED * limit:
                break
        if best and attempt >= _ATTEMPTS:
            break
        bytes_of_json = int(0.9 * bytes_of_json * limit / len(packed))
    assert best
    return best


def choose(rows: pl.DataFrame, bytes_of_json: int) -> pl.DataFrame:
    """Return the rows that fit: first those that score otherwise than the base, then a sample over cells and places.

    Rows have the columns of the predictions, ``model`` and ``base_score``. The base's row of each chosen example comes
    with it. The same rows give the same choice, which meets the same questions in every cell.
    """
    place = ["evaluation", "model", "seed", *AXES]
    differs = pl.col("base_score").is_not_null() & (pl.col("score") != pl.col("base_score"))
    question = pl.col("question_id").rank("dense").over("evaluation")
    placed = rows.with_columns(after=differs.not_(), at=(question * _GOLDEN) % 1)
    placed = placed.with_columns(turn=pl.col("at").rank("ordinal").over([*place, "after"]))
    placed = placed.sort("after", "turn", *place, "example_id", maintain_order=True)
    # A turn that does not fit whole is to leave out cells of every evaluation alike.
    cell = (pl.int_range(pl.len()).over("after", "turn") * _GOLDEN) % 1
    placed = placed.with_columns(at=cell).sort("after", "turn", "at", maintain_order=True)
    first = pl.int_range(pl.len()).over(_KEY) == 0
    prompt = pl.min_horizontal(4 * pl.col("prompt_tokens"), pl.lit(_PROMPT)) + _EXAMPLE
    size = pl.col("answer").str.len_bytes() + _ROW + pl.when(first).then(prompt + _ROW).otherwise(0)
    taken = placed.filter(size.cum_sum() <= bytes_of_json)
    beside = placed.filter(pl.col("model") == BASE).join(taken.select(_KEY).unique(), on=_KEY, how="semi")
    both = pl.concat([taken, beside]).unique([*_KEY, "model", "seed"])
    return both.drop("after", "at", "turn").sort("evaluation", "question_id", *AXES, "example_id", "model", "seed")


def document(snapshot: Snapshot, chosen: pl.DataFrame, prompts: Mapping[tuple[str, str], Mapping[str, Any]]) -> Any:
    """Return plain values for ``answers.js``: evaluations, models, prompts, and the columns of examples and answers.

    ``prompts`` has prompt, gold and dataset by (evaluation, example_id); those of one dataset are held once.
    """
    evaluations = [name for name in snapshot.profiles if name in chosen["evaluation"]]
    models = [model for model in snapshot.with_base if model in chosen["model"]]
    examples = chosen.unique(_KEY, keep="first", maintain_order=True)
    held: dict[tuple[str, str], int] = {}
    texts: list[list[Any]] = []
    asked: list[int | None] = []
    for key in examples.select(_KEY).iter_rows():
        found = prompts.get(key)
        if found is None or found["prompt"] is None:
            asked.append(None)
            continue
        one = (found["dataset"], key[1])
        if one not in held:
            held[one] = len(texts)
            texts.append(pieces(_whole(found), found["gold"]))
        asked.append(held[one])
    numbers = examples.select(_KEY).with_row_index("example")
    answers = chosen.join(numbers, on=_KEY, how="left", maintain_order="left")
    return {
        "evaluations": [_evaluation(snapshot, name, chosen) for name in evaluations],
        "models": models,
        "prompts": texts,
        "examples": {
            "evaluation": [evaluations.index(name) for name in examples["evaluation"]],
            "id": examples["example_id"].to_list(),
            "question": examples["question_id"].to_list(),
            "references": examples["references"].to_list(),
            "prompt": asked,
            **{axis: _values(examples[axis]) for axis in AXES if examples[axis].count()},
        },
        "answers": {
            "example": answers["example"].to_list(),
            "model": [models.index(model) for model in answers["model"]],
            "seed": answers["seed"].to_list(),
            "answer": answers["answer"].to_list(),
            "score": [round(score, 4) for score in answers["score"]],
            "outcome": answers["outcome"].to_list(),
        },
    }


def pieces(prompt: str, gold: Sequence[str]) -> list[Any]:
    """Return a prompt in pieces: text, [gold passage], or the number of characters left out of a long one's middle."""
    ends = sorted((at, at + len(each)) for each in gold if each for at in _places(prompt, each))
    merged: list[tuple[int, int]] = []
    for start, end in ends:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    found: list[Any] = []
    for (_, before), (start, end) in itertools.pairwise([(0, 0), *merged, (len(prompt), len(prompt))]):
        plain = prompt[before:start]
        if len(prompt) > _PROMPT and len(plain) > 2 * _KEPT:
            found += [plain[:_KEPT], len(plain) - 2 * _KEPT, plain[-_KEPT:]]
        elif plain:
            found.append(plain)
        found += [[prompt[start:end]]] if end > start else []
    return found


def pack(value: Any) -> str:
    """Return JSON, gzipped and in base64; the same value gives the same text."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def _rows(predictions: pl.DataFrame) -> pl.DataFrame:
    """Return the scored rows with the base's score on the same example."""
    scored = predictions.filter(pl.col("score").is_not_null() & pl.col("answer").is_not_null())
    base = scored.filter(pl.col("model") == BASE).select(*_KEY, base_score="score").unique(_KEY, maintain_order=True)
    columns = [*_KEY, "question_id", "model", "seed", *AXES, "task", "prompt_tokens", "answer", "references"]
    return scored.select(*columns, "score", "outcome", "artefact").join(base, on=_KEY, how="left")


def _prompts(
    snapshot: Snapshot, chosen: pl.DataFrame, known: Collection[tuple[str, str]]
) -> dict[tuple[str, str], dict[str, Any]]:
    """Return prompt, gold and dataset of each chosen example that is not known yet."""
    examples = chosen.select(*_KEY, "artefact").unique(_KEY, keep="first", maintain_order=True)
    read = with_prompts(
        snapshot.store, examples.filter([key not in known for key in examples.select(_KEY).iter_rows()])
    )
    return {(row["evaluation"], row["example_id"]): row for row in read.iter_rows(named=True)}


def _evaluation(snapshot: Snapshot, name: str, chosen: pl.DataFrame) -> dict[str, Any]:
    profile, rows = snapshot.profiles[name], chosen.filter(pl.col("evaluation") == name)
    task = REGISTRY.get(rows["task"][0])
    kinds = ordered(snapshot.of(name)["outcome"].drop_nulls().unique().to_list()) if profile.outcomes else []
    axes = []
    for axis in AXES.values():
        values = by_condition(rows)[axis.name] if axis == CONDITION else rows[axis.name]
        different = values.drop_nulls().unique().sort().to_list()
        if len(different) > 1:
            axes.append({"name": axis.name, "title": axis.title, "values": [value(each) for each in different]})
    whole = snapshot.of(name)["score"].drop_nulls()
    return {
        "name": name,
        "title": profile.title,
        "rule": task.rule() if task else "",
        "all": whole.len(),
        "graded": not whole.is_in([0.0, 1.0]).all(),
        "kinds": [kind for kind in kinds if kind not in ("right", "wrong")],
        "axes": axes,
    }


def _values(column: pl.Series) -> list[str | None]:
    return [None if each is None else value(each) for each in column]


def _whole(asked: Mapping[str, Any]) -> str:
    """Return all that was put to the model: earlier messages, the prompt, and what the answer begins with."""
    earlier = json.loads(asked["history"]) if asked.get("history") else []
    text = "".join(f"{message['role']}: {message['content']}\n\n" for message in earlier)
    text += f"user: {asked['prompt']}" if earlier else asked["prompt"]
    return f"{text}\n\nassistant: {asked['answer_prefix']} \u2026" if asked.get("answer_prefix") else text


def _places(text: str, part: str) -> list[int]:
    found, at = [], text.find(part)
    while at >= 0:
        found.append(at)
        at = text.find(part, at + len(part))
    return found


def _about(rows: pl.DataFrame, chosen: pl.DataFrame) -> str:
    if chosen.height == rows.height:
        return str(notes()["answers_all"]).format(all=f"{rows.height:,}")
    differs = (pl.col("base_score").is_not_null() & (pl.col("score") != pl.col("base_score"))).sum()
    of, held = rows.select(differs).item(), chosen.select(differs).item()
    which = f"all {of:,}" if held == of else f"{held:,} of the {of:,}"
    return str(notes()["answers_some"]).format(here=f"{chosen.height:,}", all=f"{rows.height:,}", which=which)


def _without(sweep: str) -> str:
    return f"In a terminal: `kvray show {shlex.quote(sweep)} --wrong`."
