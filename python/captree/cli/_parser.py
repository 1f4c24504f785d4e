"""What the verbs' parsers are made of: the parser class, and the arguments that several verbs share."""

from __future__ import annotations

import argparse
from typing import Any, Protocol


class UsageError(Exception):
    """A command line that parses and still makes no sense; exit status 2."""


class Verbs(Protocol):
    """What ``add_subparsers`` returns, as far as verbs need it."""

    def add_parser(self, name: str, **kwargs: Any) -> argparse.ArgumentParser: ...


class VerbParser(argparse.ArgumentParser):
    """A verb's arguments, options and positionals in any order.

    Left to itself, argparse takes ``count TREE -d 0.5 CENTERS`` for a line without CENTERS and one word too many.
    """

    _inside = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in ArgumentParser, but by way of ``parse_known_intermixed_args``, which may call this method in turn."""
        if self._inside:
            return super().parse_known_args(args, namespace)
        self._inside = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._inside = False


def verb(verbs: Verbs, name: str, run: Any, about: str, examples: str, more: str = "") -> argparse.ArgumentParser:
    """Adds a verb; `examples` are command lines, one a line, with a comment after two spaces where it helps."""
    epilog = "Examples:\n" + "".join(f"  {line.strip()}\n" for line in examples.strip().splitlines())
    parser = verbs.add_parser(
        name,
        help=about[0].lower() + about[1:].rstrip("."),
        description=about + ("\n\n" + more.strip() if more else ""),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, parser=parser)
    return parser


def add_tree(parser: argparse.ArgumentParser) -> None:
    """The positional TREE."""
    parser.add_argument("tree", metavar="TREE", help="a tree made by captree build")


def add_vectors(parser: argparse.ArgumentParser) -> None:
    """--column, --normalize, --invalid: how vectors are read that make a tree or become a part of one."""
    parser.add_argument("--column", metavar="C", help="the column of vectors (default: the only one there is)")
    parser.add_argument("--normalize", action="store_true", help="scale every row to unit length")
    parser.add_argument(
        "--invalid",
        choices=("error", "skip"),
        default="error",
        help="what becomes of rows that are not finite, zero, not unit or null: an error, or they are skipped (error)",
    )


def add_memory_limit(parser: argparse.ArgumentParser) -> None:
    """--memory-limit."""
    parser.add_argument(
        "--memory-limit", metavar="BYTES", help="most memory to use, such as 8GiB (default: half of what is free)"
    )


def add_seed(parser: argparse.ArgumentParser | argparse._ArgumentGroup, default: int | None, help: str) -> None:
    """--seed."""
    parser.add_argument("--seed", type=whole, default=default, metavar="S", help=help)


def add_threads(parser: argparse.ArgumentParser) -> None:
    """--threads."""
    parser.add_argument("--threads", type=positive, metavar="T", help="threads to use (default: every core)")


def add_texts(parser: argparse.ArgumentParser, what: str) -> None:
    """--texts and --text-column."""
    parser.add_argument(
        "--texts",
        metavar="FILE",
        help=f"{what}: a text file with a line per row, Parquet or Arrow with a column of texts; or a folder of these",
    )
    parser.add_argument("--text-column", metavar="C", help="the column of texts (default: text or caption)")


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """--quiet."""
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")


def whole(text: str) -> int:
    """An integer of 0 or more."""
    return _integer(text, 0)


def positive(text: str) -> int:
    """An integer of 1 or more; ``100_000`` and ``100000`` are the same."""
    return _integer(text, 1)


def _integer(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an integer, got {text!r}") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"expected an integer of at least {least}, got {value}")
    return value


def whole_list(text: str) -> list[int]:
    """Integers of 0 or more, separated by commas."""
    return [whole(part) for part in text.split(",")]


def number_list(text: str) -> list[float]:
    """Numbers separated by commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers separated by commas, got {text!r}") from None
