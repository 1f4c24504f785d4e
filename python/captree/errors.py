"""Exceptions of captree: a small hierarchy under :class:`CaptreeError`.

Each class also derives from the built-in exception that fits, so ``except ValueError`` works too.
"""


class CaptreeError(Exception):
    """Base class of every error that captree raises on purpose."""


class InvalidVectorsError(CaptreeError, ValueError):
    """Vectors of the wrong shape, or rows that are not finite, not unit length, or zero."""


class InvalidCapsError(CaptreeError, ValueError):
    """Caps of the wrong dimension, with a center that is not unit, or a bound outside [0, 2]."""


class InvalidParameterError(CaptreeError, ValueError):
    """A parameter outside its domain."""


class InvalidTypeError(CaptreeError, TypeError):
    """An argument of a type captree does not take."""


class RowIndexError(CaptreeError, IndexError):
    """A row number outside the tree."""


class TreeNotFoundError(CaptreeError, FileNotFoundError):
    """No tree at this path."""


class StorageError(CaptreeError, OSError):
    """The operating system refused to read or write."""


class CorruptTreeError(StorageError):
    """A tree file that is truncated or altered."""


class FormatVersionError(StorageError):
    """A tree written by a newer version of the format."""


class MemoryLimitError(CaptreeError, MemoryError):
    """The work does not fit in the memory limit that was given."""


class MissingDependencyError(CaptreeError, ImportError):
    """An optional package is needed for this and is not installed."""


class InternalError(CaptreeError, RuntimeError):
    """A defect in captree itself; please report it."""
