"""The command that takes a finetune or data out of a store, as files for other programs."""

import json
from typing import Annotated

import typer

from kvray.cli import frame
from kvray.errors import InputError


@frame.command
def export(
    what: Annotated[
        str,
        typer.Argument(
            help="A finetune: SWEEP/MIXTURE[/SEED]. Data: SWEEP/datasets/NAME, SWEEP/mixtures/NAME. Or an id."
        ),
    ],
    out: Annotated[str, typer.Option("--out", help="Directory to write; empty, or not there yet.")],
    merged: Annotated[bool, typer.Option("--merged", help="A whole model, the adapter merged into its base.")] = False,
    format_: Annotated[
        str | None,
        typer.Option("--format", help="Of data: examples (all columns), messages, prompt-completion or openai."),
    ] = None,
    file_type: Annotated[
        str | None, typer.Option(help="Of data: parquet or jsonl; default parquet for examples, else jsonl.")
    ] = None,
    push: Annotated[str | None, typer.Option("--push", help="ORG/NAME of the Hugging Face hub to upload to.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Make that repository public; default private.")] = False,
    base_id: Annotated[
        str | None, typer.Option(help="ORG/NAME of the hub that has the base, if the sweep names a directory.")
    ] = None,
    dataset_id: Annotated[
        list[str] | None, typer.Option(help="ORG/NAME of the hub with its training data, for the card; repeatable.")
    ] = None,
    license_: Annotated[
        str | None, typer.Option("--license", help="Of data, or of a base that names none, for the card.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export in the directory.")] = False,
    store: frame.StoreOption = None,
    base_model: Annotated[
        str | None, typer.Option("--base-model", help="Where the base model is now, if not where the sweep says.")
    ] = None,
    json_: frame.JsonOption = False,
) -> None:
    """Write a finetune or data of a store to a folder, with a card that says what it is, how it was made and scored.

    kvray export quickstart/in2 --out /tmp/in2-adapter

    kvray export quickstart/datasets/in2 --out /tmp/in2-data --format messages

    SWEEP/NAME alone is the finetune on that mixture, with --format the data of that name. --json prints an object:
    path, what, id, about, files (bytes by name), notes, url.
    """
    from pathlib import Path
    from typing import get_args

    from kvray.console import count
    from kvray.driver.export import formats
    from kvray.driver.export.export import Options
    from kvray.driver.export.export import export as write

    wrong = []
    for name, value, known in (("--format", format_, formats.Columns), ("--file-type", file_type, formats.Encoding)):
        if value is not None and value not in get_args(known):
            wrong.append(f"{name}: found {value!r}; expected {', '.join(get_args(known))}")
    if "://" in out:
        wrong.append(f"--out: found {out}; expected a directory of this machine")
    if wrong:
        raise InputError(wrong)
    options = Options(
        merged=merged,
        columns=format_,  # type: ignore[arg-type]  # checked above
        encoding=file_type,  # type: ignore[arg-type]
        push=push,
        public=public,
        force=force,
        base_model=base_model,
        base_id=base_id,
        dataset_ids=tuple(dataset_id or ()),
        license=license_,
    )
    done = write(frame.open_store(store), what, Path(out).expanduser(), options)
    if json_:
        print(json.dumps(done.document(), indent=1, ensure_ascii=False))
        return
    print(f"{done.path}: {done.about}; {len(done.files)} files, {count(sum(done.files.values()))} bytes ({done.id})")
    print(f"card: {Path(done.path) / 'README.md'}")
    for note in done.notes:
        print(f"note: {note}")
    if done.url:
        print(f"pushed: {done.url} ({'public' if public else 'private'})")
