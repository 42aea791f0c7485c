"""What is believed of a job class before its jobs are seen: a mixture of shapes, weighted by measured curves.

A shape says how log seconds depend on log resources: slopes with their doubts, and how far the rest strays over GPUs,
over CPUs, over CPUs per GPU and over all. Shapes are drawn from a wide family; their weights are those under which
measured curves are most likely (expectation-maximisation, with a share for every shape whatever was measured). The
shipped one is ``prior.json``; ``tapfinger trace prior`` makes it. numpy alone.
"""

import math
import random
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources

import msgspec
import numpy as np

from tapfinger_hpc import gaussian

NOISES = (0.01, 0.03, 0.08, 0.2, 0.5, 1.2, 2.5)
"""Standard deviations of log seconds between jobs of one class on the same amounts."""
NOISES_OF_NAMES = (0.05, 0.05, 0.1, 0.2, 0.3, 0.2, 0.1)
"""How far each is believed of jobs that have user, account and plain name in common, before their site is known.

Measured curves repeat the same work; jobs of one name differ. On the accounting of three public sites the second job
of a class is off the first by a factor of 1.4 (median of 16 classes), and by 1.8 the fourth off the three before it.
"""
NOISES_OF_DECLARED = (0.25, 0.2, 0.2, 0.2, 0.1, 0.04, 0.01)
"""The same of jobs whose user declared them to be of one class."""
NOISES_BEFORE = {True: NOISES_OF_DECLARED, False: NOISES_OF_NAMES}
"""Of declared classes, and of others."""
SITE_CLASSES = 5.0
"""For so many classes that belief counts against those of the site."""
SLOPES = ("log cpus", "1/cpus", "log gpus", "1/gpus", "crowding", "no gpu", "log mem")
"""Crowding: log GPUs per CPU where GPUs are more than CPUs; each has a process that wants a core of its own."""
LEVEL = 1.0
"""Doubt of the class's length about the mean of what was seen."""
NO_GPU = 1.5
"""Doubt of the slope of having no GPU at all: no public curve measures it."""
MEM_SLOPE = 0.05
"""Doubt of the exponent of memory above the need; no public curve measures it."""
OTHER_TYPE = 0.5
"""Doubt of how much faster another type of GPU is, in log seconds (Gavel's types differ by factors of 1 to 10)."""
SHAPES = 96
SEED = 20
BASE = 4.0
"""How many families of measured curves the unweighted mixture counts for, so that nothing is ruled out."""
ROUNDS = 200
_NAME = "prior.json"


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One way in which classes may depend on their amounts."""

    slopes: tuple[float, ...]
    """Mean of the factor of each of ``SLOPES``."""
    doubts: tuple[float, ...]
    """Their standard deviations."""
    over_gpus: tuple[float, float]
    """Standard deviation and length of what strays over log GPUs, whatever the CPUs."""
    over_cpus: tuple[float, float]
    over_each: tuple[float, float]
    """Over log CPUs per GPU: what feeds one GPU is the same however many there are."""
    over_both: tuple[float, float, float]
    """Standard deviation, length over log CPUs, and over log GPUs."""


class Prior(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The mixture."""

    shapes: tuple[Shape, ...]
    weights: tuple[tuple[float, ...], ...]
    """[shape][noise], in all 1."""
    learned_from: tuple[str, ...] = ()
    """Families of curves."""


class Points(msgspec.Struct, frozen=True):
    """Amounts, as the shapes see them."""

    slopes: np.ndarray
    """float64 [n, slope]."""
    log_cpus: np.ndarray
    log_gpus: np.ndarray


@lru_cache(maxsize=1)
def shipped() -> Prior:
    """The prior that comes with the package."""
    text = resources.files("trace_tools").joinpath(_NAME).read_bytes()
    return msgspec.json.decode(text, type=Prior)


def of_jobs(measured: Prior, noises: Sequence[float]) -> Prior:
    """The prior of curves with these beliefs of how far jobs differ in place of that of measurements."""
    weights = tuple(tuple(sum(row) * noise for noise in noises) for row in measured.weights)
    return msgspec.structs.replace(measured, weights=weights)


