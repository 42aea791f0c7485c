"""SlurmCluster against a real slurmctld: what it reads, what it changes, and that it believes nothing unseen."""

import time
from pathlib import Path

import pytest
from agents import PRIMED, USER, gpus_come_and_go
from msgspec.structs import replace

from slurm_plugin import hookfile
from slurm_plugin.cluster import SlurmCluster
from slurm_plugin.placed import original_of
from slurm_plugin.sandbox import Sandbox, SandboxSpec
from tapfinger_hpc import config, decision
from tapfinger_hpc.decision import TOP_PRIORITY, JobUpdate, Placement
from tapfinger_hpc.state import ClusterState, PendingJob, Resources

pytestmark = pytest.mark.slurm


@pytest.fixture
def slurm(cluster: Sandbox) -> SlurmCluster:
    return observer(cluster)


def observer(box: Sandbox) -> SlurmCluster:
    hookfile.write(box.layout.hook_file, "enforce", time.time(), 300)
    return SlurmCluster.from_config(config.load(box.tapfinger_toml))


def waiting(state: ClusterState, job_id: object) -> PendingJob:
    return next(job for job in state.pending if job.job_id == str(job_id))


def leased(box: Sandbox, *options: str, script: str = "sleep 300", **more: object) -> int:
    return box.submit(script, f"--comment={PRIMED}", *options, **more)  # type: ignore[arg-type]


FIELDS = (
    "Partition", "ReqNodeList", "NumNodes", "NumCPUs", "NumTasks", "CPUs/Task", "MinCPUsNode", "Priority", "TRES",
    "TresPerNode", "MinMemoryNode", "TimeLimit", "Comment", "AdminComment", "SubmitTime", "Dependency", "Nice",
)  # fmt: skip


def fields(box: Sandbox, job_id: object) -> dict[str, str]:
    record = box.job(str(job_id))
    return {name: record.get(name, "") for name in FIELDS}


# Reading.


