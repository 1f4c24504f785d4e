"""Index libraries, each at the settings its own documentation recommends."""

from pathlib import Path
from typing import Any

import numpy as np

from benches.compare.peers import Bounds, Floats, Peer, Rows, draw_from, load

MATRIX_BATCH = 64
MATRIX_LEAST = 16
"""FAISS has one radius per call. Its matrix product beats its loop from about this many queries on; by default it waits
for 128,000 coordinates, which is 167 queries of 768."""


class Faiss(Peer):
    """Range searches are grouped by bound: a group is asked with its loosest bound, then cut to each cap's own."""

    module = "faiss"
    install = "faiss-cpu"

    def setup(self) -> None:
        import faiss

        faiss.omp_set_num_threads(self.threads)
        self.faiss = faiss

    def build(self, vectors: Path) -> None:
        given = load(vectors)
        self.faiss.cvar.distance_compute_blas_threshold = MATRIX_LEAST * given.shape[1]
        self.index = self.make(given)
        if not self.index.is_trained:
            self.index.train(given)
        self.index.add(given)

    def make(self, given: Floats) -> Any:
        raise NotImplementedError

    def search(self, centers: Floats, bounds: Bounds) -> list[Rows]:
        least = (1.0 - bounds).astype(np.float32)
        found: list[Rows] = [np.empty(0, np.int64)] * len(centers)
        order = np.argsort(bounds, kind="stable")
        for start in range(0, len(order), MATRIX_BATCH):
            group = order[start : start + MATRIX_BATCH]
            # range_search keeps products above its radius; a cap is closed.
            loosest = float(np.nextafter(least[group].min(), np.float32(-2)))
            limits, products, rows = self.index.range_search(centers[group], loosest)
            for i, cap in enumerate(group):
                part = slice(int(limits[i]), int(limits[i + 1]))
                found[cap] = rows[part][products[part] >= least[cap]]
        return found

    def count(self, centers: Floats, bounds: Bounds) -> Rows:
        return np.array([len(rows) for rows in self.search(centers, bounds)], dtype=np.int64)

    def sample(self, centers: Floats, bounds: Bounds, k: int, seed: int) -> Rows:
        return draw_from(self.search(centers, bounds), k, seed)

    def nearest(self, queries: Floats, k: int) -> Rows:
        return np.asarray(self.index.search(queries, k)[1], dtype=np.int64)


class FaissFlat(Faiss):
    name = "faiss-flat"
    note = f"IndexFlatIP.range_search, {MATRIX_BATCH} caps of near bounds a call"

    def make(self, given: Floats) -> Any:
        return self.faiss.IndexFlatIP(given.shape[1])


