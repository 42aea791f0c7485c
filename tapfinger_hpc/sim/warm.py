"""Compiles what the simulator, its policies and the learned agents consist of, so that later processes find it done.

What is compiled is kept (``sim/compiling.py``); the first process to need a function pays some seconds for it.
``python -m tapfinger_hpc.sim.warm`` pays for all, once after an installation.
"""

import numpy as np

from tapfinger_hpc import checkpoint
from tapfinger_hpc.policies.compiled import price
from tapfinger_hpc.policies.learned_player import AgentsPlayer
from tapfinger_hpc.sim import core, episodes, players, scenarios
from tapfinger_hpc.sim.cluster_spec import ClusterSpec
from tapfinger_hpc.sim.pettingzoo_env import parallel_env
from tapfinger_hpc.sim.run import replay
from tapfinger_hpc.sim.vector import VectorEnv
from tapfinger_hpc.workload import demo_trace


def warm() -> None:
    """Plays with every policy, steps every sort of environment, and replays a trace."""
    workload = scenarios.workload("synthetic-3", 0)
    for name in players.NAMES:
        if name not in ("tapfinger", "price-settled"):
            episodes.play([workload], players.make(name, scenario=workload.scenario))
    episodes.play([workload], players.make("srtf", knowledge="types"))
    frame, truth = core.environments([workload])
    agents = AgentsPlayer(checkpoint.load(checkpoint.DEFAULT)[0], price.DEFAULT)
    for _ in range(3):
        agents.play_slot(frame, truth, np.array([0]))
        core.advance(frame, truth, 0)
    environments = VectorEnv("synthetic-3", 2)
    environments.reset(seed=0)
    environment = parallel_env("synthetic-3")
    environment.reset(seed=0)
    environment.step({agent: environment.action_space(agent).sample() for agent in environment.agents})
    replay(demo_trace(0, 3), ClusterSpec.uniform())


if __name__ == "__main__":
    warm()
