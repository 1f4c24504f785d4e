"""Pairs to train on: a cap and a random row inside it, written to Parquet."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from captree import _params
from captree._arrow import require_pyarrow
from captree._centers import Centers, kept_rows
from captree._draws import RowDrawer, take
from captree._pairs_batches import BANDS, TENTHS, Batch, Batches, Tally, tenth_ends
from captree._pairs_files import Lines, PairsFolder, ShardWriter, pairs_folder
from captree._pairs_job import job
from captree._paths import absolute
from captree._progress import Callback, Progress, reporting, stepping
from captree._radii import DEFAULT_RADII, Radii
from captree.errors import InvalidParameterError, StorageError

if TYPE_CHECKING:
    from captree._tree import Tree

_ROWS_PER_FILE = 131_072


@dataclass(frozen=True)
class PairsBand:
    """What became of the caps whose bound lies between two max cosine distances.

    Attributes:
        low: the smallest bound; it belongs to the band.
        high: the end of the band, which belongs to the next one; 2 belongs to the last band.
        caps_drawn: caps tried.
        empty_caps: those that hold no row.
        exhausted_caps: those that hold rows, but none that might still be used.
        pairs: those that were written.
    """

    low: float
    high: float
    caps_drawn: int
    empty_caps: int
    exhausted_caps: int
    pairs: int


@dataclass(frozen=True)
class PairsSkew:
    """How far ``replace=False`` moves the law of the row, given the cap, from uniform over all rows inside.

    When a cap is drawn, u of its m rows inside may not be used any more, and its row is uniform over the other m - u.
    The total variation distance of this law from uniform over the m is u / m, the used share: the probability that a
    uniform draw would have met a used row. It is counted exactly, for a random sample of the pairs. It is the distance
    given the pairs before; over many seeds these differ, and the mean law is at most as far from uniform. With
    ``exclude_sources=True`` the sources are not among the m.

    Attributes:
        pairs: pairs of this part of the run.
        measured_caps: how many of their caps were measured: at most 100 of each tenth of a run.
        mean: mean used share of the measured caps; weighted, over the whole run, by the pairs of each tenth.
        largest: the largest one.
        exhausted_caps: caps that held rows and gave no pair, all counted; no share of theirs is in the mean.
        mean_with_exhausted: the mean if each of these counts as 1.
    """

    pairs: int
    measured_caps: int
    mean: float
    largest: float
    exhausted_caps: int
    mean_with_exhausted: float


@dataclass(frozen=True)
class PairsReport:
    """What :func:`write_pairs` did, in this call and in earlier ones that this one went on from.

    ``caps_drawn == pairs + empty_caps + exhausted_caps`` with ``empty="redraw"``; with ``empty="keep"`` empty caps
    are among the pairs, and ``caps_drawn == pairs + exhausted_caps``.

    Attributes:
        pairs: pairs written.
        caps_drawn: caps tried for them.
        empty_caps: caps that hold no row.
        exhausted_caps: caps that hold rows, but none that may still be used (source rows, rows used before).
        files: the Parquet files, in order.
        seconds: wall time of this call.
        pairs_found: pairs in whole files that earlier calls had written.
        bands: the same numbers for each of ten equal bands of max cosine distance, narrow caps first. Dropping empty
            caps shifts bounds from the prior's, which is that of ``caps_drawn``, to wider ones, those of ``pairs``.
        skew: with ``replace=False``, how far rows are from uniform in their caps over the whole run; otherwise None.
        skew_by_tenth: the same for each tenth of the run, in order; fewer for less than ten pairs.
    """

    pairs: int
    caps_drawn: int
    empty_caps: int
    exhausted_caps: int
    files: tuple[str, ...]
    seconds: float
    pairs_found: int
    bands: tuple[PairsBand, ...]
    skew: PairsSkew | None
    skew_by_tenth: tuple[PairsSkew, ...]


def write_pairs(
    tree: Tree,
    out: str | os.PathLike[str],
    n: int,
    seed: int = 0,
    replace: bool = True,
    progress: Progress = False,
    batch_size: int = 16_384,
    rows_per_file: int | None = None,
    exclude_sources: bool = False,
    radii: Radii = DEFAULT_RADII,
    centers: Centers | None = None,
    threads: int | None = None,
    shards: int | None = None,
    caps_per_row: int | None = None,
    counts: bool = False,
    empty: Literal["redraw", "keep"] = "redraw",
) -> PairsReport:
    """Writes `n` pairs, each a fresh random cap and a uniformly random row inside it, as Parquet files in `out`.

    Columns: ``row`` int64, ``center`` fixed_size_list<float>[d], ``max_cos_distance`` float32. Bounds are rounded to
    float32 before a row is drawn (those of :class:`captree.ByMass` up), so that each stored pair is true as it
    stands. Caps come from the priors of :func:`captree.training_caps`; an empty cap is dropped and another drawn in
    its place, if `empty` does not say otherwise.

    Files are ``part-00000.parquet`` and so on, each written under a temporary name and renamed when it is whole. A
    run that was interrupted, failed or was killed at any moment leaves its whole files, and the same call goes on
    after them: it ends with the same files, byte for byte, as one that was never stopped (with the same versions of
    captree, numpy and pyarrow, on the same processor). A hidden file, ``.pairs.json``, says what is written there:
    every parameter but `progress` and `threads`, and the tree by its sizes, its storage and a few hundred of its
    vectors. Priors that are dataclasses, as those of captree, are compared by their fields, arrays by a checksum;
    other callables by their module and name only. In addition the pairs of the last batch are drawn again and compared
    with the stored ones, and every whole file with its checksum. A folder that is finished gives its report at once:
    its files are only looked at for their sizes, and nothing is written.

    Args:
        tree: the tree whose rows are drawn.
        out: a folder, made when missing; it must be empty, or that of an unfinished or finished run of the same call.
        n: pairs to write, at least 1.
        seed: an integer in [0, 2**64); the same seed and batch_size give the same pairs, however they are cut into
            files.
        replace: False uses every row at most `caps_per_row` times over the whole run: each cap's row is uniform over
            its rows that may still be used, and a cap without such rows is dropped (so is one whose row the prior of
            centers knows, if that may not be used). So rows are not quite uniform in their caps: the report says how
            far they are from it. Keeps one byte per row of the tree (more where caps_per_row is above 255).
        progress: True for a bar on a terminal (plain lines elsewhere), or a callable ``(phase, done, total)``.
        batch_size: caps drawn at a time; also the Parquet row groups.
        rows_per_file: pairs per file; 131,072 without `shards`.
        exclude_sources: never pair a cap with one of the two rows its center was made from. A draw that hits one is
            discarded and drawn again from three distinct random rows of the cap, of which a random one that is no
            source is kept (at most two are); so the row is uniform over the cap's other rows. A cap without any is
            dropped. Not with centers that know their rows, such as :class:`captree.UniformInCap`.
        radii: the prior of max cosine distances, as in :func:`captree.training_caps`.
        centers: the prior of centers, as in :func:`captree.training_caps`.
        threads: at most this many.
        shards: number of files, at most n, in place of rows_per_file; their sizes differ by one pair at most.
        caps_per_row: with ``replace=False``, how many caps a row is paired with at most, over the whole run; 1 by
            default. `n` is at most this many times the rows of the tree, and then every row is used exactly so often.
        counts: adds the columns ``count`` int64, how many rows lie inside the cap, exactly, and ``selectivity``
            float64, the count as a share of the tree's rows (those that were skipped are none). All rows inside count,
            used ones and sources too. Costs a count of every cap.
        empty: ``"redraw"`` drops caps that hold no row; ``"keep"`` writes them as pairs whose row is -1, so that
            bounds follow their prior. Caps that hold rows, but none that may be used, are dropped all the same. Not
            with centers that know their rows, such as :class:`captree.UniformInCap`.

    Raises:
        InvalidParameterError: a parameter outside its domain; `out` has other files, or a run with other parameters
            (the message says which one differs); or 100,000 caps in a row gave no pair. Whole files written before
            stay.
        StorageError: writing failed, another process writes to `out`, or a file there is damaged (the message names
            it).
        FormatVersionError: `out` has an unfinished run of a newer captree.
        MissingDependencyError: pyarrow is not installed.
    """
    pa = require_pyarrow("write_pairs")
    n = _params.integer("n", n, 1)
    seed = _params.integer("seed", seed, 0, 2**64 - 1)
    batch_size = _params.integer("batch_size", batch_size, 1, 1 << 24)
    threads = _params.threads(threads)
    _params.one_of("empty", empty, ("redraw", "keep"))
    uses = _checked_uses(tree, n, bool(replace), caps_per_row)
    per_file, shards = _checked_cut(n, rows_per_file, shards)
    began = time.monotonic()
    parameters = {
        "n": n,
        "seed": seed,
        "replace": bool(replace),
        "batch_size": batch_size,
        "rows_per_file": per_file,
        "exclude_sources": bool(exclude_sources),
        "radii": radii if callable(radii) else _params.fraction("radii", radii, 0.0, 2.0),
        "centers": centers,
        "shards": shards,
        "caps_per_row": uses,
        "counts": bool(counts),
        "empty": empty,
    }
    about = job(tree, parameters)
    path = Path(absolute("out", out))
    try:
        with reporting(progress) as callback, pairs_folder(path, about) as folder:
            found = folder.pairs
            if folder.totals is None:
                left = None if uses is None else np.full(len(tree), uses, np.min_scalar_type(uses))
                drawer = RowDrawer(tree, bool(exclude_sources), left, keep_empty=empty == "keep", threads=threads)
                tally, batch, first = _resumed(folder, left, callback)
                batches = Batches(drawer, n, batch_size, seed, radii, centers, tally)
                sizes = _sizes(n, per_file, shards)
                with ShardWriter(pa, folder, tree.dim, sizes, bool(counts), about) as writer:
                    _write(batches.run(batch, first), folder, writer, drawer, stepping(callback, "pairs", n))
                folder.finish(tally.saved())
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"cannot write pairs to {path}: {error}") from error
    assert folder.totals is not None
    return _report(n, Tally(folder.totals), uses is not None, folder.files(), found, time.monotonic() - began)


def _checked_uses(tree: Tree, n: int, replace: bool, caps_per_row: int | None) -> int | None:
    """How often a row may be used; None: any number of times."""
    if replace:
        if caps_per_row is not None:
            raise InvalidParameterError(
                f"expected it with replace=False only, got {caps_per_row!r} with replace=True", parameter="caps_per_row"
            )
        return None
    uses = 1 if caps_per_row is None else _params.integer("caps_per_row", caps_per_row, 1, 2**32 - 1)
    most = kept_rows(tree) * uses
    if n > most:
        each = "one" if uses == 1 else uses
        raise InvalidParameterError(
            f"expected at most {most} pairs, {each} per row (replace=False), got {n}", parameter="n"
        )
    return uses


def _checked_cut(n: int, rows_per_file: int | None, shards: int | None) -> tuple[int | None, int | None]:
    """Pairs per file, or the number of files."""
    if shards is None:
        return _params.integer("rows_per_file", _ROWS_PER_FILE if rows_per_file is None else rows_per_file, 1), None
    if rows_per_file is not None:
        raise InvalidParameterError("expected one of shards and rows_per_file, got both", parameter="shards")
    return None, _params.integer("shards", shards, 1, n)


def _sizes(n: int, rows_per_file: int | None, shards: int | None) -> Callable[[int], int]:
    """A function that gives a file's number of pairs, by the number of the file."""
    if shards is not None:
        each, more = divmod(n, shards)
        return lambda file: each + (file < more)
    assert rows_per_file is not None
    return lambda file: min(rows_per_file, n - file * rows_per_file)


