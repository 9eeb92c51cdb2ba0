"""The frame of the command line: the application, the shared options, and how errors and Ctrl-C end a command."""

from __future__ import annotations

import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, ParamSpec

import typer

from kvray import __version__
from kvray.errors import InputError, KvrayError, RunInterrupted

if TYPE_CHECKING:
    from kvray.store.store import Store

P = ParamSpec("P")
app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Which synthetic long-context finetuning data makes a language model retrieve better: a sweep, from laptop to "
    "cluster.\n\nStart with: kvray run sweeps/quickstart.yaml",
)
StoreOption = Annotated[
    str | None, typer.Option("--store", help="Path or s3:// URI; default $KVRAY_STORE, else ./store.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="key=value over the file's, the value in YAML; repeatable.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
BaseOption = Annotated[str | None, typer.Option("--base-model", help="Use this base model instead of the file's.")]
ScaleOption = Annotated[str | None, typer.Option("--scale", help="One of the file's scales, such as small.")]
OutOption = Annotated[str, typer.Option("--out", help="The file to write: a path or an s3:// URI.")]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="examples (all columns), messages, prompt-completion or openai; as Parquet or JSON lines by the file's "
        "name. Default: examples in .parquet, messages in .jsonl.",
    ),
]
CodeOption = Annotated[
    bool,
    typer.Option(
        "--allow-code", help="Run Python that comes with the sweep: files beside it, the model's own, task files'."
    ),
]
VerifyOption = Annotated[bool, typer.Option("--verify", help="Check the sha256 of what is committed, too.")]


def command(function: Callable[P, int | None]) -> Callable[P, None]:
    """Register a command: kvray's errors become message and exit status; others are bugs and keep their traceback."""

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
            _leave(f"{interrupt}. To go on: {typed()}")
        except KeyboardInterrupt:
            _leave("interrupted")
        raise typer.Exit(code or 0)

    app.command()(run)
    return run


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit(0)


def open_store(store: str | None) -> Store:
    """Return the store of ``--store``, of the environment, or the default one."""
    from kvray.driver import run

    return run.open_store(store)


def typed() -> str:
    """Return this command as the user can type it again; ``kvray`` alone only where the shell finds this very one."""
    program = Path(sys.argv[0])
    on_path = shutil.which("kvray")
    if program.name == "__main__.py":
        words = [sys.executable, "-m", "kvray.cli"]
    elif on_path is not None and Path(on_path).resolve() == program.resolve():
        words = ["kvray"]
    else:
        words = [sys.argv[0]]
    return shlex.join([*words, *sys.argv[1:]])


def _leave(message: str) -> NoReturn:
    """End on Ctrl-C with the exit status that shells give it. Another Ctrl-C ends the process at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.stderr.isatty():
        print(file=sys.stderr)  # the terminal has echoed ^C
    print(f"kvray: {message}", file=sys.stderr, flush=True)
    raise typer.Exit(128 + signal.SIGINT) from None
