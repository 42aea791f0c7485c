"""Optimus (Peng et al., EuroSys'18), elastic, as the authors' program has it (nooblyh/TapFinger, utils/benchmark.py,
multi_agent_inference.py): a fitted model of speed, and amounts dealt out one by one to the greatest marginal gain.

At every sub-step each agent gives its tasks their least amounts, and then one CPU or GPU after the other to the task
whose expected remaining time falls most for it. Speeds are fitted to the true speed at the start of a task on all
amounts (Optimus's model of synchronous training), and the true progress is known. The authors' program hands the
measured speeds to the fit in another order than the amounts, so that on square tables CPUs and GPUs change places:
``published`` keeps that, and the plain variant puts it right.
"""

import numpy as np
from scipy.optimize import curve_fit

from tapfinger_hpc.frame import WAITING, Frame
from tapfinger_hpc.policies.compiled import elastic
from tapfinger_hpc.policies.compiled.elastic import Shares
from tapfinger_hpc.sim import core
from tapfinger_hpc.sim.core import Truth, compiled

NEARLY_NONE = 0.001
"""Stands for no CPUs or GPUs in the fit, which divides by them."""
MAX_EVALUATIONS = 20_000


class OptimusPlayer:
    """Fits the speeds of each kind of task when an episode begins."""

    knowledge = "oracle"

    def __init__(self, *, published: bool = False) -> None:
        self.name = "optimus-published" if published else "optimus"
        self._published = published
        self._fitted: dict[bytes, np.ndarray] = {}
        self._speed = np.zeros((0, 0, 0, 0))

    def play_slot(self, frame: Frame, truth: Truth, envs: np.ndarray) -> int:
        """Divides every node of these environments anew."""
        if self._speed.shape != truth.rate.shape:
            self._speed = np.zeros(truth.rate.shape)
        begun = envs[frame.now[envs] == 0]
        elastic.check_one_node_each(frame, begun, self.name)
        for env in begun.tolist():
            for kind in range(frame.kinds[env]):
                self._speed[env, kind] = self._speeds(truth, env, kind)
        for env in envs.tolist():
            divide(frame, truth, env, self._speed[env])
        return len(envs)

    def _speeds(self, truth: Truth, env: int, kind: int) -> np.ndarray:
        cpus, gpus = elastic.greatest(truth, env, kind)
        rate = truth.rate[env, kind, : cpus + 1, : gpus + 1] * (np.sqrt(1.2) if truth.curved[env, kind] else 1.0)
        key = repr(rate.shape).encode() + rate.tobytes()
        if key not in self._fitted:
            self._fitted[key] = fitted(rate, published=self._published)
        speeds = np.zeros(truth.rate.shape[2:])
        speeds[: cpus + 1, : gpus + 1] = self._fitted[key]
        return speeds


def fitted(rate: np.ndarray, *, published: bool) -> np.ndarray:
    """float64 [CPUs + 1, GPUs + 1] the model's speeds, fitted to these; they may be below 0."""
    cpus, gpus = (np.maximum(axis, NEARLY_NONE) for axis in np.indices(rate.shape, dtype=np.float64))
    measured = (cpus.ravel("F"), gpus.ravel("F")) if published else (cpus.ravel(), gpus.ravel())
    model, _ = curve_fit(_speed, measured, rate.ravel(), maxfev=MAX_EVALUATIONS)
    return _speed((cpus, gpus), *model)


def _speed(amounts: tuple[np.ndarray, np.ndarray], a: float, b: float, c: float, d: float, e: float) -> np.ndarray:
    """Optimus's model of synchronous training, with CPUs as parameter servers and GPUs as workers."""
    servers, workers = amounts
    return 1 / (a / workers + b + c * workers / servers + d * workers + e * servers)


@compiled
def divide(frame: Frame, truth: Truth, env: int, speed: np.ndarray) -> None:
    """All sub-steps of a slot."""
    shares = elastic.begin(frame, env)
    placed = True
    while placed:
        placed = False
        shares.looked_at[:] = False
        for agent in range(frame.partitions[env]):
            count = shares.size[agent]
            job = elastic.candidate(frame, truth, env, agent, shares)
            if job >= 0:
                shares.looked_at[job] = True
                shares.tasks[agent, count] = job
                count += 1
                placed = True
            shares.size[agent] = count
            _deal(frame, truth, env, agent, shares, speed)
    elastic.carry_out(frame, truth, env, shares)


@compiled
def _deal(frame: Frame, truth: Truth, env: int, agent: int, shares: Shares, speed: np.ndarray) -> None:
    count = shares.size[agent]
    node = elastic.node_of(frame, env, agent)
    left = frame.capacity[env, node, :2].copy()
    most = np.zeros((count, 2), np.int64)
    remains = np.ones(count)
    gain = np.zeros((count, 2))
    for position in range(count):
        job = shares.tasks[agent, position]
        kind = frame.kind[env, job]
        shares.amounts[job] = frame.menu[env, kind, 0, :2]
        left -= shares.amounts[job]
        most[position] = elastic.greatest(truth, env, kind)
        if frame.status[env, job] != WAITING:
            remains[position] = 1.0 - core.progress_of(frame, truth, env, job)
        _gain(shares.amounts[job], most[position], remains[position], speed[kind], gain[position])
    while True:
        chosen, resource, greatest = -1, -1, 0.0
        for position in range(count):
            for which in range(2):
                if left[which] > 0 and gain[position, which] > greatest:
                    chosen, resource, greatest = position, which, gain[position, which]
        if chosen < 0:
            return
        job = shares.tasks[agent, chosen]
        shares.amounts[job, resource] += 1
        left[resource] -= 1
        _gain(shares.amounts[job], most[chosen], remains[chosen], speed[frame.kind[env, job]], gain[chosen])


@compiled
def _gain(amounts: np.ndarray, most: np.ndarray, remains: float, speed: np.ndarray, gain: np.ndarray) -> None:
    """By how much one more of each resource shortens what remains, over how much of it the task has."""
    cpus, gpus = amounts
    base = remains / speed[cpus, gpus]
    gain[0] = (base - remains / speed[cpus + 1, gpus]) / cpus if cpus < most[0] else 0.0
    gain[1] = (base - remains / speed[cpus, gpus + 1]) / gpus if gpus < most[1] else 0.0
