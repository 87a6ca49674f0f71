"""The command line: `one4all`.

Results go to standard output, with `--json` as one document; progress, the route and errors go to
standard error. Exit codes: 0 done, 1 the input was refused, 2 usage.
"""

import atexit
import contextlib
import os
import sys

import typer

from one4all_lc.cli import (  # each adds its commands
    asking,
    bases,
    evaluating,
    folders,
    preferring,
    routing,
    sharing,
    training,
    versions,
)
from one4all_lc.cli.common import app
from one4all_lc.errors import One4AllError

__all__ = [
    "app",
    "asking",
    "bases",
    "evaluating",
    "folders",
    "main",
    "preferring",
    "routing",
    "run",
    "sharing",
    "training",
    "versions",
]


def main() -> None:
    """Run `one4all` and raise SystemExit with its code."""
    try:
        app()
    except One4AllError as error:
        typer.echo(f"one4all: {error}", err=True)
        sys.exit(1)


def run() -> None:
    """Run `one4all` as a process, and leave at once when it is done.

    Python would take the models apart object by object, which takes another two seconds.
    """
    code: object = 1
    try:
        main()
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # nobody reads any more
                stream.flush()
    os._exit(code if isinstance(code, int) else 1)
