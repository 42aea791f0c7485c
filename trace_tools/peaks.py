"""How much memory a class needs: from the peaks of its jobs, those that had enough, and those that had too little.

Log peaks are taken for normal about a line over log GPUs. What is not known of centre, spread and slope is summed over
a grid, so few peaks make a wide margin and many a narrow one. A job that runs out of memory is lost: the need is what
all but one in a hundred jobs stay below.
"""

import math

import numpy as np

from trace_tools.seen import Peak, Room, Seen

SAFE = 0.99
SAMPLING = 1.05
"""Slurm looks every half minute, and misses the true peak by a little."""
SPREADS = np.geomspace(0.02, 0.8, 16)
"""Standard deviations of log peaks that are thought possible."""
USUAL_SPREAD, USUAL_DOUBT = 0.12, 0.8
"""Before peaks are seen: median, and the deviation of its logarithm."""
SLOPES = ((0.0, 0.45), (0.25, 0.15), (0.5, 0.15), (0.75, 0.1), (1.0, 0.15))
"""Powers of the number of GPUs with which memory grows, and how far each is believed."""
_CENTRES = np.linspace(-1.5, 1.5, 121)
_STRANGE = 0.02
"""Share of jobs that run out of memory by a mistake of their own."""
_MOST_ALIKE = 20
_HALVINGS = 20
"""Of an interval of a few powers of e, for the share that stays below."""


def below(deviations: np.ndarray) -> np.ndarray:
    """The normal distribution function (Abramowitz and Stegun 7.1.26, within 1e-7)."""
    size = np.abs(deviations) / math.sqrt(2)
    t = 1 / (1 + 0.3275911 * size)
    tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    upper = 1 - 0.5 * tail * np.exp(-(size**2))
    return np.where(deviations >= 0, upper, 1 - upper)


class Need:
    """What jobs of one class need, by GPUs."""

    def __init__(self, seen: Seen) -> None:
        self._enough, self._peaks = seen.enough, seen.peaks
        self._learned = bool(seen.peaks)
        if self._learned:
            self._learn(seen.peaks, seen.enough, seen.short)

    def mem_mb(self, gpus: int) -> int:
        """MiB with which all but one in a hundred jobs run; 1 where nothing is known.

        Without any peak it is the least with which a job is known to have finished, as much more on more GPUs as there
        are more of them: each has a process of its own.
        """
        if not self._learned:
            return self._known_enough(gpus)
        at = self._centres + self._slopes * math.log(max(1, gpus))
        low, high = at.min() - 1.0, at.max() + 4.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            share = float((self._weights * below((middle - at) / self._spreads)).sum())
            low, high = (middle, high) if share < SAFE else (low, middle)
        held = max((peak.greatest_mb for peak in self._peaks if peak.gpus <= max(gpus, 1)), default=0)
        return math.ceil(max(math.exp(high), held) * SAMPLING)

    def _known_enough(self, gpus: int) -> int:
        needs = [room.mem_mb * max(1.0, gpus / max(1, room.gpus)) for room in self._enough]
        return math.ceil(min(needs, default=1))

    def _learn(self, seen_peaks: list[Peak], enough: list[Room], short: list[Room]) -> None:
        total = sum(peak.log_mb.count for peak in seen_peaks)
        about = sum(peak.log_mb.count * peak.log_mb.mean for peak in seen_peaks) / total
        slopes, slope_weights = np.array(SLOPES).T
        centres, spreads, slopes = np.meshgrid(about + _CENTRES, SPREADS, slopes, indexing="ij")
        logs = np.log(slope_weights)[None, None, :] - 0.5 * (np.log(spreads / USUAL_SPREAD) / USUAL_DOUBT) ** 2
        for peak in seen_peaks:
            count, beyond = peak.log_mb.count, peak.log_mb.mean - centres - slopes * math.log(max(1, peak.gpus))
            logs = logs - count * np.log(spreads) - (peak.log_mb.squares + count * beyond**2) / (2 * spreads**2)
        for room in short:
            room_logs = math.log(room.mem_mb) - centres - slopes * math.log(max(1, room.gpus))
            more = 1 - below(room_logs / spreads)
            logs = logs + min(room.jobs, _MOST_ALIKE) * np.log(_STRANGE + (1 - _STRANGE) * more)
        for room in enough:
            room_logs = math.log(room.mem_mb) - centres - slopes * math.log(max(1, room.gpus))
            logs = logs + np.log(_STRANGE + (1 - _STRANGE) * below(room_logs / spreads))
        weights = np.exp(logs - logs.max())
        believed = weights > 1e-4
        self._weights = weights[believed] / weights[believed].sum()
        self._centres, self._spreads, self._slopes = centres[believed], spreads[believed], slopes[believed]
