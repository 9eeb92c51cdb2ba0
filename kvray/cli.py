"""The command line. Everything heavy is imported inside the commands, so that ``kvray --help`` is quick."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec

import typer

from kvray import __version__
from kvray.errors import InputError, KvrayError, RunInterrupted

if TYPE_CHECKING:
    from kvray.base_model import BaseModelRef
    from kvray.plan import Plan
    from kvray.store import Store
    from kvray.tasks.base import Task

P = ParamSpec("P")
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Which synthetic long-context finetuning data makes a language model retrieve better: a sweep, from laptop to "
    "cluster.\n\nStart with: kvray run sweeps/quickstart.yaml",
)
Store_ = Annotated[str | None, typer.Option("--store", help="Path or s3:// URI; default $KVRAY_STORE, else ./store.")]
Set_ = Annotated[
    list[str] | None, typer.Option("--set", help="key=value over the file's, the value in YAML; repeatable.")
]
Json_ = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Base_ = Annotated[str | None, typer.Option("--base-model", help="Use this base model instead of the file's.")]
Scale_ = Annotated[str | None, typer.Option("--scale", help="One of the file's scales, such as small.")]
Out_ = Annotated[str, typer.Option("--out", help="The file to write: a path or an s3:// URI.")]
Format_ = Annotated[
    str | None, typer.Option("--format", help="parquet, jsonl or openai; default by the file's name: .parquet, .jsonl.")
]
Verify_ = Annotated[bool, typer.Option("--verify", help="Check the sha256 of what is committed, too.")]


def command(function: Callable[P, int | None]) -> Callable[P, None]:
    """Register a command: kvray's errors become their message and exit status; others are bugs and keep their trace."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = function(*args, **kwargs)
        except KvrayError as error:
            print(f"kvray: {error}" if not isinstance(error, InputError) else str(error), file=sys.stderr)
            raise typer.Exit(error.exit_status) from None
        except BrokenPipeError:
            raise typer.Exit(0) from None
        except RunInterrupted as interrupt:
            _leave(f"{interrupt}. To go on: {shlex.join(['kvray', *sys.argv[1:]])}")
        except KeyboardInterrupt:
            _leave("interrupted")
        raise typer.Exit(code or 0)

    app.command()(run)
    return run


@command
def run(
    sweep: Annotated[list[str], typer.Argument(help="Sweep files.")],
    store: Store_ = None,
    set_: Set_ = None,
    base_model: Base_ = None,
    scale: Scale_ = None,
    verify: Verify_ = False,
    report: Annotated[bool, typer.Option(help="Write the report at the end.")] = True,
) -> int:
    """Make everything that a sweep has and the store has not, then the report. Run again to continue.

    kvray run sweeps/quickstart.yaml

    kvray run sweeps/nq-open.yaml --set evaluate.mdqa.questions=50

    kvray run sweeps/paper/mdqa-mistral.yaml --scale small
    """
    from kvray import run as running
    from kvray.store import Store

    place = Store(running.store_uri(store))
    # All files are read before the first is run: a mistake in the last one is told now.
    planned = [running.prepare(file, set_ or [], base_model, scale) for file in sweep]
    running.check_names([(file, plan) for file, (plan, _) in zip(sweep, planned, strict=True)])
    codes = []
    with running.shared_cluster([plan.sweep.runtime for plan, _ in planned]):
        for file, (plan, base) in zip(sweep, planned, strict=True):
            if len(sweep) > 1:
                print(f"\n== {file}", flush=True)
            codes.append(_run(plan, base, place, verify, report))
    return max(codes)


def _run(planned: Plan, base: BaseModelRef, place: Store, verify: bool, report: bool) -> int:
    from kvray import run as running

    result = running.run(planned, base, place, verify)
    name = planned.sweep.name
    if result.nothing_to_do:
        print(f"nothing to do: all {result.cached} artefacts of {name} are committed in {place.uri}")
    if result.failed:  # before the report, which a full disk ends with an error of its own
        from kvray.tables import table

        print(
            f"\n{len(result.failed)} of {len(planned.artefacts)} artefacts failed; the same command tries them again:"
        )
        print(table(["artefact", "why"], [[key, _one_line(why)] for key, why in result.failed.items()]))
    if report:
        from kvray.results.report import current, location, summary, write

        if not current(place, name):
            write(place, name)
        print("\n".join(["", *summary(place, name), ""]))
        print(f"report: {location(place, f'reports/{name}')}/report.html")
    if result.failed:
        return 1
    if not result.nothing_to_do:
        print(f"{len(result.made)} made, {result.cached} were there, {result.seconds:.0f} s")
    return 0


