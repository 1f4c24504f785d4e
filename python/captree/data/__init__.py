"""Data that comes with captree: 30,000 WordNet synsets as unit vectors, and their texts (see ``LICENSES.md``)."""

from dataclasses import dataclass
from importlib.resources import as_file, files

import numpy as np
from numpy.typing import NDArray

__all__ = ["Texts", "wordnet"]


@dataclass(frozen=True)
class Texts:
    """Embedded texts and a few embedded phrases to ask for."""

    vectors: NDArray[np.float32]
    """(n, d) unit rows."""
    texts: list[str]
    """The text of every row, "words: gloss"."""
    queries: list[str]
    """Phrases."""
    query_centers: NDArray[np.float32]
    """(q, d) unit vectors of the phrases, by the same encoder."""

    def query(self, phrase: str) -> NDArray[np.float32]:
        """The (1, d) center of one of :attr:`queries`."""
        return self.query_centers[[self.queries.index(phrase)]]


def wordnet(rows: int | None = None) -> Texts:
    """30,000 WordNet 3.0 synsets embedded by all-MiniLM-L6-v2 (d = 384), or `rows` of them spread over all subjects."""
    with as_file(files(__name__) / "wordnet30k.npz") as path, np.load(path) as file:
        codes, lines = file["codes"], _lines(file["texts"])
        queries, centers = _lines(file["query_texts"]), file["query_centers"]
    if rows is not None and rows < len(codes):
        chosen = np.linspace(0, len(codes) - 1, rows).round().astype(np.int64)
        codes, lines = codes[chosen], [lines[i] for i in chosen]
    # Rows are stored as int8 directions; dividing by the length gives the unit vector back.
    vectors = codes.astype(np.float32)
    vectors /= np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))[:, None].astype(np.float32)
    return Texts(vectors, lines, queries, centers)


def _lines(data: NDArray[np.uint8]) -> list[str]:
    return data.tobytes().decode("utf-8").split("\n")