def noises_of(spreads: Sequence[tuple[float, float]], believed_before: Sequence[float]) -> tuple[float, ...]:
    """How far each of ``NOISES`` is to be believed of further classes of a site.

    Args:
        spreads: of each class that is known, how often jobs ran on amounts on which one ran before, and the sum of
            the squared deviations of log seconds from the means of the same amounts.
        believed_before: how far each is believed before the site is known.
    """
    noises = np.array(NOISES)
    log_likely = np.array([-count * np.log(noises) - squares / (2 * noises**2) for count, squares in spreads if count])
    believed = base = np.array(believed_before)
    if len(log_likely):
        likely = np.exp(log_likely - log_likely.max(axis=1, keepdims=True))
        for _ in range(ROUNDS):
            owed = likely * believed
            owed /= owed.sum(axis=1, keepdims=True)
            believed = SITE_CLASSES * base + owed.sum(axis=0)
            believed = believed / believed.sum()
    return tuple(believed.tolist())


def points(amounts: np.ndarray, usual_mem_mb: float = 0.0) -> Points:
    """CPUs, GPUs and MiB [n, 3]; memory of 0 is taken for the usual."""
    cpus, gpus = np.maximum(1.0, amounts[:, 0]), np.maximum(1.0, amounts[:, 1])
    mem = np.where((amounts[:, 2] > 0) & (usual_mem_mb > 0), amounts[:, 2], max(1.0, usual_mem_mb))
    log_cpus, log_gpus = np.log(cpus), np.log(gpus)
    slopes = np.column_stack(
        (
            log_cpus,
            1 / cpus,
            log_gpus,
            1 / gpus,
            np.maximum(0.0, log_gpus - log_cpus),
            (amounts[:, 1] == 0).astype(float),
            np.log(mem / max(1.0, usual_mem_mb)),
        )
    )
    return Points(slopes, log_cpus, log_gpus)


class Stacked(msgspec.Struct, frozen=True):
    """Shapes as arrays, the first axis over shapes."""

    slopes: np.ndarray
    doubts: np.ndarray
    over_gpus: np.ndarray
    over_cpus: np.ndarray
    over_each: np.ndarray
    over_both: np.ndarray

    def taking(self, rows: np.ndarray) -> "Stacked":
        return Stacked(*(getattr(self, name)[rows] for name in self.__struct_fields__))

    def means(self, at: Points) -> np.ndarray:
        """float64 [shape, n] log seconds against the class's level."""
        return self.slopes @ at.slopes.T

    def covariances(self, one: Points, other: Points) -> np.ndarray:
        """float64 [shape, n, m] of log seconds."""
        linear = np.einsum("kf,nf,mf->knm", self.doubts**2, one.slopes, other.slopes, optimize=True)
        by_gpus = _alike(one.log_gpus, other.log_gpus, self.over_gpus[:, 1])
        by_cpus = _alike(one.log_cpus, other.log_cpus, self.over_cpus[:, 1])
        by_each = _alike(one.log_cpus - one.log_gpus, other.log_cpus - other.log_gpus, self.over_each[:, 1])
        by_both = _alike(one.log_cpus, other.log_cpus, self.over_both[:, 1])
        by_both = by_both * _alike(one.log_gpus, other.log_gpus, self.over_both[:, 2])
        parts = (
            (self.over_gpus, by_gpus),
            (self.over_cpus, by_cpus),
            (self.over_each, by_each),
            (self.over_both, by_both),
        )
        return LEVEL**2 + linear + sum(part[:, :1, None] ** 2 * shape for part, shape in parts)

    def variances(self, at: Points) -> np.ndarray:
        """float64 [shape, n]: the diagonal of ``covariances(at, at)``."""
        parts = (self.over_gpus, self.over_cpus, self.over_each, self.over_both)
        straying = sum(part[:, :1] ** 2 for part in parts)
        return LEVEL**2 + self.doubts**2 @ (at.slopes**2).T + straying


