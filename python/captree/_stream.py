"""Endless fresh pairs while a model trains."""

from __future__ import annotations

import os
import queue
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from captree import _params
from captree._centers import Centers, UniformInCap, checked_weights
from captree._draws import CAPS_WITHOUT_ROW, NO_ROWS, RowDrawer
from captree._priors import refuse_circle
from captree._radii import DEFAULT_RADII, Radii
from captree.errors import InvalidParameterError, InvalidTypeError

if TYPE_CHECKING:
    from captree._tree import Tree

_CAPS, _ROWS = 3, 4
"""What the random streams of a batch are for; write_pairs and training_caps have the numbers below."""


class PairBatch(NamedTuple):
    """Pairs, each a cap and a row inside it; unpacks as ``rows, centers, max_cos_distance``."""

    rows: NDArray[np.int64]
    """int64 (b,)."""
    centers: NDArray[np.float32]
    """float32 (b, d), unit vectors."""
    max_cos_distance: NDArray[np.float32]
    """float32 (b,), bounds in [0, 2]."""


class PairStream:
    """Endless batches of fresh pairs: random caps, and a random row inside each.

    An iterator of :class:`PairBatch`. Batches are made ahead in a background thread while the model computes; drawing
    releases the GIL. What a batch holds depends on the seed, its number and the options only, not on threads,
    prefetching or what was drawn before it, so a stream can be resumed anywhere and split without communication:

    - *Ranks*: batch k of rank r out of `world` is batch k * world + r of the whole stream.
    - *Workers* of a torch ``DataLoader`` (made with ``batch_size=None``, around an ``IterableDataset`` that yields
      from the stream) take turns as the loader does, so the loader gives the rank's batches in their order, whatever
      the number of workers. Without ``threads=`` each worker takes its share of the cores.
    - *Pickling* stores the tree's path, the options and the position; a tree in memory cannot be pickled.

    It is a context manager; :meth:`close` stops the thread, and so does dropping the last reference. An error in the
    thread is raised by the ``next`` that asks for its batch. One consumer at a time; ``close`` may come from elsewhere.

    Args:
        tree: the tree whose rows are drawn.
        batch_size: pairs per batch, exactly; caps that hold no row are replaced by others. Batches of a thousand
            pairs or more share most of the work between caps.
        seed: an integer in [0, 2**64).
        radii: the prior of max cosine distances, as in :func:`captree.training_caps`; bounds are rounded to float32
            before a row is drawn (those of :class:`captree.ByMass` up), so each pair is true as it stands.
        centers: the prior of centers, as in :func:`captree.training_caps`.
        weights: (n,) weights of the tree's rows, finite and not negative: a cap's row is drawn in proportion to them,
            exactly, and caps whose rows all have weight 0 are replaced by others. Where centers know their rows
            (:class:`captree.UniformInCap`), these rows are drawn in proportion to them instead.
        exclude_sources: never pair a cap with one of the two rows its center was made from, as in
            :func:`captree.write_pairs`.
        rank: which of the `world` parts of the stream this one is, in [0, world).
        world: number of parts, of a process each.
        prefetch: batches made ahead; 0 makes each when it is asked for, without a thread.
        threads: at most this many; all cores by default.

    Raises:
        InvalidParameterError: a parameter outside its domain, or, when a batch is made, 100,000 caps in a row without
            a row.
        InvalidTypeError: arguments of a wrong type.
    """

    def __init__(
        self,
        tree: Tree,
        batch_size: int = 4096,
        seed: int = 0,
        *,
        radii: Radii = DEFAULT_RADII,
        centers: Centers | None = None,
        weights: Any = None,
        exclude_sources: bool = False,
        rank: int = 0,
        world: int = 1,
        prefetch: int = 2,
        threads: int | None = None,
    ) -> None:
        from captree._tree import Tree

        if not isinstance(tree, Tree):
            raise InvalidTypeError(f"expected a captree.Tree, got {type(tree).__name__}", parameter="tree")
        self._tree = tree
        self._batch_size = _params.integer("batch_size", batch_size, 1, 1 << 24)
        self._seed = _params.integer("seed", seed, 0, 2**64 - 1)
        self._world = _params.integer("world", world, 1, 1 << 32)
        self._rank = _params.integer("rank", rank, 0, self._world - 1)
        self._prefetch = _params.integer("prefetch", prefetch, 0, 1 << 16)
        self._threads = _params.threads(threads)
        if not callable(radii):
            _params.fraction("radii", radii, 0.0, 2.0)
        if centers is not None and not callable(centers):
            raise InvalidTypeError(
                f"expected a callable (rng, tree, n), got {type(centers).__name__}", parameter="centers"
            )
        refuse_circle(radii, centers)
        self._radii = radii
        self._centers = centers
        self._weights = None if weights is None else checked_weights(weights)
        if self._weights is not None and self._weights.size != len(tree):
            raise InvalidParameterError(
                f"expected {len(tree)}, one per row, got {self._weights.size}", parameter="weights"
            )
        self._exclude = bool(exclude_sources)
        self._position = 0
        self._closed = False
        self._producer: _Producer | None = None

    @property
    def batch_size(self) -> int:
        """Pairs per batch."""
        return self._batch_size

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> PairBatch:
        if self._closed:
            raise InvalidParameterError("expected an open PairStream, got one that was closed")
        producer = self._producer
        if producer is None or producer.process != os.getpid():
            # A forked child has the object but not the thread.
            worker, workers = _worker()
            maker = _Maker(self, workers)
            first = self._position + worker
            producer = _Producer(maker, first, workers, self._prefetch)
            self._producer = producer
            weakref.finalize(self, producer.stop)
        try:
            batch = producer.next()
        except _Closed:
            raise InvalidParameterError("expected an open PairStream, got one that was closed") from None
        except BaseException:
            # The position has not moved: another next() tries the same batch again.
            self._stop()
            raise
        self._position += producer.step
        return batch

    def state_dict(self) -> dict[str, int]:
        """The position, as plain integers: what :meth:`load_state_dict` needs to go on with the next batch.

        Batches that were made ahead but not handed out do not count. ``batch`` is the number of batches this rank has
        got: where a DataLoader's workers draw, this object in the main process does not move, and the number is the
        loader's.
        """
        return {
            "batch": self._position,
            "seed": self._seed,
            "batch_size": self._batch_size,
            "world": self._world,
            "rows": len(self._tree),
            "dim": self._tree.dim,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on where `state` was taken, by a stream with the same tree, seed, batch_size, world and priors.

        The state of any rank serves every rank that has got as many batches.

        Raises:
            InvalidParameterError: a state of another stream.
            InvalidTypeError: not a state.
        """
        mine = self.state_dict()
        if not isinstance(state, dict) or not mine.keys() <= state.keys():
            raise InvalidTypeError(f"expected a dict with {', '.join(mine)}, got {state!r:.200}", parameter="state")
        for name, value in mine.items():
            if name != "batch" and state[name] != value:
                raise InvalidParameterError(
                    f"expected {name} {value}, as this stream has, got {state[name]}", parameter="state"
                )
        position = _params.integer("batch", state["batch"], 0, 1 << 48)
        self._stop()
        self._position = position

    def close(self) -> None:
        """Stops the thread, once the batch it is making is done; the stream gives no more batches."""
        self._closed = True
        self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        part = f", rank {self._rank} of {self._world}" if self._world > 1 else ""
        end = ", closed" if self._closed else ""
        about = f"batch_size {self._batch_size}, seed {self._seed}{part}, at batch {self._position}{end}"
        return f"PairStream({self._tree!r}, {about})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_producer": None}

    def _stop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stop()


class _Maker:
    """Makes the batches of a rank by their number; knows nothing of the stream, which may be dropped meanwhile."""

    def __init__(self, stream: PairStream, workers: int) -> None:
        threads = stream._threads
        if threads is None and workers > 1:
            threads = max(1, (os.cpu_count() or 1) // workers)
        centers, weights = stream._centers, stream._weights
        if weights is not None and isinstance(centers, UniformInCap):
            if centers.weights is not None:
                weights = weights * centers.weights
            centers, weights = replace(centers, weights=weights), None
        self._drawer = RowDrawer(stream._tree, stream._exclude, weights=weights, threads=threads)
        self._priors = (stream._radii, centers)
        self._size = stream._batch_size
        self._seed = stream._seed
        self._place = (stream._rank, stream._world)

    def __call__(self, number: int) -> PairBatch:
        rank, world = self._place
        index = number * world + rank
        parts: list[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]] = []
        found = tried = fruitless = 0
        attempt = 0
        while found < self._size:
            missing = self._size - found
            # As many caps as are likely to have the missing rows, by the share of those so far.
            share = found / tried if found else 1.0
            size = missing if not tried else min(max(64, int(1.1 * missing / share) + 8), max(4096, self._size))
            keys = [_key(self._seed, purpose, index, attempt) for purpose in (_CAPS, _ROWS)]
            rows, caps, *_ = self._drawer.pairs(size, keys[0], keys[1], *self._priors, wanted=missing)
            good = np.flatnonzero(rows >= 0)[:missing]
            parts.append((rows[good], caps.centers[good], caps.max_cos_distance[good].astype(np.float32)))
            found, tried, attempt = found + good.size, tried + size, attempt + 1
            fruitless = 0 if good.size else fruitless + size
            if fruitless >= CAPS_WITHOUT_ROW:
                raise InvalidParameterError(f"{fruitless} {NO_ROWS}")
        if len(parts) == 1:
            return PairBatch(*parts[0])
        return PairBatch(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


class _Closed(Exception):
    """The producer was stopped while somebody waited for a batch."""


class _Producer:
    """Batches first, first + step, ...: made ahead by a thread, or on demand."""

    def __init__(self, make: Callable[[int], PairBatch], first: int, step: int, ahead: int) -> None:
        self.step = step
        self.process = os.getpid()
        self._make = make
        self._number = first
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._batches: queue.Queue[PairBatch | BaseException] = queue.Queue(ahead)
        if ahead:
            # A daemon: a program that forgets its stream must end all the same.
            self._thread = threading.Thread(target=self._run, name="captree-pairs", daemon=True)
            self._thread.start()

    def next(self) -> PairBatch:
        if self._thread is None:
            batch = self._make(self._number)
            self._number += self.step
            return batch
        item = self._batches.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._batches.put(self._make(self._number))
                self._number += self.step
        except BaseException as error:  # whatever it is, the consumer must hear of it
            self._batches.put(error)

    def stop(self) -> None:
        """Ends the thread. A batch it is about to hand over finds room, since the queue is emptied after the sign."""
        if self._thread is None or self.process != os.getpid():
            return
        self._stopped.set()
        self._empty()
        # Garbage collection may drop a stream from inside its own thread.
        if self._thread is not threading.current_thread():
            self._thread.join()
            self._empty()
            with suppress(queue.Full):
                self._batches.put_nowait(_Closed())

    def _empty(self) -> None:
        with suppress(queue.Empty):
            while True:
                self._batches.get_nowait()


def _worker() -> tuple[int, int]:
    """Number of the torch DataLoader worker this runs in, and how many there are; (0, 1) outside of one."""
    data = sys.modules.get("torch.utils.data")
    info = data.get_worker_info() if data is not None else None
    return (0, 1) if info is None else (int(info.id), int(info.num_workers))


def _key(seed: int, purpose: int, index: int, attempt: int) -> tuple[int, ...]:
    return seed & 0xFFFF_FFFF, seed >> 32, purpose, index & 0xFFFF_FFFF, index >> 32, attempt
