"""Measured curves of time over GPUs, from which the prior of all job classes is learned.

``curves.csv`` holds them as facts, each with its source; this module reads it, and makes it anew of the originals.
"""

import csv
import json
import math
import re
from collections.abc import Iterable
from importlib import resources
from itertools import groupby
from pathlib import Path

import msgspec

from tapfinger_hpc.errors import TraceError

POLLUX_MODELS = ("bert", "cifar10", "deepspeech2", "imagenet", "ncf", "yolov3")
FEWEST_POINTS = 3
"""A curve of fewer tells nothing that two observations do not."""
_NAME = "curves.csv"
_GAVEL_KEY = re.compile(r"\('(.*)', (\d+)\)")
_DIGITS = 4


class Curve(msgspec.Struct, frozen=True):
    """Seconds of the same work on several numbers of GPUs, relative to the fewest."""

    source: str
    family: str
    """The model that was trained; curves of one family are not independent."""
    setting: str
    seconds: tuple[tuple[int, float], ...]
    """By number of GPUs, ascending."""

    @property
    def spread(self) -> bool:
        """Whether the GPUs were on several nodes."""
        return self.setting.endswith("_unconsolidated")


def shipped() -> tuple[Curve, ...]:
    """The curves that come with the package."""
    text = resources.files("trace_tools").joinpath(_NAME).read_text(encoding="utf-8")
    rows = csv.reader(line for line in text.splitlines() if not line.startswith("#"))
    return tuple(
        Curve(key[0], key[1], key[2], tuple((int(row[3]), float(row[4])) for row in points))
        for key, points in groupby(rows, key=lambda row: tuple(row[:3]))
    )


def written(curves: Iterable[Curve]) -> str:
    """The rows of ``curves.csv``: source, family, setting, GPUs, relative seconds."""
    rows = (
        f'{curve.source},{curve.family},"{curve.setting}",{gpus},{seconds:.{_DIGITS}f}'
        for curve in curves
        for gpus, seconds in curve.seconds
    )
    return "\n".join(rows) + "\n"


def of_gavel(path: Path) -> list[Curve]:
    """The curves in Gavel's ``simulation_throughputs.json``; a throughput of 0 (out of memory) is no point."""
    try:
        throughputs = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TraceError(f"Gavel throughputs {str(path)!r} cannot be read: {error}") from error
    curves = []
    for gpu_type, jobs in throughputs.items():
        points: dict[str, dict[int, float]] = {}
        for key, rates in jobs.items():
            match = _GAVEL_KEY.fullmatch(key)
            if match and rates.get("null"):
                points.setdefault(match[1], {})[int(match[2])] = 1 / rates["null"]
        for job, seconds in points.items():
            curves.append(_curve("gavel", job.partition(" (")[0], f"{job} on {gpu_type}", seconds))
    return [curve for curve in curves if len(curve.seconds) >= FEWEST_POINTS]


def of_pollux(folder: Path) -> list[Curve]:
    """The curves on one node in Pollux's ``MODEL-placements.csv``: the batch of each GPU kept, and the whole batch.

    A job whose batch grows with its GPUs needs fewer steps; one whose whole batch is kept takes shorter steps, whose
    time lies between those of the measured batches.
    """
    curves = []
    for model in POLLUX_MODELS:
        steps = _pollux_steps(folder / f"{model}-placements.csv")
        for batch in sorted(steps[1]):
            each = {gpus: times[batch] / gpus for gpus, times in steps.items() if batch in times}
            curves.append(_curve("pollux", model, f"{batch} samples per GPU", each))
            whole = {gpus: seconds for gpus in steps if (seconds := _step_s(steps[gpus], batch / gpus)) is not None}
            curves.append(_curve("pollux", model, f"{batch} samples in all", whole))
    return [curve for curve in curves if len(curve.seconds) >= FEWEST_POINTS]


def _pollux_steps(path: Path) -> dict[int, dict[int, float]]:
    """Step times by GPUs on one node and by batch per GPU."""
    steps: dict[int, dict[int, float]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if len(row["placement"]) == 1:  # one digit for each node: its GPUs
                    steps.setdefault(int(row["placement"]), {})[int(row["local_bsz"])] = float(row["step_time"])
    except (OSError, KeyError, ValueError) as error:
        raise TraceError(f"Pollux step times {str(path)!r} cannot be read: {error!r}") from error
    return steps


def _step_s(times: dict[int, float], batch: float) -> float | None:
    """Time of a step with this batch, between the measured ones on logarithmic scales; None far below them."""
    known = sorted(times)
    if batch < 0.8 * known[0] or batch > 1.01 * known[-1]:
        return None
    below = max((one for one in known if one <= batch), default=known[0])
    above = min((one for one in known if one > batch), default=known[-1])
    if below >= above:
        return times[below]
    share = max(0.0, math.log(batch / below) / math.log(above / below))
    return math.exp((1 - share) * math.log(times[below]) + share * math.log(times[above]))


def _curve(source: str, family: str, setting: str, seconds: dict[int, float]) -> Curve:
    first = seconds[min(seconds)]
    return Curve(
        source, family, setting, tuple((gpus, round(seconds[gpus] / first, _DIGITS)) for gpus in sorted(seconds))
    )
