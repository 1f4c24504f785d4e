"""The command ``captree``.

Every verb lives in one module of this package: `build` (build, info, verify), `query` (count, search, sample), `pairs`,
`bench`, `figures` (plot) and `story` (demo). A verb returns nothing; what goes wrong is an exception, and :func:`main`
turns that into a line on standard error and an exit status.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
from collections.abc import Sequence

from captree.cli._parser import UsageError
from captree.cli._text import printable
from captree.cli._verbs import make_parser
from captree.errors import CaptreeError, InternalError

__all__ = ["main"]

OK, FAILED, USAGE = 0, 1, 2
INTERRUPTED = 128 + signal.SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (default: ``sys.argv[1:]``) and returns its exit status.

    0: done. 1: an expected failure, told in one line on standard error. 2: a command line that makes no sense.
    130: interrupted. Defects of captree itself are not caught: their traceback is what a report needs.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a text that the terminal cannot show is no reason to stop
    parser = make_parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has printed its help, version or error
        return stop.code if isinstance(stop.code, int) else OK
    try:
        args.run(args)
        sys.stdout.flush()
    except UsageError as error:
        print(f"{args.parser.format_usage()}{args.parser.prog}: error: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        _close_stdout()
        return FAILED
    except InternalError:
        raise
    except (CaptreeError, OSError, MemoryError) as error:
        return _fail(_message(error, args), FAILED)
    return OK


#: What an option would have done about an error, by the name of its argument in Python.
_ADVICE = {"normalize": "--normalize scales rows"}


def _message(error: BaseException, args: argparse.Namespace) -> str:
    """One line: an error in this user's words; a bare operating system error without its number."""
    if isinstance(error, CaptreeError) and (error.parameter or error.advice):
        option = f"--{error.parameter}".replace("_", "-") if error.parameter in vars(args) else error.parameter
        start = f"{option}: " if option else ""
        end = f"; {_ADVICE[error.advice]}" if error.advice in _ADVICE else ""
        text = f"{start}{error.problem}{end}"
    elif isinstance(error, OSError) and not isinstance(error, CaptreeError) and error.strerror:
        place = error.filename2 if error.filename2 is not None else error.filename
        text = f"{place}: {error.strerror}" if place is not None else error.strerror
    elif isinstance(error, MemoryError) and not str(error):
        text = "not enough memory"
    else:
        text = str(error) or type(error).__name__
    return printable(" ".join(text.split()))


def _fail(message: str, status: int) -> int:
    # A progress bar may stand on the line: the message gets its own.
    start = "\n" if status == INTERRUPTED and sys.stderr.isatty() else ""
    print(f"{start}captree: {message}" if status == INTERRUPTED else f"captree: error: {message}", file=sys.stderr)
    return status


def _close_stdout() -> None:
    """The reader has gone (``| head``): lets the interpreter exit without complaining about the unwritten rest."""
    with contextlib.suppress(OSError, ValueError):  # standard output may be no file of the operating system
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
