"""Episodes as lines of JSON, from which anyone can check every constraint and recompute every completion time.

docs/evaluation.md describes a line. A policy that changes the amounts of running tasks has further entries of the same
task among its placements, each valid from its slot on; 0 CPUs and 0 GPUs mean that the task was stopped.
"""

from typing import Any

from tapfinger_hpc.sim.episodes import Episode
from tapfinger_hpc.sim.scenarios import Scenario


def record(episode: Episode, policy: str) -> dict[str, Any]:
    """One episode as a line holds it."""
    workload = episode.workload
    types = [kind.name for kind in workload.scenario.types]
    line: dict[str, Any] = {
        "scenario": workload.scenario.name,
        "policy": policy,
        "seed": workload.seed,
        "tasks": [
            {"id": task, "arrival": arrival, "type": types[kind], "reachable": reach.nonzero()[0].tolist()}
            for task, (arrival, kind, reach) in enumerate(
                zip(workload.arrival.tolist(), workload.type.tolist(), workload.reachable, strict=True)
            )
        ],
        "placements": [
            {"task": task, "slot": slot, "agent": agent, "cpu": cpus, "gpu": gpus}
            for task, slot, agent, cpus, gpus in episode.changes.tolist()
        ],
        "completions": [{"task": task, "slot": slot} for task, slot in enumerate(episode.end.tolist())],
        "mean_jct": episode.mean_jct,
        "knowledge": episode.knowledge,
    }
    if workload.scenario.name == "random":
        line["cluster"] = cluster(workload.scenario)
    return line


def cluster(scenario: Scenario) -> dict[str, Any]:
    """What the name of a random scenario does not say: capacities and speeds."""
    return {
        "capacities": [list(pair) for pair in scenario.capacities],
        "arrivals": scenario.arrivals,
        "window": scenario.window,
        "switch_weight": scenario.switch_weight,
        "types": [
            {"name": kind.name, "minimum": list(kind.minimum), "curved": kind.curved, "rate": kind.rate.tolist()}
            for kind in scenario.types
        ],
    }