def stacked(shapes: Sequence[Shape]) -> Stacked:
    """The shapes as arrays."""
    return Stacked(*(np.array([getattr(shape, name) for shape in shapes]) for name in Stacked.__struct_fields__))


def drawn(count: int = SHAPES, seed: int = SEED) -> tuple[Shape, ...]:
    """Shapes of the wide family."""
    draw = random.Random(seed)
    return tuple(_drawn(draw) for _ in range(count))


def learned(
    curves: Sequence[tuple[str, float, np.ndarray, np.ndarray]], shapes: Sequence[Shape] | None = None
) -> Prior:
    """The mixture under which these measurements are most likely.

    Args:
        curves: family, weight of the family, amounts float64 [n, 3] and log seconds [n] of each.
        shapes: to choose among.
    """
    shapes = drawn() if shapes is None else shapes
    stack = stacked(shapes)
    evidence = np.array([log_evidence(stack, at, logs).ravel() for _, _, at, logs in curves])
    evidence = evidence.reshape(len(curves), len(shapes) * len(NOISES))
    families = sorted({family for family, _, _, _ in curves})
    counts = {family: sum(one == family for one, _, _, _ in curves) for family in families}
    says = np.array([weight / counts[family] for family, weight, _, _ in curves])
    likely = np.exp(evidence - evidence.max(axis=1, keepdims=True))
    weights = np.full(likely.shape[1], 1 / likely.shape[1])
    for _ in range(ROUNDS):
        owed = likely * weights
        owed /= owed.sum(axis=1, keepdims=True)
        weights = BASE / len(weights) + says @ owed
        weights /= weights.sum()
    table = weights.reshape(len(shapes), len(NOISES))
    return Prior(tuple(shapes), tuple(tuple(row) for row in table.tolist()), tuple(families))


def log_evidence(stack: Stacked, amounts: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """float64 [shape, noise] how likely each makes single measurements of one class."""
    at = points(amounts)
    covariance = stack.covariances(at, at)
    noise = np.array(NOISES)[:, None, None] ** 2 * np.eye(len(logs))
    rest = logs - logs.mean() - stack.means(at)
    seen = gaussian.known(
        covariance[:, None] + noise[None], np.broadcast_to(rest[:, None], (*rest.shape[:1], len(NOISES), len(logs)))
    )
    return gaussian.log_evidence(seen)


def _alike(one: np.ndarray, other: np.ndarray, length: np.ndarray) -> np.ndarray:
    """As ``gaussian.alike``, worked out once for each pair of values: on a grid few differ."""
    some, row = np.unique(one, return_inverse=True)
    others, column = np.unique(other, return_inverse=True)
    return gaussian.alike(some, others, length)[:, row][:, :, column]


def _drawn(draw: random.Random) -> Shape:
    """Most curves gain by GPUs, some by none; crowding and CPUs matter to some. Doubts span what may matter at all."""

    def between(low: float, high: float) -> float:
        return _rounded(math.exp(draw.uniform(math.log(low), math.log(high))))

    slopes = (
        draw.choice((0.0, 0.0, -0.1, -0.3)),
        draw.choice((0.0, 0.0, 0.5)),
        draw.choice((0.0, -0.3, -0.6, -0.9)),
        0.0,
        draw.choice((0.0, 0.0, 0.2, 0.5)),
        0.0,
        0.0,
    )
    doubts = (
        between(0.02, 0.4),
        between(0.02, 1.0),
        between(0.02, 0.5),
        between(0.02, 0.6),
        between(0.02, 1.0),
        NO_GPU,
        MEM_SLOPE,
    )
    return Shape(
        slopes=slopes,
        doubts=doubts,
        over_gpus=(between(0.01, 0.3), between(0.1, 3.0)),
        over_cpus=(between(0.01, 0.3), between(0.1, 5.0)),
        over_each=(between(0.01, 0.4), between(0.2, 5.0)),
        over_both=(between(0.005, 0.2), between(0.2, 3.0), between(0.2, 3.0)),
    )


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
