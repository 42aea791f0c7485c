"""What every Cluster keeps, simulated or Slurm: neither a policy nor the agent can tell which of them it has.

Each test says one sentence of the contract and runs on both. A Scene is what a user and an administrator do.
"""

import time
from collections.abc import Callable, Iterator

import pytest
from cluster_states import speed
from msgspec.structs import replace

from tapfinger_hpc.cluster import Clock, Cluster
from tapfinger_hpc.decision import TOP_PRIORITY, JobUpdate, Placement, update_for
from tapfinger_hpc.sim.clock import SimClock
from tapfinger_hpc.sim.cluster import SimulatedCluster
from tapfinger_hpc.sim.cluster_spec import ClusterSpec
from tapfinger_hpc.speed import JobClass
from tapfinger_hpc.state import JobKey, Node, PendingJob, Resources, RunningJob
from tapfinger_hpc.trace import Trace, TraceJob

WHOLE = Resources(16, 4, 64000)
ASKED = Resources(4, 2, 8000)
LEAST, MOST = Resources(1, 1, 4096), Resources(16, 4, 32768)
LEASE_S = 300


class Scene:
    """One cluster of three partitions with two nodes of 16 CPUs and 4 GPUs each, idle at the start."""

    cluster: Cluster
    clock: Clock

    def submit(
        self,
        *,
        lasts_s: int = 600,
        ours: bool = True,
        partitions: tuple[str, ...] = ("pa",),
        requested: Resources = ASKED,
        lease_s: int = LEASE_S,
    ) -> JobKey:
        """A user submits a job with a time limit of 20 minutes; ours declare LEAST to MOST."""
        raise NotImplementedError

    def drain(self, node: str) -> None:
        """An administrator drains a node."""
        raise NotImplementedError

    # What follows is looked at through the contract alone.

    def pending(self, key: JobKey) -> PendingJob | None:
        return next((job for job in self.cluster.observe().pending if job.key == key), None)

    def waiting(self, key: JobKey) -> PendingJob:
        job = self.pending(key)
        assert job is not None, f"job {key} does not wait"
        return job

    def running(self, key: JobKey) -> RunningJob | None:
        return next((job for job in self.cluster.observe().running if job.key == key), None)

    def node(self, name: str) -> Node:
        return self.cluster.observe().node(name)

    def until(self, what: Callable[[], object], within_s: float = 60) -> None:
        """Time passes until this is so."""
        deadline_s = self.clock.now_s() + within_s
        while not what():
            assert self.clock.now_s() < deadline_s, "it did not come about in time"
            self.clock.wait(0.2)

    def runs(self, key: JobKey, within_s: float = 60) -> RunningJob:
        self.until(lambda: self.running(key) is not None, within_s)
        job = self.running(key)
        assert job is not None
        return job

    def place(self, key: JobKey, node: str, amounts: Resources, partition: str = "pa") -> None:
        """Places a job and waits until it runs."""
        assert self.cluster.apply(update_for(self.waiting(key), Placement(partition, node, amounts))).applied
        self.runs(key)


class SimulatedScene(Scene):
    """In event time; a minute takes no time."""

    def __init__(self) -> None:
        self.clock = SimClock(1_700_000_000.0)
        flat = JobClass("flat", speed(g1=1.0))
        self.cluster: SimulatedCluster = SimulatedCluster(
            ClusterSpec.uniform(), Trace("contract", (flat,), ()), self.clock, update_latency_s=0.5
        )
        self._number = 0

    def submit(self, *, lasts_s=600, ours=True, partitions=("pa",), requested=ASKED, lease_s=LEASE_S) -> JobKey:
        self._number += 1
        job = PendingJob(
            job_id=str(self._number),
            submit_time_s=0,
            partitions=partitions,
            requested=requested,
            minimum=LEAST if ours else requested,
            maximum=MOST if ours else requested,
            job_class="flat",
            time_limit_s=1200,
            managed=ours,
        )
        return self.cluster.submit(TraceJob(job, float(lasts_s)), lease_s=lease_s)

    def drain(self, node: str) -> None:
        self.cluster.set_node(node, available=False)


class RealClock:
    """Seconds as they are."""

    def now_s(self) -> float:
        return time.time()

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)


class SlurmScene(Scene):
    """A throw-away Slurm with our submit hook; no agent runs."""

    def __init__(self, box) -> None:
        from slurm_plugin import hookfile
        from slurm_plugin.cluster import SlurmCluster
        from tapfinger_hpc import config

        self._box, self._hookfile = box, hookfile
        self.clock = RealClock()
        self.cluster = SlurmCluster.from_config(config.load(box.tapfinger_toml))

    def submit(self, *, lasts_s=600, ours=True, partitions=("pa",), requested=ASKED, lease_s=LEASE_S) -> JobKey:
        self._hookfile.write(self._box.layout.hook_file, "enforce", time.time(), LEASE_S)
        mark = [f"--comment=tapfinger gpus=1-4 cpus=1-16 mem=4G-32G class=flat lease={lease_s}"] if ours else []
        job_id = self._box.submit(
            f"sleep {lasts_s}",
            *mark,
            f"--partition={','.join(partitions)}",
            f"--cpus-per-task={requested.cpus}",
            f"--gres=gpu:{requested.gpus}",
            f"--mem={requested.mem_mb}M",
            "--time=20",
        )
        state = self.cluster.observe()
        return next(job.key for job in (*state.pending, *state.running) if job.job_id == str(job_id))

    def drain(self, node: str) -> None:
        self._box.set_node(node, "drain")


