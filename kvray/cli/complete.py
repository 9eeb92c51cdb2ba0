"""What the shell completes where a command takes a sweep, a stored sweep's name, or a task."""

from __future__ import annotations

import os
from pathlib import Path

import typer

_MOST = 200  # files; a completion that lists more helps nobody
_SUFFIXES = (".yaml", ".yml")


def sweep_files(incomplete: str) -> list[str]:
    """Return sweep files whose path begins so, those in folders below included; hidden folders are left out."""
    above, found = os.path.dirname(incomplete), list[str]()
    for folder, folders, files in os.walk(above or "."):
        shown = os.path.join(folder, "")
        shown = shown if above else shown.removeprefix("./")  # as the user began to type it
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and name not in ("store", "build") and _may(f"{shown}{name}/", incomplete)
        )
        paths = (f"{shown}{name}" for name in sorted(files) if name.endswith(_SUFFIXES))
        found += [path for path in paths if path.startswith(incomplete)]
        if len(found) >= _MOST:
            break
    return found[:_MOST]


def stored_sweeps(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of sweeps in the store (a folder of this machine) and sweep files that begin so."""
    store = context.params.get("store") or os.environ.get("KVRAY_STORE") or "store"
    documents = Path(store, "sweeps").glob("*.json") if "://" not in store else ()
    names = sorted(path.stem for path in documents if path.stem.startswith(incomplete))
    return [*names, *sweep_files(incomplete)]


def mixtures(context: typer.Context, incomplete: str) -> list[str]:
    """Return the mixtures of the sweep file that was typed before, by name."""
    from kvray.errors import KvrayError
    from kvray.sweep.load import load

    try:
        names = load(str(context.params.get("sweep"))).mixtures
    except KvrayError:
        return []  # what is wrong with the file is told when the command runs
    return [name for name in names if name.startswith(incomplete)]


def tasks(incomplete: str) -> list[tuple[str, str]]:
    """Return the names of tasks that begin so, each with what it asks."""
    from kvray.tasks import load_all
    from kvray.tasks.base import REGISTRY

    load_all()
    told = {name: " ".join((cls.__doc__ or "").split("\n\n")[0].split()) for name, cls in REGISTRY.items()}
    return [(name, told[name]) for name in sorted(told) if name.startswith(incomplete)]


def tasks_and_files(incomplete: str) -> list[str | tuple[str, str]]:
    """Return tasks and sweep files that begin so, for commands that take either."""
    return [*tasks(incomplete), *sweep_files(incomplete)]


def _may(folder: str, incomplete: str) -> bool:
    return folder.startswith(incomplete) or incomplete.startswith(folder)
