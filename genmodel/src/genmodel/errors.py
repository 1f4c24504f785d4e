"""Exceptions of genmodel: a small hierarchy under :class:`GenmodelError`.

Each class also derives from the built-in exception that fits, so ``except ValueError`` works too.
"""


class GenmodelError(Exception):
    """Base class of every error that genmodel raises on purpose."""


class ConfigError(GenmodelError, ValueError):
    """A setting outside its domain, or settings that contradict each other."""


class InputError(GenmodelError, ValueError):
    """An array, tensor or image of the wrong shape, type or content."""


class DataError(GenmodelError, OSError):
    """A folder or file that is missing, damaged, or not what it should be."""


class CheckpointError(DataError):
    """A checkpoint that is missing, damaged, or of another model."""


class DivergedError(GenmodelError, FloatingPointError):
    """A training loss that is not finite."""


class MissingDependencyError(GenmodelError, ImportError):
    """An optional package is needed for this and is not installed."""
