"""The whole command line: every verb's parser."""

from __future__ import annotations

import argparse

import captree
from captree.cli import bench, build, change, figures, pairs, query, story
from captree.cli._parser import VerbParser

ABOUT = """\
How many, which, and a fair random draw of your unit vectors lie within this distance of that direction.

captree indexes unit vectors in a tree of spherical caps. A cap is a center and a bound: it holds every
row whose cosine distance 1 - <center, row> is at most the bound. Counts and searches are exact, and
draws are exactly uniform.
"""

START = """\
Start here:
  captree demo                                              the whole story on real data
  captree build words.npy words.captree                     a tree from an (n, d) array
  captree count words.captree --row 17 --max-cos-distance 0.4,0.6
"""


def make_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="captree", description=ABOUT, epilog=START, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"captree {captree.__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb", required=True, parser_class=VerbParser)
    for module in (build, change, query, pairs, bench, figures, story):
        module.add(verbs)
    return parser