@pytest.fixture(scope="session")
def contract_sandbox(release: str) -> Iterator:
    from slurm_plugin.sandbox import Sandbox, SandboxSpec
    from slurm_plugin.sandbox.packages import why_not
    from slurm_plugin.sandbox.userland import Userland

    if reason := why_not(Userland(release)):
        pytest.skip(reason)
    with Sandbox.up(SandboxSpec(accounting=False, release=release)) as box:
        yield box


@pytest.fixture(params=["simulated", pytest.param("slurm", marks=pytest.mark.slurm)])
def scene(request) -> Scene:
    if request.param == "simulated":
        return SimulatedScene()
    box = request.getfixturevalue("contract_sandbox")
    box.reset()
    return SlurmScene(box)


# Observing.


def test_an_idle_cluster_shows_all_its_nodes_free(scene: Scene):
    state = scene.cluster.observe()
    assert [(each.name, each.capacity, each.free, each.available) for each in state.nodes] == [
        (f"n{number}", WHOLE, WHOLE, True) for number in range(1, 7)
    ]
    assert [(each.name, each.nodes, each.up) for each in state.partitions] == [
        ("pa", ("n1", "n2"), True),
        ("pb", ("n3", "n4"), True),
        ("pc", ("n5", "n6"), True),
    ]
    assert (state.pending, state.running, state.classes) == ((), (), ())
    assert abs(state.time_s - scene.clock.now_s()) < 5


def test_a_job_of_ours_waits_for_its_lease_with_what_it_asks_for_and_its_ranges(scene: Scene):
    before_s = scene.clock.now_s()
    job = scene.waiting(scene.submit(partitions=("pa", "pb")))
    assert (job.managed, job.eligible, job.nodes_wanted, job.tasks) == (True, True, 1, 1)
    assert (job.requested, job.minimum, job.maximum) == (ASKED, LEAST, MOST)
    assert sorted(job.partitions) == ["pa", "pb"]
    assert (job.job_class, job.time_limit_s) == ("flat", 1200)
    assert job.lease_until_s is not None
    assert before_s + LEASE_S - 2 <= job.lease_until_s <= before_s + LEASE_S + 5
    assert job.ticket


def test_a_job_of_others_is_started_by_slurm_and_is_not_ours(scene: Scene):
    job = scene.runs(scene.submit(ours=False))
    assert not job.managed
    assert job.amounts == ASKED
    (share,) = job.shares
    assert scene.node(share.node).free == WHOLE - ASKED


def test_a_job_of_others_that_finds_no_room_waits_unmanaged_with_its_fixed_amounts(scene: Scene):
    for _ in range(2):
        scene.runs(scene.submit(ours=False, requested=Resources(16, 4, 32000)))
    job = scene.waiting(scene.submit(ours=False))
    assert (job.managed, job.eligible, job.lease_until_s) == (False, True, None)
    assert job.why == "not marked"
    assert job.minimum == job.maximum == job.requested == ASKED


def test_a_drained_node_is_not_available_and_what_runs_there_goes_on(scene: Scene):
    key = scene.submit()
    scene.place(key, "n2", ASKED)
    scene.drain("n2")
    assert not scene.node("n2").available
    assert scene.node("n1").available
    assert scene.running(key) is not None


# Placing.


def test_a_placed_job_runs_on_its_node_with_its_amounts(scene: Scene):
    key, amounts = scene.submit(), Resources(6, 3, 12000)
    job = scene.waiting(key)
    assert scene.cluster.apply(update_for(job, Placement("pa", "n2", amounts))).applied
    now = scene.runs(key)
    assert now.managed
    assert now.shares[0].node == "n2"
    assert (now.amounts, now.partition) == (amounts, "pa")
    assert scene.node("n2").free == WHOLE - amounts
    assert scene.pending(key) is None
    assert now.end_limit_s is not None
    assert abs(now.end_limit_s - now.start_time_s - 1200) <= 1


def test_amounts_can_shrink_to_the_least(scene: Scene):
    key = scene.submit()
    scene.place(key, "n1", LEAST)
    now = scene.running(key)
    assert now is not None
    assert now.amounts == LEAST


def test_a_job_of_several_partitions_runs_in_the_one_that_was_chosen(scene: Scene):
    key = scene.submit(partitions=("pa", "pb"))
    scene.place(key, "n3", ASKED, partition="pb")
    now = scene.running(key)
    assert now is not None
    assert (now.partition, now.shares[0].node) == ("pb", "n3")


