"""Slurm's own turn in the compiled core: who starts, where and when, with all that Slurm knows of a job."""

import math
import random
from dataclasses import dataclass, field

import pytest
from cluster_states import foreign, job
from msgspec.structs import replace

from tapfinger_hpc import reserve
from tapfinger_hpc.decision import JobUpdate, Placement, update_for
from tapfinger_hpc.errors import TraceError
from tapfinger_hpc.sim import controller, others
from tapfinger_hpc.sim.clock import SimClock
from tapfinger_hpc.sim.cluster import SimulatedCluster
from tapfinger_hpc.sim.cluster_spec import ClusterSpec
from tapfinger_hpc.sim.controller import ENV, Controller
from tapfinger_hpc.speed import JobClass, SpeedModel
from tapfinger_hpc.state import Node, Partition, PendingJob, Resources
from tapfinger_hpc.trace import Trace, TraceJob

SECOND = JobClass("second", SpeedModel((1,), (0,), (0, 1000), (None, 1.0)))
"""One second on anything but too little memory, so that all times are whole."""
WHOLE, HALF = Resources(16, 4, 64000), Resources(8, 2, 32000)


def two_nodes(**fields) -> ClusterSpec:
    names = ("n1", "n2")
    return ClusterSpec(tuple(Node(name, WHOLE, WHOLE, **fields) for name in names), (Partition("pa", names),))


@dataclass
class Queue:
    """A controller, and when its jobs start."""

    spec: ClusterSpec
    starts: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.controller = Controller(self.spec.nodes, self.spec.partitions, 0.0)
        self.jobs: dict[int, PendingJob] = {}

    def submit(self, job: PendingJob, at_s: float = 0.0, *, begin_s: float = 0.0, lasts_s: float = 100.0) -> int:
        number = self.controller.submit(job, at_s, begin_s=begin_s, lasts_s=lasts_s)
        self.jobs[number] = job
        self.until(at_s)
        return number

    def until(self, now_s: float) -> list[int]:
        """Those that ended."""
        started, ended = self.controller.pass_until(now_s)
        self.starts |= {number: self.controller.start_s(number) for number in started}
        return ended

    def free(self) -> list[Resources]:
        return [self.controller.free(name) for name in self.controller.node_names]

    def nodes(self, number: int) -> tuple[str, ...]:
        return self.controller.place_of(number, self.jobs[number].nodes_wanted)[1]


def test_a_job_does_not_begin_before_it_may_and_nobody_waits_for_it():
    queue = Queue(two_nodes())
    leased = queue.submit(foreign("1", WHOLE, priority=9, nodes_wanted=1), begin_s=50.0)
    behind = [queue.submit(foreign(str(number), WHOLE, priority=1)) for number in (2, 3)]
    assert queue.controller.next_event_s() == 50.0
    queue.until(300.0)
    assert [queue.starts[number] for number in (leased, *behind)] == [100.0, 0.0, 0.0]


def test_a_held_job_never_begins_and_nothing_is_to_come_of_it():
    queue = Queue(two_nodes())
    queue.submit(foreign("1", HALF, eligible=False, why="held"))
    assert queue.controller.next_event_s() == math.inf
    queue.until(1e9)
    assert queue.starts == {}


def test_a_job_of_two_nodes_waits_for_both_and_gives_both_back():
    queue = Queue(two_nodes())
    queue.submit(foreign("1", HALF), lasts_s=70.0)
    wide = queue.submit(foreign("2", WHOLE + WHOLE, nodes_wanted=2, time_limit_s=500), 1.0, lasts_s=30.0)
    small = queue.submit(foreign("3", HALF, time_limit_s=3600), 2.0)
    assert queue.until(90.0) == [0]
    assert (queue.starts[wide], queue.nodes(wide)) == (70.0, ("n1", "n2"))
    assert queue.free() == [Resources()] * 2
    assert queue.until(100.0) == [wide]
    assert queue.starts[small] == 100.0


def test_a_job_of_more_nodes_than_its_partition_has_never_starts():
    queue = Queue(two_nodes())
    wide = queue.submit(foreign("1", Resources(3, 3, 3000), nodes_wanted=3))
    last = queue.submit(foreign("2", HALF))
    queue.until(1e6)
    assert wide not in queue.starts
    assert queue.starts[last] == 0.0


def test_whole_cores_are_taken_from_the_node_that_is_used():
    names = ("n1", "n2")
    nodes = (Node("n1", WHOLE, WHOLE, cpu_step=8), Node("n2", WHOLE, WHOLE))
    queue = Queue(ClusterSpec(nodes, (Partition("pa", names),)))
    queue.submit(foreign("1", Resources(3, 1, 1000)))
    assert queue.free() == [Resources(8, 3, 63000), WHOLE]
    late = [queue.submit(foreign(str(number), Resources(9, 0, 1000))) for number in (2, 3)]
    assert (queue.starts[late[0]], queue.nodes(late[0])) == (0.0, ("n2",))
    queue.until(200.0)
    assert queue.starts[late[1]] == 100.0
    assert queue.free() == [WHOLE] * 2