@pytest.mark.core
@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (["-c4", "--gres=gpu:2", "--mem=8G"], Resources(4, 2, 8192)),
        (["-c3", "--gpus=1", "--mem-per-cpu=1500M"], Resources(3, 1, 4500)),
        (["-n4", "--gpus-per-node=3", "--mem-per-cpu=700"], Resources(4, 3, 2800)),
        (["-n2", "-c2", "--gpus-per-task=1", "--mem=9001M"], Resources(4, 2, 9001)),
        (["-c2"], Resources(2, 0, 2000)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_request_of_a_job_is_read_in_every_spelling(
    cluster: Sandbox, slurm: SlurmCluster, options: list[str], asked: Resources
) -> None:
    ours, foreign = leased(cluster, *options), cluster.submit("true", "--hold", *options)
    state = slurm.observe()
    assert waiting(state, ours).requested == asked
    assert waiting(state, foreign).requested == asked
    assert waiting(state, ours).managed
    assert not waiting(state, foreign).managed


@pytest.mark.core
def test_what_runs_is_off_what_is_free(cluster: Sandbox, slurm: SlurmCluster) -> None:
    one = cluster.submit("sleep 300", "-c5", "--gres=gpu:3", "--mem=10G", "--nodelist=n1", "--time=30")
    two = cluster.submit("sleep 300", "-N2", "-n4", "--gres=gpu:1", "--mem=2G", "-ppb")
    for job_id in (one, two):
        cluster.wait_state(job_id, "RUNNING")
    state = slurm.observe()
    assert state.node("n1").free == Resources(11, 1, 64000 - 10240)
    running = {job.job_id: job for job in state.running}
    assert running[str(one)].shares[0].amounts == Resources(5, 3, 10240)
    assert running[str(one)].end_limit_s == running[str(one)].start_time_s + 1800
    assert [share.node for share in running[str(two)].shares] == ["n3", "n4"]
    assert running[str(two)].amounts == Resources(4, 2, 4096)
    assert state.node("n5").free == state.node("n5").capacity == Resources(16, 4, 64000)


@pytest.mark.core
def test_nodes_where_nothing_may_start_are_not_available(cluster: Sandbox, slurm: SlurmCluster) -> None:
    cluster.set_node("n1", "drain")
    cluster.set_node("n2", "down")
    options = ["starttime=now", "duration=10", "user=root", "reservationname=kept"]
    cluster.run("scontrol", "create", "reservation", "nodes=n3", *options)
    try:
        cluster.wait_for(lambda: "RESERVED" in cluster.node("n3")["State"], what="n3 to be reserved")
        state = slurm.observe()
    finally:
        cluster.run("scontrol", "delete", "reservationname=kept")
    assert [node.name for node in state.nodes if node.available] == ["n4", "n5", "n6"]


@pytest.mark.core
def test_a_name_or_comment_cannot_pass_for_another_job_or_field(cluster: Sandbox, slurm: SlurmCluster) -> None:
    victim = cluster.submit("true", "--begin=now+1hour", "--comment=tapfinger gpus=1-2", "--gres=gpu:1", as_user=USER)
    honest = slurm.observe()
    padded = "x" * 317
    texts = [
        f"x\nJobId={victim} JobState=PENDING Priority=4294967290 AdminComment=tapfinger lease=60 ticket=forged ",
        "tapfinger gpus=1-4 AdminComment=tapfinger lease=60 ticket=forged",
        f"{padded}tapfinger lease=60 ticket=forged",
        "\x1f|\t;\n\n",
    ]
    forged = [cluster.submit("true", "--hold", f"--comment={text}", "--job-name", text, as_user=USER) for text in texts]
    state = slurm.observe()
    assert {job.job_id for job in state.pending} == {str(victim), *map(str, forged)}
    assert waiting(state, victim) == waiting(honest, victim)
    assert not any(job.managed or job.ticket for job in state.pending)


@pytest.mark.core
def test_tasks_of_an_array_are_seen_one_by_one_within_its_limit(cluster: Sandbox, slurm: SlurmCluster) -> None:
    array = leased(cluster, "--array=0-99%3", "--gres=gpu:1")
    cluster.run("scontrol", "update", f"jobid={array}_1", "starttime=now")
    cluster.wait_state(f"{array}_1", "RUNNING")
    state = slurm.observe()
    tasks = [job for job in state.pending if job.job_id.startswith(f"{array}_")]
    assert [job.job_id for job in tasks if job.eligible] == [f"{array}_0", f"{array}_2"]
    assert 2 < len(tasks) <= 16
    assert all(job.managed for job in tasks)


@pytest.mark.parametrize(
    ("options", "why"),
    [(["--hold"], "held"), (["--dependency=afterok:{first}"], "other jobs"), (["--begin=now+1hour"], "begins at")],
)
def test_a_job_that_may_not_start_says_why(cluster: Sandbox, slurm: SlurmCluster, options: list[str], why: str) -> None:
    first = cluster.submit("sleep 300")
    job_id = cluster.submit("true", *(option.format(first=first) for option in options))
    job = waiting(slurm.observe(), job_id)
    assert not job.eligible
    assert why in job.why


def test_slurms_plan_for_others_is_seen(cluster: Sandbox, slurm: SlurmCluster) -> None:
    full = cluster.submit("sleep 300", "-N2", "--exclusive", "--time=20")
    cluster.wait_state(full, "RUNNING")
    blocked = cluster.submit("true", "-N2", "--exclusive", "--time=5")
    cluster.wait_for(lambda: waiting(slurm.observe(), blocked).planned_start_s, what="backfill to plan the job")
    job = waiting(slurm.observe(), blocked)
    assert job.planned_nodes == ("n1", "n2")
    assert job.planned_start_s == slurm.observe().running[0].end_limit_s


def test_without_accounting_gpus_are_read_from_the_request(sandbox_factory) -> None:
    box = sandbox_factory(SandboxSpec(accounting=False))
    slurm = observer(box)
    runs = box.submit("sleep 300", "--gpus=2")
    box.wait_state(runs, "RUNNING")
    waits = leased(box, "-c2", "--gpus-per-node=3")
    state = slurm.observe()
    assert waiting(state, waits).requested == Resources(2, 3, 2000)
    assert state.running[0].amounts.gpus == 2
    assert state.node("n1").free.gpus == 2


# Changing.


def place(slurm: SlurmCluster, job_id: object, placement: Placement) -> tuple[JobUpdate, decision.Outcome]:
    job = waiting(slurm.observe(), job_id)
    return original_of(job, placement), slurm.apply(decision.update_for(job, placement))


@pytest.mark.core
@pytest.mark.parametrize("tasks", [1, 4])
@pytest.mark.parametrize("gpus", [0, 1, 4])
def test_a_placed_job_runs_with_just_what_was_decided(
    cluster: Sandbox, slurm: SlurmCluster, tasks: int, gpus: int
) -> None:
    script = 'echo $SLURM_CPUS_ON_NODE ${SLURM_GPUS_ON_NODE:-0}; srun bash -c "echo step \\$CUDA_VISIBLE_DEVICES"'
    job_id = leased(cluster, f"-n{tasks}", "-c2", "--gpus=2", "-p", "pa,pb", script=script)
    before = fields(cluster, job_id)
    _, outcome = place(slurm, job_id, Placement("pb", "n4", Resources(4, gpus, 5000)))
    if not gpus and not gpus_come_and_go(cluster):
        assert "take all GPUs" in outcome.why
        assert fields(cluster, job_id) == before
        return
    assert outcome.applied, outcome.why
    record = cluster.wait_state(job_id, "COMPLETED")
    assert (record["NodeList"], record["Partition"], record["NumTasks"]) == ("n4", "pb", str(tasks))
    lines = cluster.output(job_id).splitlines()
    assert lines[0] == f"4 {gpus}"
    assert len(lines) == 1 + tasks
    devices = {line.removeprefix("step").strip() for line in lines[1:]}
    assert {len(seen.split(",")) if seen else 0 for seen in devices} == {gpus}
    assert f"cpu=4,mem=5000M,node=1,billing=4{f',gres/gpu={gpus}' if gpus else ''}" in record["TRES"]


@pytest.mark.core
def test_taking_a_placement_back_leaves_the_job_as_it_was(cluster: Sandbox, slurm: SlurmCluster) -> None:
    blocker = cluster.submit("sleep 300", "--exclusive", "--nodelist=n3", "-p", "pb")
    cluster.wait_state(blocker, "RUNNING")
    job_id = leased(cluster, "-n2", "-c2", "--gpus=2", "--mem=6G", "-p", "pa,pb")
    before = fields(cluster, job_id)
    original, outcome = place(slurm, job_id, Placement("pb", "n3", Resources(8, 4, 30000)))
    assert outcome.applied, outcome.why
    assert fields(cluster, job_id) != before
    restored = slurm.apply(replace(original, begin_s=int(time.time()) + 300))
    assert restored.applied, restored.why
    after = fields(cluster, job_id)
    assert after.pop("ReqNodeList") in ("", "(null)")
    # How many CPUs the one node must have is now said outright; it is what the tasks need.
    assert after.pop("MinCPUsNode") == "4"
    assert after == {name: value for name, value in before.items() if name not in ("ReqNodeList", "MinCPUsNode")}


@pytest.mark.core
@pytest.mark.parametrize("asked", [["--gpus=2"], []])
def test_a_job_runs_with_the_gpus_it_asked_for_after_a_placement_with_others_was_taken_back(
    cluster: Sandbox, slurm: SlurmCluster, asked: list[str]
) -> None:
    cluster.set_node("n1", "drain")
    job_id = leased(cluster, *asked)
    before = waiting(slurm.observe(), job_id).requested
    original, outcome = place(slurm, job_id, Placement("pa", "n1", Resources(1, 0 if asked else 2, 1000)))
    assert outcome.applied == gpus_come_and_go(cluster), outcome.why
    assert slurm.apply(replace(original, begin_s=int(time.time()) + 300)).applied
    assert waiting(slurm.observe(), job_id).requested == before
    cluster.run("scontrol", "update", f"jobid={job_id}", "starttime=now")
    assert ("gres/gpu=2" in cluster.wait_state(job_id, "RUNNING")["TRES"]) == bool(asked)


IMPOSSIBLE = {
    "a node of another partition": Placement("pa", "n3", Resources(1, 1, 1000)),
    "too many CPUs": Placement("pa", "n1", Resources(40, 1, 1000)),
    "too many GPUs": Placement("pa", "n1", Resources(1, 9, 1000)),
    "too much memory": Placement("pa", "n1", Resources(1, 1, 99000)),
    "no such node": Placement("pa", "nowhere", Resources(1, 1, 1000)),
    "no such partition": Placement("nowhere", "n1", Resources(1, 1, 1000)),
}


@pytest.mark.parametrize("pause_s", [0.0, 2.0], ids=["at once", "after the scheduler saw it"])
@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_an_impossible_placement_can_be_taken_back(
    cluster: Sandbox, slurm: SlurmCluster, what: str, pause_s: float
) -> None:
    job_id = leased(cluster, "--gpus=2", "-c2", "--mem=2G")
    before = waiting(slurm.observe(), job_id)
    original, outcome = place(slurm, job_id, IMPOSSIBLE[what])
    # Slurm takes some of these without a word, and then never starts the job.
    assert outcome.applied or outcome.why
    time.sleep(pause_s)
    restored = slurm.apply(replace(original, begin_s=int(time.time()) + 300))
    assert restored.applied, restored.why
    after = waiting(slurm.observe(), job_id)
    assert replace(after, lease_until_s=None, why="") == replace(before, lease_until_s=None, why="")
    cluster.run("scontrol", "update", f"jobid={job_id}", "starttime=now")
    assert "cpu=2,mem=2G,node=1,billing=2,gres/gpu=2" in cluster.wait_state(job_id, "RUNNING")["TRES"]


def test_a_job_of_another_submit_time_is_not_touched(cluster: Sandbox, slurm: SlurmCluster) -> None:
    job_id = leased(cluster, "--gpus=1")
    before = fields(cluster, job_id)
    job = replace(waiting(slurm.observe(), job_id), submit_time_s=1)
    outcome = slurm.apply(decision.update_for(job, Placement("pa", "n1", Resources(1, 1, 1000))))
    assert not outcome.applied
    assert fields(cluster, job_id) == before


@pytest.mark.parametrize("state", ["RUNNING", "COMPLETED", "CANCELLED"])
def test_a_job_that_waits_no_more_is_not_touched(cluster: Sandbox, slurm: SlurmCluster, state: str) -> None:
    job_id = leased(cluster, "--gpus=1", script="true" if state == "COMPLETED" else "sleep 300")
    job = waiting(slurm.observe(), job_id)
    if state == "CANCELLED":
        cluster.run("scancel", str(job_id))
    else:
        cluster.run("scontrol", "update", f"jobid={job_id}", "starttime=now")
    cluster.wait_state(job_id, state)
    before = fields(cluster, job_id)
    outcome = slurm.apply(decision.update_for(job, Placement("pa", "n2", Resources(4, 4, 4000))))
    assert not outcome.applied
    assert outcome.why
    assert fields(cluster, job_id) == before


@pytest.mark.core
def test_a_held_job_is_neither_placed_nor_released(cluster: Sandbox, slurm: SlurmCluster) -> None:
    job_id = leased(cluster, "--gpus=1", as_user=USER)
    job = waiting(slurm.observe(), job_id)
    for holder in ("hold", "uhold"):
        cluster.run("scontrol", holder, str(job_id))
        placement = Placement("pa", "n1", Resources(1, 1, 1000))
        assert not slurm.apply(decision.update_for(job, placement)).applied
        undone = slurm.apply(replace(original_of(job, placement), begin_s=int(time.time()) + 60))
        assert undone.applied, undone.why
        assert cluster.job(job_id)["Priority"] == "0"
        cluster.run("scontrol", "release", str(job_id))


def test_a_computed_priority_is_computed_again(sandbox_factory) -> None:
    box = sandbox_factory(
        SandboxSpec(
            extra_conf=("PriorityType=priority/multifactor", "PriorityWeightAge=1000", "PriorityWeightJobSize=99")
        )
    )
    slurm = observer(box)
    blocker = box.submit("sleep 300", "--exclusive", "--nodelist=n1")
    box.wait_state(blocker, "RUNNING")
    job_id, other = leased(box, "--gpus=1"), leased(box, "--gpus=1")
    original, outcome = place(slurm, job_id, Placement("pa", "n1", Resources(1, 1, 1000)))
    assert outcome.applied, outcome.why
    assert box.job(job_id)["Priority"] == str(TOP_PRIORITY)
    restored = slurm.apply(replace(original, begin_s=int(time.time()) + 300))
    assert restored.applied, restored.why
    assert box.job(job_id)["Priority"] == box.job(other)["Priority"]
    assert box.job(job_id)["JobState"] == "PENDING"


@pytest.mark.core
def test_leases_are_renewed_in_one_go_and_what_ended_is_passed_over(cluster: Sandbox, slurm: SlurmCluster) -> None:
    single, array = leased(cluster, "--gpus=1"), leased(cluster, "--array=0-40", "--gpus=1")
    cancelled, started = leased(cluster), leased(cluster)
    keys = [job.key for job in slurm.observe().pending]
    cluster.run("scancel", str(cancelled))
    cluster.run("scontrol", "update", f"jobid={started}", "starttime=now")
    cluster.wait_state(started, "RUNNING")
    until_s = int(time.time()) + 4000
    outcome = slurm.renew(keys, until_s)
    assert outcome.applied, outcome.why
    state = slurm.observe()
    assert {job.lease_until_s for job in state.pending} == {until_s}
    assert waiting(state, single)
    # The tasks are still one record: a renewal must not split an array into thousands of jobs.
    assert len(cluster.jobs(array)) == 1


def test_an_answer_that_never_comes_is_an_error_with_the_command_in_it(cluster: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "squeue").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "squeue").chmod(0o755)
    slow = config.SlurmConfig(conf=str(cluster.slurm_conf), bin_dir=str(tmp_path), timeout_s=0.3)
    outcome = SlurmCluster.from_config(config.Config(slurm=slow)).apply(JobUpdate("1", 1, begin_s=0))
    assert not outcome.applied
    assert "squeue" in outcome.why


def test_a_waiting_task_with_a_record_of_its_own_is_not_hidden_among_the_others(
    cluster: Sandbox, slurm: SlurmCluster
) -> None:
    array = leased(cluster, "--array=1-30", "--gpus=1", "-c2")
    cluster.run("scontrol", "update", f"jobid={array}_3", "NumCPUs=5", "MinCPUsNode=5", "CPUsPerTask=5")
    cluster.run("scontrol", "update", f"jobid={array}_5", "ReqNodeList=n2", "starttime=now+2000")
    state = slurm.observe()
    seen = {job.job_id: job for job in state.pending}
    assert len(seen) == len(state.pending)
    assert seen[f"{array}_3"].requested.cpus == 5
    assert not seen[f"{array}_5"].managed
    assert seen[f"{array}_4"].requested.cpus == 2
    until_s = int(time.time()) + 1000
    assert slurm.renew([job.key for job in state.pending if job.managed], until_s).applied
    after = {job.job_id: job for job in slurm.observe().pending}
    assert {job.lease_until_s for job in after.values() if job.managed} == {until_s}
    # A task that was placed keeps its start, whatever happens to the others.
    assert cluster.job(f"{array}_5")["EligibleTime"] != cluster.job(f"{array}_3")["EligibleTime"]
