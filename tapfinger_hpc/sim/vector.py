"""Many environments of the paper's scenarios side by side, for learners in bulk: arrays in, arrays out.

Names as in Gymnasium's vector environments, with one more axis for the agents; an episode that ends begins anew in the
same step, with other tasks. Actions and observations are those of ``pettingzoo_env``.
"""

from pathlib import Path
from typing import Any

import numba
import numpy as np

from tapfinger_hpc.errors import ScenarioError
from tapfinger_hpc.sim import core, observation
from tapfinger_hpc.sim.observation import Observation
from tapfinger_hpc.sim.pettingzoo_env import MAX_SLOTS, RANDOM_ROOM, Workloads, action_space, observation_space


class VectorEnv:
    """``num_envs`` environments of one scenario; of ``random``, every episode of each has another cluster."""

    def __init__(
        self,
        scenario: str = "hetero-6",
        num_envs: int = 128,
        table: Path | str | None = None,
        *,
        threads: int = 1,
        max_slots: int = MAX_SLOTS,
        tasks: int | None = None,
    ) -> None:
        """
        Args:
            table: the test-bed measurements, for the scenarios that replay them.
            threads: above 1, numba's threads are used; then this process must not fork afterwards.
            max_slots: after which an episode is cut off.
            tasks: of an episode, where not those of the scenario; not for ``random``.

        Raises:
            ScenarioError: no scenario has this name, or a number is too small, or the table cannot be read.
        """
        if min(num_envs, threads, max_slots) < 1:
            raise ScenarioError(
                f"making {num_envs} environments of scenario {scenario!r} on {threads} threads, episodes of at most "
                f"{max_slots} slots: give 1 or more of each"
            )
        if threads > numba.config.NUMBA_NUM_THREADS:  # type: ignore[attr-defined]
            raise ScenarioError(f"{threads} threads: numba has fewer here; give fewer, or set NUMBA_NUM_THREADS")
        self._workloads = Workloads(scenario, Path(table) if table else None, tasks)
        self.num_envs, self._threads, self._max_slots = num_envs, threads, max_slots
        self._seeds = np.random.default_rng()
        room = self._workloads.room
        self.frame, self.truth = core.environments([self._workloads.draw(0)] * num_envs, room)
        self._seen = observation.empty(num_envs, room, self._workloads.rows)
        self.single_action_space = action_space(room)
        self.single_observation_space = observation_space(self._seen)
        self._actions = np.zeros((num_envs, room.agents, 4), np.int64)
        self._rewards = np.zeros((num_envs, room.agents))
        self._placed = np.zeros(num_envs, np.int64)
        self._ended = np.zeros(num_envs, np.bool_)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Observation, dict[str, Any]]:
        """Begins all episodes: environment N with the workload of seed + N."""
        if seed is None:
            seed = int(self._seeds.integers(2**31))
        self._seeds = np.random.default_rng(seed)
        for env in range(self.num_envs):
            core.load(self.frame, self.truth, env, self._workloads.draw(seed + env))
        return self._observations(), {}

    def step(self, actions: np.ndarray) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One sub-step of every environment.

        Args:
            actions: int [B, P, 3] wait (0) or place in the window, CPUs, GPUs. What stands there for agents that an
                environment lacks is not read.

        Returns:
            What is seen now, rewards [B, P], terminations [B], truncations [B] (of episodes that ended in this step;
            what is seen is already of the next ones), and infos: ``placed`` [B], tasks placed; where 0, a slot passed;
            ``mean_completion_time`` [B] where ``_mean_completion_time`` [B], of episodes that came to their end.
        """
        self._actions[..., :3] = actions
        self._actions[..., 0] -= 1
        step_all = core.step_all
        if self._threads > 1:
            numba.set_num_threads(self._threads)
            step_all = core.step_all_threaded
        step_all(self.frame, self.truth, self._actions, False, self._rewards, self._placed, self._ended)
        terminations = self._ended.copy()
        truncations = (self.frame.now >= self._max_slots) & ~terminations
        infos = {
            "placed": self._placed.copy(),
            "mean_completion_time": np.zeros(self.num_envs),
            "_mean_completion_time": terminations,
        }
        for env in np.flatnonzero(terminations).tolist():
            infos["mean_completion_time"][env] = core.mean_completion_time(self.frame, self.truth, env)
        self._begin_anew(np.flatnonzero(terminations | truncations))
        return self._observations(), self._rewards.copy(), terminations, truncations, infos

    def close(self) -> None:
        """There is nothing to give back."""

    def _begin_anew(self, envs: np.ndarray) -> None:
        if self._workloads.room is not RANDOM_ROOM:
            for env in envs.tolist():
                core.redraw(self.frame, self.truth, env)
            return
        for env in envs.tolist():
            core.load(self.frame, self.truth, env, self._workloads.draw(int(self._seeds.integers(2**31))))

    def _observations(self) -> Observation:
        observation.observe_all(self.frame, self.truth, self._seen)
        return Observation(*(array.copy() for array in self._seen))