def test_a_type_of_gpu_is_found_where_it_is_and_one_that_nobody_has_nowhere():
    nodes = (Node("n1", WHOLE, WHOLE, gpu_type="a100"), Node("n2", WHOLE, WHOLE, gpu_type="h200"))
    queue = Queue(ClusterSpec(nodes, (Partition("pa", ("n1", "n2")),)))
    wanted = [queue.submit(foreign(str(number), HALF, gpu_type=kind)) for number, kind in enumerate(("h200", "v100"))]
    assert queue.nodes(wanted[0]) == ("n2",)
    assert wanted[1] not in queue.starts


def test_a_pinned_job_waits_for_its_node_though_another_is_free():
    queue = Queue(two_nodes())
    queue.submit(foreign("1", WHOLE), lasts_s=40.0)
    pinned = queue.submit(mine := foreign("2", WHOLE), begin_s=1e9)
    queue.controller.change(pinned, mine, "n1", 0.0, begin_s=0.0, lasts_s=10.0)
    queue.until(39.0)
    assert pinned not in queue.starts
    queue.until(40.0)
    assert (queue.starts[pinned], queue.nodes(pinned)) == (40.0, ("n1",))


def test_a_changed_job_has_its_new_place_in_the_line_its_new_amounts_and_its_new_length():
    queue = Queue(two_nodes())
    for number in (1, 2):
        queue.submit(foreign(str(number), WHOLE), lasts_s=20.0)
    waiting = [queue.submit(foreign(str(number), WHOLE, priority=9 - number), 1.0) for number in (3, 4, 5)]
    top = replace(queue.jobs[waiting[2]], priority=100, requested=HALF)
    queue.controller.change(waiting[2], top, "", 1.0, begin_s=0.0, lasts_s=5.0)
    assert queue.until(24.0) == [0, 1]
    assert (queue.starts[waiting[2]], queue.nodes(waiting[2])) == (20.0, ("n1",))
    assert (queue.starts[waiting[0]], queue.nodes(waiting[0])) == (20.0, ("n2",))
    assert queue.free()[0] == HALF
    assert queue.until(25.0) == [waiting[2]]
    assert queue.starts[waiting[1]] == 25.0


@pytest.mark.parametrize(
    ("lasts_s", "limit_s", "runs_s", "outcome"),
    [
        (30.0, 60, 30.0, "COMPLETED"),
        (90.0, 60, 60.0, "TIMEOUT"),
        (90.0, None, 90.0, "COMPLETED"),
        (math.inf, 60, 1.0, "OUT_OF_MEMORY"),
        (math.inf, None, 1.0, "OUT_OF_MEMORY"),
    ],
)
def test_a_job_ends_by_itself_by_its_limit_or_for_lack_of_memory(lasts_s, limit_s, runs_s, outcome):
    queue = Queue(two_nodes())
    number = queue.submit(foreign("1", HALF, time_limit_s=limit_s), 7.0, lasts_s=lasts_s)
    assert queue.controller.next_event_s() == 7.0 + runs_s
    assert queue.until(1000.0) == [number]
    assert queue.controller.end_of(number) == (7.0 + runs_s, outcome)


def test_a_partition_that_is_down_or_too_short_starts_nothing():
    nodes = two_nodes().nodes
    partitions = (
        Partition("pa", ("n1",), up=False),
        Partition("pb", ("n1",), max_time_s=60),
        Partition("pc", ("n1", "n2")),
    )
    queue = Queue(ClusterSpec(nodes, partitions))
    first = queue.submit(foreign("1", HALF, partitions=("pa", "pb"), time_limit_s=61))
    second = queue.submit(foreign("2", HALF, partitions=("pa", "pb", "pc"), time_limit_s=61))
    assert first not in queue.starts
    assert queue.controller.place_of(second, 1) == ("pc", ("n1",))


def test_there_is_room_for_any_number_of_jobs():
    queue = Queue(two_nodes())
    count = 3 * controller.ROOM
    for number in range(count):
        queue.submit(foreign(str(number), WHOLE, priority=count - number), float(number % 3 == 0 and number / 3))
    queue.until(100.0 * count)
    assert len(queue.starts) == count
    assert list(queue.starts) == sorted(queue.starts)
    assert queue.free() == [WHOLE] * 2


def test_a_job_for_a_partition_that_the_cluster_lacks_is_refused_with_those_that_it_has():
    lost = TraceJob(job("7", partitions=("pa", "gone"), job_class="second"))
    with pytest.raises(TraceError, match="no partition 'gone'; known: pa"):
        SimulatedCluster(two_nodes(), Trace("test", (SECOND,), (lost,)), SimClock())


