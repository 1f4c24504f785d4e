"""captree plot."""

from __future__ import annotations

import argparse
from pathlib import Path

import captree
from captree.cli import _text as text
from captree.cli._caps import add_caps, read_caps
from captree.cli._files import read_texts
from captree.cli._parser import UsageError, Verbs, add_json, add_texts, add_threads, add_tree, verb
from captree.errors import StorageError

FIGURES = ("tree", "selectivity", "map")


def add(verbs: Verbs) -> None:
    """Adds the verb."""
    parser = verb(
        verbs,
        "plot",
        plot,
        "Draw a tree: its shape, the selectivity of caps, a map of the root's children.",
        """
        captree plot words.captree plots
        captree plot words.captree plots --format svg --texts words.txt
        captree plot words.captree overview.png
        captree plot words.captree selectivity.png --figure selectivity caps.parquet
        captree plot words.captree map.png --figure map --texts words.txt
        """,
        """
A folder gets one file per figure: tree (rows and radii by depth), selectivity (share of rows inside caps, by
decade, with empty caps apart) and map (the root's children in two dimensions: size by rows, colour by bound).
A file name gets all three in one picture, or the one named by --figure. Needs pip install 'captree[plot]'.
Without caps, the selectivity is that of 2,000 training caps.
        """,
    )
    add_tree(parser)
    parser.add_argument("out", metavar="OUT", help="a .png or .svg file, or a folder")
    parser.add_argument("--figure", choices=FIGURES, help="draw this one only")
    parser.add_argument("--format", choices=("png", "svg"), default="png", help="of the files in a folder (png)")
    add_texts(parser, "a text per row, to name the children on the map")
    add_caps(parser)
    add_threads(parser)
    add_json(parser)


def plot(args: argparse.Namespace) -> None:
    """Draws and saves."""
    from captree import plot as draw

    out = Path(args.out)
    if out.suffix not in ("", ".png", ".svg") and not out.is_dir():
        raise UsageError(f"{out}: expected a file name that ends in .png or .svg, or a folder")
    draw.require_matplotlib()
    tree = captree.open(args.tree)
    texts = read_texts(args, len(tree))
    single = out.suffix in (".png", ".svg") and not out.is_dir()
    wanted = (args.figure,) if args.figure else FIGURES
    caps = read_caps(args, tree, training=2000) if "selectivity" in wanted else None

    if single and args.figure is None and caps is not None:
        figures = {out: draw.draw_overview(tree, caps.caps, texts=texts, threads=args.threads)}
    else:
        folder = out.parent if single else out
        if not single:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except FileExistsError:
                raise StorageError(f"{folder}: expected a folder, got a file") from None
        figures = {}
        for name in wanted:
            path = out if single else folder / f"{name}.{args.format}"
            if name == "tree":
                figures[path] = draw.draw_tree(tree)
            elif name == "map":
                figures[path] = draw.draw_map(tree, texts=texts)
            elif caps is not None:
                figures[path] = draw.draw_selectivity(tree, caps.caps, threads=args.threads)
    for path, figure in figures.items():
        draw.save(figure, path)
    if args.json:
        text.print_json({"tree": args.tree, "written": [str(path) for path in figures]})
    else:
        for path in figures:
            print(f"written: {path}")
