"""From what was seen of a class to its speed model: mean and doubt of its duration on any amounts.

The mixture of ``prior`` conditioned on the jobs of the class. Jobs that did not finish are lower bounds. On the grid
that policies read more CPUs, and more memory, never make a job slower; GPUs may.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tapfinger_hpc import gaussian
from tapfinger_hpc.speed import JobClass, SpeedModel
from trace_tools import peaks, prior
from trace_tools.prior import NOISES, OTHER_TYPE, Prior, Stacked
from trace_tools.seen import Bound, Cell, Seen

CPU_AXIS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
GPU_AXIS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16)
BEYOND = 2.0
"""The grid reaches to so many times the greatest amounts that were seen; more is taken to bring nothing."""
LEAST_REACH = (16, 4)
"""CPUs and GPUs to which every grid reaches, the latter where GPUs were seen."""
_NEGLIGIBLE = 1e-3
"""Weight against the greatest below which a shape is passed over."""
_LEAST_KEPT, _WORK = 40, 2000
"""Shapes that are kept, of many amounts fewer: each costs time with the number of amounts."""
_HANGING = 0.05
"""Share of jobs that do not finish for other reasons than their length: they hang."""
_SWEEPS, _PACE = 8, 0.6
"""Of lower bounds, all at a time; so much of what each says anew is taken over, or they would push one another."""
_NOTHING = 1e6
"""Variance of a measurement that says nothing."""
_REACH, _STEPS = 6.0, 61
"""Of sums over what is believed, in deviations."""
_FARTHEST = 10.0
_WILD = 1.0
_FIRMEST = 1e-3
_TRIED_COUNT = 4.0
"""Jobs on the same amounts for which a tried noise counts."""
_STRAY = math.log(500)
"""How far log seconds may lie from all that were seen. One job of seconds among others of hours makes a slope that
would lead anywhere on amounts that nobody had."""
_MOST_ALIKE = 10
"""Jobs with the same lower bound that count; more are a habit of the user, not news of the class."""


class Belief:
    """What is believed of one class's log seconds, on any amounts."""

    def __init__(self, seen: Seen, believed: Prior | None = None) -> None:
        """Conditions the prior on what was seen; there must be a cell or a bound."""
        mixture = believed or prior.shipped()
        self._stack, log_weights = _stack_of(mixture)
        cells, bounds = seen.cells, seen.bounds
        rows: list[Cell | Bound] = [*cells, *bounds]
        if not rows:
            raise ValueError(f"class {seen.name!r}: nothing was seen of its durations")
        amounts = np.array([[row.cpus, row.gpus, row.mem_mb] for row in rows], float)
        self._usual_mem_mb = float(np.median(amounts[amounts[:, 2] > 0, 2])) if (amounts[:, 2] > 0).any() else 0.0
        types = [row.gpu_type for row in rows]
        weight_of = {kind: sum(_weight(row) for row in rows if row.gpu_type == kind) for kind in types}
        usual = max(weight_of, key=lambda kind: weight_of[kind])
        self._of_usual_type = np.array([kind == usual for kind in types], float)
        self._same_type = OTHER_TYPE**2 * (np.array(types)[:, None] == np.array(types)[None])
        self._at = prior.points(amounts, self._usual_mem_mb)
        logs = np.array([cell.log_s.mean for cell in cells] + [bound.log_s for bound in bounds])
        counts = np.array([_weight(row) for row in rows])
        firm = slice(0, len(cells))
        self._level = float(np.average(logs[firm], weights=counts[firm])) if cells else float(logs.mean())
        covariance = self._stack.covariances(self._at, self._at) + self._same_type
        rest = logs - self._level - self._stack.means(self._at)
        weights = self._weigh(covariance, rest, cells, bounds, log_weights)
        shapes, noises = _kept(weights, max(_LEAST_KEPT, _WORK // len(rows)))
        self._weights = weights[shapes, noises] / weights[shapes, noises].sum()
        self._noise = _refined(np.array(NOISES)[noises], cells)
        self._stack = self._stack.taking(shapes)
        covariance, rest = covariance[shapes], rest[shapes]
        spread = np.broadcast_to((self._noise[:, None] ** 2) / counts[None], (len(shapes), len(rows))).copy()
        if bounds:
            rest, spread = self._stretched(covariance, rest, spread, bounds)
        self._seen = gaussian.known(covariance + _diagonals(spread), rest)

    @property
    def noise(self) -> float:
        """Standard deviation of log seconds between jobs on the same amounts, as far as it is known."""
        return float(np.exp(self._weights @ np.log(self._noise)))

    def predicted(self, amounts: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean of log seconds on CPUs, GPUs and MiB [m, 3], its doubt, and the deviation of a job's own, [m] each."""
        at = prior.points(np.asarray(amounts, float), self._usual_mem_mb)
        across = self._stack.covariances(self._at, at) + (OTHER_TYPE**2 * self._of_usual_type)[:, None]
        means, variances = gaussian.predicted(self._seen, across, self._stack.variances(at) + OTHER_TYPE**2)
        means = means + self._level + self._stack.means(at)
        mean = self._weights @ means
        doubt = self._weights @ (variances + (means - mean) ** 2)
        return mean, np.sqrt(doubt), np.sqrt(doubt + self._weights @ self._noise**2)

    def _weigh(
        self,
        covariance: np.ndarray,
        rest: np.ndarray,
        cells: Sequence[Cell],
        bounds: Sequence[Bound],
        log_weights: np.ndarray,
    ) -> np.ndarray:
        """float64 [shape, noise] how far each is believed, from the jobs that finished, and then from the others."""
        if not cells:
            return np.exp(log_weights)
        noises, firm = np.array(NOISES), len(cells)
        counts = np.array([cell.log_s.count for cell in cells])
        squares = sum(cell.log_s.squares for cell in cells)
        spread = noises[:, None] ** 2 / counts[None]  # [noise, cell]
        wide = (len(rest), len(noises))
        together = covariance[:, None, :firm, :firm] + _diagonals(spread)[None]
        seen = gaussian.known(together, np.broadcast_to(rest[:, None, :firm], (*wide, firm)))
        within = -(counts.sum() - firm) * np.log(noises) - squares / (2 * noises**2)
        total = gaussian.log_evidence(seen) + within + log_weights
        if bounds:
            across = np.broadcast_to(covariance[:, None, :firm, firm:], (*wide, firm, len(bounds)))
            variance = np.diagonal(covariance, axis1=1, axis2=2)[:, None, firm:]
            means, variances = gaussian.predicted(seen, across, variance)
            deviations = np.sqrt(variances + noises[:, None] ** 2)
            longer = _HANGING + (1 - _HANGING) * peaks.below((means - rest[:, None, firm:]) / deviations)
            total = total + np.log(longer) @ np.array([min(bound.count, _MOST_ALIKE) for bound in bounds], float)
        return np.exp(total - total.max())

    def _stretched(
        self, covariance: np.ndarray, rest: np.ndarray, spread: np.ndarray, bounds: Sequence[Bound]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lower bounds as measurements that say as much: expectation propagation, shape by shape.

        A job that would have taken at least so long moves what is believed up to there, and not at all where more is
        believed anyway. Some jobs hang, so a bound far above all belief moves it little.
        """
        firm = rest.shape[1] - len(bounds)
        limits, columns = rest[:, firm:], covariance[:, :, firm:]
        variance_before = np.diagonal(covariance, axis1=1, axis2=2)[:, firm:]
        counts = np.array([min(bound.count, _MOST_ALIKE) for bound in bounds], float)
        precision, pull = np.full(limits.shape, 1 / _NOTHING), limits / _NOTHING
        for _ in range(_SWEEPS):
            measured = np.concatenate((rest[:, :firm], pull / precision), axis=1)
            widths = np.concatenate((spread[:, :firm], 1 / precision), axis=1)
            seen = gaussian.known(covariance + _diagonals(widths), measured)
            mean, variance = gaussian.predicted(seen, columns, variance_before)
            # What is believed of each but for itself.
            firmness = np.maximum(1 / np.maximum(variance, 1e-12) - precision, 1 / _NOTHING)
            without = (mean / np.maximum(variance, 1e-12) - pull) / firmness
            value, width = _as_measured(without, 1 / firmness, self._noise[:, None], limits, counts)
            precision = (1 - _PACE) * precision + _PACE / width
            pull = (1 - _PACE) * pull + _PACE * value / width
        return (
            np.concatenate((rest[:, :firm], pull / precision), axis=1),
            np.concatenate((spread[:, :firm], 1 / precision), axis=1),
        )


def fit(seen: Seen, believed: Prior | None = None) -> JobClass | None:
    """The class with its speed model; None while nothing was seen of its durations."""
    if not seen.cells and not seen.bounds:
        return None
    belief = Belief(seen, believed)
    needs = peaks.Need(seen)
    cpus, gpus = _axes(seen)
    floors_mb = {count: needs.mem_mb(count) for count in gpus}
    mem_mb = _mem_axis(seen, floors_mb)
    means, doubts, deviations = _over_memory(belief, cpus, gpus, np.array(mem_mb, float), _had_mb(seen))
    firmness = 1 / np.maximum(doubts, _FIRMEST) ** 2
    falling = _falling(_falling(means, firmness, axis=2), firmness, axis=0)
    falling = np.minimum.accumulate(falling, axis=2)  # the second pass may undo a little of the first
    seen_log_s = [cell.log_s.mean for cell in seen.cells] + [bound.log_s for bound in seen.bounds]
    falling = np.clip(falling, min(seen_log_s) - _STRAY, max(seen_log_s) + _STRAY)
    # The mean of a log-normal time; beyond _WILD a tail that time limits cut off would be all of it.
    seconds = np.exp(falling + min(belief.noise, _WILD) ** 2 / 2).ravel()
    able = [mem >= floors_mb[gpu] for _ in cpus for gpu in gpus for mem in mem_mb]
    model = SpeedModel(
        cpus=cpus,
        gpus=gpus,
        mem_mb=mem_mb,
        seconds=tuple(_short(value) if runs else None for value, runs in zip(seconds.tolist(), able, strict=True)),
        log_std=tuple(_short(value) for value in deviations.ravel().tolist()),
    )
    return JobClass(seen.name, model, observations=seen.finished)


def _stack_of(mixture: Prior) -> tuple[Stacked, np.ndarray]:
    return prior.stacked(mixture.shapes), np.log(np.maximum(np.array(mixture.weights), 1e-300))


def _weight(row: Cell | Bound) -> float:
    return row.log_s.count if isinstance(row, Cell) else 1.0


def _kept(weights: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Shapes and noises that matter."""
    order = np.argsort(-weights, axis=None)[:most]
    order = order[weights.ravel()[order] > _NEGLIGIBLE * weights.max()]
    shapes, noises = np.unravel_index(order, weights.shape)
    return np.asarray(shapes), np.asarray(noises)


def _refined(noise: np.ndarray, cells: Sequence[Cell]) -> np.ndarray:
    """The few noises that are tried, moved to what jobs on the same amounts show where there are many of them."""
    again = sum(cell.log_s.count - 1 for cell in cells)
    squares = sum(cell.log_s.squares for cell in cells)
    return np.sqrt((_TRIED_COUNT * noise**2 + squares) / (_TRIED_COUNT + again))


def _diagonals(values: np.ndarray) -> np.ndarray:
    """[..., n] as the diagonals of [..., n, n]."""
    return values[..., None] * np.eye(values.shape[-1])


def _as_measured(
    mean: np.ndarray, variance: np.ndarray, noise: np.ndarray, limit: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The measurements, and their variances, that move beliefs [shape, bound] as jobs do that took at least ``limit``.

    Args:
        counts: float64 [bound] how many such jobs there were.
    """
    deviation = np.sqrt(variance)
    beyond = (limit - mean) / deviation
    highest = np.maximum(_REACH, np.minimum(beyond, _FARTHEST) + _REACH / 2)
    steps = -_REACH + (highest + _REACH)[..., None] * np.linspace(0.0, 1.0, _STEPS)
    at = mean[..., None] + deviation[..., None] * steps
    longer = _HANGING + (1 - _HANGING) * peaks.below((at - limit[..., None]) / noise[..., None])
    log_density = counts[:, None] * np.log(longer) - steps**2 / 2
    density = np.exp(log_density - log_density.max(axis=-1, keepdims=True))
    density /= density.sum(axis=-1, keepdims=True)
    moved = (density * at).sum(axis=-1)
    narrowed = np.maximum(1e-12, (density * (at - moved[..., None]) ** 2).sum(axis=-1))
    precision = 1 / narrowed - 1 / variance
    says = (precision > 1 / _NOTHING) & (beyond < _FARTHEST)  # farther off, the jobs hung
    width = np.where(says, 1 / np.where(says, precision, 1.0), _NOTHING)
    value = np.where(says, width * (moved / narrowed - mean / variance), limit)
    return value, width


def _axes(seen: Seen) -> tuple[tuple[int, ...], tuple[int, ...]]:
    rows: list[Cell | Bound] = [*seen.cells, *seen.bounds]
    most_cpus = max(LEAST_REACH[0], BEYOND * max(row.cpus for row in rows))
    most_gpus = max(row.gpus for row in rows)
    cpus = {count for count in CPU_AXIS if count <= most_cpus}
    reach = max(LEAST_REACH[1], BEYOND * most_gpus) if most_gpus else 0
    gpus = {count for count in GPU_AXIS if count <= reach}
    # What was seen stands in the grid itself: times may have steps that no line between other amounts shows.
    cpus |= {cell.cpus for cell in seen.cells}
    gpus |= {row.gpus for row in rows if row.gpus == 0} | {cell.gpus for cell in seen.cells}
    return tuple(sorted(cpus)), tuple(sorted(gpus))


def _over_memory(
    belief: Belief, cpus: Sequence[int], gpus: Sequence[int], mem_mb: np.ndarray, had_mb: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, doubt and deviation [CPUs, GPUs, memory], each.

    Log seconds are all but linear in log memory, so they are asked for at the ends alone of what jobs had; beyond those
    more or less memory changes nothing.
    """
    ends = sorted({had_mb[0], had_mb[-1]}) if had_mb else [1]
    asked = np.stack(belief.predicted([(cpu, gpu, mem) for cpu in cpus for gpu in gpus for mem in ends]))
    asked = asked.reshape(3, len(cpus), len(gpus), len(ends))
    first, last = asked[..., :1], asked[..., -1:]
    reach = max(np.log(ends[-1] / ends[0]), _FIRMEST)
    share = np.clip(np.log(np.maximum(1.0, mem_mb) / ends[0]) / reach, 0.0, 1.0)
    mean, doubt, deviation = first + share * (last - first)
    return mean, doubt, deviation


def _had_mb(seen: Seen) -> list[int]:
    return sorted({cell.mem_mb for cell in seen.cells if cell.mem_mb})


def _mem_axis(seen: Seen, floors_mb: dict[int, int]) -> tuple[int, ...]:
    """The least that is needed on each number of GPUs, and what jobs had beyond where they had different amounts."""
    had = _had_mb(seen)
    axis = set(floors_mb.values())
    if len(had) > 1:
        axis |= {mem for mem in (had[0], had[-1]) if mem > min(floors_mb.values())}
    return tuple(sorted(axis))


def _falling(values: np.ndarray, firmness: np.ndarray, axis: int) -> np.ndarray:
    """The nearest values that nowhere rise along the axis (pool adjacent violators), the firmer ones kept nearer."""
    out = values.copy()
    lines, firm = np.moveaxis(out, axis, -1), np.moveaxis(firmness, axis, -1)
    for index in np.ndindex(lines.shape[:-1]):
        if (np.diff(lines[index]) > 0).any():
            lines[index] = _pooled(lines[index], firm[index])
    return out


def _pooled(line: np.ndarray, firmness: np.ndarray) -> np.ndarray:
    pools: list[tuple[float, float, int]] = []  # value, firmness, length
    for value, weight in zip(line.tolist(), firmness.tolist(), strict=True):
        pool = (value, weight, 1)
        while pools and pools[-1][0] < pool[0]:
            before = pools.pop()
            both = before[1] + pool[1]
            pool = ((before[0] * before[1] + pool[0] * pool[1]) / both, both, before[2] + pool[2])
        pools.append(pool)
    return np.concatenate([np.full(length, value) for value, _, length in pools])


def _short(value: float) -> float:
    return float(f"{max(value, 1e-3):.4g}")
