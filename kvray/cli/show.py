"""The command that leads from a number to the answers behind it."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from kvray.cli import frame
from kvray.console import say
from kvray.errors import InputError


@frame.command
def show(
    sweep: Annotated[str, typer.Argument(help="The name of a sweep that was run, or its file.")],
    evaluation: Annotated[str | None, typer.Option(help="One evaluation; default all.")] = None,
    model: Annotated[str | None, typer.Option(help="base, or a mixture as the report names it.")] = None,
    seed: Annotated[int | None, typer.Option(help="The finetune of one seed.")] = None,
    position: Annotated[int | None, typer.Option(help="Gold position, from 1.")] = None,
    length: Annotated[int | None, typer.Option(help="Nominal length in tokens.")] = None,
    depth: Annotated[float | None, typer.Option(help="Depth of the needle, in percent.")] = None,
    subtask: Annotated[str | None, typer.Option(help="Kind of example within the task.")] = None,
    condition: Annotated[str | None, typer.Option(help="A further condition, such as padding=books.")] = None,
    right: Annotated[bool | None, typer.Option("--right/--wrong", help="A score of 1, or a lower one.")] = None,
    lost: Annotated[
        bool | None, typer.Option("--lost/--won", help="Base right and this model wrong, or the reverse.")
    ] = None,
    outcome: Annotated[str | None, typer.Option(help="A kind of answer: refusal, invention, partial, …")] = None,
    limit: Annotated[int, typer.Option(help="Examples to show; 0 for all.", min=0)] = 3,
    full: Annotated[bool, typer.Option("--full", help="Whole prompts, not only the beginning, gold and end.")] = False,
    store: frame.StoreOption = None,
    scale: frame.ScaleOption = None,
    allow_code: frame.CodeOption = False,
    json_: Annotated[bool, typer.Option("--json", help="Print a JSON object per example and line.")] = False,
) -> None:
    """Show answers: the prompt with the gold passage marked, what the model said, and what the base model said.

    kvray show quickstart --model in2 --position 20 --wrong

    kvray show quickstart --evaluation recall --model needle --lost --limit 5

    kvray show quickstart --evaluation mdqa --won --json --limit 0

    --json prints the columns of kvray.results.Results.examples; how many match goes to standard error.
    """
    from kvray.cli import panels
    from kvray.results.examples import COLUMNS, Choice, Flip, with_prompts
    from kvray.results.frames import with_models
    from kvray.results.reader import Results
    from kvray.sweep.load import load

    place = frame.open_store(store)
    name = load(sweep, scale=scale, allow_code=allow_code).name if sweep.endswith((".yaml", ".yml")) else sweep
    predictions = with_models(Results(place).predictions(name).collect())
    if predictions.is_empty():
        raise InputError(f"sweep {name!r}: no answers in the store {place.uri} yet; kvray run makes them")
    flipped: Flip | None = None if lost is None else "lost" if lost else "won"
    choice = Choice(evaluation, model, seed, position, length, depth, subtask, condition, outcome, right, flipped)
    placed = choice.places(predictions)
    chosen = choice.answers(placed)
    shown = with_prompts(place, chosen.head(limit or chosen.height)).select(COLUMNS)
    told = f"{chosen.height:,} of {placed.height:,} match, {shown.height:,} shown"
    if json_:
        for row in shown.iter_rows(named=True):
            print(json.dumps(row, ensure_ascii=False))
        say(f"kvray: {told}")
        return
    draw = panels.draw if sys.stdout.isatty() else panels.write
    draw(list(shown.iter_rows(named=True)), full)
    print("\n".join([*panels.rules(shown["task"].unique(maintain_order=True)), told]))