def test_a_placed_job_is_not_held_up_behind_a_blocked_one(scene: Scene):
    scene.runs(scene.submit(ours=False))
    scene.runs(scene.submit(ours=False, requested=Resources(16, 4, 32000)))
    scene.submit(ours=False, requested=Resources(16, 4, 32000))
    free = next(name for name in ("n1", "n2") if scene.node(name).free.gpus)
    scene.place(scene.submit(), free, ASKED)


def test_a_job_placed_on_a_busy_node_stays_pinned_and_is_not_ours_until_it_is_given_back(scene: Scene):
    whole = scene.submit()
    scene.place(whole, "n1", Resources(16, 4, 32000))
    key = scene.submit()
    job = scene.waiting(key)
    assert scene.cluster.apply(update_for(job, Placement("pa", "n1", Resources(8, 4, 8000)))).applied
    scene.clock.wait(2)
    pinned = scene.waiting(key)
    assert not pinned.managed
    assert "n1" in pinned.why
    assert pinned.requested == Resources(8, 4, 8000)
    until_s = int(scene.clock.now_s()) + LEASE_S
    back = JobUpdate(*key, node="", amounts=job.requested, tasks=job.tasks, priority=job.priority, begin_s=until_s)
    assert scene.cluster.apply(back).applied
    again = scene.waiting(key)
    assert (again.managed, again.requested, again.minimum, again.maximum) == (True, ASKED, LEAST, MOST)
    assert (again.lease_until_s, again.priority, again.partitions) == (until_s, job.priority, job.partitions)


def test_a_job_given_back_to_slurm_starts_where_there_is_room(scene: Scene):
    scene.place(scene.submit(), "n1", Resources(16, 4, 32000))
    key = scene.submit()
    assert scene.cluster.apply(update_for(scene.waiting(key), Placement("pa", "n1", ASKED))).applied
    assert scene.cluster.apply(JobUpdate(*key, node="", begin_s=0)).applied
    assert scene.runs(key).shares[0].node == "n2"


# Refusals.


def test_amounts_that_no_node_has_are_not_applied(scene: Scene):
    key = scene.submit()
    outcome = scene.cluster.apply(update_for(scene.waiting(key), Placement("pa", "n1", Resources(99, 9, 8000))))
    assert not outcome.applied
    assert outcome.why
    assert scene.running(key) is None


def test_an_unknown_node_or_partition_leaves_the_job_as_it_was(scene: Scene):
    key = scene.submit()
    before = scene.waiting(key)
    for placement in (Placement("pa", "n99", ASKED), Placement("pq", "n1", ASKED)):
        outcome = scene.cluster.apply(update_for(before, placement))
        assert not outcome.applied
        assert outcome.why
    assert scene.waiting(key) == before


def test_a_job_that_runs_or_is_not_there_is_not_updated(scene: Scene):
    key = scene.submit()
    job = scene.waiting(key)
    scene.place(key, "n1", ASKED)
    update = update_for(job, Placement("pa", "n2", LEAST))
    for late in (update, replace(update, job_id="987654")):
        outcome = scene.cluster.apply(late)
        assert not outcome.applied
        assert late.job_id in outcome.why
    now = scene.running(key)
    assert now is not None
    assert (now.shares[0].node, now.amounts) == ("n1", ASKED)


def test_an_update_meant_for_an_earlier_job_of_the_same_number_does_nothing(scene: Scene):
    key = scene.submit()
    before = scene.waiting(key)
    stale = replace(update_for(before, Placement("pa", "n1", ASKED)), submit_time_s=key[1] - 100)
    assert not scene.cluster.apply(stale).applied
    assert scene.waiting(key) == before


def test_a_job_that_has_ended_is_not_updated(scene: Scene):
    key = scene.submit(lasts_s=1)
    job = scene.waiting(key)
    scene.place(key, "n1", ASKED)
    scene.until(lambda: scene.running(key) is None and scene.node("n1").free == WHOLE)
    assert not scene.cluster.apply(update_for(job, Placement("pa", "n1", ASKED))).applied


# Leases.


def test_a_job_whose_lease_runs_out_is_started_by_slurm_with_what_it_asked_for(scene: Scene):
    key = scene.submit(lease_s=5)
    assert scene.running(key) is None
    assert scene.runs(key).amounts == ASKED


def test_leases_are_renewed_together_and_what_runs_or_is_gone_is_passed_over(scene: Scene):
    first, second, started = scene.submit(lease_s=60), scene.submit(lease_s=60), scene.submit()
    scene.place(started, "n1", ASKED)
    until_s = int(scene.clock.now_s()) + 500
    assert scene.cluster.renew([first, started, second], until_s).applied
    assert [scene.waiting(key).lease_until_s for key in (first, second)] == [until_s, until_s]
    assert all(scene.waiting(key).managed for key in (first, second))


def test_only_what_an_update_names_is_changed(scene: Scene):
    key = scene.submit(partitions=("pa", "pb"))
    before = scene.waiting(key)
    assert scene.cluster.apply(JobUpdate(*key, priority=TOP_PRIORITY)).applied
    assert scene.waiting(key) == replace(before, priority=TOP_PRIORITY)
