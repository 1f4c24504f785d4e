"""How many, which, and a fair random draw of your unit vectors lie within this distance of that direction.

    import captree

    tree = captree.build(vectors, out="photos.captree")
    caps = captree.Caps(centers, max_cos_distance=0.3)
    tree.count(caps)        # how many
    tree.search(caps)       # which
    tree.sample(caps)       # a fair random draw

A cap is ``{x : 1 - <center, x> <= max_cos_distance}``. Counts, searches and exact samples are what exact arithmetic
over the stored vectors gives. Test data and the brute-force oracle are in :mod:`captree.testing`.
"""

from captree import errors
from captree._balance import balancing_weights
from captree._build import build, open
from captree._caps import Caps
from captree._centers import GivenCenters, Shifted, Slerp, SlerpNoise, UniformInCap
from captree._core import __version__
from captree._pairs import PairsBand, PairsReport, PairsSkew, write_pairs
from captree._priors import TrainingCaps, training_caps
from captree._radii import DEFAULT_RADII, ByMass, FixedRadius, LogUniformRadius, RadiusMixture
from captree._results import EstimateResult, NearestResult, RangeResult
from captree._stream import PairBatch, PairStream
from captree._tree import Tree
from captree.errors import CaptreeError

__all__ = [
    "DEFAULT_RADII",
    "ByMass",
    "Caps",
    "CaptreeError",
    "EstimateResult",
    "FixedRadius",
    "GivenCenters",
    "LogUniformRadius",
    "NearestResult",
    "PairBatch",
    "PairStream",
    "PairsBand",
    "PairsReport",
    "PairsSkew",
    "RadiusMixture",
    "RangeResult",
    "Shifted",
    "Slerp",
    "SlerpNoise",
    "TrainingCaps",
    "Tree",
    "UniformInCap",
    "__version__",
    "balancing_weights",
    "build",
    "errors",
    "open",
    "training_caps",
    "write_pairs",
]