class FaissPanorama(Faiss):
    name = "faiss-panorama"
    note = "IndexFlatIPPanorama, 8 levels of principal coordinates: partial products, Cauchy-Schwarz on the rest"

    def make(self, given: Floats) -> Any:
        dim = given.shape[1]
        levels = next(levels for levels in (8, 4, 2, 1) if dim % levels == 0)
        # Inner products stay only if nothing is centered: rows and their negatives have mean zero.
        rotation, sample = self.faiss.PCAMatrix(dim, dim), given[:: max(1, len(given) // 50_000)]
        rotation.train(np.concatenate([sample, -sample]))
        return self.faiss.IndexPreTransform(rotation, self.faiss.IndexFlatIPPanorama(dim, levels))


class FaissIvfAll(Faiss):
    name = "faiss-ivf-all"
    note = "IndexIVFFlat, 4 sqrt(n) lists, all of them probed"
    probed = 1.0

    def make(self, given: Floats) -> Any:
        lists = max(1, min(len(given) // 40, int(4 * np.sqrt(len(given)))))
        quantizer = self.faiss.IndexFlatIP(given.shape[1])
        index = self.faiss.IndexIVFFlat(quantizer, given.shape[1], lists, self.faiss.METRIC_INNER_PRODUCT)
        index.cp.spherical = True
        index.nprobe = max(1, round(lists * self.probed))
        return index


class FaissIvfTenth(FaissIvfAll):
    name = "faiss-ivf-10%"
    note = "IndexIVFFlat, 4 sqrt(n) lists, a tenth of them probed; approximate"
    probed = 0.1


class FaissHnsw(Faiss):
    name = "faiss-hnsw"
    note = "IndexHNSWFlat, M=32, efConstruction=80, efSearch=128; approximate"

    def make(self, given: Floats) -> Any:
        index = self.faiss.IndexHNSWFlat(given.shape[1], 32, self.faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 80
        index.hnsw.efSearch = 128
        return index


def euclidean(bounds: Bounds) -> Bounds:
    """The chord that belongs to a cosine distance, for unit vectors."""
    return np.sqrt(2.0 * bounds)


class SklearnBallTree(Peer):
    name = "sklearn-balltree"
    module = "sklearn"
    install = "scikit-learn"
    note = "Euclidean on unit vectors, leaf_size=64; one thread; as far off at the bound as rows are from unit length"
    slow = True

    def setup(self) -> None:
        from sklearn.neighbors import BallTree

        self.make = BallTree

    def build(self, vectors: Path) -> None:
        self.tree = self.make(load(vectors), leaf_size=64)

    def count(self, centers: Floats, bounds: Bounds) -> Rows:
        return np.asarray(self.tree.query_radius(centers, euclidean(bounds), count_only=True), dtype=np.int64)

    def search(self, centers: Floats, bounds: Bounds) -> list[Rows]:
        return list(self.tree.query_radius(centers, euclidean(bounds)))

    def sample(self, centers: Floats, bounds: Bounds, k: int, seed: int) -> Rows:
        return draw_from(self.search(centers, bounds), k, seed)

    def nearest(self, queries: Floats, k: int) -> Rows:
        return np.asarray(self.tree.query(queries, k)[1], dtype=np.int64)


class ScipyKdTree(Peer):
    name = "scipy-ckdtree"
    module = "scipy"
    install = "scipy"
    note = "Euclidean on unit vectors, leafsize=64; as far off at the bound as rows are from unit length"
    slow = True

    def setup(self) -> None:
        from scipy.spatial import cKDTree

        self.make = cKDTree

    def build(self, vectors: Path) -> None:
        self.tree = self.make(load(vectors), leafsize=64)

    def count(self, centers: Floats, bounds: Bounds) -> Rows:
        found = self.tree.query_ball_point(centers, euclidean(bounds), workers=self.threads, return_length=True)
        return np.asarray(found, dtype=np.int64)

    def search(self, centers: Floats, bounds: Bounds) -> list[Rows]:
        found = self.tree.query_ball_point(centers, euclidean(bounds), workers=self.threads)
        return [np.asarray(rows, dtype=np.int64) for rows in found]

    def sample(self, centers: Floats, bounds: Bounds, k: int, seed: int) -> Rows:
        return draw_from(self.search(centers, bounds), k, seed)

    def nearest(self, queries: Floats, k: int) -> Rows:
        return np.asarray(self.tree.query(queries, k, workers=self.threads)[1], dtype=np.int64).reshape(-1, k)


class Usearch(Peer):
    name = "usearch"
    module = "usearch"
    install = "usearch"
    note = "HNSW, connectivity 32, expansion 128/64, f32; nearest only; approximate"

    def setup(self) -> None:
        from usearch.index import Index

        self.make = Index

    def build(self, vectors: Path) -> None:
        given = load(vectors)
        self.index = self.make(
            ndim=given.shape[1], metric="ip", dtype="f32", connectivity=32, expansion_add=128, expansion_search=64
        )
        self.index.add(np.arange(len(given)), given, threads=self.threads)

    def nearest(self, queries: Floats, k: int) -> Rows:
        found = self.index.search(queries, k, threads=self.threads)
        return np.asarray(found.keys, dtype=np.int64).reshape(len(queries), -1)