def _resumed(folder: PairsFolder, left: NDArray[Any] | None, callback: Callback | None) -> tuple[Tally, int, int]:
    """What was drawn before the batch with which drawing goes on, its number, and that of its first pair.

    That batch is the one of the last stored pair. Rows of the pairs before it are counted off from `left`.
    """
    if not folder.shards:
        return Tally(), 0, 0
    folder.check(stepping(callback, "checking", sum(shard.bytes for shard in folder.shards)))
    last = folder.shards[-1]
    if left is not None:
        for rows in folder.rows(last.first):
            take(left, rows)
    return Tally(last.before), last.batch, last.first


def _write(
    batches: Iterable[Batch], folder: PairsFolder, writer: ShardWriter, drawer: RowDrawer, step: Callable[[int], Any]
) -> None:
    """Writes what is not yet stored of the batches, the first of which was stored in part if anything was."""
    stored = writer.written
    step(stored)
    for batch in batches:
        again = max(stored - batch.first, 0)
        if again:
            _check_same_pairs(folder, batch, stored)
        rows, caps = batch.rows[again:], batch.caps[again:]
        more: tuple[NDArray[Any], ...] = ()
        if writer.counts:
            count = drawer.tree.count(caps, threads=drawer.threads)
            more = count, count / kept_rows(drawer.tree)
        writer.write(rows, caps, more, batch)
        step(writer.written)