# The same plan as that of the live system.


def drawn_spec(draw: random.Random) -> ClusterSpec:
    nodes = []
    for number in range(1, draw.randint(2, 5) + 1):
        amounts = draw.choice((WHOLE, WHOLE, HALF, Resources(32, 0, 128000)))
        kind = {"gpu_type": draw.choice(("", "a100")), "cpu_step": draw.choice((1, 1, 2, 4))}
        nodes.append(Node(f"n{number}", amounts, amounts, **kind))
    names = [node.name for node in nodes]
    some = tuple(draw.sample(names, draw.randint(1, len(names))))
    partitions = (
        Partition("pa", tuple(names)),
        Partition("pb", some, max_time_s=draw.choice((None, 200))),
        Partition("pz", some, up=draw.random() < 0.5),
    )
    return ClusterSpec(tuple(nodes), partitions)


def drawn_job(draw: random.Random, number: int) -> TraceJob:
    asked = Resources(draw.randint(1, 16), draw.choice((0, 1, 1, 2, 4)), draw.choice((500, 8000, 30000)))
    ours = draw.random() < 0.5
    wide = 1 if ours else draw.choice((1, 1, 2, 3))
    pending = PendingJob(
        job_id=str(number),
        submit_time_s=0,
        partitions=tuple(draw.sample(("pa", "pb", "pz"), draw.randint(1, 3))),
        requested=asked,
        minimum=asked,
        maximum=asked,
        nodes_wanted=wide,
        gpu_type=draw.choice(("", "", "", "a100")),
        time_limit_s=draw.choice((None, 60, 150, 300)),
        priority=draw.choice((0, 0, 500, 4294967000)),
        job_class="second",
        managed=ours,
        eligible=draw.random() > 0.05,
    )
    return TraceJob(pending, float(draw.randint(20, 400)))


def compare_plans(cluster: SimulatedCluster, pins: dict, now_s: float) -> list[tuple[bool, bool, bool]]:
    """Holds what the compiled core plans against ``reserve`` on what is seen; of each reservation whether it is for
    several nodes, for a pinned job, and for later.
    """
    state = cluster.observe()
    waiting = reserve.waiting_in_order(state)
    made = {one.job.key: one for one in reserve.plan(state, waiting, reserve.Profile(state), pins)}
    inside = cluster._controller
    frame, truth = inside.frame, inside.truth
    frame.now[ENV] = now_s
    others.plan(frame, truth, ENV, truth.look["lined"][ENV])
    planned = {}
    for place in truth.job[ENV, : truth.look["lined"][ENV]]:
        where = inside.node_names[place["node"]] if place["node"] >= 0 else ""
        planned[int(place["line"])] = (float(place["start"]), where)
    for held in cluster._waiting.values():
        places = [planned[held.number + row] for row in range(held.job.nodes_wanted)]
        one = made.get(held.job.key)
        if one is None:
            assert {start for start, _ in places} == {math.inf}
        else:
            assert places == [(one.start_s, name) for name in one.nodes]
    return [(len(one.nodes) > 1, key in pins, one.start_s > now_s) for key, one in made.items()]


def play_and_compare(seed: int) -> list[tuple[bool, bool, bool]]:
    """Some hours of submissions, placements, jobs given back, nodes that drain and come back."""
    draw = random.Random(seed)
    spec, clock = drawn_spec(draw), SimClock(1000.0)
    cluster = SimulatedCluster(spec, Trace("test", (SECOND,), ()), clock, lease_s=40)
    pins: dict = {}
    found: list[tuple[bool, bool, bool]] = []
    for number in range(90):
        chance = draw.random()
        ours = [each for each in cluster.observe().pending if each.managed]
        if chance < 0.45:
            cluster.submit(drawn_job(draw, number))
        elif chance < 0.6 and ours:
            one, node = draw.choice(ours), draw.choice(spec.nodes).name
            cluster.apply(update_for(one, Placement(one.partitions[0], node, one.requested)))
            pins[one.key] = node  # also where Slurm says no: it keeps the new values
        elif chance < 0.65 and pins:
            key = draw.choice(list(pins))
            if cluster.apply(JobUpdate(*key, node="", begin_s=draw.choice((0, int(clock.now_s()) + 30)))).applied:
                del pins[key]
        elif chance < 0.75:
            cluster.set_node(draw.choice(spec.nodes).name, available=draw.random() < 0.7)
        else:
            clock.wait(draw.choice((1.0, 10.0, 50.0)))
        found += compare_plans(cluster, pins, clock.now_s())
    return found


def test_slurms_turn_plans_what_the_guard_of_the_live_system_does():
    found = [one for seed in range(8) for one in play_and_compare(seed)]
    assert len(found) > 800
    for what in zip(*found, strict=True):
        assert sum(what) > 50
