"""Commands beside sweeps: examples, datasets and mixtures as files, the bundled base model, the machines."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvray.cli import complete, frame
from kvray.errors import InputError, RunInterrupted, need

if TYPE_CHECKING:
    from kvray.tasks.base import Task


@frame.command
def sample(
    task: Annotated[str, typer.Argument(help="A task, such as simple_kv.", autocompletion=complete.tasks)],
    rows: Annotated[int, typer.Option(help="Examples to show.", min=1)] = 1,
    seed: Annotated[int | None, typer.Option(help="The task's seed.")] = None,
    set_: frame.SetOption = None,
    base_model: frame.BaseOption = None,
    allow_code: frame.CodeOption = False,
    json_: frame.JsonOption = False,
) -> None:
    """Show examples of a task: prompt, answer, accepted references.

    kvray sample mdqa --set documents=3 --set position=2

    kvray sample lm_eval --set benchmark=tiny_qa --set include_path=sweeps/tasks
    """
    from kvray.cli import samples

    made, base = _task(task, seed, set_ or [], base_model, rows, allow_code)
    shown = samples.rows if made.BRINGS_EXAMPLES else samples.benchmark_rows
    for row in shown(made, base, rows):
        print(json.dumps(row, ensure_ascii=False) if json_ else samples.text(row, made))


@frame.command
def generate(
    task: Annotated[str, typer.Argument(help="A task, such as simple_kv.", autocompletion=complete.tasks)],
    out: frame.OutOption,
    rows: Annotated[int | None, typer.Option(help="Examples to make; default the task's own.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="The task's seed.")] = None,
    set_: frame.SetOption = None,
    base_model: frame.BaseOption = None,
    allow_code: frame.CodeOption = False,
    format_: frame.FormatOption = None,
    workers: Annotated[int | None, typer.Option(help="Processes; the bytes do not depend on it.", min=1)] = None,
) -> None:
    """Make one dataset as one file, without a sweep, for any other trainer.

    kvray generate simple_kv --rows 350 --seed 0 --out train.jsonl
    """
    from kvray.driver.export.files import format_of, make

    kind = format_of(out, format_)
    made, base = _task(task, seed, set_ or [], base_model, rows, allow_code)
    done = make(made, base, out, kind, workers, rows)
    print(
        f"{done.path}: {done.rows} rows, {done.prompt_tokens} prompt tokens, {done.bytes} bytes, sha256 {done.sha256}"
    )


@frame.command
def blend(
    sweep: Annotated[str, typer.Argument(help="A sweep file.", autocompletion=complete.sweep_files)],
    mixture: Annotated[str, typer.Argument(help="One of its mixtures.", autocompletion=complete.mixtures)],
    out: frame.OutOption,
    seed: Annotated[int, typer.Option(help="One of finetune.seeds.")] = 0,
    format_: frame.FormatOption = None,
    store: frame.StoreOption = None,
    set_: frame.SetOption = None,
    base_model: frame.BaseOption = None,
    scale: frame.ScaleOption = None,
    allow_code: frame.CodeOption = False,
) -> None:
    """Write one mixture as one file: the very rows that a finetune on it reads, matched in tokens, for any trainer.

    kvray blend sweeps/quickstart.yaml in2 --out in2.jsonl
    """
    from kvray.driver import run as running
    from kvray.driver.export import files

    kind = files.format_of(out, format_)
    planned, base = running.prepare(sweep, set_ or [], base_model, scale, allow_code=allow_code)
    done = files.blend(planned, mixture, seed, frame.open_store(store), base, out, kind)
    parts = ", ".join(f"{part.name}: {len(part.rows)} rows, {part.tokens.sum()} tokens" for part in done.mixture.parts)
    print(f"{done.path}: {parts}; {done.bytes} bytes, sha256 {done.sha256}")


@frame.command
def audit(
    target: Annotated[
        str, typer.Argument(help="A task, such as simple_kv, or a sweep file.", autocompletion=complete.tasks_and_files)
    ],
    rows: Annotated[
        int | None, typer.Option(help="Rows to audit; default 10000 of a task, of a sweep all.", min=1)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The task's seed.")] = None,
    set_: frame.SetOption = None,
    base_model: frame.BaseOption = None,
    scale: frame.ScaleOption = None,
    allow_code: frame.CodeOption = False,
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 1,
    json_: frame.JsonOption = False,
) -> int:
    """Check labels, places, sizes and duplicates by a solver that reads prompts alone. Exit status 1: rows are wrong.

    kvray audit simple_kv --rows 2000

    kvray audit mdqa --set documents=10 --rows 500

    kvray audit sweeps/quickstart.yaml --rows 30
    """
    from kvray.cli import audit as auditing

    if auditing.is_file(target):
        from kvray.models.reference import resolve
        from kvray.sweep.load import read

        if seed is not None:
            raise InputError(f"--seed: found {seed} with the sweep file {target}; type --set SECTION.NAME.seed={seed}")
        loaded = read(target, set_ or [], scale, base_model, allow_code)
        base = resolve(loaded.sweep.base_model, loaded.sweep.tokenizer)
        found = auditing.subjects(loaded.variants)
    else:
        if scale is not None:
            raise InputError(f"--scale: found {scale} with the task {target}; expected a sweep file that has scales")
        rows = rows or auditing.ROWS
        made, base = _task(target, seed, set_ or [], base_model, rows, allow_code)
        found = [auditing.Subject(target, made)]
    done = auditing.audit(found, base, rows, workers)
    print(json.dumps(done.document(), indent=1, ensure_ascii=False) if json_ else done.text())
    return 1 if done.problems() else 0


@frame.command
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
    need("kvray pretrain", "torch", "transformers")
    from kvray.finetune.pretrain.card import write_card
    from kvray.finetune.pretrain.pretrain import Recipe
    from kvray.finetune.pretrain.pretrain import pretrain as train

    recipe = Recipe(seed=seed) if tokens is None else Recipe(seed=seed, tokens=tokens)
    try:
        record = train(out, recipe, device, threads=threads)
    except KeyboardInterrupt:
        raise RunInterrupted(f"interrupted; kept in {out}.state: the last checkpoint, if there is one") from None
    print(write_card(out, recipe, record))


@frame.command
def gc(
    store: frame.StoreOption = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete it; without this, only say what could go.")] = False,
    older_than: Annotated[
        float, typer.Option("--older-than", help="Days for which it has not changed.", min=0.0)
    ] = 1.0,
    forget: Annotated[
        list[str] | None, typer.Option("--forget", help="A sweep to delete from the store; repeatable.")
    ] = None,
    json_: frame.JsonOption = False,
) -> None:
    """Say what of a store can go: what no sweep in it refers to, and what failed and ended runs left there.

    kvray gc

    kvray gc --forget quickstart --older-than 0

    What a live run makes or its sweep refers to stays, and so does the checkpoint of an interrupted finetune. --json
    prints an object: store, deleted, bytes, fresh (how many more have changed since) and garbage (path, why, bytes,
    files of each).
    """
    from kvray.console import count, table
    from kvray.store import garbage

    place = frame.open_store(store)
    place.check(write=delete)
    everything = garbage.find(place, 0.0, forget or ())
    found = [each for each in everything if each.age_s >= older_than * garbage.DAY_S]
    fresh = len(everything) - len(found)
    if delete and found:
        found = garbage.delete(place, found, forget or ())
    total = sum(each.bytes for each in found)
    if json_:
        listed = [{"path": each.path, "why": each.why, "bytes": each.bytes, "files": each.files} for each in found]
        told = {"store": place.uri, "deleted": delete, "bytes": total, "fresh": fresh, "garbage": listed}
        print(json.dumps(told, indent=1))
        return
    if found:
        print(table(["what", "why", "files", "bytes"], [[e.path, e.why, e.files, count(e.bytes)] for e in found]))
    print(f"{len(found)} {'deleted' if delete else 'could go (--delete does it)'}, {count(total)} bytes")
    if fresh:
        days = "the last day" if older_than == 1 else f"the last {older_than:g} days"
        print(f"{fresh} more changed within {days}, and {'stay' if fresh > 1 else 'stays'}: --older-than 0 takes all")


@frame.command
def doctor(
    sweep: Annotated[
        str | None,
        typer.Argument(help="A sweep file: its base model and runtime count.", autocompletion=complete.sweep_files),
    ] = None,
    store: frame.StoreOption = None,
    address: Annotated[str | None, typer.Option(help="A running Ray; default $RAY_ADDRESS, else this machine.")] = None,
    base_model: frame.BaseOption = None,
    scale: frame.ScaleOption = None,
    set_: frame.SetOption = None,
    wait_minutes: Annotated[float, typer.Option(help="For a GPU node to start; 0 starts none.", min=0)] = 15.0,
    json_: frame.JsonOption = False,
) -> int:
    """Look at every node: devices, disks, versions, store, weights. Do it before spending money.

    Where an autoscaler may bring GPU nodes and there is none, one starts first. Exit status 1: a run would be stopped.

    kvray doctor sweeps/paper/mdqa-mistral.yaml --store s3://bucket/kvray --address auto
    """
    need("kvray doctor", "ray")
    from kvray.cli.doctor.check import check
    from kvray.sweep.model import Runtime

    runtime = Runtime()
    if sweep is not None:
        from kvray.sweep.load import read

        loaded = read(sweep, set_ or [], scale, base_model).sweep
        runtime, base_model = loaded.runtime, loaded.base_model
    elif set_ or scale:
        raise InputError("--set, --scale: found them without a sweep file; expected kvray doctor SWEEP --set …")
    runtime = runtime.model_copy(update={"address": address or runtime.address})
    report = check(frame.open_store(store), runtime, base_model, wait_minutes)
    print(json.dumps(asdict(report), indent=1) if json_ else report.text())
    return 1 if report.stops else 0


def _task(
    name: str, seed: int | None, settings: Sequence[str], base_model: str | None, rows: int | None, allow_code: bool
) -> Any:
    from kvray.cli import samples
    from kvray.models.reference import resolve

    task: Task = samples.task_of(name, seed, settings, allow_code)
    return (samples.with_rows(task, rows) if rows else task), resolve(base_model or samples.DEFAULT_BASE)
