"""What was trained: each finetune, how its loss fell, what an epoch of a mixture reads, and text that models wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvray.report import text as words
from kvray.report.blocks import Block, Details, Figure, Heading, Table, Text
from kvray.results import losses
from kvray.results.snapshot import Found

_MATCHED = 0.05
"""Share of the first mixture's tokens per epoch by which others may differ and count as matched: one that lacks up to
that is taken whole (:data:`kvray.planning.mixture.SHORTFALL`)."""
_OPEN = 24
"""Rows of the table of losses up to which it is open."""
_LOSSES = (
    "Losses are mean cross entropies of the answers in nats per token, each step's before its update, so the first "
    "tenth of the steps (at least one step) is close to the base model's own loss."
)
_FIGURE_4 = (
    "*Integers* are answer tokens that hold a digit, *words* all others: the wording around the value, and the end of "
    "the answer; both as the first worker saw them. Figure 4 of the paper (Xiong et al. 2024) shows that with the "
    "answer template in the prompt the loss on formatting tokens is low, so the gradient concentrates on the retrieved "
    "value; it would show here as words far below integers in the first tenth."
)


def trained(found: Found) -> list[Block]:
    """What each finetune was trained on and how it went, from its manifest."""
    table = []
    for artefact in found.planned("finetune"):
        manifest = found.manifests.get(artefact["id"])
        if manifest is None:
            continue
        labels, facts = artefact["labels"], manifest.measurements
        recipe = manifest.recipe.get("finetune", {})
        table.append(
            [
                str(labels.get("mixture")),
                str(labels.get("finetune")),
                str(labels.get("seed")),
                words.count(facts.get("rows_per_epoch", artefact.get("rows"))),
                words.count(facts.get("trained_tokens")),
                words.count(facts.get("steps")),
                f"{recipe['epochs']:g}" if "epochs" in recipe else "\u2013",
                f"{recipe['learning_rate']:g}" if "learning_rate" in recipe else "\u2013",
                _loss(facts),
                words.duration(facts.get("seconds")),
                " ".join(str(facts[name]) for name in ("device", "precision") if name in facts) or "\u2013",
            ]
        )
    header = ["mixture", "finetune", "seed", "rows", "tokens", "steps", "epochs", "rate", "loss", "time", "on"]
    note = (
        "*Rows*: of one epoch. *Tokens*: all that were read in training. *Rate*: peak learning rate. *Loss*: of the "
        "answers, last epoch."
    )
    if not table:
        return []
    return [Heading("What was trained"), Table(header, table, left=2, words=1), Text(note, "sub"), *_epochs(found)]


def fell(found: Found, drawn: Mapping[tuple[str, ...], Figure]) -> list[Block]:
    """How the loss of each mixture fell, of integers and of the words around them (the paper's figure 4).

    Args:
        found: what there is of the sweep.
        drawn: of :func:`kvray.report.figures.draw`.
    """
    models = losses.models(found.losses)
    if not models:
        return []
    cells = {(row["model"], row["part"]): row for row in losses.tenths(found.losses).iter_rows(named=True)}
    both = losses.split(found.losses)
    parts = losses.PARTS if both else losses.PARTS[:1]
    header = ["mixture", *(f"{part}, {tenth} tenth" for part in parts for tenth in ("first", "last"))]
    lines = [[f"**{m}**", *(cell for part in parts for cell in _ends(cells.get((m, part))))] for m in models]
    table = Table(header, lines)
    figures = [drawn[key] for key in (("loss",), ("loss-by-kind",)) if key in drawn]
    blocks: list[Block] = [Heading("How the loss fell"), *figures]
    blocks.append(Details(f"Losses of all {len(models)} mixtures", [table]) if len(models) > _OPEN else table)
    committed = [artefact for artefact in found.planned("finetune") if artefact["id"] in found.manifests]
    lacking = len(committed) - found.losses.select("model", "seed").n_unique()
    note = f"{_LOSSES} {_FIGURE_4}" if both else _LOSSES
    note += (
        f" {lacking} of {len(committed)} finetunes have no log of it (those of an API have none)." if lacking else ""
    )
    return [*blocks, Text(note, "sub")]


def written(found: Found) -> list[Block]:
    """The text that models wrote for datasets: who, how many prompts, and how much of it can be used."""
    table = []
    for artefact in found.planned("writing"):
        manifest = found.manifests.get(artefact["id"])
        facts = manifest.measurements if manifest else {}
        prompts = facts.get("rows", artefact.get("rows"))
        whole = prompts - facts.get("cut_off", 0) - facts.get("too_long", 0) if "rows" in facts else None
        table.append(
            [
                str(artefact["labels"].get("dataset")),
                f"`{_writer(found, artefact)}`",
                found.states[artefact["id"]],
                words.count(prompts),
                words.percent(whole / prompts) if whole is not None and prompts else "\u2013",
                words.percent(facts["usable"] / prompts) if "usable" in facts and prompts else "not told",
                words.count(facts.get("output_tokens")),
                words.duration(facts.get("seconds")),
            ]
        )
    if not table:
        return []
    header = ["written for", "by", "state", "prompts", "answered whole", "usable", "tokens written", "time"]
    note = (
        "More is asked for than is needed; replies that cannot be used are passed by, in order. *Answered whole*: "
        "neither cut off by the output limit nor too long to ask."
    )
    return [Heading("Text that models wrote", 3), Table(header, table, left=3), Text(note, "sub")]


def _epochs(found: Found) -> list[Block]:
    """What an epoch of each mixture reads, by dataset, averaged over seeds; and whether mixtures are matched."""
    names = {artefact["id"]: str(artefact["labels"].get("dataset")) for artefact in found.planned("dataset")}
    read: dict[str, list[Mapping[str, Any]]] = {}
    for artefact in found.planned("finetune"):
        manifest = found.manifests.get(artefact["id"])
        if manifest is not None and "tokens_per_epoch" in manifest.measurements:
            read.setdefault(str(artefact["labels"].get("mixture")), []).append(manifest.measurements)
    if not read:
        return []
    table, totals, cut = [], {}, False
    for mixture, several in read.items():
        totals[mixture] = _mean([facts["tokens_per_epoch"] for facts in several])
        cut = cut or any(facts.get("budget_tokens") for facts in several)
        parts: dict[str, list[tuple[float, float]]] = {}
        for facts in several:
            for one, part in facts.get("datasets", {}).items():
                parts.setdefault(names.get(one, one), []).append((part["rows"], part["tokens"]))
        said = [
            f"{name}: {words.count(_mean([t for _, t in each]))} in {words.count(_mean([r for r, _ in each]))} rows"
            for name, each in parts.items()
        ]
        answers = [facts["answer_tokens"] for facts in several if "answer_tokens" in facts]
        table.append(
            [
                mixture,
                ", ".join(said) or "\u2013",
                words.count(totals[mixture]),
                words.count(_mean(answers)) if answers else "\u2013",
            ]
        )
    header = ["mixture", "tokens of each dataset", "tokens per epoch", "of these with a loss"]
    return [Heading("An epoch of each mixture", 3), Table(header, table, left=2), Text(_matched(totals, cut))]


def _matched(totals: Mapping[str, float], cut: bool) -> str:
    low, high = min(totals.values()), max(totals.values())
    first = next(iter(totals.values()))
    apart = max(high - first, first - low) / first if first else 0.0
    if len(totals) == 1:
        return f"One mixture, {words.count(high)} tokens per epoch."
    if apart <= _MATCHED:
        how = "cut to the sweep's first" if cut else "by the size of their datasets"
        off = "less than 0.1" if apart < 0.001 else f"at most {100 * apart:.1f}"
        return (
            f"**Token-matched** ({how}): an epoch of every mixture reads {words.count(low)} to {words.count(high)} "
            f"tokens of prompts and answers, {off} % off the first one's."
        )
    return (
        f"**Not token-matched:** an epoch reads from {words.count(low)} to {words.count(high)} tokens, so part of "
        "a difference between mixtures may come from how much they read."
    )


def _writer(found: Found, artefact: Mapping[str, Any]) -> str:
    """Return the writer's name, as the sweep has it in the dataset's block."""
    labels = artefact["labels"]
    sections = found.document.get("sweep", {})
    blocks = sections.get("evaluate" if labels.get("role") == "evaluate" else "datasets", {})
    block = blocks.get(str(labels.get("dataset")).partition("[")[0], {})
    return next((str(value) for name, value in block.items() if name.endswith("_writer") and value), "unknown")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _ends(row: Mapping[str, Any] | None) -> list[str]:
    """Return the first and the last loss, with as many decimals as small ones need."""
    if row is None:
        return ["\u2013", "\u2013"]
    return ["\u2013" if row[end] is None else f"{row[end]:.3f}" for end in ("first", "last")]


def _loss(facts: Mapping[str, Any]) -> str:
    loss = facts.get("loss_last_epoch", facts.get("loss"))
    return "\u2013" if loss is None else f"{loss:.3f}" if isinstance(loss, float) else str(loss)
