"""The submit hook in a real slurmctld. No agent runs: the tests write its sign of life and its updates themselves."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from agents import touch_later

from slurm_plugin.sandbox import Sandbox, SandboxSpec

pytestmark = pytest.mark.slurm

USER = "nobody"
RANGES = "tapfinger gpus=1-4 cpus=1-16 mem=1G-32G"

REPORT = """#!/bin/bash
variables='^(SLURM_[A-Z_]*|CUDA_VISIBLE_DEVICES|GPU_DEVICE_ORDINAL)='
env | grep -E "$variables" | sed 's/^/batch /'
export variables
srun bash -c 'env | grep -E "$variables" | sed "s/^/task$SLURM_PROCID /"'
"""
"""What the job and a nested srun really got, in their own words."""

FORMS = {
    "no gpus": ([], 1),
    "--gres": (["--gres=gpu:2"], 1),
    "--gpus": (["--gpus=2"], 1),
    "--gpus-per-node": (["--gpus-per-node=2"], 1),
    "--gpus-per-task, one task": (["--gpus-per-task=2", "-n1"], 1),
    "--gpus-per-task, two tasks": (["--gpus-per-task=1", "-n2"], 2),
    "-c": (["--gpus=2", "-c4"], 1),
    "-n": (["--gres=gpu:1", "-n4"], 4),
    # On one node: where others of these jobs hold GPUs, Slurm would spread four over two.
    "-n -c": (["--gpus=4", "-N1", "-n2", "-c3"], 2),
    "--ntasks-per-node": (["--gpus-per-node=1", "--ntasks-per-node=2"], 2),
    "--mem": (["--gpus=1", "--mem=3G"], 1),
    "--mem-per-cpu": (["--gres=gpu:1", "-c4", "--mem-per-cpu=2G"], 1),
    "--mem-per-cpu, four tasks": (["-n4", "--mem-per-cpu=1500M"], 4),
    "--nodes=1": (["--nodes=1", "--gpus=1"], 1),
}
"""Options of sbatch, and the tasks that they ask for."""

OWN_TO_A_JOB = {
    "SLURM_JOB_ID",
    "SLURM_JOBID",
    "SLURM_JOB_SLUID",
    "SLURM_JOB_NODELIST",
    "SLURM_NODELIST",
    "SLURM_STEP_NODELIST",
    "SLURM_JOB_PARTITION",
    "SLURMD_NODENAME",
    "SLURM_TASK_PID",
    "SLURM_TOPOLOGY_ADDR",
    "SLURM_JOB_GPUS",
    "SLURM_STEP_GPUS",
    "SLURM_STEP_LAUNCHER_PORT",
    "SLURM_SRUN_COMM_PORT",
    "SLURM_SRUN_COMM_HOST",
    "SLURM_JOB_COMMENT",
    "SLURM_JOB_START_TIME",
    "SLURM_JOB_END_TIME",
    "GPU_DEVICE_ORDINAL",
    "CUDA_VISIBLE_DEVICES",
}
"""Variables in which two equal jobs differ: which one it is, where it runs, and which of the GPUs it got."""


class Report(msgspec.Struct):
    """What one job saw."""

    batch: dict[str, str]
    tasks: list[dict[str, str]]
    record: dict[str, str]

    @classmethod
    def of(cls, cluster: Sandbox, job_id: int) -> "Report":
        record = cluster.wait_state(job_id, "COMPLETED", "FAILED", timeout_s=120)
        assert record["JobState"] == "COMPLETED", cluster.output(job_id)
        seen: dict[str, dict[str, str]] = {}
        for line in cluster.output(job_id).splitlines():
            where, _, assignment = line.partition(" ")
            name, _, value = assignment.partition("=")
            seen.setdefault(where, {})[name] = value
        batch = seen.pop("batch")
        return cls(batch, [seen[where] for where in sorted(seen)], record)

    def amounts(self) -> dict[str, object]:
        """Everything in which a job of other amounts would differ."""
        devices = {device for task in self.tasks for device in _devices(task)}
        return {
            "nodes": self.record["NumNodes"],
            "tres": self.record["TRES"],
            "gpus": len(_devices(self.batch)),
            "gpus of srun": len(devices),
            "tasks of srun": len(self.tasks),
            "job": {name: self.batch.get(name, "") for name in AMOUNTS},
            "srun": {tuple(task.get(name, "") for name in AMOUNTS) for task in self.tasks},
        }

    def environment(self) -> dict[str, str]:
        return {name: value for name, value in self.batch.items() if name not in OWN_TO_A_JOB}

    def environments_of_tasks(self) -> list[dict[str, str]]:
        return [{name: value for name, value in task.items() if name not in OWN_TO_A_JOB} for task in self.tasks]


AMOUNTS = (
    "SLURM_GPUS_ON_NODE",
    "SLURM_CPUS_ON_NODE",
    "SLURM_JOB_CPUS_PER_NODE",
    "SLURM_MEM_PER_NODE",
    "SLURM_MEM_PER_CPU",
    "SLURM_TASKS_PER_NODE",
    "SLURM_JOB_NUM_NODES",
)


def _devices(environment: dict[str, str]) -> list[str]:
    return [device for device in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]


class Decided(msgspec.Struct, frozen=True):
    """Amounts for a job of so many tasks."""

    cpus_per_task: int
    gpus: int
    mem_mb: int


GROWN = Decided(cpus_per_task=4, gpus=4, mem_mb=9000)
SHRUNK = Decided(cpus_per_task=1, gpus=1, mem_mb=1500)


def sign_of_life(cluster: Sandbox, mode: str = "enforce", lease_s: int = 60, age_s: int = 0) -> None:
    """What the agent does every cycle."""
    partial = cluster.layout.hook_file.with_suffix(".partial")
    partial.write_text(f"{mode} {int(time.time()) - age_s} {lease_s}\n")
    partial.replace(cluster.layout.hook_file)


def no_sign_of_life(cluster: Sandbox) -> None:
    cluster.layout.hook_file.unlink(missing_ok=True)


def partition_and_node(position: int) -> tuple[str, str]:
    """Spreads jobs over the cluster."""
    return (("pa", "n1"), ("pb", "n3"), ("pc", "n5"), ("pa", "n2"), ("pb", "n4"), ("pc", "n6"))[position % 6]


def place(cluster: Sandbox, job_id: int, node: str, tasks: int, decided: Decided) -> None:
    """The one update with which the agent places a job."""
    cpus = tasks * decided.cpus_per_task
    cluster.run(
        "scontrol",
        "update",
        f"jobid={job_id}",
        f"ReqNodeList={node}",
        "NumNodes=1",
        f"NumTasks={tasks}",
        f"NumCPUs={cpus}",
        f"MinCPUsNode={cpus}",
        f"CPUsPerTask={decided.cpus_per_task}",
        f"MinMemoryNode={decided.mem_mb}",
        f"Gres=gpu:{decided.gpus}",
        "Priority=4294967290",
        "StartTime=now",
    )


@pytest.fixture(scope="module")
def reports(sandbox: Sandbox) -> dict[tuple[str, str], Report]:
    """Every form in every way of starting it, all run at once: leases end at the scheduler's pace."""
    sandbox.reset()
    jobs: dict[tuple[str, str], int] = {}

    def submit(form: str, way: str, *options: str) -> tuple[int, str]:
        partition, node = partition_and_node(len(jobs))
        jobs[form, way] = sandbox.submit(REPORT, *options, f"--partition={partition}", as_user=USER)
        return jobs[form, way], node

    no_sign_of_life(sandbox)
    for form, (options, tasks) in FORMS.items():
        submit(form, "stock", *options)
        for way, decided in (("as grown", GROWN), ("as shrunk", SHRUNK)):
            amounts = [f"-n{tasks}", f"-c{decided.cpus_per_task}", f"--gpus-per-node={decided.gpus}"]
            submit(form, way, *amounts, f"--mem={decided.mem_mb}")
    for form, (options, _) in FORMS.items():
        sign_of_life(sandbox, lease_s=1)  # each time: on a busy machine all of them take longer than it is fresh
        submit(form, "expired", f"--comment={RANGES}", *options)
        submit(form, "expired without ranges", "--comment=tapfinger", *options)
    for form, (options, tasks) in FORMS.items():
        sign_of_life(sandbox, lease_s=300)
        for way, decided in (("grown", GROWN), ("shrunk", SHRUNK)):
            job_id, node = submit(form, way, f"--comment={RANGES}", *options)
            assert sandbox.job(job_id)["AdminComment"].startswith("tapfinger lease=300 ticket=")
            place(sandbox, job_id, node, tasks, decided)
    return {key: Report.of(sandbox, job_id) for key, job_id in jobs.items()}


