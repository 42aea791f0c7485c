"""Random numbers for pure policies: drawn from a seed and the frame, so that the same state gets the same answer.

SplitMix64 (Steele, Lea and Flood, OOPSLA'14).
"""

import numpy as np

from tapfinger_hpc.frame import Frame
from tapfinger_hpc.sim.core import compiled

_STEP, _FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_30, _27, _31, _11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)


@compiled
def source(frame: Frame, env: int, seed: float) -> np.ndarray:
    """uint64 [1] the source of this state: the same in whatever environment it comes up, and whatever will arrive."""
    state = np.zeros(1, np.uint64)
    _stir(state, int(seed))
    _stir(state, int(frame.now[env] * 1000.0))
    for position in range(frame.waiting_count[env]):
        job = frame.waiting[env, position]
        _stir(state, job)
        _stir(state, frame.kind[env, job])
        _stir(state, int(frame.arrival[env, job] * 1000.0))
        for partition in range(frame.partitions[env]):
            if frame.seen[env, job, partition]:
                _stir(state, partition)
    for position in range(frame.running_count[env]):
        job = frame.running[env, position]
        _stir(state, job)
        _stir(state, frame.node[env, job])
        for resource in range(3):
            _stir(state, frame.amounts[env, job, resource])
    return state


@compiled
def below(state: np.ndarray, bound: int) -> int:
    """A whole number from 0 to below the bound, all alike."""
    return int(_next(state) >> _11) % bound


@compiled
def _next(state: np.ndarray) -> np.uint64:
    state[0] += _STEP
    mixed = state[0]
    mixed = (mixed ^ (mixed >> _30)) * _FIRST
    mixed = (mixed ^ (mixed >> _27)) * _SECOND
    return mixed ^ (mixed >> _31)


@compiled
def _stir(state: np.ndarray, value: int) -> None:
    state[0] = _next(state) ^ np.uint64(value)
