"""Exceptions of captree: a small hierarchy under :class:`CaptreeError`.

Each class also derives from the built-in exception that fits, so ``except ValueError`` works too.
"""

#: What an argument would have done about an error, by its name.
_ADVICE = {
    "normalize": "normalize=True scales rows",
    "out": "with out= the tree is written to disk and needs less",
}


class CaptreeError(Exception):
    """Base class of every error that captree raises on purpose.

    Attributes:
        problem: what was expected and what came.
        parameter: the name of the argument that is at fault, if one is.
        advice: the name of an argument that would have helped, if one would.
    """

    problem: str
    parameter: str | None
    advice: str | None

    def __init__(self, problem: str = "", *, parameter: str | None = None, advice: str | None = None) -> None:
        start = "" if parameter is None else f"{parameter}: "
        end = "" if advice is None else f"; {_ADVICE[advice]}"
        super().__init__(f"{start}{problem}{end}")
        self.problem, self.parameter, self.advice = problem, parameter, advice


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
    """A tree of another version of the format."""


class TreeLockedError(StorageError):
    """Another process, or another thread, is changing the tree; the message says which."""


class MemoryLimitError(CaptreeError, MemoryError):
    """The work does not fit in the memory limit that was given."""


class MissingDependencyError(CaptreeError, ImportError):
    """An optional package is needed for this and is not installed."""


class InternalError(CaptreeError, RuntimeError):
    """A defect in captree itself; please report it."""