@pytest.mark.core
@pytest.mark.parametrize("form", FORMS)
def test_a_job_whose_lease_ends_untouched_gets_exactly_what_it_asked_for(reports, form):
    assert reports[form, "expired"].amounts() == reports[form, "stock"].amounts()
    assert reports[form, "expired"].record["AdminComment"].startswith("tapfinger lease=1 ")


@pytest.mark.core
@pytest.mark.parametrize("form", FORMS)
def test_without_ranges_the_whole_environment_is_that_of_stock_slurm(reports, form):
    leased, stock = reports[form, "expired without ranges"], reports[form, "stock"]
    assert leased.record["AdminComment"].startswith("tapfinger lease=1 ")
    assert leased.environment() == stock.environment()
    assert leased.environments_of_tasks() == stock.environments_of_tasks()
    assert leased.amounts() == stock.amounts()


@pytest.mark.core
@pytest.mark.parametrize("way", ["grown", "shrunk"])
@pytest.mark.parametrize("form", FORMS)
def test_one_update_gives_the_job_and_a_nested_srun_what_was_decided(reports, form, way):
    decided, tasks = (GROWN if way == "grown" else SHRUNK), FORMS[form][1]
    amounts = reports[form, way].amounts()
    assert amounts == reports[form, f"as {way}"].amounts()
    assert (amounts["gpus"], amounts["gpus of srun"], amounts["tasks of srun"]) == (decided.gpus, decided.gpus, tasks)
    for environment in (reports[form, way].batch, *reports[form, way].tasks):
        assert environment["SLURM_GPUS_ON_NODE"] == str(decided.gpus)
        assert environment["SLURM_CPUS_ON_NODE"] == str(tasks * decided.cpus_per_task)
        assert environment["SLURM_MEM_PER_NODE"] == str(decided.mem_mb)
        assert environment["SLURM_CPUS_PER_TASK"] == str(decided.cpus_per_task)
        assert environment["SLURM_NTASKS"] == str(tasks)


