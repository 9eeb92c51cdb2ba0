"""Commands to begin with: a new sweep file, and the schema that editors check it by."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from kvray.cli import complete, frame
from kvray.errors import InputError

_BASE = "kvray-tiny"
_TASK = "simple_kv"


@frame.command
def init(
    file: Annotated[str, typer.Argument(help="The file to write.")] = "sweep.yaml",
    task: Annotated[
        list[str] | None,
        typer.Option(help="A task to train on, such as simple_kv; repeatable.", autocompletion=complete.tasks),
    ] = None,
    data: Annotated[str | None, typer.Option(help="JSONL or Parquet of your own to train on, too.")] = None,
    base_model: Annotated[str | None, typer.Option(help="The model to finetune; default kvray-tiny.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs that it takes at a time; 0: on CPUs.", min=0)] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing; take the defaults.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a sweep file to start from, commented. In a terminal it asks for what no option says.

    kvray init new.yaml --task simple_kv --task in2 --yes

    kvray init mistral.yaml --base-model mistralai/Mistral-7B-Instruct-v0.1 --gpus 1 --yes
    """
    place = Path(file)
    if place.exists() and not force:
        raise InputError(f"{file}: is there already; expected a new file, or --force to write over it")
    if not place.parent.is_dir():
        raise InputError(f"{file}: found no folder {place.parent}; expected a file in one that is there")
    if data is not None and "://" not in data and not Path(data).exists():
        raise InputError(f"--data: found no file {data}; expected JSONL or Parquet, with messages or prompt and answer")
    from kvray.models.reference import API
    from kvray.sweep import template
    from kvray.sweep.model import Sweep

    if not yes and sys.stdin.isatty():
        try:
            base_model = base_model or typer.prompt("Model to finetune (kvray-tiny, org/name, a directory)", _BASE)
            if not task and not data:
                known = ", ".join(template.trainable())
                answer = typer.prompt(f"What to train on, with commas between ({known})", _TASK)
                task = [name.strip() for name in answer.split(",") if name.strip()]
            if gpus is None and not base_model.startswith(API):
                gpus = typer.prompt("GPUs at a time (0: on CPUs)", 0, type=int)
        except typer.Abort:
            raise KeyboardInterrupt from None  # as every command ends on Ctrl-C
    if gpus is not None and gpus < 0:
        raise InputError(f"--gpus: found {gpus}; expected 0 or more")
    tasks = task or ([] if data is not None else [_TASK])
    wishes = template.Wishes(template.name_of(file), base_model or _BASE, tasks, gpus, data)
    text = template.sweep_text(wishes)
    Sweep.from_yaml(text)  # a mistake in what was asked for is told before anything is written
    try:
        place.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file}: cannot be written: {error.strerror}") from error
    print(f"{file}: written. kvray plan {file} says what it takes, kvray run {file} runs it")


@frame.command
def schema(
    out: Annotated[str | None, typer.Option("--out", help="The file to write; default the standard output.")] = None,
) -> None:
    """Print the JSON schema of sweep files, by which editors complete keys, explain them and mark mistakes.

    kvray schema --out sweep.schema.json

    Editors with YAML's language server (VS Code's YAML extension, Neovim, Emacs, JetBrains) use it for every sweep file
    that has the line: # yaml-language-server: $schema=sweep.schema.json
    """
    from kvray.sweep.schema import EDITOR_LINE, json_schema

    text = json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"
    if out is None:
        sys.stdout.write(text)
    else:
        try:
            Path(out).write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(f"--out: {out} cannot be written: {error.strerror}") from error
        print(f"{out}: {len(text.encode())} bytes")
    print(f"first line of a sweep file beside it: {EDITOR_LINE.format(out or 'FILE')}", file=sys.stderr)
