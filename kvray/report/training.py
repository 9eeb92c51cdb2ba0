"""What was trained: finetunes, the tokens of an epoch, loss curves, and text that models wrote."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from kvray.report.blocks import Block, Details, Figure, Heading, Table, Text
from kvray.report.charts import losses as charts
from kvray.report.charts.style import Palette
from kvray.report.text import DASH, bold, count, duration, notes, percent
from kvray.results import frames, losses
from kvray.results.snapshot import Snapshot

_MATCHED = 0.05
"""Difference from the first mixture's tokens per epoch, as a share, up to which another is matched; a mixture that
lacks no more than that is used whole (:data:`kvray.planning.mixture.SHORTFALL`)."""
_OPEN = 24  # most rows of a table of losses that is not folded away


def trained(snapshot: Snapshot) -> list[Block]:
    """What each finetune was trained on and how it went, and the tokens of an epoch of each mixture."""
    table = []
    for artefact, manifest in snapshot.committed("finetune"):
        labels, measured = artefact["labels"], manifest.measurements
        recipe = manifest.recipe.get("finetune", {})
        loss = measured.get("loss_last_epoch", measured.get("loss"))
        table.append(
            [
                *(str(labels.get(name)) for name in ("mixture", "finetune", "seed")),
                count(measured.get("rows_per_epoch", artefact.get("rows"))),
                *(count(measured.get(name)) for name in ("trained_tokens", "steps")),
                *(f"{recipe[name]:g}" if name in recipe else DASH for name in ("epochs", "learning_rate")),
                DASH if loss is None else f"{loss:.3f}" if isinstance(loss, float) else str(loss),
                duration(measured.get("seconds")),
                " ".join(str(measured[name]) for name in ("device", "precision") if name in measured) or DASH,
            ]
        )
    if not table:
        return []
    header = ["mixture", "finetune", "seed", "rows", "tokens", "steps", "epochs", "rate", "loss", "time", "on"]
    return [
        Heading("What was trained"),
        Table(header, table, left=2, words=1),
        Text(notes()["finetunes"], "sub"),
        *_epochs(snapshot),
    ]


def fell(snapshot: Snapshot) -> list[Block]:
    """How the loss of each mixture fell, of integers and of the words around them (the paper's figure 4)."""
    models = frames.models(snapshot.losses)
    if not models:
        return []
    cells = {(row["model"], row["part"]): row for row in losses.tenths(snapshot.losses).iter_rows(named=True)}
    both = losses.split(snapshot.losses)
    parts = losses.PARTS if both else losses.PARTS[:1]
    header = ["mixture", *(f"{part}, {tenth} tenth" for part in parts for tenth in ("first", "last"))]
    lines = [[bold(model), *(cell for part in parts for cell in _ends(cells.get((model, part))))] for model in models]
    table = Table(header, lines)
    blocks: list[Block] = [Heading("How the loss fell"), *_figures(snapshot, models, bool(both))]
    blocks.append(Details(f"Losses of all {len(models)} mixtures", [table]) if len(models) > _OPEN else table)
    committed = snapshot.committed("finetune")
    lacking = len(committed) - snapshot.losses.select("model", "seed").n_unique()
    note = f"{notes()['losses']} {notes()['losses_by_token']}" if both else notes()["losses"]
    if lacking:
        note += f" {lacking} of {len(committed)} finetunes have no log of it (those of an API have none)."
    return [*blocks, Text(note, "sub")]


def written(snapshot: Snapshot) -> list[Block]:
    """Text that models wrote for datasets: the writer, the prompts, and how much of it is usable."""
    table = []
    for artefact in snapshot.planned("writing"):
        manifest = snapshot.manifests.get(artefact["id"])
        measured = manifest.measurements if manifest else {}
        prompts = measured.get("rows", artefact.get("rows"))
        full = prompts - measured.get("cut_off", 0) - measured.get("too_long", 0) if "rows" in measured else None
        table.append(
            [
                str(artefact["labels"].get("dataset")),
                f"`{_writer(snapshot, artefact)}`",
                snapshot.states[artefact["id"]],
                count(prompts),
                percent(full / prompts) if full is not None and prompts else DASH,
                percent(measured["usable"] / prompts) if "usable" in measured and prompts else "not recorded",
                count(measured.get("output_tokens")),
                duration(measured.get("seconds")),
            ]
        )
    if not table:
        return []
    header = ["written for", "by", "state", "prompts", "answered whole", "usable", "tokens written", "time"]
    return [Heading("Text that models wrote", 3), Table(header, table, left=3), Text(notes()["writings"], "sub")]


def _figures(snapshot: Snapshot, models: list[str], both: bool) -> list[Block]:
    """Draw the losses; models without predictions take the colours after those of the others."""
    palette = Palette(list(dict.fromkeys([*snapshot.models, *models])))
    rows = losses.curves(snapshot.losses)
    seeds = max(rows["seeds"].to_list())
    subtitle = f"mean cross entropy of the answers, averaged over each {100 // losses.BINS} % of the training"
    subtitle += f"; lines: mean of {seeds} seeds, bands: their range" if seeds > 1 else ""
    title = "Loss by share of training done"
    if len(models) > charts.TOGETHER:
        subtitle += "; solid: tokens that hold a digit, dashed: the words around them" if both else ""
        subtitle += f"; the first {charts.SHOWN} of {len(models)}" if len(models) > charts.SHOWN else ""
        return [Figure(charts.apart(rows, palette, (title, subtitle)), f"{title}, a panel per mixture", "loss")]
    chart = charts.together(rows, ["all"], palette, (f"{title}: all answer tokens", subtitle))
    figures: list[Block] = [Figure(chart, f"{title}, per mixture", "loss")]
    if both:
        chart = charts.together(rows, ["integers", "words"], palette, (f"{title}: integers and words", subtitle))
        about = f"{title}, integers and the words around them, per mixture"
        figures.append(Figure(chart, about, "loss-by-kind"))
    return figures


def _epochs(snapshot: Snapshot) -> list[Block]:
    """Tokens of an epoch of each mixture by dataset, averaged over seeds, and whether mixtures are matched."""
    names = {artefact["id"]: str(artefact["labels"].get("dataset")) for artefact in snapshot.planned("dataset")}
    finetunes: dict[str, list[Mapping[str, Any]]] = {}
    for artefact, manifest in snapshot.committed("finetune"):
        if "tokens_per_epoch" in manifest.measurements:
            finetunes.setdefault(str(artefact["labels"].get("mixture")), []).append(manifest.measurements)
    if not finetunes:
        return []
    table, totals = [], {}
    for mixture, seeds in finetunes.items():
        totals[mixture] = fmean([measured["tokens_per_epoch"] for measured in seeds])
        parts: dict[str, list[tuple[float, float]]] = {}
        for measured in seeds:
            for one, part in measured.get("datasets", {}).items():
                parts.setdefault(names.get(one, one), []).append((part["tokens"], part["rows"]))
        means = {name: [count(fmean(each)) for each in zip(*of, strict=True)] for name, of in parts.items()}
        datasets = [f"{name}: {tokens} in {rows} rows" for name, (tokens, rows) in means.items()]
        answers = [measured["answer_tokens"] for measured in seeds if "answer_tokens" in measured]
        with_loss = count(fmean(answers)) if answers else DASH
        table.append([mixture, ", ".join(datasets) or DASH, count(totals[mixture]), with_loss])
    header = ["mixture", "tokens of each dataset", "tokens per epoch", "of these with a loss"]
    cut = any(measured.get("budget_tokens") for seeds in finetunes.values() for measured in seeds)
    return [Heading("An epoch of each mixture", 3), Table(header, table, left=2), Text(matched(totals, cut))]


def matched(totals: Mapping[str, float], cut: bool) -> str:
    """Return a sentence on whether mixtures match, from tokens per epoch; ``cut`` if to the first one's budget."""
    low, high = min(totals.values()), max(totals.values())
    first = next(iter(totals.values()))
    apart = max(high - first, first - low) / first if first else 0.0
    filled = {"low": count(low), "high": count(high)}
    if len(totals) == 1:
        return f"One mixture, {count(high)} tokens per epoch."
    if apart > _MATCHED:
        return str(notes()["not_matched"]).format(**filled)
    how = "cut to the sweep's first" if cut else "by the size of their datasets"
    off = "less than 0.1" if apart < 0.001 else f"at most {100 * apart:.1f}"
    return str(notes()["matched"]).format(**filled, how=how, off=off)


def _writer(snapshot: Snapshot, artefact: Mapping[str, Any]) -> str:
    """Return the model in the ``..._writer`` key of the dataset's block."""
    labels = artefact["labels"]
    sections = snapshot.document.get("sweep", {})
    blocks = sections.get("evaluate" if labels.get("role") == "evaluate" else "datasets", {})
    block = blocks.get(str(labels.get("dataset")).partition("[")[0], {})
    return next((str(value) for name, value in block.items() if name.endswith("_writer") and value), "unknown")


def _ends(row: Mapping[str, Any] | None) -> list[str]:
    return [DASH if row is None or row[end] is None else f"{row[end]:.3f}" for end in ("first", "last")]