@pytest.mark.core
@pytest.mark.parametrize("form", FORMS)
def test_no_variable_tells_a_resized_job_its_old_number_of_gpus(reports, form):
    for environment in (reports[form, "grown"].batch, *reports[form, "grown"].tasks):
        for name in ("SLURM_GPUS", "SLURM_GPUS_PER_NODE", "SLURM_GPUS_PER_TASK"):
            assert environment.get(name, "") == ""


# Jobs that are not ours.

OPTIONS = [
    *(options for options, _ in FORMS.values()),
    ["--exclusive"],
    ["-N2"],
    ["--nodelist=n2"],
    ["--array=0-3%2"],
    ["--dependency=singleton"],
    ["--begin=now+1hour"],
    ["--gpus=2", "--gpu-bind=single:1"],
    ["--gpus=1", "--cpus-per-gpu=2"],
    ["--partition=pa,pb", "--time=5"],
]
CHANGES_BY_THE_SECOND = {
    "JobId",
    "ArrayJobId",
    "SubmitTime",
    "EligibleTime",
    "StartTime",
    "EndTime",
    "AccrueTime",
    "LastSchedEval",
    "Priority",
    "StdErr",
    "StdOut",
    "WorkDir",
    "AllocNode:Sid",
}


def held(cluster: Sandbox, *options: str, comment: str = "my first job") -> dict[str, str]:
    """The record of a held job, without what differs from second to second and from cluster to cluster."""
    job_id = cluster.submit("true", "--hold", f"--comment={comment}", *options, as_user=USER)
    record = cluster.job(job_id)
    cluster.run("scancel", str(job_id))
    return {name: value for name, value in record.items() if name not in CHANGES_BY_THE_SECOND}


