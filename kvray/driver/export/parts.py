"""Parts of a card in Markdown: tables and texts from what the manifests record."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kvray.driver.export.data import Written
from kvray.driver.export.find import Found
from kvray.store.manifest import Manifest

_CUT = 400  # characters of each text of a card's first row
_MOST_PLACES = 12  # of an axis that are listed one by one


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose first row is its header; cells cannot leave their column."""
    head, *body = ([cell(text) for text in row] for row in rows)
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str) -> str:
    """Return a text as one cell of a table, which it cannot leave."""
    line = " ".join(text.split()).replace("|", "\\|")
    return line if re.fullmatch("`[^`]*`", line) else line.replace("<", "&lt;")  # in code a < is one already


def fenced(text: str, language: str) -> str:
    """Return a text as a fenced block, which it cannot end."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def shortened(value: Any) -> Any:
    """Return a row with its long texts cut."""
    if isinstance(value, dict):
        return {name: shortened(item) for name, item in value.items()}
    if isinstance(value, list):
        return [shortened(item) for item in value]
    return f"{value[:_CUT]} […]" if isinstance(value, str) and len(value) > _CUT else value


def task_of(manifest: Manifest | None) -> str:
    """Return the name of a dataset's task."""
    return str(manifest.recipe["task"]["task"]) if manifest and "task" in manifest.recipe else "unknown"


def data_table(
    facts: Mapping[str, Any], read: Mapping[str, str], manifests: Mapping[str, Manifest | None]
) -> list[list[str]]:
    """Return rows and tokens of an epoch by dataset; ``read`` has the datasets' names by id."""
    rows = [["dataset", "task", "rows per epoch", "tokens per epoch"]]
    for need, name in read.items():
        sizes = (facts.get("datasets") or {}).get(need, {})
        numbers = [f"{sizes[key]:,}" if key in sizes else "not counted" for key in ("rows", "tokens")]
        rows.append([f"`{name}`", task_of(manifests.get(need)), *numbers])
    return rows


def trained(facts: Mapping[str, Any]) -> str:
    """Return how much a finetune was trained, from its measurements."""
    if "trained_tokens" not in facts or "steps" not in facts:
        return "How many tokens it was trained on is not recorded."
    text = f"In all {facts['trained_tokens']:,} tokens in {facts['steps']:,} steps, chat template included"
    if "answer_tokens" in facts:
        text += f"; the loss is on the answers alone, {facts['answer_tokens']:,} tokens of an epoch"
    if isinstance(facts.get("loss_last_epoch"), float):
        text += f", and was {facts['loss_last_epoch']:.3g} nats per token in the last epoch"
    if facts.get("budget_tokens"):
        text += f". An epoch is cut to about {facts['budget_tokens']:,} tokens, those of the sweep's first mixture"
    return f"{text}."


def recipe_of(
    found: Found, base: str, read: Mapping[str, str], manifests: Mapping[str, Manifest | None]
) -> dict[str, Any]:
    """Return everything that decided a finetune, as a sweep file would have it; arguments as for :func:`data_table`."""
    recipe = found.manifest.recipe
    shares = dict(zip(found.manifest.needs, recipe["mixture"], strict=False))
    tasks = {name: manifest.recipe.get("task", {}) for need, name in read.items() if (manifest := manifests.get(need))}
    return {
        "base_model": base,
        "datasets": tasks,
        "mixture": {read.get(need, need): share for need, share in shares.items()},
        "finetune": recipe["finetune"],
        "seed": recipe["seed"],
    }


def axes_table(written: Written) -> list[list[str]]:
    """Return how the examples spread over positions, lengths and so on; what is the same of all is left out."""
    rows = []
    for axis, places in written.axes.items():
        names = [place if isinstance(place, str) else f"{place:g}" for place, _ in places]
        if len(places) > _MOST_PLACES:
            words = isinstance(places[0][0], str)
            rows.append([axis, f"{len(places):,} kinds" if words else f"{names[0]} to {names[-1]}"])
        elif len(places) > 1:
            counts = (f"{name}: {number:,}" for name, (_, number) in zip(names, places, strict=True))
            rows.append([axis, ", ".join(counts)])
    return [["axis", "rows by place"], *rows] if rows else []


def data_licence(license: Mapping[str, str]) -> str:
    """Return what a card of data says of their licence."""
    if license:
        return f"The licence, {license['license']}, was given by whoever exported them."
    return (
        "No licence is stated. Where the examples quote sources (`sweep.yaml` says which), these have licences of "
        "their own: look there before you share them."
    )
