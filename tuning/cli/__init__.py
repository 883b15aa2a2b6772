"""The command `lipsum-tune`.

Exit status: 0 done; 1 a trial or a training of `confirm` failed, or a zero-shot accuracy is off;
2 the configuration cannot run; 70 an error that this package did not foresee; 75 storage failed,
Ray was lost or did not start in time, or many trials failed in a row, and the search may continue
later; 130 interrupted.
"""

from __future__ import annotations

import atexit
import gc
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import version
from types import SimpleNamespace
from typing import Annotated, Any

import typer

# Each module adds its commands, in the order of the help.
from tuning.cli import data, search, export, runs  # noqa: F401  # isort: skip
from tuning.cli.options import app as app
from tuning.process import GC_THRESHOLD

_shown = SimpleNamespace(debug=False)
"""What the options of all commands ask for."""


def _print_version(asked: bool) -> None:
    if asked:
        print(f"lipsum-tune {version('lipsum-tune')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error as well.")
    ] = False,
) -> None:
    """Search the hyperparameters of robust fine-tuning (Lipsum-FT) of CLIP."""
    _shown.debug = debug


def main() -> None:
    """Run the command that the user wrote."""
    gc.set_threshold(GC_THRESHOLD)
    # At its end, Python collects garbage. Frozen objects, here all imported ones, are left out.
    atexit.register(gc.freeze)
    run_command(app)


def run_command(command: Callable[[], Any]) -> None:
    """Run a command. Every error is one line; `--debug` shows its traceback as well."""
    from trainers.errors import (
        DENIED,
        FULL,
        MAY_CONTINUE,
        UNEXPECTED,
        WRONG_PATH,
        ConfigError,
        MayContinue,
        first_line,
        shortened,
        where_and_why,
    )
    from trainers.redact import redact

    try:
        command()
    except typer.Exit as ended:
        raise SystemExit(ended.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        if isinstance(error, ConfigError):
            text, status = str(error), 2
        elif isinstance(error, MayContinue):
            text, status = str(error), MAY_CONTINUE
        elif isinstance(error, OSError) and error.errno in FULL | DENIED:
            text, status = where_and_why(error), MAY_CONTINUE
        elif isinstance(error, OSError) and error.errno in WRONG_PATH:
            text, status = where_and_why(error), 2
        elif isinstance(error, RecursionError):
            text, status = "a key or a file is nested too deeply", 2
        elif isinstance(error, RuntimeError) and "home directory" in str(error):
            text, status = "a path begins with ~ and the name of no user", 2
        else:
            what = shortened(redact(first_line(error)))
            text = f"{type(error).__name__}: {what} (--debug shows the traceback)"
            status = UNEXPECTED
        if _shown.debug:
            traceback.print_exc()
        print(f"lipsum-tune: {redact(text)}", file=sys.stderr)
        raise SystemExit(status) from None
