"""The command line. Everything heavy is imported inside the commands, so that ``kvray --help`` is quick."""

from kvray.cli import sweeps  # isort: skip  # in the order of --help: what is typed most comes first
from kvray.cli import show  # isort: skip
from kvray.cli import compare  # isort: skip
from kvray.cli import tools  # isort: skip
from kvray.cli import export  # isort: skip
from kvray.cli import begin  # isort: skip
from kvray.cli.frame import app

__all__ = ["app", "begin", "compare", "export", "main", "show", "sweeps", "tools"]


def main() -> None:
    """Entry point of the ``kvray`` command."""
    app()
