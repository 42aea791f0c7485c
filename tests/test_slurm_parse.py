"""What Slurm printed, read: recordings of 22.05, 24.11 and 26.05 with the same jobs, and values that jobs may hold."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_plugin import parse, parse_nodes
from slurm_plugin.cluster import SlurmCluster
from slurm_plugin.commands import Answer
from slurm_plugin.parse import COLUMNS, JobRecord
from tapfinger_hpc.config import AgentConfig, Config, PartitionConfig
from tapfinger_hpc.errors import SlurmError
from tapfinger_hpc.state import ClusterState, PendingJob, Resources

VERSIONS = ("22.05", "24.11", "26.05")


class Recorded:
    """A Slurm that says what was recorded."""

    def __init__(self, version: str) -> None:
        packed = Path(__file__).parent / "data" / f"slurm-{version}.json.gz"
        self.said: dict = json.loads(gzip.decompress(packed.read_bytes()))
        self.ids: dict[str, str] = self.said["ids"]
        self.tasks: list[str] = self.said["tasks"].splitlines()
        self.states: dict[str, str] = {}
        """Of tasks that wait no more, by number."""

    def __call__(self, argv: list[str]) -> Answer:
        return Answer(tuple(argv), 0, self._text(argv).encode("latin-1", "surrogateescape"), "")

    def _text(self, argv: list[str]) -> str:
        if argv[0] == "squeue":
            if any(word == f"--Format={parse.TASKS_FORMAT}" for word in argv):
                # Recorded without the state, of tasks that waited.
                states = [self.states.get(line.split()[0], "PD") for line in self.tasks]
                asked = next(word for word in argv if word.startswith("--states=")).removeprefix("--states=").split(",")
                pairs = zip(self.tasks, states, strict=True)
                return "".join(f"{line} {state}\n" for line, state in pairs if state in asked)
            return self.said["alone" if "--array" in argv else "squeue"]
        for what in ("node", "partition", "config"):
            if what in argv:
                return self.said[{"node": "nodes", "partition": "partitions", "config": "config"}[what]]
        return self.said["array_job"]


def observed(version: str, config: Config | None = None) -> tuple[ClusterState, Recorded]:
    recorded = Recorded(version)
    enforcing = config or Config(agent=AgentConfig(mode="enforce"))
    slurm = SlurmCluster(recorded, enforcing, now_s=lambda: recorded.said["recorded_s"])
    return slurm.observe(), recorded


def job(state: ClusterState, job_id: str) -> PendingJob:
    return next(job for job in state.pending if job.job_id == job_id)


@pytest.mark.parametrize("version", VERSIONS)
def test_requests_are_read_in_every_spelling(version: str) -> None:
    state, recorded = observed(version)
    expected = {
        "ours-gres": Resources(4, 2, 4096),
        "ours-gpus": Resources(3, 2, 4500),
        "ours-tasks": Resources(4, 2, 4000),
        "ours-per-task": Resources(2, 2, 3072),
        "ours-cpu": Resources(4, 0, 4000),
    }
    found = {name: job(state, recorded.ids[name]) for name in expected}
    assert {name: one.requested for name, one in found.items()} == expected
    assert all(one.managed and one.eligible and one.ticket for one in found.values())
    assert all(one.lease_s == 300 and one.job_class == "demo" for one in found.values())
    for one in found.values():
        # 24.11 can neither take a job's last GPU nor take its first one back.
        gpus = (0, 4) if version != "24.11" else (1, 4) if one.requested.gpus else (0, 0)
        assert (one.minimum, one.maximum) == (Resources(1, gpus[0], 1024), Resources(16, gpus[1], 32768))
    assert [found[name].tasks for name in expected] == [1, 1, 2, 2, 1]
    assert found["ours-gres"].partitions == ("pa", "pb")
    assert [found["ours-gres"].time_limit_s, found["ours-gpus"].time_limit_s] == [1800, 7440]  # Slurm counts in minutes


@pytest.mark.parametrize("version", VERSIONS)
def test_why_a_job_is_not_ours_or_may_not_start(version: str) -> None:
    state, recorded = observed(version)
    held, dependent, begins = (job(state, recorded.ids[name]) for name in ("ours-held", "dependent", "begins"))
    assert held.managed and not held.eligible and "held (JobHeldAdmin)" in held.why
    assert not dependent.eligible and "waits for other jobs" in dependent.why
    assert not begins.eligible and "begins at" in begins.why
    names = {one.job_id for one in state.pending}
    assert recorded.ids["malformed"] not in names  # it runs already, as stock Slurm had it


@pytest.mark.parametrize("version", VERSIONS)
def test_tasks_of_an_array_keep_to_its_limit_and_none_is_hidden(version: str) -> None:
    state, recorded = observed(version)
    array = recorded.ids["array"]
    tasks = [one for one in state.pending if one.job_id.startswith(f"{array}_")]
    assert [one.job_id for one in tasks if one.eligible] == [f"{array}_2"]
    assert job(state, f"{array}_3").requested.cpus == 5
    assert len(tasks) == 17  # the first sixteen that are together, and the one by itself
    assert f"{array}_1" in {one.job_id for one in state.running}


def with_columns(record: str, **changed: str) -> str:
    """The record with these columns changed."""
    position = 0
    for name, (_, width) in parse.COLUMNS.items():
        if name in changed:
            record = record[:position] + changed[name].ljust(width) + record[position + width :]
        position += width
    return record


@pytest.mark.parametrize("version", VERSIONS)
def test_a_task_that_starts_between_two_commands_of_one_look_is_seen_running(version: str) -> None:
    recorded = Recorded(version)
    (number,), array = recorded.said["alone_ids"], recorded.ids["array"]
    recorded.states[number] = "R"
    recorded.said["alone"] = with_columns(recorded.said["alone"], state="R", nodes="n6", start_s="1700000000")
    state = SlurmCluster(recorded, Config(), now_s=lambda: recorded.said["recorded_s"]).observe()
    assert f"{array}_3" not in {one.job_id for one in state.pending}
    (task,) = [one for one in state.running if one.job_id == f"{array}_3"]
    assert [share.node for share in task.shares] == ["n6"]


@pytest.mark.parametrize("version", VERSIONS)
def test_text_of_users_is_neither_a_job_nor_a_lease(version: str) -> None:
    state, recorded = observed(version)
    assert len({one.key for one in state.pending}) == len(state.pending)
    forger = next(job_id for name, job_id in recorded.ids.items() if "forged" in name)
    assert not job(state, forger).managed
    assert job(state, forger).ticket == ""
    first = [one for one in state.pending if one.ticket == "forged"]
    assert first == []


@pytest.mark.parametrize("version", VERSIONS)
def test_what_runs_is_seen_with_its_share_of_each_node(version: str) -> None:
    state, recorded = observed(version)
    placed = next(one for one in state.running if one.job_id == recorded.ids["placed"])
    assert placed.managed
    assert placed.shares[0].node == "n6"
    assert placed.amounts == Resources(16, 4, 9000)
    assert state.node("n6").free == Resources(0, 0, 55000)
    assert placed.end_limit_s == placed.start_time_s + 600


@pytest.mark.parametrize("version", VERSIONS)
def test_nodes_drained_or_reserved_are_not_available(version: str) -> None:
    state, _ = observed(version)
    assert [node.name for node in state.nodes if not node.available] == ["n3", "n4"]
    assert state.node("n4").capacity == Resources(16, 4, 64000)
    assert [partition.nodes for partition in state.partitions] == [("n1", "n2"), ("n3", "n4"), ("n5", "n6")]
    assert state.partition("pa").max_time_s == 86400


@pytest.mark.parametrize("version", ["22.05", "24.11"])
def test_a_job_that_takes_whole_nodes_is_seen_with_whole_nodes(version: str) -> None:
    state, recorded = observed(version)
    assert job(state, recorded.ids["blocked"]).requested == Resources(32, 8, 128000)


def test_slurms_plan_is_read_where_it_tells_one() -> None:
    state, recorded = observed("22.05")
    blocked = job(state, recorded.ids["blocked"])
    assert blocked.planned_nodes == ("n5", "n6")
    assert blocked.planned_start_s is not None
    # The earliest start of a leased job is its lease, and no plan of Slurm's.
    assert job(state, recorded.ids["ours-gres"]).planned_start_s is None


def test_in_observe_mode_jobs_with_the_mark_need_no_lease() -> None:
    watching, recorded = observed("22.05", Config(agent=AgentConfig(mode="observe")))
    enforcing, _ = observed("22.05")
    forger = next(job_id for name, job_id in recorded.ids.items() if "forged" in name)
    assert {one.job_id for one in watching.pending if one.managed} >= {
        one.job_id for one in enforcing.pending if one.managed
    }
    assert not job(watching, forger).managed  # its mark is malformed all the same


def test_a_partition_of_the_configuration_gives_its_ranges() -> None:
    partitions = {"pa": PartitionConfig(gpus="1-2"), "pb": PartitionConfig(gpus="1-3", cpus="2-3")}
    state, recorded = observed("22.05", Config(agent=AgentConfig(mode="observe"), partitions=partitions))
    own = job(state, recorded.ids["ours-gres"])
    assert own.maximum.gpus == 4  # its own mark counts
    unmarked = job(state, recorded.ids["begins"])
    assert unmarked.managed
    assert (unmarked.minimum, unmarked.maximum) == (Resources(1, 1, 1000), Resources(1, 2, 1000))
    foreign = job(state, recorded.ids["exclusive"])
    assert not foreign.managed


def line(**values: str) -> bytes:
    """A line of squeue with these values; ordinary ones in the other columns."""
    ordinary = dict.fromkeys(COLUMNS, "N/A") | {
        "number": "7", "state": "PD", "partition": "pa", "batch": "1", "submit_s": "100", "priority": "5",
        "cpus": "2", "tasks": "1", "tres": "cpu=2,mem=100M,node=1", "time_limit": "10:00", "comment": "(null)",
        "admin_comment": "(null)", "restarts": "0", "reason": "Priority", "dependency": "(null)",
    }  # fmt: skip
    cells = {name: (ordinary | values)[name].encode() for name in COLUMNS}
    return b"".join(cells[name][:width].ljust(width) for name, (_, width) in COLUMNS.items()) + b"\n"


def read(text: bytes) -> list[JobRecord]:
    return list(parse.jobs(text).values())


@pytest.mark.parametrize(
    ("values", "gpus"),
    [
        ({"tres_per_node": "gres:gpu:2"}, 2),
        ({"tres_per_node": "gres/gpu:a100:2"}, 2),
        ({"tres_per_job": "gres:gpu:3"}, 3),
        ({"tres_per_task": "gres/gpu:1", "tasks": "4"}, 4),
        ({"tres_per_node": "gres:gpu:2", "tres": "cpu=2,mem=1M,node=3"}, 6),
        ({"tres_per_node": "gres:gpu:1", "tres": "cpu=2,mem=1M,node=1,gres/gpu=4"}, 4),
        ({"tres_per_node": "gres:gpu:1", "tres": "cpu=2,node=1,gres/gpu=4,gres/gpu:a100=4"}, 4),
        ({"tres_per_node": "N/A", "tres": "cpu=2,mem=1M,node=1,gres/gpu=4"}, 0),
        ({"tres_per_node": "gres:nic:1"}, 0),
        ({"state": "R", "nodes": "n1", "tres_per_node": "N/A", "tres": "cpu=2,node=1,gres/gpu=4"}, 4),
    ],
)
def test_gpus_of_a_job(values: dict[str, str], gpus: int) -> None:
    assert read(line(**values))[0].amounts.gpus == gpus


def test_a_gpu_type_is_kept() -> None:
    assert read(line(tres_per_node="gres:gpu:a100:2"))[0].gpu_type == "a100"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("cpu=2,mem=100M,node=1", 100), ("cpu=2,mem=1.50G", 1536), ("cpu=2,mem=2T", 2 << 20), ("cpu=2", 0)],
)
def test_memory_of_a_job(text: str, wanted: int) -> None:
    assert read(line(tres=text))[0].amounts.mem_mb == wanted


@given(st.text(max_size=400), st.text(max_size=400))
@settings(max_examples=200, deadline=None)
def test_whatever_users_write_their_jobs_are_read_one_by_one(comment: str, name: str) -> None:
    records = read(line(comment=comment, user=name) + line(number="8"))
    assert [record.number for record in records] == ["7", "8"]
    assert records[0].admin_comment == ""
    assert records[1].comment == ""


@pytest.mark.parametrize(
    "text", [b"x", b"slurm_load_jobs error: Unable to contact slurm controller\n", line()[1:] + b" "]
)
def test_what_is_no_list_of_jobs_is_refused(text: bytes) -> None:
    with pytest.raises(SlurmError, match="squeue"):
        parse.jobs(text)


def test_a_job_that_is_as_it_was_need_not_be_read_again_and_one_that_changed_is() -> None:
    before = parse.jobs(line() + line(number="8"))
    after = parse.jobs(line(priority="6") + line(number="8"), before)
    assert [record.priority for record in after.values()] == [6, 5]
    assert list(after.values())[1] is list(before.values())[1]


def test_a_column_that_this_slurm_does_not_know_is_refused() -> None:
    def lacking(argv: list[str]) -> Answer:
        return Answer(tuple(argv), 0, b"", "squeue: error: Invalid job format specification: admin_comment")

    with pytest.raises(SlurmError, match="lacks a column"):
        SlurmCluster(lacking, Config()).observe()  # type: ignore[arg-type]


def test_values_that_fill_their_column_are_known_to_be_cut() -> None:
    (record,) = read(line(nodes="n[" + "1,3," * 200, state="R", comment="tapfinger " + "x" * 400))
    assert set(record.cut) == {"nodes", "comment"}
    assert record.nodes == ()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ["n1"]),
        ("n[1-3,7],login", ["n1", "n2", "n3", "n7", "login"]),
        ("gpu[08-11]", ["gpu08", "gpu09", "gpu10", "gpu11"]),
        ("r[1-2]n[1-2]-ib", ["r1n1-ib", "r1n2-ib", "r2n1-ib", "r2n2-ib"]),
        ("", []),
    ],
)
def test_host_lists_are_unfolded(text: str, names: list[str]) -> None:
    assert list(parse.host_list(text)) == names


@given(st.sets(st.integers(0, 5000), min_size=1, max_size=60))
def test_task_numbers_fold_and_unfold(numbers: set[int]) -> None:
    names = parse.host_list(f"t[{parse.folded(numbers)}]")
    assert names == tuple(f"t{number}" for number in sorted(numbers))


NODE = (
    "NodeName=n1 CPUAlloc=4 CPUEfctv=14 CPUTot=16 Gres=gpu:a100:4(S:0-1) GresUsed=gpu:a100:3(IDX:0-2) RealMemory=64000 "
    "AllocMem=1000 State={state} ThreadsPerCore=2 MemSpecLimit=4000 Reason=CPUAlloc=0 State=IDLE by [root@2026]"
)


def test_a_node_is_read_with_what_slurm_keeps_for_itself() -> None:
    (node,) = parse_nodes.nodes(NODE.format(state="MIXED"))
    assert node.capacity == Resources(14, 4, 60000)
    assert node.free == Resources(10, 1, 59000)
    assert (node.gpu_type, node.cpu_step, node.available) == ("a100", 2, True)


OPEN = "IDLE MIXED ALLOCATED MIXED+PLANNED IDLE+CLOUD+POWERED_DOWN ALLOCATED+COMPLETING"
CLOSED = (
    "IDLE* DOWN DOWN* IDLE+DRAIN MIXED+DRAIN IDLE+MAINTENANCE IDLE+MAINTENANCE+RESERVED IDLE+RESERVED UNKNOWN* FUTURE "
    "DOWN+DRAIN+NOT_RESPONDING IDLE+REBOOT_ISSUED IDLE+POWERING_DOWN INVAL IDLE+FAIL"
)


@pytest.mark.parametrize("state", OPEN.split())
def test_something_new_may_start_on_a_node_in_these_states(state: str) -> None:
    assert parse_nodes.nodes(NODE.format(state=state))[0].available


@pytest.mark.parametrize("state", CLOSED.split())
def test_nothing_new_may_start_on_a_node_in_these_states(state: str) -> None:
    assert not parse_nodes.nodes(NODE.format(state=state))[0].available


def test_a_node_that_cannot_be_read_is_named() -> None:
    with pytest.raises(SlurmError, match=r"n1.*RealMemory"):
        parse_nodes.nodes("NodeName=n1 CPUAlloc=4 CPUTot=16 State=IDLE\n")


def test_a_partition_that_is_closed_or_has_no_limit() -> None:
    text = "PartitionName=p MaxTime=UNLIMITED Nodes=n[1-2],gone State=DRAIN\nPartitionName=empty Nodes=(null) State=UP"
    closed, empty = parse_nodes.partitions(text, ["n1", "n2"])
    assert (closed.up, closed.max_time_s, closed.nodes) == (False, None, ("n1", "n2"))
    assert (empty.up, empty.nodes) == (True, ())
