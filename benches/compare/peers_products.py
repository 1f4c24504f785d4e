"""Brute force as good as it gets: matrix products in blocks that stay in cache, and a scan of shuffled rows."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benches.compare.peers import Bounds, Floats, Peer, Rows, Unsupported, draw_from, load

BLOCK = 16_384
SCAN_BLOCK = 4096


class NumpyPeer(Peer):
    module = "threadpoolctl"
    install = "numpy threadpoolctl"

    def setup(self) -> None:
        from threadpoolctl import threadpool_limits

        threadpool_limits(self.threads)


class NumpyProduct(NumpyPeer):
    name = "numpy"
    note = "float32 product in blocks, compare, sum; rows within rounding of the bound may be wrong"

    def build(self, vectors: Path) -> None:
        self.vectors: Floats = load(vectors)

    def count(self, centers: Floats, bounds: Bounds) -> Rows:
        least = (1.0 - bounds).astype(np.float32)
        total = np.zeros(len(centers), dtype=np.int64)
        if len(centers) == 1:
            total[0] = np.count_nonzero(self.vectors @ centers[0] >= least[0])
            return total
        for start in range(0, len(self.vectors), BLOCK):
            # Rows by caps: numpy sums down the columns several times as fast as along short rows.
            total += (self.vectors[start : start + BLOCK] @ centers.T >= least).sum(axis=0)
        return total

    def search(self, centers: Floats, bounds: Bounds) -> list[Rows]:
        least = (1.0 - bounds).astype(np.float32)
        parts: list[list[Rows]] = [[] for _ in centers]
        for start in range(0, len(self.vectors), BLOCK):
            inside = centers @ self.vectors[start : start + BLOCK].T >= least[:, None]
            for i in np.flatnonzero(inside.any(axis=1)):
                parts[i].append(np.flatnonzero(inside[i]) + start)
        return [np.concatenate(part) if part else np.empty(0, np.int64) for part in parts]

    def sample(self, centers: Floats, bounds: Bounds, k: int, seed: int) -> Rows:
        return draw_from(self.search(centers, bounds), k, seed)

    def nearest(self, queries: Floats, k: int) -> Rows:
        best = np.empty((len(queries), 0), dtype=np.float32)
        rows = np.empty((len(queries), 0), dtype=np.int64)
        for start in range(0, len(self.vectors), BLOCK):
            products = queries @ self.vectors[start : start + BLOCK].T
            top = np.argpartition(-products, min(k, products.shape[1]) - 1, axis=1)[:, :k]
            best = np.hstack([best, np.take_along_axis(products, top, axis=1)])
            rows = np.hstack([rows, top + start])
            keep = np.argsort(-best, axis=1, kind="stable")[:, :k]
            best, rows = np.take_along_axis(best, keep, axis=1), np.take_along_axis(rows, keep, axis=1)
        return rows


def quantized(vectors: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Codes of 8 bits, and each row's scale."""
    scale = np.abs(vectors).max(axis=1, keepdims=True) / 127
    return np.rint(vectors / scale).astype(np.int8), scale[:, 0]


class NumpyInt8(NumpyPeer):
    name = "numpy-int8"
    note = "one 8-bit scale per row; codes cast block by block: numpy has no fast product of integers; approximate"

    def build(self, vectors: Path) -> None:
        self.codes, self.scales = quantized(load(vectors))

    def count(self, centers: Floats, bounds: Bounds) -> Rows:
        codes, scales = quantized(centers)
        # Up to 1,040 dims float32 holds sums of such products exactly: they stay below 2^24.
        asked, least = codes.T.astype(np.float32), (1.0 - bounds).astype(np.float32) / scales
        total = np.zeros(len(centers), dtype=np.int64)
        for start in range(0, len(self.codes), BLOCK):
            part = slice(start, start + BLOCK)
            whole = self.codes[part].astype(np.float32) @ asked
            total += (whole * self.scales[part, None] >= least).sum(axis=0)
        return total


class Torch(Peer):
    """Counts by products of the type that a peer keeps its vectors in."""

    module = "torch"
    install = "torch"

    def setup(self) -> None:
        import torch

        self.torch = torch
        torch.set_num_threads(self.threads)

    def build(self, vectors: Path) -> None:
        self.vectors = self.torch.from_numpy(load(vectors))

    def count(self, centers: Floats, bounds: Bounds) -> Rows:
        torch = self.torch
        asked, least = torch.from_numpy(centers), torch.from_numpy((1.0 - bounds).astype(np.float32))
        asked = asked.to(self.vectors.dtype)
        total = torch.zeros(len(centers), dtype=torch.int64)
        for block in self.vectors.split(BLOCK):
            total += ((asked @ block.T) >= least[:, None]).sum(dim=1)
        return np.asarray(total.numpy())


