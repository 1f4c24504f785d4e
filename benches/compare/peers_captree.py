"""captree itself: exact, and the published two-stage sampler."""

from pathlib import Path

import numpy as np

import captree
from benches.compare.peers import Bounds, Floats, Peer, Rows, Unsupported, load


class Exact(Peer):
    name = "captree"
    module = "captree"
    install = "captree"
    note = "exact"
    sampler = True

    def build(self, vectors: Path) -> None:
        # The vectors are float16 values; said so, they are within float16's tolerance of unit length.
        self.tree = captree.build(load(vectors).astype(np.float16), storage="float16", threads=self.threads)

    def count(self, centers: Floats, bounds: Bounds) -> Rows:
        return self.tree.count(captree.Caps(centers, bounds), threads=self.threads)

    def search(self, centers: Floats, bounds: Bounds) -> list[Rows]:
        caps = captree.Caps(centers, bounds)
        return [rows for rows, _ in self.tree.search(caps, distances=None, threads=self.threads)]

    def sample(self, centers: Floats, bounds: Bounds, k: int, seed: int) -> Rows:
        return self.tree.sample(captree.Caps(centers, bounds), k=k, seed=seed, threads=self.threads)

    def nearest(self, queries: Floats, k: int) -> Rows:
        return self.tree.nearest(queries, k, threads=self.threads).rows


class Approximate(Exact):
    name = "captree-approximate"
    note = 'sample(method="approximate"): density estimates at the root\'s children, biased'

    def count(self, centers: Floats, bounds: Bounds) -> Rows:
        raise Unsupported("only samples")

    def search(self, centers: Floats, bounds: Bounds) -> list[Rows]:
        raise Unsupported("only samples")

    def sample(self, centers: Floats, bounds: Bounds, k: int, seed: int) -> Rows:
        caps = captree.Caps(centers, bounds)
        return self.tree.sample(caps, k=k, method="approximate", seed=seed, threads=self.threads)

    def nearest(self, queries: Floats, k: int) -> Rows:
        raise Unsupported("only samples")
