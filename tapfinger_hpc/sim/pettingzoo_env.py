"""The paper's scenarios as a PettingZoo ``ParallelEnv``, on the compiled core: for learners from elsewhere.

One ``step`` is a sub-step of the paper: all agents act together; where none of them places a task, a slot passes.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

from tapfinger_hpc.errors import ScenarioError
from tapfinger_hpc.sim import core, observation, scenarios
from tapfinger_hpc.sim.core import Sizes

RANDOM_ROOM = Sizes(
    agents=24, kinds=5, menu=17 * 17, cpus=16, gpus=16, places=scenarios.WINDOW, jobs=384, nodes=24, views=1
)
"""The greatest that ``scenarios.random_scenario`` draws."""
RANDOM_ROWS = 32
"""Running tasks of one agent there: 32 CPUs and 32 GPUs, 1 of each for a task."""
MAX_SLOTS = 10_000
"""Slots after which an episode is cut off: agents that wait for ever would never end it."""


def parallel_env(
    scenario: str = "hetero-6",
    table: Path | str | None = None,
    *,
    tasks: int | None = None,
    max_slots: int = MAX_SLOTS,
) -> "PaperEnv":
    """An environment of the scenario with this name.

    Args:
        scenario: one of ``scenarios.NAMES``. Of ``random``, every episode has another cluster: as many of the agents as
            it has partitions take part, and the spaces are those of the greatest.
        table: the test-bed measurements, for the scenarios that replay them.
        tasks: of an episode, where not those of the scenario; not for ``random``.
        max_slots: after which an episode is cut off.

    Raises:
        ScenarioError: no scenario has this name, or its table is missing or cannot be read.
    """
    return PaperEnv(scenario, Path(table) if table else None, tasks=tasks, max_slots=max_slots)


class PaperEnv(ParallelEnv):
    """Agents ``agent_0``, ``agent_1``, ... of one episode after the other.

    ``reset(seed=N)`` begins the workload that ``scenarios.workload(name, N)`` draws, the same as for every policy that
    is evaluated; ``reset()`` one of the next seed, drawn from a generator that the last given seed began.
    """

    metadata = {"name": "tapfinger_paper_v0", "render_modes": [], "is_parallelizable": True}

    def __init__(self, scenario: str, table: Path | None, *, tasks: int | None, max_slots: int) -> None:
        if max_slots < 1:
            raise ScenarioError(f"an environment of scenario {scenario!r}: {max_slots} slots; give 1 or more")
        self.render_mode = None
        self._workloads = Workloads(scenario, table, tasks)
        self._max_slots = max_slots
        sizes = self._workloads.room
        self._seeds = np.random.default_rng()
        self._frame, self._truth = core.environments([self._workloads.draw(0)], sizes)
        self._seen = observation.empty(1, sizes, self._workloads.rows)
        self._actions = np.zeros((1, sizes.agents, 4), np.int64)
        self._rewards = np.zeros((1, sizes.agents))
        self.possible_agents = [f"agent_{number}" for number in range(sizes.agents)]
        self.agents: list[str] = []
        self.action_spaces = {agent: action_space(sizes) for agent in self.possible_agents}
        self.observation_spaces = {agent: observation_space(self._seen) for agent in self.possible_agents}

    def observation_space(self, agent: str) -> spaces.Space:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space:
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begins an episode. ``options["workload"]`` is a ``Workload`` to play, whatever the seed."""
        if seed is None:
            seed = int(self._seeds.integers(2**31))
        else:
            self._seeds = np.random.default_rng(seed)
        workload = (options or {}).get("workload") or self._workloads.draw(seed)
        core.load(self._frame, self._truth, 0, workload)
        self.agents = self.possible_agents[: workload.scenario.agents]
        return self._observations(), {agent: {} for agent in self.agents}

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict]]:
        """One sub-step. An agent whose action is missing waits; see ``core.step`` for those that cannot be done."""
        if not self.agents:
            return {}, {}, {}, {}, {}
        self._actions[...] = 0
        self._actions[..., 0] = core.WAIT
        for number, agent in enumerate(self.agents):
            if agent in actions:
                self._actions[0, number, :3] = actions[agent]
                self._actions[0, number, 0] -= 1
        placed = core.step(self._frame, self._truth, 0, self._actions, self._rewards)
        over = bool(core.over(self._truth, 0))
        cut = not over and bool(self._frame.now[0] >= self._max_slots)
        agents = self.agents
        info: dict[str, Any] = {"slot": int(self._frame.now[0]), "placed": int(placed)}
        if over:
            info["mean_completion_time"] = float(core.mean_completion_time(self._frame, self._truth, 0))
        observations = self._observations()
        rewards = {agent: float(self._rewards[0, number]) for number, agent in enumerate(agents)}
        if over or cut:
            self.agents = []
        return (
            observations,
            rewards,
            dict.fromkeys(agents, over),
            dict.fromkeys(agents, cut),
            {agent: dict(info) for agent in agents},
        )

    def render(self) -> None:
        """There is nothing to look at."""

    def close(self) -> None:
        """There is nothing to give back."""

    def _observations(self) -> dict[str, Any]:
        observation.observe(self._frame, self._truth, 0, self._seen)
        seen = self._seen
        return {
            agent: {
                "observation": {
                    "agent": seen.agent[0, number].copy(),
                    "window": seen.window[0, number].copy(),
                    "running": seen.running[0, number].copy(),
                },
                "action_mask": (
                    seen.place_mask[0, number].copy(),
                    seen.cpus_mask[0, number].copy(),
                    seen.gpus_mask[0, number].copy(),
                ),
            }
            for number, agent in enumerate(self.agents)
        }


