"""What a run of pairs writes, in plain values that a state file can hold and a later call can be compared with."""

from __future__ import annotations

import hashlib
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from captree._centers import Slerp, absent_rows, kept_rows, nth_kept
from captree.errors import InvalidParameterError

if TYPE_CHECKING:
    from captree._tree import Tree

_FINGERPRINT_ROWS = 256

Job = dict[str, Any]
"""The parameters of :func:`captree.write_pairs` that decide what is written, and the tree's fingerprint."""


def job(tree: Tree, parameters: dict[str, Any]) -> Job:
    """A job in values that JSON keeps; priors as text, a tree by :func:`fingerprint`."""
    centers = parameters["centers"]
    priors = {"radii": described(parameters["radii"]), "centers": described(Slerp() if centers is None else centers)}
    return {**parameters, **priors, "tree": fingerprint(tree)}


def fingerprint(tree: Tree) -> dict[str, Any]:
    """What tells trees apart at the cost of reading a few hundred rows: sizes, storage, a hash of evenly spaced rows.

    Two trees with the same vectors have the same, whatever their shape, since they give the same pairs.
    """
    places = np.unique(np.linspace(0, kept_rows(tree) - 1, _FINGERPRINT_ROWS).astype(np.int64))
    digest = hashlib.sha256(tree.take(nth_kept(tree, places)).tobytes())
    absent = absent_rows(tree)
    digest.update(absent.tobytes())
    return {
        "rows": len(tree),
        "absent": int(absent.size),
        "dim": tree.dim,
        "storage": tree.storage,
        "vectors": digest.hexdigest()[:16],
    }


def described(value: Any) -> str:
    """A prior as text: numbers in full, dataclasses by their fields, arrays by a hash, other callables by their name.

    The state of other objects does not show, and neither does the code of a function.
    """
    if isinstance(value, np.ndarray):
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]
        return f"{value.dtype.name}{list(value.shape)} {digest}"
    if isinstance(value, np.generic):
        return described(value.item())
    if value is None or isinstance(value, (str, bytes, bool, int, float)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return f"({', '.join(described(entry) for entry in value)})"
    if isinstance(value, partial):
        given = [*map(described, value.args), *(f"{name}={described(entry)}" for name, entry in value.keywords.items())]
        return f"partial({', '.join([described(value.func), *given])})"
    if is_dataclass(value) and not isinstance(value, type):
        # Fields that are made from the others tell nothing more.
        given = [f"{field.name}={described(getattr(value, field.name))}" for field in fields(value) if field.init]
        return f"{_name(type(value))}({', '.join(given)})"
    return _name(value if hasattr(value, "__qualname__") else type(value))


def _name(what: Any) -> str:
    # Where captree keeps its own classes may change from one version to the next.
    module = "captree" if str(what.__module__).startswith("captree.") else what.__module__
    return f"{module}.{what.__qualname__}"


def check_same(begun: Job, asked: Job, folder: Path) -> None:
    """Refuses a job that is not the one which was begun in this folder.

    Raises:
        InvalidParameterError: names the first parameter that differs, what it was, and what came.
    """
    for name, value in asked.items():
        known = begun.get(name)
        if known == value:
            continue
        what = ""
        if isinstance(value, dict) and isinstance(known, dict):
            key = next(key for key in value if known.get(key) != value[key])
            what, known, value = f"one with {key} ", known.get(key), value[key]
        raise InvalidParameterError(
            f"expected {what}{_shown(known)}, as the pairs in {folder} were begun with, got {_shown(value)}",
            parameter=name,
        )


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
