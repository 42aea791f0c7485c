"""States to learn from: random clusters and workloads in the simulator, with a teacher's decisions on each state.

In part of the episodes the network acts and the teacher only says what it would have done (DAgger): a policy that has
seen only its teacher's states does not know the ones that its own mistakes lead to.
"""

import hashlib
import random
from collections.abc import Iterator

import msgspec
from msgspec.structs import replace

from tapfinger_hpc.decision import Decision
from tapfinger_hpc.policies.base import Policy
from tapfinger_hpc.sim.cluster import ClusterSpec
from tapfinger_hpc.sim.random_clusters import random_cluster
from tapfinger_hpc.sim.run import replay
from tapfinger_hpc.speed import JobClass
from tapfinger_hpc.state import ClusterState
from tapfinger_hpc.stats import JobRecord
from tapfinger_hpc.trace import Trace
from tapfinger_hpc.training.examples import Example, label
from tapfinger_hpc.workload import demo_trace, random_knobs, random_trace

TRAINING, HELD_OUT = "training", "held out"
"""Names of the two streams of random workloads: no seed of one is a seed of the other."""
KEEP_IDLE = 0.3
"""Share of the states kept in which the teacher places nothing; there are many, and they are alike."""
CROWDED, UNKNOWN = 0.35, 0.25
"""Shares of the training scenarios with several times the load, and with half of the classes unknown."""
CROWDS = (2.0, 4.0, 8.0)
"""How many times."""


class Scenario(msgspec.Struct, frozen=True):
    """A cluster and what happens on it."""

    name: str
    spec: ClusterSpec
    trace: Trace
    interval_s: float
    """Longest time between two looks at the queue."""
    classes: tuple[JobClass, ...] | None = None
    """What a policy is told of the classes; None is all."""

    @property
    def lease_s(self) -> int:
        return max(60, int(6 * self.interval_s))


def random_scenario(stream: str, number: int) -> Scenario:
    """The scenario of this number; the same stream and number give the same one.

    Those to train on are in part harder than those held out: longer queues, and classes of which nothing is known.
    """
    draw = random.Random(f"{stream} scenario {number}")
    spec = random_cluster(draw)
    knobs = random_knobs(draw, jobs=draw.choice((40, 80, 120)))
    if stream == TRAINING and draw.random() < CROWDED:
        knobs = replace(knobs, load=draw.choice(CROWDS) * knobs.load)
    trace = random_trace(draw.randrange(2**62), spec, knobs)
    classes = None
    if stream == TRAINING and draw.random() < UNKNOWN:
        classes = tuple(known for known in trace.classes if draw.random() < 0.5)
    # A look at every arrival and end, and now and then between, whatever the length of the jobs.
    return Scenario(f"{stream} {number}", spec, trace, max(10.0, knobs.mean_s / 4), classes)


def demo_scenario(seed: int) -> Scenario:
    """The demo's cluster and workload."""
    return Scenario(f"demo {seed}", ClusterSpec.uniform(), demo_trace(seed), 1.0)


class Recorder:
    """A policy that labels every state that it is shown with the teacher's decisions, and lets another one act."""

    def __init__(self, teacher: Policy, actor: Policy, seed: str, digest: "hashlib._Hash | None" = None) -> None:
        self.name = f"{actor.name}, labelled by {teacher.name}"
        self.examples: list[Example] = []
        self._teacher, self._actor = teacher, actor
        self._draw = random.Random(seed)
        self._digest = digest

    def decide(self, state: ClusterState) -> tuple[Decision, ...]:
        labels = self._teacher.decide(state)
        if any(decision.placement for decision in labels) or self._draw.random() < KEEP_IDLE:
            example = label(state, labels)
            if example is not None:
                self.examples.append(example)
                if self._digest is not None:
                    self._digest.update(state.to_json())
                    self._digest.update(msgspec.json.encode([decision.placement for decision in labels]))
        return labels if self._actor is self._teacher else self._actor.decide(state)


def play(scenario: Scenario, policy: Policy | None) -> tuple[JobRecord, ...]:
    """The whole scenario under a policy; None is stock Slurm."""
    return replay(
        scenario.trace,
        scenario.spec,
        policy,
        classes=scenario.classes,
        interval_s=scenario.interval_s,
        lease_s=scenario.lease_s,
    )


def record(scenario: Scenario, recorder: Recorder) -> list[Example]:
    """The labelled states of one episode."""
    play(scenario, recorder)
    return recorder.examples


def scenarios(stream: str, first: int = 0) -> Iterator[tuple[int, Scenario]]:
    """All scenarios of a stream from this number on; one in eight is the demo's."""
    number = first
    while True:
        if stream == TRAINING and number % 8 == 7:
            yield number, demo_scenario(1_000_000 + number)
        else:
            yield number, random_scenario(stream, number)
        number += 1