@pytest.fixture(scope="module")
def stock(sandbox_factory: Callable[[SandboxSpec], Sandbox]) -> Sandbox:
    return sandbox_factory(SandboxSpec(hook=False))


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_a_job_without_the_mark_is_field_by_field_what_stock_slurm_has(cluster, stock, options):
    sign_of_life(cluster)
    assert held(cluster, *options) == held(stock, *options)


@pytest.mark.parametrize(
    "sign", [None, {"mode": "observe"}, {"mode": "advise"}, {"mode": "disabled"}, {"mode": "degraded"}, {"age_s": 60}]
)
def test_a_marked_job_is_what_stock_slurm_has_while_no_agent_is_in_charge(cluster, stock, sign):
    if sign is not None:
        sign_of_life(cluster, **sign)
    for options in (["--gpus=2", "-n2"], ["-N2"], ["--gpus-per-task=1", "-n2"]):
        assert held(cluster, *options, comment=RANGES) == held(stock, *options, comment=RANGES)
    assert held(cluster, comment="tapfinger gpus=") == held(stock, comment="tapfinger gpus=")


# Jobs that ask for us and are left to Slurm.


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["-N2"], "it may use several nodes"),
        (["--nodelist=n1"], "it uses --nodelist"),
        (["--exclude=n1"], "it uses --exclude"),
        (["--exclusive"], "it uses --exclusive or --oversubscribe"),
        (["--begin=now+1hour"], "it has its own --begin"),
        (["--mem=0"], "it asks for all memory of a node (--mem=0) and declares no range"),
        (["--gpus=1", "--cpus-per-gpu=2"], "it uses --cpus-per-gpu"),
        (["--gpus=1", "--mem-per-gpu=2G"], "it uses --mem-per-gpu"),
        (["--gpus-per-socket=1", "--sockets-per-node=1"], "it uses --gpus-per-socket"),
        (["--gpus=2", "--ntasks-per-gpu=2"], "it uses --ntasks-per-gpu"),
        (["--gpus=2", "--gpu-bind=single:1"], "it uses --gpu-bind"),
        (["--overcommit", "-n4"], "it uses --overcommit"),
        (["--mincpus=4"], "it uses --mincpus"),
        (["-n32"], "it does not fit on one node of partition pa"),
        (["--gpus=8"], "it does not fit on one node of partition pa"),
        (["-n4", "--ntasks-per-node=2"], "it may use several nodes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_job_that_cannot_be_moved_differs_from_stock_in_the_reason_only(cluster, stock, options, reason):
    sign_of_life(cluster)
    left = held(cluster, *options, comment="tapfinger gpus=1-4")
    assert left.pop("AdminComment") == f"tapfinger left: {reason}"
    assert left == held(stock, *options, comment="tapfinger gpus=1-4")


def test_no_component_of_a_het_job_is_leased(cluster):
    sign_of_life(cluster)
    options = ["--hold", f"--comment={RANGES}", "--gpus=1", ":", f"--comment={RANGES}", "--gpus=2"]
    job_id = cluster.submit("true", *options, as_user=USER)
    components = cluster.jobs(job_id)
    assert len(components) == 2
    for component in components:
        assert component["AdminComment"] == "tapfinger left: a part of a heterogeneous job"
        assert component["StartTime"] == "Unknown"


@pytest.mark.parametrize("command", ["srun", "salloc"])
def test_an_interactive_job_starts_at_once(cluster, command):
    sign_of_life(cluster, lease_s=3600)
    asked = [command, f"--comment={RANGES}", "--gpus=1", "bash", "-c", "echo job $SLURM_JOB_ID"]
    ended = cluster.run(*asked, as_user=USER, timeout_s=60)
    record = cluster.job(ended.stdout.split("job ")[1].split()[0])
    assert record["AdminComment"] == "tapfinger left: not a batch job"
    assert "gres/gpu=1" in record["TRES"]


def test_a_malformed_comment_is_told_in_one_line_and_the_job_runs(cluster):
    sign_of_life(cluster)
    script = cluster.layout.jobs / "job.sh"
    script.write_text("#!/bin/sh\ntrue\n")
    submitted = cluster.run("sbatch", "--parsable", "--comment=tapfinger gpus=two", str(script), as_user=USER)
    (line,) = submitted.stderr.splitlines()
    assert line.startswith("sbatch: tapfinger: comment part 'gpus=two': expected a number or a range")
    record = cluster.wait_state(submitted.stdout.strip(), "COMPLETED")
    assert record["AdminComment"].startswith("tapfinger left: comment part 'gpus=two'")


# Jobs of ours that are more than one script.


def test_every_task_of_an_array_is_leased_and_each_can_be_placed_by_itself(cluster):
    sign_of_life(cluster, lease_s=300)
    job_id = cluster.submit(REPORT, "--array=0-2", f"--comment={RANGES}", "--gpus=2", as_user=USER)
    assert cluster.job(job_id)["AdminComment"].startswith("tapfinger lease=300 ")
    place(cluster, f"{job_id}_1", "n1", 1, SHRUNK)
    cluster.wait_for(lambda: "task0 SLURM_GPUS_ON_NODE=1" in cluster.output(f"{job_id}_1"), what="task 1 to report")
    others = [task for task in cluster.jobs(job_id) if task["ArrayTaskId"] != "1"]
    assert others
    assert all(task["JobState"] == "PENDING" and task["Reason"] == "BeginTime" for task in others)


# Leases and their guard.


@pytest.mark.core
def test_a_user_cannot_start_a_leased_job_but_can_do_everything_else_with_it(cluster):
    sign_of_life(cluster, lease_s=300)
    job_id = cluster.submit("true", "--comment=tapfinger", as_user=USER)
    before = cluster.job(job_id)["StartTime"]

    refused = cluster.run("scontrol", "update", f"jobid={job_id}", "StartTime=now", as_user=USER, check=False)
    assert refused.returncode != 0
    assert "Access/permission denied" in refused.stderr
    assert cluster.job(job_id)["StartTime"] == before
    # The reason goes into the log (22.05), or to the user (24.11).
    told = refused.stderr + (cluster.layout.log / "slurmctld.log").read_text()
    assert "StartTime of this job belongs to tapfinger" in told

    for change in ("TimeLimit=5", "NumCPUs=2", "Comment=later", "Nice=10"):
        cluster.run("scontrol", "update", f"jobid={job_id}", change, as_user=USER)
    # 24.11 itself refuses this now and then where there is no association (docs/compatibility.md).
    moving = ("scontrol", "update", f"jobid={job_id}", "Partition=pb")
    cluster.wait_for(lambda: cluster.run(*moving, as_user=USER, check=False).returncode == 0, what="Partition=pb")
    assert cluster.job(job_id)["Partition"] == "pb"
    cluster.run("scontrol", "hold", str(job_id), as_user=USER)
    cluster.run("scontrol", "release", str(job_id), as_user=USER)
    cluster.run("scancel", str(job_id), as_user=USER)
    assert cluster.job(job_id)["JobState"] == "CANCELLED"


def test_a_user_may_move_the_start_once_no_agent_is_in_charge(cluster):
    sign_of_life(cluster, lease_s=300)
    job_id = cluster.submit("true", "--comment=tapfinger", as_user=USER)
    no_sign_of_life(cluster)
    cluster.run("scontrol", "update", f"jobid={job_id}", "StartTime=now", as_user=USER)
    cluster.wait_state(job_id, "COMPLETED")


def test_root_may_start_a_leased_job(cluster):
    sign_of_life(cluster, lease_s=300)
    job_id = cluster.submit("true", "--comment=tapfinger", as_user=USER)
    cluster.run("scontrol", "update", f"jobid={job_id}", "StartTime=now")
    cluster.wait_state(job_id, "COMPLETED")


@pytest.mark.core
def test_a_user_cannot_write_the_hooks_mark(cluster):
    sign_of_life(cluster)
    job_id = cluster.submit("true", "--hold", as_user=USER)
    forged = cluster.run(
        "scontrol", "update", f"jobid={job_id}", "AdminComment=tapfinger lease=60", as_user=USER, check=False
    )
    assert forged.returncode != 0
    assert "AdminComment" not in cluster.job(job_id)


# When our own files are gone or broken.


@contextlib.contextmanager
def changed(cluster: Sandbox, name: str, text: str | None) -> Iterator[None]:
    path, script = cluster.layout.etc / name, cluster.layout.etc / "job_submit.lua"
    kept = path.read_text()
    try:
        _put(path, text)
        touch_later(script)
        yield
    finally:
        _put(path, kept)
        touch_later(script)


def _put(path: Path, text: str | None) -> None:
    if text is None:
        path.unlink()
    else:
        path.write_text(text)


@pytest.mark.parametrize("text", [None, "this is not lua", "error('no')", "return { submit = error, modify = error }"])
def test_jobs_pass_where_the_module_is_missing_or_broken(cluster, text):
    sign_of_life(cluster)
    with changed(cluster, "tapfinger.lua", text):
        job_id = cluster.submit("sleep 2", f"--comment={RANGES}", "--gpus=2", as_user=USER)
        assert "AdminComment" not in cluster.job(job_id)
        cluster.run("scontrol", "update", f"jobid={job_id}", "TimeLimit=5", as_user=USER)
        cluster.wait_state(job_id, "COMPLETED")
    sign_of_life(cluster)
    assert "AdminComment" in held(cluster, comment="tapfinger")


@pytest.mark.parametrize("text", [None, "return", "error('no')"])
def test_jobs_pass_where_the_site_file_is_missing_or_broken(cluster, text):
    sign_of_life(cluster)
    with changed(cluster, "tapfinger_conf.lua", text):
        assert "AdminComment" not in held(cluster, comment=RANGES)


def test_slurmctld_starts_without_the_module_and_takes_jobs(cluster):
    with changed(cluster, "tapfinger.lua", None):
        cluster.stop_slurmctld()
        cluster.start_slurmctld()
        cluster.wait_state(cluster.submit("true", f"--comment={RANGES}", as_user=USER), "COMPLETED")
    cluster.stop_slurmctld()
    cluster.start_slurmctld()
    sign_of_life(cluster)
    assert "AdminComment" in held(cluster, comment="tapfinger")


# Partitions that the site manages.


def test_a_managed_partition_takes_batch_jobs_without_a_mark(sandbox_factory):
    managed = sandbox_factory(SandboxSpec(extra_toml='[partitions.pb]\ngpus = "1-4"\n', accounting=False))
    sign_of_life(managed, lease_s=300)
    job_id = managed.submit(REPORT, "--partition=pb", "--gpus=2", as_user=USER)
    assert managed.job(job_id)["AdminComment"].startswith("tapfinger lease=300 ")
    place(managed, job_id, "n3", 1, SHRUNK)
    report = Report.of(managed, job_id)
    assert (report.batch["SLURM_GPUS_ON_NODE"], report.tasks[0]["SLURM_GPUS_ON_NODE"]) == ("1", "1")
    assert "AdminComment" not in held(managed, "--partition=pa")


# The wake-up.


@pytest.fixture
def agents_socket(cluster: Sandbox) -> Iterator[socket.socket]:
    if not list(Path("/usr/lib").glob("*/lua/5.1/socket/unix.so")):
        pytest.skip(
            "slurmctld's Lua has no socket library here (Debian: lua-socket); the agent then looks every second"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as agent:
        agent.bind(str(cluster.layout.wake_socket))
        cluster.layout.wake_socket.chmod(0o666)
        yield agent


def waiting_at(agent: socket.socket) -> list[bytes]:
    """The datagrams that have come; the end of a job sends one as well."""
    agent.setblocking(False)
    datagrams = []
    with contextlib.suppress(BlockingIOError):
        while True:
            datagrams.append(agent.recv(64))
    return datagrams


@pytest.mark.core
def test_a_leased_job_wakes_the_agent_and_others_do_not(cluster, agents_socket):
    sign_of_life(cluster)
    held(cluster, comment="not ours")
    held(cluster, "--nodelist=n1", comment=RANGES)
    held(cluster, comment=RANGES)
    assert waiting_at(agents_socket).count(b"submit\n") == 1


def test_submissions_go_on_while_the_agent_reads_no_wake_up(cluster, agents_socket):
    sign_of_life(cluster)
    jobs = [cluster.submit("true", "--hold", f"--comment={RANGES}", as_user=USER) for _ in range(30)]
    leased = [job for job in cluster.jobs() if job.get("AdminComment", "").startswith("tapfinger lease=60 ")]
    assert {int(job["JobId"]) for job in leased} >= set(jobs)
    assert b"submit\n" in waiting_at(agents_socket)
