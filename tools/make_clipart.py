"""Makes the clip-art set of the study again: about 10,000 pictures of 64x64 with captions, from Debian packages.

    openclipart-png             public domain; captions from titles or file names, keywords from folders
    fonts-noto-color-emoji      SIL Open Font License 1.1, with the names of unicode-cldr-core (Unicode License)
    tuxpaint-stamps-default     GPL-2; captions from the stamps' English descriptions; not to be shipped with genmodel

    python tools/make_clipart.py --out genmodel/studies/out/clipart64.parquet
    python tools/make_clipart.py --debs FOLDER      # takes .deb files that lie there instead of apt-get download

Needs Pillow with Raqm, pyarrow, apt-get and dpkg-deb; with resvg-py (PyPI) the stamps that exist only as SVG are drawn
too. Columns: `png` (bytes, RGB on white), `source`, `caption`, `keywords`. Pictures that come out the same are kept
once, with the keywords of all.
"""

from __future__ import annotations

import argparse
import io
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from make_emoji import FONT, FONT_SIZE, PACKAGES, as_bytes, draw, on_white, read_names, unpacked

CLIPART = "usr/share/openclipart/png"
STAMPS = "usr/share/tuxpaint/stamps"
SIZE = 64
MOST_PER_TITLE = 8
OUT = Path(__file__).resolve().parent.parent / "genmodel/studies/out/clipart64.parquet"

Item = tuple[bytes, str, str, list[str]]


def openclipart(root: Path) -> Iterator[Item]:
    """The pictures of openclipart-png, but for 1,375 generated stars that are hard to tell apart."""
    from PIL import Image

    folder = root / CLIPART
    paths = [path for path in sorted(folder.rglob("*.png")) if path.parent != folder / "shapes" / "stars"]
    titles = {}
    for path in paths:
        try:
            with Image.open(path) as image:
                titles[path] = _clean(str(image.info.get("Title", "")))
        except Image.DecompressionBombError:  # some are hundreds of megapixels
            continue
    common = Counter(titles.values())
    for path, title in titles.items():
        with Image.open(path) as image:
            picture = on_white(image, SIZE)
        keywords = [part.replace("-", "_") for part in path.relative_to(folder).parts[:-1] if part != "unsorted"]
        if not _is_blank(picture):
            # A title of many pictures names the collection, not the picture.
            caption = title if title and common[title] <= MOST_PER_TITLE else _clean(path.stem)
            yield as_bytes(picture, "PNG"), "openclipart", caption, keywords


def emoji(root: Path) -> Iterator[Item]:
    """Every emoji that the font has one picture for."""
    from PIL import ImageFont

    font = ImageFont.truetype(root / FONT, FONT_SIZE)
    for one in read_names(root):
        picture = draw(font, one.text)
        if picture is not None:
            yield as_bytes(on_white(picture, SIZE), "PNG"), "emoji", one.name, list(one.keywords)


def tuxpaint(root: Path) -> Iterator[Item]:
    """Every stamp with an English description."""
    from PIL import Image

    folder = root / STAMPS
    for text in sorted(folder.rglob("*.txt")):
        picture = text.with_suffix(".png")
        drawing = text.with_suffix(".svg")
        if picture.is_file():
            with Image.open(picture) as image:
                small = on_white(image, SIZE)
        elif drawing.is_file() and (data := _from_svg(drawing)) is not None:
            with Image.open(io.BytesIO(data)) as image:
                small = on_white(image, SIZE)
        else:
            continue
        lines = text.read_text("utf-8", errors="replace").splitlines()
        if lines and lines[0].strip() and not _is_blank(small):
            yield as_bytes(small, "PNG"), "tuxpaint", lines[0].strip(), []


def _from_svg(path: Path) -> bytes | None:
    try:
        import resvg_py
    except ImportError:
        return None
    try:
        return bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=256))
    except (ValueError, RuntimeError, OSError):
        return None


def _clean(title: str) -> str:
    """A title without markup, author and running number; empty where it says nothing."""
    title = re.sub(r"&(\w+|#\d+);", " ", title)
    # Such as "Clipart by Nicu Buculei - arrow08_4".
    title = re.sub(r"(?i)^clip ?art by [^-]+-\s*", "", title).strip()
    if re.fullmatch(r"(?i)(untitled|drawing|new document|clip ?art|title)[\s\d]*", title):
        return ""
    title = re.sub(r"(?i)\.(svg|png)$", "", title).replace("_", " ")
    title = re.sub(r"\s*\d+\s*$", "", title) or title
    return " ".join(title.split())


def _is_blank(picture: Any) -> bool:
    low, high = picture.convert("L").getextrema()
    return bool(high - low < 24)


def main() -> None:
    """Writes the set."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--debs", type=Path, help="folder with the packages' .deb files")
    settings = parser.parse_args()
    rows: dict[bytes, dict[str, Any]] = {}
    with unpacked((*PACKAGES, "openclipart-png", "tuxpaint-stamps-default"), settings.debs) as root:
        for items in (openclipart(root), emoji(root), tuxpaint(root)):
            for png, source, caption, keywords in items:
                row = rows.setdefault(png, {"png": png, "source": source, "caption": caption, "keywords": []})
                row["keywords"] += [word for word in keywords if word not in row["keywords"]]
    schema = pa.schema(
        [("png", pa.binary()), ("source", pa.string()), ("caption", pa.string()), ("keywords", pa.list_(pa.string()))]
    )
    table = pa.Table.from_pylist(list(rows.values()), schema)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, settings.out)
    counts = {source: table["source"].to_pylist().count(source) for source in ("openclipart", "emoji", "tuxpaint")}
    print(f"{len(table)} pictures {counts}, {len(set(table['caption'].to_pylist()))} captions: {settings.out}")


if __name__ == "__main__":
    main()
