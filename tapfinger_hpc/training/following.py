"""Makes a network's rounds choose what another policy's list of placements says, and labels them so."""

import numpy as np

from tapfinger_hpc.features.options import Options
from tapfinger_hpc.frame import Frame
from tapfinger_hpc.sim.core import compiled
from tapfinger_hpc.training.decoding import WAIT


class Follow:
    """Chooses as a compiled policy decides on the states as they are now; each agent takes its placements in order."""

    def __init__(self, decide, parameters: np.ndarray, frame: Frame, envs: np.ndarray) -> None:
        self._frame, self._envs = frame, envs
        self._plans = np.zeros((len(envs), frame.waiting.shape[1], 6), np.int64)
        self._counts = np.array(
            [decide(frame, env, parameters, plan) for env, plan in zip(envs.tolist(), self._plans, strict=True)],
            np.int64,
        )
        self._done = np.zeros(self._plans.shape[:2], np.bool_)

    def __call__(self, offered: Options, of_options: np.ndarray | None, of_waiting: np.ndarray | None) -> np.ndarray:
        if of_waiting is None and len(offered.job) and offered.job[0] >= 0:
            return _places(
                offered, self._frame.menu, self._frame.kind, self._envs, self._plans, self._counts, self._done
            )
        return _tasks(offered, self._plans, self._counts, self._done)


@compiled
def _tasks(offered: Options, plans: np.ndarray, counts: np.ndarray, done: np.ndarray) -> np.ndarray:
    chosen = np.full(len(offered.env), WAIT)
    option = 0
    for row in range(len(offered.env)):
        env = offered.env[row]
        job = -1
        for place in range(counts[env]):
            if plans[env, place, 1] == offered.partition[row] and not done[env, place]:
                job = plans[env, place, 0]
                break
        while option < len(offered.row_of) and offered.row_of[option] == row:
            if offered.value[option] == job:
                chosen[row] = option
            option += 1
    return chosen


@compiled
def _places(
    offered: Options,
    menu: np.ndarray,
    kind: np.ndarray,
    envs: np.ndarray,
    plans: np.ndarray,
    counts: np.ndarray,
    done: np.ndarray,
) -> np.ndarray:
    chosen = np.zeros(len(offered.env), np.int64)
    option = 0
    for row in range(len(offered.env)):
        env, job = offered.env[row], offered.job[row]
        wanted = -1
        for place in range(counts[env]):
            if plans[env, place, 0] == job:
                wanted = place
                done[env, place] = True
        begun, found = option, -1
        while option < len(offered.row_of) and offered.row_of[option] == row:
            if wanted >= 0 and offered.value[option] == plans[env, wanted, 2]:
                amounts = menu[envs[env], kind[envs[env], job], offered.choice[option]]
                if (
                    amounts[0] == plans[env, wanted, 3]
                    and amounts[1] == plans[env, wanted, 4]
                    and amounts[2] == plans[env, wanted, 5]
                ):
                    found = option
            option += 1
        chosen[row] = found if found >= 0 else begun
    return chosen