@command
def plan(
    sweep: Annotated[str, typer.Argument(help="A sweep file.")],
    store: Store_ = None,
    set_: Set_ = None,
    base_model: Base_ = None,
    scale: Scale_ = None,
    json_: Json_ = False,
    verify: Verify_ = False,
) -> None:
    """Show what a run would do, cell by cell, with tokens, estimated time and the smallest detectable difference.

    Works without the hub and without a GPU: what cannot be looked at is noted and assumed.

    kvray plan sweeps/quickstart.yaml
    """
    from kvray import estimate
    from kvray import run as running
    from kvray.store import Store

    planned, _ = running.prepare(sweep, set_ or [], base_model, scale, offline=True)
    place = Store(running.store_uri(store))
    running.tell_replaced(planned, place)
    found = estimate.estimate(planned, place, verify)
    print(json.dumps(found.document(), indent=1) if json_ else found.text())


@command
def status(
    sweep: Annotated[str, typer.Argument(help="A sweep file, or the name of one that was run.")],
    store: Store_ = None,
    set_: Set_ = None,
    base_model: Base_ = None,
    scale: Scale_ = None,
    json_: Json_ = False,
    verify: Verify_ = False,
) -> None:
    """Say what of a sweep is committed, missing, damaged or failed.

    kvray status quickstart --json
    """
    from kvray import run as running
    from kvray.store import Store
    from kvray.tables import table

    place = Store(running.store_uri(store))
    planned: Sequence[Any]
    if sweep.endswith((".yaml", ".yml")):
        planned = running.prepare(sweep, set_ or [], base_model, scale)[0].artefacts
    else:
        planned = running.stored_plan(sweep, place)
    found = running.status(planned, place, verify)
    counts = {
        "planned": len(found),
        "committed": sum(each.state == "committed" for each in found),
        "failed": sum(each.state == "failed" for each in found),
    }
    if json_:
        artefacts = [{"id": each.id, "kind": each.kind, "state": each.state} for each in found]
        print(json.dumps({**counts, "artefacts": artefacts}, indent=1))
        return
    print(table(["artefact", "state", "why"], [[e.id, e.state, _one_line(e.reason or "")] for e in found]))
    print(", ".join(f"{count} {name}" for name, count in counts.items()))


@command
def report(
    sweep: Annotated[str, typer.Argument(help="The name of a sweep that was run, or its file.")],
    store: Store_ = None,
    scale: Scale_ = None,
    out: Annotated[str | None, typer.Option("--out", help="Directory or s3:// URI; default under the store.")] = None,
    json_: Json_ = False,
) -> None:
    """Write report.html, report.md, the figures and scores.parquet of a sweep, finished or not.

    kvray report quickstart --out /tmp/report

    --json prints an object: sweep, base_model, planned and evaluated (cells), scores (per model and evaluation, columns
    of scores.parquet), missing (id, kind, state, why of each artefact that is not there), report (the paths written).
    """
    from kvray import run as running
    from kvray.results.report import document, summary, write
    from kvray.spec import load
    from kvray.store import Store

    place = Store(running.store_uri(store))
    name = load(sweep, scale=scale).name if sweep.endswith((".yaml", ".yml")) else sweep
    running.stored_plan(name, place)
    paths = write(place, name, out)
    if json_:
        print(json.dumps({**document(place, name), "report": vars(paths)}, indent=1))
    else:
        print("\n".join([*summary(place, name), "", f"report: {paths.html}"]))


@command
def sample(
    task: Annotated[str, typer.Argument(help="A task, such as simple_kv.")],
    rows: Annotated[int, typer.Option(help="Examples to show.", min=1)] = 1,
    seed: Annotated[int | None, typer.Option(help="The task's seed.")] = None,
    set_: Set_ = None,
    base_model: Base_ = None,
    json_: Json_ = False,
) -> None:
    """Show examples of a task: prompt, answer, accepted references.

    kvray sample mdqa --set documents=3 --set position=2

    kvray sample lm_eval --set benchmark=tiny_qa --set include_path=sweeps/tasks
    """
    from kvray import samples

    made, base = _task(task, seed, set_ or [], base_model, rows)
    shown = samples.rows if made.BRINGS_EXAMPLES else samples.benchmark_rows
    for row in shown(made, base, rows):
        print(json.dumps(row, ensure_ascii=False) if json_ else samples.text(row, made))