def _check_same_pairs(folder: PairsFolder, batch: Batch, stop: int) -> None:
    """Compares a batch that was drawn again with its pairs that are stored, those before the number `stop`."""
    old, size = folder.read(batch.first, stop), stop - batch.first
    new = Lines(batch.rows[:size], batch.caps.centers[:size], batch.caps.max_cos_distance[:size].astype(np.float32))
    if all(np.array_equal(getattr(old, column), getattr(new, column)) for column in Lines._fields):
        return
    raise InvalidParameterError(
        f"expected pairs {batch.first} to {stop - 1} as they are stored in {folder.path}, got others when they were "
        "drawn again: the priors or the tree's vectors are not the same, or captree, numpy or the processor",
        parameter="out",
    )


def _report(n: int, tally: Tally, once: bool, files: list[Path], pairs_found: int, seconds: float) -> PairsReport:
    drawn, empty, exhausted, _ = tally.bands.sum(axis=0).tolist()
    bands = tuple(
        PairsBand(round(2 * i / BANDS, 3), round(2 * (i + 1) / BANDS, 3), *counts)
        for i, counts in enumerate(tally.bands.tolist())
    )
    tenths = tuple(
        _skew(n, tally, [tenth]) for tenth in range(TENTHS) if tenth_ends(n)[tenth] < tenth_ends(n)[tenth + 1]
    )
    return PairsReport(
        pairs=n,
        caps_drawn=drawn,
        empty_caps=empty,
        exhausted_caps=exhausted,
        files=tuple(str(file) for file in files),
        seconds=seconds,
        pairs_found=pairs_found,
        bands=bands,
        skew=_skew(n, tally, range(TENTHS)) if once else None,
        skew_by_tenth=tenths if once else (),
    )


def _skew(n: int, tally: Tally, tenths: Iterable[int]) -> PairsSkew:
    """The skew of some tenths of a run of n pairs."""
    part = tally.skew[list(tenths)]
    pairs = np.diff(tenth_ends(n))[list(tenths)]
    measured, total, largest, exhausted = part.T
    known = measured > 0
    weights = pairs * known
    mean = float((weights[known] * total[known] / measured[known]).sum() / max(weights.sum(), 1))
    whole, out = int(pairs.sum()), int(exhausted.sum())
    return PairsSkew(
        pairs=whole,
        measured_caps=int(measured.sum()),
        mean=mean,
        largest=float(largest.max()),
        exhausted_caps=out,
        mean_with_exhausted=(whole * mean + out) / (whole + out),
    )
