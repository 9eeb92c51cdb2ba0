"""The command that looks at the machines before money is spent."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from kvray.cli.app import JsonOption, StoreOption, command


@command
def doctor(
    store: StoreOption = None,
    address: Annotated[str | None, typer.Option(help="A running Ray; default $RAY_ADDRESS, else this machine.")] = None,
    json_: JsonOption = False,
) -> int:
    """Look at every node: versions, devices, whether it reaches the store. Do it before spending money.

    kvray doctor --store s3://bucket/kvray --address auto
    """
    from kvray.cli import checkup
    from kvray.driver import run as running

    found = checkup.look(running.store_uri(store), address)
    print(json.dumps(found.document(), indent=1) if json_ else found.text())
    return 1 if found.problems else 0