class TorchProduct(Torch):
    name = "torch"
    note = "float32 product in blocks, compare, sum; on the CPU"

    def search(self, centers: Floats, bounds: Bounds) -> list[Rows]:
        torch = self.torch
        asked, least = torch.from_numpy(centers), torch.from_numpy((1.0 - bounds).astype(np.float32))
        caps, rows = [], []
        for i, block in enumerate(self.vectors.split(BLOCK)):
            cap, row = ((asked @ block.T) >= least[:, None]).nonzero(as_tuple=True)
            caps.append(cap)
            rows.append(row + i * BLOCK)
        order = torch.argsort(torch.cat(caps), stable=True)
        sizes = torch.bincount(torch.cat(caps), minlength=len(centers)).tolist()
        return [np.asarray(part.numpy()) for part in torch.cat(rows)[order].split(sizes)]

    def sample(self, centers: Floats, bounds: Bounds, k: int, seed: int) -> Rows:
        return draw_from(self.search(centers, bounds), k, seed)

    def nearest(self, queries: Floats, k: int) -> Rows:
        torch = self.torch
        asked = torch.from_numpy(queries)
        best = [(asked @ block.T).topk(min(k, len(block)), dim=1) for block in self.vectors.split(BLOCK)]
        starts = [torch.full((1,), i * BLOCK) for i in range(len(best))]
        values = torch.cat([part.values for part in best], dim=1)
        rows = torch.cat([part.indices + start for part, start in zip(best, starts, strict=True)], dim=1)
        return np.asarray(rows.gather(1, values.topk(k, dim=1).indices).numpy())


class TorchInt8(Torch):
    name = "torch-int8"
    note = "one 8-bit scale per row, torch._int_mm; approximate"

    def build(self, vectors: Path) -> None:
        self.codes: Any
        self.codes, self.scales = map(self.torch.from_numpy, quantized(load(vectors)))

    def count(self, centers: Floats, bounds: Bounds) -> Rows:
        least = self.torch.from_numpy((1.0 - bounds).astype(np.float32))[:, None]
        codes, scales = map(self.torch.from_numpy, quantized(centers))
        total = np.zeros(len(centers), dtype=np.int64)
        for start in range(0, len(self.codes), BLOCK):
            part = slice(start, start + BLOCK)
            try:
                whole = self.torch._int_mm(codes, self.codes[part].T)
            except RuntimeError as error:
                raise Unsupported(f"torch._int_mm: {error}") from error
            total += (whole * (scales[:, None] * self.scales[part]) >= least).sum(dim=1).numpy()
        return total


class TorchBfloat16(Torch):
    name = "torch-bfloat16"
    note = "vectors, centers and products in bfloat16; approximate"

    def build(self, vectors: Path) -> None:
        super().build(vectors)
        self.vectors = self.vectors.bfloat16()


class NumKongInt8(NumpyPeer):
    name = "numkong-int8"
    module = "numkong"
    install = "numkong threadpoolctl"
    note = "one 8-bit scale per row, dots_packed with rows divided among threads; approximate"

    def setup(self) -> None:
        super().setup()
        import numkong

        self.numkong = numkong
        self.pool = ThreadPoolExecutor(self.threads)

    def build(self, vectors: Path) -> None:
        self.codes, self.scales = quantized(load(vectors))

    def count(self, centers: Floats, bounds: Bounds) -> Rows:
        codes, scales = quantized(centers)
        packed, least = self.numkong.dots_pack(codes), (1.0 - bounds).astype(np.float32) / scales

        def count_block(start: int) -> Any:
            part = slice(start, start + BLOCK)
            whole = np.asarray(self.numkong.dots_packed(self.codes[part], packed))
            return (whole * self.scales[part, None] >= least).sum(axis=0)

        return np.asarray(sum(self.pool.map(count_block, range(0, len(self.codes), BLOCK))), dtype=np.int64)


class PermutedScan(Peer):
    name = "permuted-scan"
    module = "numpy"
    install = "numpy"
    note = "rows shuffled once; from a random start, the first k rows inside. Neighbors in the shuffle come together"
    sampler = True

    def build(self, vectors: Path) -> None:
        given = load(vectors)
        self.order = np.random.default_rng(0).permutation(len(given))
        self.vectors: Floats = given[self.order]

    def sample(self, centers: Floats, bounds: Bounds, k: int, seed: int) -> Rows:
        n = len(self.vectors)
        least = (1.0 - bounds).astype(np.float32)
        out = np.full((len(centers), k), -1, dtype=np.int64)
        drawn = np.zeros(len(centers), dtype=np.int64)
        active = np.arange(len(centers))
        start = int(np.random.default_rng(seed).integers(n))
        # Blocks grow, so that easy caps cost little and narrow ones run at the speed of the product.
        seen, step = 0, 256
        while seen < n and len(active):
            low = (start + seen) % n
            high = min(low + min(step, n - seen), n)
            inside = centers[active] @ self.vectors[low:high].T >= least[active, None]
            for i in np.flatnonzero(inside.any(axis=1)):
                cap = active[i]
                rows = self.order[low + np.flatnonzero(inside[i])[: k - drawn[cap]]]
                out[cap, drawn[cap] : drawn[cap] + len(rows)] = rows
                drawn[cap] += len(rows)
            active = active[drawn[active] < k]
            seen, step = seen + high - low, min(2 * step, SCAN_BLOCK)
        # A cap with fewer than k rows gives each of them again and again.
        for cap in np.flatnonzero((drawn > 0) & (drawn < k)):
            out[cap] = np.resize(out[cap, : drawn[cap]], k)
        return out
