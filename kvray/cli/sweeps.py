"""Commands about a sweep: run it, and say what it would do, what it did, and why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvray.cli import complete, frame
from kvray.console import say
from kvray.errors import InputError

if TYPE_CHECKING:
    from kvray.models.reference import BaseModelRef
    from kvray.planning.artefacts import Plan
    from kvray.store.store import Store


@frame.command
def run(
    sweep: Annotated[list[str], typer.Argument(help="Sweep files.", autocompletion=complete.sweep_files)],
    store: frame.StoreOption = None,
    set_: frame.SetOption = None,
    base_model: frame.BaseOption = None,
    scale: frame.ScaleOption = None,
    allow_code: frame.CodeOption = False,
    verify: frame.VerifyOption = False,
    report: Annotated[bool, typer.Option(help="Write the report at the end.")] = True,
) -> int:
    """Make everything that a sweep has and the store has not, then the report. Run again to continue.

    kvray run sweeps/quickstart.yaml

    kvray run sweeps/nq-open.yaml --set evaluate.mdqa.questions=50

    kvray run sweeps/paper/mdqa-mistral.yaml --scale small
    """
    from kvray.driver import run as running

    place = frame.open_store(store)
    # All files are read before the first runs, so that a mistake in the last one shows now.
    planned = [running.prepare(file, set_ or [], base_model, scale, allow_code=allow_code) for file in sweep]
    running.check_names([(file, plan) for file, (plan, _) in zip(sweep, planned, strict=True)])
    codes = []
    with running.shared_cluster([plan.sweep.runtime for plan, _ in planned]):
        for file, (plan, base) in zip(sweep, planned, strict=True):
            if len(sweep) > 1:
                print(f"\n== {file}", flush=True)
            codes.append(_run(plan, base, place, verify, report))
    return max(codes)


def _run(planned: Plan, base: BaseModelRef, place: Store, verify: bool, report: bool) -> int:
    from kvray.driver import run as running

    for line in _code(planned):
        say(f"kvray: {line}")
    for warning in planned.warnings:
        say(f"kvray: warning: {warning}")
    result = running.run(planned, base, place, verify)
    print(result.outcome())
    if result.failed:  # before the report, which a full disk ends with an error of its own
        from kvray.console import table

        print(table(["artefact", "why"], result.failures()))
    if report:
        from kvray.report.build import current, write

        name = planned.sweep.name
        print("\n".join(["", *(current(place, name, result.found) or write(place, name).summary), ""]))
        print(f"report: {place.folder(f'reports/{name}').place}/report.html")
    return result.exit_status


@frame.command
def plan(
    sweep: Annotated[list[str], typer.Argument(help="Sweep files.", autocompletion=complete.sweep_files)],
    store: frame.StoreOption = None,
    set_: frame.SetOption = None,
    base_model: frame.BaseOption = None,
    scale: frame.ScaleOption = None,
    allow_code: frame.CodeOption = False,
    json_: frame.JsonOption = False,
    verify: frame.VerifyOption = False,
) -> None:
    """Show what a run would do, cell by cell, with tokens, estimated time and the smallest detectable difference.

    Works without the hub and without a GPU: what cannot be looked at is noted and assumed.

    kvray plan sweeps/quickstart.yaml

    kvray plan sweeps/paper/*.yaml

    --json prints an object, of several files a list of them.
    """
    from kvray.driver import run as running
    from kvray.planning.artefacts import tell_replaced
    from kvray.planning.cost import estimate
    from kvray.report.trackers.send import missing

    place = frame.open_store(store)
    documents = []
    for at, file in enumerate(sweep):
        planned, _ = running.prepare(file, set_ or [], base_model, scale, offline=True, allow_code=allow_code)
        tell_replaced(planned, place)
        for problem in missing(planned.sweep.runtime.trackers):  # where it is run they may be there
            say(f"kvray: warning: {problem}")
        estimated = estimate.estimate(planned, place, verify)
        documents.append({**estimated.document, "code": planned.code()})
        if not json_:
            if len(sweep) > 1:
                print("\n" * min(at, 1) + f"== {file}")
            print("\n".join([*_code(planned), estimated.text()]), flush=True)
    if json_:
        print(json.dumps(documents if len(documents) > 1 else documents[0], indent=1))


@frame.command
def status(
    sweep: Annotated[
        str,
        typer.Argument(help="A sweep file, or the name of one that was run.", autocompletion=complete.stored_sweeps),
    ],
    store: frame.StoreOption = None,
    set_: frame.SetOption = None,
    base_model: frame.BaseOption = None,
    scale: frame.ScaleOption = None,
    allow_code: frame.CodeOption = False,
    json_: frame.JsonOption = False,
    verify: frame.VerifyOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again until everything is made or Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.1)] = 5.0,
) -> int:
    """Say what of a sweep is committed, missing, damaged or failed.

    kvray status quickstart --json

    kvray status quickstart --watch

    --watch draws the counts again every few seconds, in a pipe when something has changed. It ends, with exit status 1
    if something failed, once everything is committed, or failed while no run of the sweep is alive.
    """
    from kvray.console import table
    from kvray.driver import run as running
    from kvray.planning.artefacts import described
    from kvray.planning.artefacts import status as states
    from kvray.planning.cost import budget

    if watch and (json_ or verify):
        raise InputError("--watch looks again and again; expected neither --json nor --verify beside it")
    place = frame.open_store(store)
    planned: Sequence[Any]
    name = sweep
    if sweep.endswith((".yaml", ".yml")):
        whole = running.prepare(sweep, set_ or [], base_model, scale, allow_code=allow_code)[0]
        planned, name, price = whole.artefacts, whole.sweep.name, whole.sweep.runtime.gpu_price
    else:
        document = place.plan_document(sweep)
        planned = described(document)
        price = (document["sweep"].get("runtime") or {}).get("gpu_price")
    if watch:
        from kvray.cli.watch import watch as watching

        return watching(place, name, planned, every)
    spent = budget.read(place, name)
    rows = states(planned, place, verify)
    counts = {"planned": len(rows)}
    counts |= {name: sum(each.state == name for each in rows) for name in ("committed", "failed")}
    if json_:
        artefacts = [{"id": each.id, "kind": each.kind, "state": each.state} for each in rows]
        hours = {"spent_hours": round(spent.hours, 6), "hours_of": "GPUs" if spent.gpus else "seats"}
        print(json.dumps({**counts, **hours, "artefacts": artefacts}, indent=1))
        return 0
    print(
        table(["artefact", "state", "why"], [[e.id, e.state, " ".join((e.reason or "").split())[:200]] for e in rows])
    )
    print(", ".join(f"{count} {state}" for state, count in counts.items()))
    if spent.hours:
        print(budget.told(spent, price))
    return 0


@frame.command
def report(
    sweep: Annotated[
        str,
        typer.Argument(help="The name of a sweep that was run, or its file.", autocompletion=complete.stored_sweeps),
    ],
    store: frame.StoreOption = None,
    scale: frame.ScaleOption = None,
    allow_code: frame.CodeOption = False,
    out: Annotated[str | None, typer.Option("--out", help="Directory or s3:// URI; default under the store.")] = None,
    trackers: Annotated[
        list[str] | None, typer.Option("--trackers", help="Send it to tensorboard, mlflow or wandb too; repeatable.")
    ] = None,
    json_: frame.JsonOption = False,
) -> None:
    """Write report.html, report.md, the figures and scores.parquet of a sweep, finished or not.

    kvray report quickstart --out /tmp/report

    --trackers sends loss curves, scores and figures, as runtime.trackers makes a run do; what is there already stays.

    --json prints an object: sweep, base_model, planned and evaluated (cells), scores (per model and evaluation, columns
    of scores.parquet), missing (id, kind, state, why of each artefact that is not there), report (the paths written).
    """
    from kvray.report.build import write
    from kvray.report.terminal import document
    from kvray.report.trackers.send import everything
    from kvray.sweep.load import load

    place = frame.open_store(store)
    name = load(sweep, scale=scale, allow_code=allow_code).name if sweep.endswith((".yaml", ".yml")) else sweep
    place.plan_document(name)
    paths = write(place, name, out)
    sent = everything(place, name, trackers) if trackers else {}
    if json_:
        written = {key: value for key, value in vars(paths).items() if key not in ("page", "summary")}
        print(json.dumps({**document(place, name), "report": written}, indent=1))
    else:
        lines = [f"{tracker}: {where}" for tracker, where in sent.items()]
        print("\n".join([*paths.summary, "", f"report: {paths.html}", *lines]))


@frame.command
def why(
    cell: Annotated[str, typer.Argument(help="An artefact's id, or a part of it that is unique.")],
    sweep: Annotated[str | None, typer.Option(help="A sweep file that has it; default: the store's sweeps.")] = None,
    store: frame.StoreOption = None,
    set_: frame.SetOption = None,
    base_model: frame.BaseOption = None,
    scale: frame.ScaleOption = None,
    allow_code: frame.CodeOption = False,
    json_: frame.JsonOption = False,
) -> None:
    """Say why an artefact is to be made: what of its recipe differs from the stored ones, the nearest first.

    kvray why mdqa-simple_kv-lora-s0

    kvray why recall-in2-lora-s0 --sweep sweeps/quickstart.yaml

    --json prints an object: id, kind, state, labels; then made (created, rows, files, versions, recipe, needs) if it is
    committed, else stored (those of its kind, nearest first: id, created, differences), problems and needs (alike).
    """
    from kvray.driver import run as running
    from kvray.planning import why as reasons

    place = frame.open_store(store)
    planned = (
        running.prepare(sweep, set_ or [], base_model, scale, allow_code=allow_code)[0].artefacts if sweep else None
    )
    explained = reasons.explain(cell, place, planned)
    print(json.dumps(explained, indent=1) if json_ else "\n".join(reasons.lines(explained)))


def _code(planned: Plan) -> list[str]:
    return [f"code: {file}, sha256 {digest[:16]}, loaded by --allow-code" for file, digest in planned.code().items()]
