"""captree demo."""

from __future__ import annotations

import argparse

from captree.cli import _story
from captree.cli._parser import Verbs, verb


def add(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = verb(
        verbs,
        "demo",
        demo,
        "Tell the whole story on real data, in about a minute.",
        """
        captree demo
        captree demo --quick --out my-demo
        """,
        """
30,000 WordNet synsets, embedded by a sentence encoder, come with the package. The demo builds a tree from
them, looks at it, counts and samples around a meaning, compares exact, approximate and brute force, writes
training pairs and saves plots. Needs pip install 'captree[plot]'.
        """,
    )
    parser.add_argument("--out", metavar="DIR", default="demo-out", help="folder for what the demo writes (demo-out)")
    parser.add_argument("--quick", action="store_true", help="a fifth of the rows and a tenth of the pairs")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")


def demo(args: argparse.Namespace) -> None:
    """Runs the demo."""
    _story.run(args.out, quick=args.quick, progress=not args.quiet)