@command
def generate(
    task: Annotated[str, typer.Argument(help="A task, such as simple_kv.")],
    out: Out_,
    rows: Annotated[int | None, typer.Option(help="Examples to make; default the task's own.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="The task's seed.")] = None,
    set_: Set_ = None,
    base_model: Base_ = None,
    format_: Format_ = None,
    workers: Annotated[int | None, typer.Option(help="Processes; the bytes do not depend on it.", min=1)] = None,
) -> None:
    """Make one dataset as one file, without a sweep, for any other trainer.

    kvray generate simple_kv --rows 350 --seed 0 --out train.jsonl
    """
    from kvray.generate.export import format_of, make

    kind = format_of(out, format_)
    made, base = _task(task, seed, set_ or [], base_model, rows)
    done = make(made, base, out, kind, workers, rows)
    print(
        f"{done.path}: {done.rows} rows, {done.prompt_tokens} prompt tokens, {done.bytes} bytes, sha256 {done.sha256}"
    )


@command
def blend(
    sweep: Annotated[str, typer.Argument(help="A sweep file.")],
    mixture: Annotated[str, typer.Argument(help="One of its mixtures.")],
    out: Out_,
    seed: Annotated[int, typer.Option(help="One of finetune.seeds.")] = 0,
    format_: Format_ = None,
    store: Store_ = None,
    set_: Set_ = None,
    base_model: Base_ = None,
    scale: Scale_ = None,
) -> None:
    """Write one mixture as one file: the very rows that a finetune on it reads, matched in tokens, for any trainer.

    kvray blend sweeps/quickstart.yaml in2 --out in2.jsonl
    """
    from kvray import blend as blending
    from kvray import run as running
    from kvray.generate.export import format_of
    from kvray.store import Store

    kind = format_of(out, format_)
    planned, base = running.prepare(sweep, set_ or [], base_model, scale)
    place = Store(running.store_uri(store))
    done = blending.dump(planned, mixture, seed, place, base, out, kind)
    parts = ", ".join(f"{part.name}: {len(part.rows)} rows, {part.tokens.sum()} tokens" for part in done.mixture.parts)
    print(f"{done.path}: {parts}; {done.bytes} bytes, sha256 {done.sha256}")


@command
def pretrain(
    out: Annotated[Path, typer.Option("--out", help="Directory of the model; <out>.state keeps what a resume needs.")],
    tokens: Annotated[int | None, typer.Option(help="Training tokens; default the recipe's.", min=10000)] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and data.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads; default all.", min=1)] = None,
) -> None:
    """Make kvray-tiny from scratch: tokenizer, weights, card with its scores. Run again to continue.

    kvray pretrain --out my-tiny --device cuda
    """
    if ":/" in str(out):
        raise InputError(f"--out: found {out}; expected a directory of this machine")
    from kvray.tiny.card import write_card
    from kvray.tiny.pretrain import Recipe
    from kvray.tiny.pretrain import pretrain as train

    recipe = Recipe(seed=seed) if tokens is None else Recipe(seed=seed, tokens=tokens)
    try:
        record = train(out, recipe, device, threads=threads)
    except KeyboardInterrupt:
        raise RunInterrupted(f"interrupted; kept in {out}.state: the last checkpoint, if there is one") from None
    print(write_card(out, recipe, record))


@command
def why(
    cell: Annotated[str, typer.Argument(help="An artefact's id, or a part of it that is unique.")],
    sweep: Annotated[str | None, typer.Option(help="A sweep file that has it; default: the store's sweeps.")] = None,
    store: Store_ = None,
    set_: Set_ = None,
    base_model: Base_ = None,
    scale: Scale_ = None,
    json_: Json_ = False,
) -> None:
    """Say why an artefact is to be made: what of its recipe differs from the stored ones, the nearest first.

    kvray why mdqa-simple_kv-lora-s0

    kvray why recall-in2-lora-s0 --sweep sweeps/quickstart.yaml

    --json prints an object: id, kind, state, labels; then made (created, rows, files, versions, recipe, needs) if it is
    committed, else stored (those of its kind, nearest first: id, created, differences), problems and needs (alike).
    """
    from kvray import reasons
    from kvray import run as running
    from kvray.store import Store

    place = Store(running.store_uri(store))
    planned = running.prepare(sweep, set_ or [], base_model, scale)[0].artefacts if sweep else None
    told = reasons.explain(cell, place, planned)
    print(json.dumps(told, indent=1) if json_ else "\n".join(reasons.lines(told)))


@command
def doctor(
    store: Store_ = None,
    address: Annotated[str | None, typer.Option(help="A running Ray; default $RAY_ADDRESS, else this machine.")] = None,
    json_: Json_ = False,
) -> int:
    """Look at every node: versions, devices, whether it reaches the store. Do it before spending money.

    kvray doctor --store s3://bucket/kvray --address auto
    """
    from kvray import checkup
    from kvray import run as running

    found = checkup.look(running.store_uri(store), address)
    print(json.dumps(found.document(), indent=1) if json_ else found.text())
    return 1 if found.problems else 0


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit(0)


def _leave(message: str) -> NoReturn:
    """End on Ctrl-C, with the exit status that shells give it. Another Ctrl-C ends the process where it is."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.stderr.isatty():
        print(file=sys.stderr)  # the terminal has echoed ^C
    print(f"kvray: {message}", file=sys.stderr, flush=True)
    raise typer.Exit(128 + signal.SIGINT) from None


def _task(name: str, seed: int | None, settings: Sequence[str], base_model: str | None, rows: int | None) -> Any:
    from kvray import samples

    task: Task = samples.task_of(name, seed, settings)
    return (samples.with_rows(task, rows) if rows else task), samples.base_of(base_model)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]


def main() -> None:
    """Entry point of the ``kvray`` command."""
    app()


if __name__ == "__main__":
    main()
