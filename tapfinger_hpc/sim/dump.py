"""Episodes as lines of JSON, from which anyone can check every constraint and recompute every completion time.

docs/evaluation.md describes a line. A policy that changes the amounts of running tasks has further entries of the same
task among its placements, each valid from its slot on; 0 CPUs and 0 GPUs mean that the task was stopped.
"""

from typing import Any

import numpy as np

from tapfinger_hpc.sim.episodes import Episode
from tapfinger_hpc.sim.scenarios import Scenario
from tapfinger_hpc.sim.sites import Site, SiteWorkload


def record(episode: Episode, policy: str) -> dict[str, Any]:
    """One episode as a line holds it."""
    workload = episode.workload
    if isinstance(workload, SiteWorkload):
        return _on_site(episode, policy, workload)
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


def _on_site(episode: Episode, policy: str, workload: SiteWorkload) -> dict[str, Any]:
    """An episode in event time: times are seconds, and jobs of others stand among the tasks."""
    site = workload.scenario
    assert isinstance(site, Site)
    closed = episode.end[workload.ours].max()
    placed = episode.changes[:, 0].astype(np.int64)
    amounts = np.column_stack((episode.amounts, episode.mem_mb))[placed]
    return {
        "scenario": site.name,
        "policy": policy,
        "seed": workload.seed,
        "tasks": [
            {
                "id": task,
                "arrival": arrival,
                "type": site.types[kind].name,
                "reachable": reach.nonzero()[0].tolist(),
                "pace": pace,
                "limit": limit,
                "priority": priority,
                **({"others": asked} if others else {}),
            }
            for task, (arrival, kind, reach, pace, limit, priority, others, asked) in enumerate(
                zip(
                    workload.arrival.tolist(),
                    workload.type.tolist(),
                    workload.reachable,
                    workload.pace.tolist(),
                    workload.limit.tolist(),
                    workload.priority.tolist(),
                    workload.others.tolist(),
                    workload.asked.tolist(),
                    strict=True,
                )
            )
        ],
        "placements": [
            {"task": task, "time": time, "agent": agent, "node": node, "cpu": cpus, "gpu": gpus, "mem_mb": mem_mb}
            for task, time, agent, node, (cpus, gpus, mem_mb) in zip(
                placed.tolist(),
                episode.start[placed].tolist(),
                episode.agent[placed].tolist(),
                episode.node[placed].tolist(),
                amounts.tolist(),
                strict=True,
            )
        ],
        "completions": [{"task": task, "time": end} for task, end in enumerate(episode.end.tolist()) if end <= closed],
        "mean_jct": episode.mean_jct,
        "knowledge": episode.knowledge,
        "cluster": {
            "nodes": site.nodes.tolist(),
            "partitions": [list(nodes) for nodes in site.partitions],
            "late_s": site.late_s,
            "refusal": site.refusal,
            "types": [
                {"name": kind.name, "rate": kind.rate.tolist(), "mem_mb": kind.mem_mb.tolist()} for kind in site.types
            ],
        },
    }
