"""Examples as a reader sees them: rich panels in a terminal, plain text elsewhere; prompts cut down to what matters."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from kvray.console import count
from kvray.tasks import load_all
from kvray.tasks.base import REGISTRY

Piece = tuple[str, Literal["text", "gold", "cut"]]
"""A part of a prompt, or what stands for a part that is left out."""
HEAD, AROUND, TAIL = 240, 160, 400
"""Characters shown of a prompt's beginning, on both sides of a gold piece, and of its end, where the question is."""
_LEAST_CUT = 120
_NEAR = 40
_SPACE = re.compile(r"\s+")
_BASE = "base"


def excerpt(prompt: str, gold: Sequence[str], full: bool = False) -> list[Piece]:
    """Return the parts of a prompt to show: its beginning, each gold piece with its surroundings, its end; or all."""
    marks = sorted({found.span() for piece in gold if piece for found in re.finditer(re.escape(piece), prompt)})
    whole = full or len(prompt) <= HEAD + TAIL + _LEAST_CUT
    wanted = [(0, len(prompt))] if whole else [(0, HEAD), (len(prompt) - TAIL, len(prompt))]
    wanted += [(max(0, start - AROUND), min(len(prompt), end + AROUND)) for start, end in marks]
    wanted = [_between_words(prompt, *span) for span in wanted]
    pieces: list[Piece] = []
    at = 0
    for start, end in _joined(wanted):
        if start > at:
            pieces.append((f"[… {count(start - at)} characters …]", "cut"))
        pieces += _marked(prompt, start, end, marks)
        at = end
    return pieces


def _between_words(prompt: str, start: int, end: int) -> tuple[int, int]:
    """Return a span without the halves of words at its ends, where white space is near."""
    first = _SPACE.search(prompt, start, min(start + _NEAR, end)) if start else None
    last = max((found.start() for found in _SPACE.finditer(prompt, max(start, end - _NEAR), end)), default=end)
    return first.end() if first else start, last if end < len(prompt) else end


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return spans in order, those that overlap, or leave little between them, as one."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1] + _LEAST_CUT:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def _marked(prompt: str, start: int, end: int, marks: Iterable[tuple[int, int]]) -> Iterator[Piece]:
    for first, last in marks:
        if first < start or last > end:
            continue
        if first > start:
            yield prompt[start:first], "text"
        yield prompt[first:last], "gold"
        start = last
    if start < end:
        yield prompt[start:end], "text"


def printable(text: str) -> str:
    """Return a text that does nothing to a terminal: what is neither printable nor white space becomes its code."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def rules(tasks: Iterable[str]) -> list[str]:
    """Return how the answers of each task are scored, a line each."""
    load_all()
    return [f"score of {name}: {REGISTRY[name].rule()}" for name in tasks if name in REGISTRY]


def write(rows: Sequence[Mapping[str, Any]], full: bool) -> None:
    """Print examples as plain text, the gold pieces between >>> and <<<."""
    marks = {"text": "{}", "gold": ">>>{}<<<", "cut": "\n{}\n"}
    for row in rows:
        print(f"== {_title(row)}")
        prompt = "".join(marks[kind].format(printable(text)) for text, kind in _prompt(row, full))
        print("\n".join(f"  {line}".rstrip() for line in prompt.strip().split("\n")))
        print("\n".join(f"{name}: {text}" for name, text, _ in _said(row)), end="\n\n")


def draw(rows: Sequence[Mapping[str, Any]], full: bool) -> None:
    """Print examples as panels, as wide as the terminal, the gold pieces highlighted."""
    from rich.console import Console, Group
    from rich.panel import Panel
    from rich.rule import Rule
    from rich.table import Table
    from rich.text import Text

    console, styles = Console(highlight=False), {"text": "", "gold": "black on yellow", "cut": "dim"}
    for row in rows:
        prompt = Text()
        for text, kind in _prompt(row, full):
            prompt.append(f"\n{text}\n" if kind == "cut" else printable(text), styles[kind])
        said = Table.grid(padding=(0, 2))
        for name, text, style in _said(row):
            said.add_row(Text(name, "bold"), Text(text, style))
        prompt.rstrip()
        body = Group(prompt, Rule(style="dim"), said)
        console.print(Panel(body, title=Text(_title(row), "bold"), title_align="left", border_style=_colour(row)))


def _title(row: Mapping[str, Any]) -> str:
    model = row["model"] if row["seed"] is None else f"{row['model']}, seed {row['seed']}"
    places = [f"{name} {row[name]}" for name in ("position", "length") if row[name] is not None]
    places += [f"depth {row['depth']:g}"] if row["depth"] is not None else []
    kinds = [row[name] for name in ("subtask", "condition") if row[name] is not None]
    return printable(" · ".join([row["evaluation"], model, *places, *kinds, row["example_id"]]))


def _prompt(row: Mapping[str, Any], full: bool) -> list[Piece]:
    if row["prompt"] is not None:
        turns = [f"[{turn['role']}] {turn['content']}\n\n" for turn in json.loads(row["history"] or "[]")]
        before: list[Piece] = [(text, "text") for text in [*turns, *(["[user] "] if turns else [])]]
        after: list[Piece] = [(f"\n\n[assistant] {row['answer_prefix']}", "text")] if row["answer_prefix"] else []
        return [*before, *excerpt(row["prompt"], row["gold"], full), *after]
    if row["dataset"] is None:
        return [(f"[prompt {row['example_id']} is not in the store: lm-evaluation-harness brings it]", "cut")]
    return [(f"[the prompt is gone: {row['dataset']} is damaged or not in the store any more]", "cut")]


def _said(row: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield name, text and style of what was answered, accepted and scored."""
    yield "answer", _answer(row["answer"], row["finish_reason"]), _colour(row)
    if row["model"] != _BASE and row["base_score"] is not None:
        yield "base answered", _answer(row["base_answer"], ""), ""
    yield "accepted", " | ".join(printable(each) for each in row["references"]) or "by rules", ""
    score = "not scored" if row["score"] is None else f"{row['score']:g} ({row['outcome'] or 'outcome untold'})"
    if row["model"] != _BASE and row["base_score"] is not None:
        score += f"; base {row['base_score']:g} ({row['base_outcome'] or 'outcome untold'})"
    yield "score", score, ""


def _answer(answer: str | None, finish_reason: str) -> str:
    if answer is None:
        return f"not asked ({finish_reason})"
    return printable(answer.strip()) + (" [cut off]" if finish_reason == "length" else "")


def _colour(row: Mapping[str, Any]) -> str:
    return "green" if row["score"] == 1 else "red" if row["score"] is not None else "yellow"