class Workloads:
    """Those of the scenario with this name, and the room that the greatest of them needs."""

    def __init__(self, name: str, table: Path | None = None, tasks: int | None = None) -> None:
        self.name = name
        if name == "cluster":
            raise ScenarioError(
                "an environment of scenario 'cluster': it has no slots and no windows, of which actions and "
                "observations here are made; play it with `tapfinger simulate` or sim.core, or choose another scenario"
            )
        if name == "random":
            if tasks is not None:
                raise ScenarioError(
                    f"scenario 'random' with {tasks} tasks: each of its episodes has a number of its own"
                )
            self._scenario = None
            self.room, self.rows = RANDOM_ROOM, RANDOM_ROWS
            return
        self._scenario = scenarios.scenario(name, table)
        if tasks is not None:
            self._scenario = replace(self._scenario, tasks=tasks)
        self.room = Sizes.of(self.draw(0))
        self.rows = observation.most_running(self._scenario)

    def draw(self, seed: int) -> scenarios.Workload:
        """The workload of this seed."""
        if self._scenario is None:
            return scenarios.workload("random", seed)
        return scenarios.draw(self._scenario, seed)


def action_space(sizes: Sizes) -> spaces.MultiDiscrete:
    """Wait (0) or the place in the window, CPUs, GPUs."""
    return spaces.MultiDiscrete([1 + sizes.places, sizes.cpus + 1, sizes.gpus + 1])


def observation_space(seen: observation.Observation) -> spaces.Dict:
    """Of one agent; amounts, ages and counts have no upper bound."""

    def box(array: np.ndarray) -> spaces.Box:
        return spaces.Box(0.0, np.inf, array.shape[2:], np.float32)

    masks = (seen.place_mask, seen.cpus_mask, seen.gpus_mask)
    return spaces.Dict(
        {
            "observation": spaces.Dict(
                {"agent": box(seen.agent), "window": box(seen.window), "running": box(seen.running)}
            ),
            "action_mask": spaces.Tuple([spaces.MultiBinary(mask.shape[2]) for mask in masks]),
        }
    )
