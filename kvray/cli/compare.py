"""The command kvray compare: two sweeps side by side."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from kvray.cli import frame
from kvray.errors import InputError


@frame.command
def compare(
    a: Annotated[str, typer.Argument(help="The name of a sweep that was run, or its file: the reference.")],
    b: Annotated[str | None, typer.Argument(help="The other one; default A's name, in the store of --store-b.")] = None,
    store: frame.StoreOption = None,
    store_b: Annotated[str | None, typer.Option("--store-b", help="The store of B, if it is another one.")] = None,
    pair: Annotated[
        list[str] | None, typer.Option("--pair", help="A model of A and its partner in B, OURS=THEIRS; repeatable.")
    ] = None,
    scale: frame.ScaleOption = None,
    allow_code: frame.CodeOption = False,
    out: Annotated[
        str | None, typer.Option("--out", help="Directory or s3:// URI; default under the store of A.")
    ] = None,
    json_: frame.JsonOption = False,
) -> None:
    """Compare two sweeps, of one store or of two, on the examples that both asked; writes a page of its own.

    Models are paired by name, examples one by one, with the statistics of a report: paired differences (B minus A)
    with 95 % intervals, tests and Holm's correction. Cells that both sweeps share are not tested, and what cannot be
    compared is listed with the reason.

    kvray compare quickstart quickstart-rerun --store other-store

    kvray compare quickstart quickstart-rerun --store-b other-store --pair in2=needle --out /tmp/compared

    kvray compare quickstart --store-b other-store

    --json prints an object: a and b (sweep, store, base_model, planned, evaluated), settings (that differ), models and
    evaluations (paired), pairs (a row per comparison), split (the same by position, length and so on), not_compared,
    page (the paths written).
    """
    from kvray.driver import across
    from kvray.report.across.build import write

    if b is None and store_b is None:
        raise InputError(f"found one sweep, {a}; expected two: kvray compare {a} B, or {a} --store-b STORE")
    compared = across.compare(a, b, store, store_b, pair=pair or [], scale=scale, allow_code=allow_code)
    paths = write(compared.comparison, out)
    if json_:
        written = {key: value for key, value in vars(paths).items() if key not in ("page", "summary")}
        print(json.dumps({**compared.document(), "page": written}, indent=1))
    else:
        print("\n".join([*paths.summary, "", f"page: {paths.html}"]))
