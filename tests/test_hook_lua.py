"""The submit hook under Lua 5.1 to 5.4, with jobs as slurmctld 22.05 hands them over."""

import importlib
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_plugin.hookconf import HookPartition, render
from slurm_plugin.install import hook as hook_files
from tapfinger_hpc.config import PartitionConfig
from tapfinger_hpc.errors import UnitError
from tapfinger_hpc.units import parse_mark

LUA_FOLDER = Path(__file__).parents[1] / "slurm_plugin" / "lua"
LUAS = ("lua51", "lua52", "lua53", "lua54")
NOW_S = 1_795_368_000
NO_VAL16, NO_VAL, NO_VAL64 = 65534.0, 4294967294.0, 1.8446744073709552e19

SLURM = """
local now = ...
os.time = function() return now end
said = { error = {}, user = {}, info = {} }
slurm = {
  SUCCESS = 0, ERROR = -1,
  log_error = function(format, ...) table.insert(said.error, format:format(...)) end,
  log_user = function(format, ...) table.insert(said.user, format:format(...)) end,
  log_info = function(format, ...) table.insert(said.info, format:format(...)) end,
}
-- A job as slurmctld shows it: fields are read and written one by one, and some writes raise.
function record(fields, environment, refused)
  local writes = {}
  local function guarded(values, prefix)
    return setmetatable({}, {
      __index = values,
      __newindex = function(_, name, value)
        if prefix .. name == refused then error("cannot write " .. name) end
        writes[#writes + 1] = prefix .. name
        values[name] = value
      end,
    })
  end
  fields.environment = guarded(environment, "environment.")
  return guarded(fields, ""), writes
end
"""

STOCK = {
    "begin_time": 0.0,
    "min_cpus": 1.0,
    "num_tasks": NO_VAL,
    "cpus_per_task": NO_VAL16,
    "pn_min_cpus": NO_VAL16,
    "min_nodes": NO_VAL,
    "max_nodes": NO_VAL,
    "ntasks_per_node": NO_VAL16,
    "ntasks_per_gpu": NO_VAL16,
    "ntasks_per_socket": NO_VAL16,
    "ntasks_per_core": NO_VAL16,
    "sockets_per_node": NO_VAL16,
    "cores_per_socket": NO_VAL16,
    "threads_per_core": NO_VAL16,
    "pn_min_tmp_disk": NO_VAL,
    "het_job_offset": NO_VAL,
    "shared": NO_VAL16,
    "priority": NO_VAL,
    "script": "#!/bin/sh\ntrue\n",
}
"""``sbatch --wrap true``, as the hook sees it: strings that are not given are nil."""

PARTITIONS = (
    HookPartition("pa", 16, 4, 64000),
    HookPartition("pb", 32, 8, 128000),
    HookPartition("gpu", 16, 4, 64000, PartitionConfig(gpus="1-4", cpus="2-16")),
)


class Hook:
    """tapfinger.lua loaded from a folder with a site file and an agent's sign of life."""

    def __init__(self, lua: str, folder: Path, site: str | None = None, agent: str | None = None) -> None:
        self.runtime = importlib.import_module(f"lupa.{lua}").LuaRuntime(unpack_returned_tuples=True)
        self.runtime.execute(SLURM, NOW_S)
        self.sign = folder / "hook"
        self.sign.write_text(f"enforce {NOW_S} 60\n" if agent is None else agent)
        shutil.copy(LUA_FOLDER / "tapfinger.lua", folder)
        (folder / "tapfinger_conf.lua").write_text(site if site is not None else site_text(self.sign))
        self.module = self.runtime.globals().dofile(str(folder / "tapfinger.lua"))
        self.partitions = self.runtime.table_from(
            {
                "pa": self.runtime.table_from({"flag_default": 1.0, "max_cpus_per_node": NO_VAL}),
                "pb": self.runtime.table_from({"flag_default": 0.0}),
                "small": self.runtime.table_from({"flag_default": 0.0}),
            }
        )

    def submit(self, comment: str | None = None, refused: str = "", **fields) -> "Submitted":
        return Submitted(self, STOCK | {"comment": comment} | fields, refused)

    def modify(self, uid: int, **fields):
        job = {"user_id": 1000.0, "admin_comment": "tapfinger lease=60 ticket=x"}
        known = {name: fields.pop(name) for name in list(fields) if name in job}
        record = self.runtime.table_from({name: value for name, value in (job | known).items() if value is not None})
        change = self.runtime.table_from({"begin_time": 0.0} | fields)
        return self.module.modify(change, record, self.partitions, uid)

    def said(self, to: str) -> list[str]:
        return list(self.runtime.globals().said[to].values())


class Submitted:
    """One job after the hook: its fields, its environment, and what was written in which order."""

    def __init__(self, hook: Hook, fields: dict, refused: str) -> None:
        environment = fields.pop("environment", {})
        self.before = {name: value for name, value in fields.items() if value is not None}
        self._fields = hook.runtime.table_from(self.before)
        self._environment = hook.runtime.table_from(environment)
        job, writes = hook.runtime.globals().record(self._fields, self._environment, refused)
        self.code = hook.module.submit(job, hook.partitions, 1000.0)
        self.writes = list(writes.values())

    def __getattr__(self, name: str):
        return self._fields[name]

    @property
    def environment(self) -> dict:
        return dict(self._environment)

    @property
    def leased(self) -> bool:
        return (self.admin_comment or "").startswith("tapfinger lease=")

    @property
    def left_because(self) -> str:
        return (self.admin_comment or "").removeprefix("tapfinger left: ")


def site_text(sign: Path, **settings_) -> str:
    known = {"hook_file": str(sign), "wake_socket": "", "agent_uid": 0, "gres_separator": ":"}
    return render(PARTITIONS, **(known | settings_))


@pytest.fixture(params=LUAS)
def lua(request) -> str:
    return request.param


@pytest.fixture
def hook(lua, tmp_path) -> Hook:
    return Hook(lua, tmp_path)


# The mark: one grammar in two languages.

GOOD = [
    "tapfinger",
    "  tapfinger  ",
    "tapfinger gpus=1-4 cpus=2-16 mem=4G-32G class=resnet lease=300",
    "tapfinger\tgpus=2\ncpus=3",
    "tapfinger gpus=0",
    "tapfinger gpus=0-0",
    "tapfinger gpus=007-010",
    "tapfinger cpus=999999",
    "tapfinger mem=1",
    "tapfinger mem=1k",
    "tapfinger mem=1025K-2M",
    "tapfinger mem=512-1g",
    "tapfinger mem=1T",
    "tapfinger mem=1048576T",
    "tapfinger mem=1024K-1M",
    "tapfinger class=a100_80.x+y-z",
    "tapfinger class=" + "x" * 64,
    "tapfinger lease=1",
    "tapfinger lease=86400",
    "tapfinger lease=000000300",
]
BAD = [
    "tapfinger gpus",
    "tapfinger gpus=",
    "tapfinger =4",
    "tapfinger =",
    "tapfinger gpus=1 gpus=1",
    "tapfinger class=a class=b",
    "tapfinger gpu=1",
    "tapfinger GPUS=1",
    "tapfinger tapfinger",
    "tapfinger gpus=4-1",
    "tapfinger gpus=1-",
    "tapfinger gpus=-1",
    "tapfinger gpus=1-2-3",
    "tapfinger gpus=1,2",
    "tapfinger gpus=1.5",
    "tapfinger gpus=0x2",
    "tapfinger gpus=1e2",
    "tapfinger gpus=+1",
    "tapfinger gpus=1000000",
    "tapfinger gpus=a100:1",
    "tapfinger gpus=\u0662",
    "tapfinger gpus=\u00b2",
    "tapfinger gpus=1\u00a0cpus=2",
    "tapfinger cpus=0",
    "tapfinger cpus=0-4",
    "tapfinger mem=0",
    "tapfinger mem=0K",
    "tapfinger mem=4GB",
    "tapfinger mem=1.5G",
    "tapfinger mem=4P",
    "tapfinger mem=4\u212a",
    "tapfinger mem=G",
    "tapfinger mem=4G-",
    "tapfinger mem=8G-4G",
    "tapfinger mem=1048577T",
    "tapfinger mem=1000000000",
    "tapfinger class=a/b",
    "tapfinger class=a=b",
    "tapfinger class=\u00e9",
    "tapfinger class=" + "x" * 65,
    "tapfinger lease=0",
    "tapfinger lease=86401",
    "tapfinger lease=\u00b2",
    "tapfinger lease=60s",
    "tapfinger lease=-5",
    "tapfinger lease=1000000000",
    "tapfinger lease=" + "9" * 5000,
]
NONE = [None, "", " ", "hello", "Tapfinger gpus=1", "tapfinger,gpus=1", "tapfingers", "x tapfinger", "\u00a0tapfinger"]


def read_by_python(comment: str | None):
    try:
        mark = parse_mark(comment)
    except UnitError:
        return "malformed"
    if mark is None:
        return None
    ranges = {"gpus": mark.gpus, "cpus": mark.cpus, "mem": mark.mem_mb}
    found = {name: (part.least, part.greatest) for name, part in ranges.items() if part}
    named = {"class": mark.job_class or None, "lease": mark.lease_s}
    return found | {name: value for name, value in named.items() if value is not None}


def read_by_lua(parse, comment: str | None):
    answer = parse(comment)
    if isinstance(answer, tuple):
        assert answer[0] is None
        assert isinstance(answer[1], str)
        return "malformed"
    if answer is None:
        return None
    return {
        name: (value.least, value.greatest) if name in {"gpus", "cpus", "mem"} else value
        for name, value in answer.items()
    }


@pytest.mark.parametrize("comment", GOOD)
def test_a_good_mark_is_read_alike_by_the_hook_and_the_agent(hook, comment):
    by_python = read_by_python(comment)
    assert isinstance(by_python, dict)
    assert read_by_lua(hook.module.parse_mark, comment) == by_python


@pytest.mark.parametrize("comment", BAD)
def test_a_bad_mark_is_refused_by_both(hook, comment):
    assert read_by_python(comment) == "malformed"
    assert read_by_lua(hook.module.parse_mark, comment) == "malformed"


@pytest.mark.parametrize("comment", NONE)
def test_a_comment_without_the_mark_is_passed_over_by_both(hook, comment):
    assert read_by_python(comment) is None
    assert read_by_lua(hook.module.parse_mark, comment) is None


AMOUNT = st.one_of(
    st.integers(0, 2_000_000).map(str),
    st.integers(0, 2_000_000_000).map(str),
    st.from_regex(r"[0-9]{1,10}[KMGTkmgtPB]?", fullmatch=True),
    st.text(max_size=4),
)
VALUE = st.one_of(AMOUNT, st.tuples(AMOUNT, AMOUNT).map("-".join), st.from_regex(r"[\w.+-]{1,66}", fullmatch=True))
WORD = st.one_of(
    st.tuples(st.sampled_from(["gpus", "cpus", "mem", "class", "lease", "gpu", ""]), VALUE).map("=".join), st.text()
)
SPACE = st.sampled_from([" ", "  ", "\t", "\n", "\v", "\f", "\r", "\u00a0", "\u2003", "\x1c", "\x85"])
COMMENT = st.one_of(
    st.text(),
    st.lists(WORD, max_size=5).map(lambda words: " ".join(["tapfinger", *words])),
    st.tuples(st.lists(WORD, max_size=4), SPACE).map(lambda both: both[1].join(["tapfinger", *both[0]])),
)


@pytest.fixture(scope="module")
def parsers(tmp_path_factory):
    return {lua: Hook(lua, tmp_path_factory.mktemp(lua)).module.parse_mark for lua in LUAS}


@pytest.mark.slow
@given(comment=COMMENT)
@settings(max_examples=600, deadline=None)
def test_any_comment_is_read_alike_by_every_lua_and_by_python(parsers, comment):
    comment = comment.replace("\0", "")  # a C string has none
    expected = read_by_python(comment)
    for parse in parsers.values():
        assert read_by_lua(parse, comment) == expected


# What is taken, and how it is then spelled.


def test_a_marked_batch_job_is_leased_and_carries_the_hooks_mark(hook):
    job = hook.submit("tapfinger")
    assert job.code is None
    assert job.begin_time == NOW_S + 60
    assert re.fullmatch(r"tapfinger lease=60 ticket=\S+", job.admin_comment)
    assert (job.min_nodes, job.max_nodes) == (1, 1)


def test_the_lease_of_the_comment_goes_before_the_sites(hook):
    job = hook.submit("tapfinger lease=300")
    assert job.begin_time == NOW_S + 300
    assert job.admin_comment.startswith("tapfinger lease=300 ")


def test_two_submissions_never_share_a_ticket(lua, tmp_path):
    tickets = {Hook(lua, tmp_path).submit("tapfinger").admin_comment}
    hook = Hook(lua, tmp_path)
    tickets |= {hook.submit("tapfinger").admin_comment for _ in range(50)}
    assert len(tickets) == 51


def test_slurmctlds_log_names_the_ticket_of_what_was_leased_and_of_nothing_else(hook):
    job = hook.submit("tapfinger lease=300")
    assert hook.said("info") == [f"tapfinger: event=leased ticket={job.admin_comment.split('ticket=')[1]} lease_s=300"]
    hook.submit("tapfinger", req_nodes="n1")
    hook.submit("other")
    assert len(hook.said("info")) == 1


def test_an_admin_comment_that_is_there_already_is_kept_in_front(hook):
    assert hook.submit("tapfinger", admin_comment="by site").admin_comment.startswith("by site tapfinger lease=60 ")
    left = hook.submit("tapfinger", admin_comment="by site", req_nodes="n1")
    assert left.admin_comment.startswith("by site tapfinger left: ")


@pytest.mark.parametrize(
    ("asked", "gpus"),
    [
        ({}, None),
        ({"tres_per_node": "gres:gpu:2"}, "gres:gpu:2"),
        ({"tres_per_node": "gres:gpu"}, "gres:gpu:1"),
        ({"tres_per_node": "gres:gpu:a100:2"}, "gres:gpu:a100:2"),
        ({"tres_per_node": "gres:gpu:a100"}, "gres:gpu:a100:1"),
        ({"tres_per_node": "gres:gpu:1080ti:2"}, "gres:gpu:1080ti:2"),
        ({"tres_per_node": "gres:gpu:0"}, ""),
        ({"tres_per_job": "gres:gpu:3"}, "gres:gpu:3"),
        ({"tres_per_job": "gres:gpu:a100_80:3"}, "gres:gpu:a100_80:3"),
        ({"tres_per_task": "gres:gpu:2", "num_tasks": 2.0, "min_cpus": 2.0}, "gres:gpu:4"),
        ({"tres_per_task": "gres:gpu:a100:1", "num_tasks": 2.0, "min_cpus": 2.0}, "gres:gpu:a100:2"),
        ({"tres_per_job": "gres:gpu:2", "tres_per_node": "gres:gpu:2"}, "gres:gpu:2"),
        (
            {"tres_per_job": "gres:gpu:2", "tres_per_task": "gres:gpu:1", "num_tasks": 2.0, "min_cpus": 2.0},
            "gres:gpu:2",
        ),
        ({"tres_per_node": "gres/gpu:2"}, "gres/gpu:2"),
        ({"tres_per_node": "gres/gpu:a100=2"}, "gres/gpu:a100:2"),
        ({"tres_per_task": "cpu:4,gres/gpu:1", "num_tasks": 2.0, "cpus_per_task": 4.0, "min_cpus": 8.0}, "gres/gpu:2"),
        ({"tres_per_task": "cpu=4", "cpus_per_task": 4.0, "min_cpus": 4.0}, None),
    ],
)
def test_every_gpu_spelling_becomes_gres_per_node_with_the_same_total(hook, asked, gpus):
    job = hook.submit("tapfinger", **asked)
    assert job.leased, job.admin_comment
    assert job.tres_per_node == gpus
    for field in ("tres_per_job", "tres_per_task"):
        assert getattr(job, field) == ("" if field in asked else None)


def test_the_binding_that_newer_slurm_derives_from_gpus_per_task_goes_with_it(hook):
    job = hook.submit("tapfinger", tres_per_task="gres/gpu:1", tres_bind="gres/gpu:per_task:1")
    assert job.leased
    assert job.tres_bind == ""


@pytest.mark.parametrize("fits", [{"min_mem_per_node": 64000.0}, {"min_mem_per_cpu": 4000.0, "num_tasks": 16.0}])
def test_a_request_as_large_as_the_largest_node_is_taken(hook, fits):
    assert hook.submit("tapfinger", min_cpus=16.0, tres_per_node="gres:gpu:4", **fits).leased


@pytest.mark.parametrize(
    "asked",
    [
        {"array_inx": "0-9%2"},
        {"dependency": "singleton"},
        {"priority": 0.0},
        {"partition": "pa,pb"},
        {"min_nodes": 1.0, "max_nodes": 1.0},
        {"ntasks_per_node": 2.0, "num_tasks": 2.0, "min_cpus": 2.0},
        {"cpus_per_task": 4.0, "pn_min_cpus": 4.0, "min_cpus": 4.0},
        {"num_tasks": 4.0, "cpus_per_task": 2.0, "pn_min_cpus": 2.0, "min_cpus": 8.0},
        {"contiguous": 1.0},
        {"time_limit": 5.0},
    ],
    ids=str,
)
def test_ordinary_options_do_not_keep_a_job_from_being_taken(hook, asked):
    job = hook.submit("tapfinger", **asked)
    assert job.leased, job.admin_comment
    kept = set(asked) - {"min_nodes", "max_nodes"}
    assert {name: getattr(job, name) for name in kept} == {name: asked[name] for name in kept}


# What is left to Slurm.


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"het_job_offset": 0.0}, "a part of a heterogeneous job"),
        ({"het_job_offset": 1.0, "script": None}, "a part of a heterogeneous job"),
        ({"script": None}, "not a batch job"),
        ({"begin_time": NOW_S + 100.0}, "--begin"),
        ({"min_nodes": 2.0, "max_nodes": 2.0}, "several nodes"),
        ({"min_nodes": 1.0, "max_nodes": 2.0}, "several nodes"),
        ({"ntasks_per_node": 2.0, "num_tasks": 4.0, "min_cpus": 4.0}, "several nodes"),
        ({"tres_per_job": "gres:gpu:4", "tres_per_node": "gres:gpu:2"}, "several nodes"),
        ({"req_nodes": "n1", "min_nodes": 1.0}, "--nodelist"),
        ({"exc_nodes": "n1"}, "--exclude"),
        ({"features": "a100"}, "--constraint"),
        ({"prefer": "a100"}, "--prefer"),
        ({"reservation": "class"}, "--reservation"),
        ({"licenses": "matlab:1"}, "--licenses"),
        ({"shared": 0.0}, "--exclusive"),
        ({"shared": 2.0}, "--exclusive"),
        ({"cpus_per_tres": "gres:gpu:2", "tres_per_job": "gres:gpu:1"}, "--cpus-per-gpu"),
        ({"mem_per_tres": "gres:gpu:2048", "tres_per_job": "gres:gpu:1"}, "--mem-per-gpu"),
        ({"tres_per_socket": "gres:gpu:1", "sockets_per_node": 1.0}, "--gpus-per-socket"),
        ({"ntasks_per_gpu": 2.0, "tres_per_job": "gres:gpu:1", "num_tasks": 2.0}, "--ntasks-per-gpu"),
        ({"ntasks_per_socket": 1.0}, "--ntasks-per-socket"),
        ({"threads_per_core": 1.0}, "--threads-per-core"),
        ({"pn_min_tmp_disk": 10.0}, "--tmp"),
        ({"pn_min_cpus": 4.0}, "--mincpus"),
        ({"num_tasks": 4.0}, "--overcommit"),
        ({"tres_bind": "gpu:single:1", "tres_per_job": "gres:gpu:2"}, "--gpu-bind"),
        ({"tres_per_node": "gres:license:1"}, "GRES other than gpu"),
        ({"tres_per_node": "gres:gpu:1,gres:shard:1"}, "GRES other than gpu"),
        ({"tres_per_node": "gres:gpu:a100:1,gres:gpu:h100:1"}, "several GPU types"),
        ({"tres_per_node": "gres:gpu:1k:2:3"}, "unknown form"),
        ({"min_mem_per_node": 0.0}, "--mem=0"),
        ({"cpus_per_task": 17.0, "min_cpus": 17.0}, "does not fit on one node of partition pa"),
        ({"num_tasks": 17.0, "min_cpus": 17.0}, "does not fit"),
        ({"tres_per_job": "gres:gpu:5"}, "does not fit"),
        ({"min_mem_per_node": 64001.0}, "does not fit"),
        ({"min_mem_per_cpu": 4001.0, "num_tasks": 16.0, "min_cpus": 16.0}, "does not fit"),
        ({"partition": "pb,pa", "tres_per_job": "gres:gpu:5"}, "does not fit on one node of partition pa"),
        ({"partition": "small"}, "partition small is unknown"),
        ({"partition": "pa,small"}, "partition small is unknown"),
    ],
    ids=str,
)
def test_a_job_that_cannot_be_moved_is_left_with_the_reason_and_nothing_else_changed(hook, asked, reason):
    job = hook.submit("tapfinger", **asked)
    assert job.code is None
    assert job.admin_comment.startswith("tapfinger left: ")
    assert reason in job.left_because
    assert job.writes == ["admin_comment"]


@pytest.mark.parametrize(
    ("comment", "asked", "reason"),
    [
        ("tapfinger gpus=5-8", {}, "does not fit"),
        ("tapfinger cpus=17-32", {}, "does not fit"),
        ("tapfinger mem=65G-70G", {}, "does not fit"),
        ("tapfinger cpus=5-7", {"num_tasks": 4.0, "min_cpus": 4.0}, "no multiple of its 4 tasks"),
    ],
)
def test_a_range_that_no_node_can_serve_is_left_to_slurm(hook, comment, asked, reason):
    assert reason in hook.submit(comment, **asked).left_because


def test_all_memory_of_a_node_is_taken_where_a_range_says_what_is_enough(hook):
    assert hook.submit("tapfinger mem=4G-32G", min_mem_per_node=0.0).leased


def test_an_unknown_partition_is_trusted_where_the_user_says_one_node(hook):
    assert hook.submit("tapfinger", partition="small", min_nodes=1.0, max_nodes=1.0).leased


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_share": 0.0}, "gives whole nodes"),
        ({"min_nodes_orig": 2.0}, "several nodes"),
        ({"max_cpus_per_node": 4.0}, "does not fit"),
        ({"def_mem_per_cpu": 13000.0}, "does not fit"),
        ({"def_mem_per_node": 65000.0}, "does not fit"),
    ],
)
def test_the_partitions_own_limits_are_minded(hook, limits, reason):
    for name, value in limits.items():
        hook.partitions["pa"][name] = value
    assert reason in hook.submit("tapfinger", cpus_per_task=5.0, min_cpus=5.0).left_because


def test_a_malformed_comment_leaves_the_job_and_tells_the_user_in_one_line(hook):
    job = hook.submit("tapfinger gpus=one cpus=2")
    assert job.code is None
    assert job.writes == ["admin_comment"]
    assert "gpus=one" in job.left_because
    (line,) = hook.said("user")
    assert line.startswith("tapfinger: ")
    assert "gpus=one" in line
    assert "left to Slurm" in line
    assert "\n" not in line


def test_a_percent_sign_in_a_malformed_comment_is_only_text(hook):
    hook.submit("tapfinger gpus=%s%d%n")
    assert "gpus=%s%d%n" in hook.said("user")[0]


# Partitions that the site manages.


def test_a_batch_job_of_a_managed_partition_needs_no_mark(hook):
    assert hook.submit(partition="gpu").leased
    assert hook.submit("a word to myself", partition="gpu").leased


def test_a_job_of_a_managed_partition_that_is_left_says_why(hook):
    assert "--nodelist" in hook.submit(partition="gpu", req_nodes="n1").left_because


def test_srun_in_a_managed_partition_is_nobodys_business(hook):
    assert hook.submit(partition="gpu", script=None).writes == []


def test_a_job_that_also_names_an_unmanaged_partition_needs_the_mark(hook):
    assert hook.submit(partition="gpu,pa").writes == []
    assert hook.submit("tapfinger", partition="gpu,pa").leased


def test_without_a_partition_the_default_one_counts(hook):
    hook.partitions["pa"].flag_default = 0.0
    hook.partitions["gpu"] = hook.runtime.table_from({"flag_default": 1.0})
    assert hook.submit().leased


# The environment.

FROZEN = {
    "SLURM_GPUS": "2",
    "SLURM_GPUS_PER_NODE": "2",
    "SLURM_NTASKS": "2",
    "SLURM_TRES_PER_TASK": "cpu=4",
    "PATH": "/",
}


def test_an_amount_that_may_change_loses_its_frozen_variables(hook):
    asked = {"tres_per_node": "gres:gpu:2", "cpus_per_task": 4.0, "min_cpus": 4.0}
    job = hook.submit("tapfinger gpus=1-4", environment=FROZEN | {"SLURM_CPUS_PER_TASK": "4"}, **asked)
    assert job.environment == FROZEN | {
        "SLURM_GPUS": "",
        "SLURM_GPUS_PER_NODE": "",
        "SLURM_TRES_PER_TASK": "",
        "SLURM_CPUS_PER_TASK": "4",
    }


@pytest.mark.parametrize("comment", ["tapfinger", "tapfinger gpus=2", "tapfinger gpus=2-2 cpus=4 mem=1G-8G"])
def test_amounts_that_cannot_change_keep_the_environment_as_it_was(hook, comment):
    asked = {"tres_per_job": "gres:gpu:2", "cpus_per_task": 4.0, "min_cpus": 4.0}
    job = hook.submit(comment, environment=FROZEN, **asked)
    assert job.leased
    assert job.environment == FROZEN


def test_cpus_that_may_change_get_the_variable_that_slurm_refreshes(hook):
    assert hook.submit("tapfinger cpus=1-8").environment == {"SLURM_CPUS_PER_TASK": "1"}
    kept = hook.submit("tapfinger cpus=1-8", cpus_per_task=4.0, min_cpus=4.0, environment={"SLURM_CPUS_PER_TASK": "4"})
    assert kept.environment == {"SLURM_CPUS_PER_TASK": "4"}


def test_the_ranges_of_a_managed_partition_count_as_well(hook):
    job = hook.submit(partition="gpu", tres_per_job="gres:gpu:2", environment={"SLURM_GPUS": "2"})
    assert job.environment == {"SLURM_GPUS": "", "SLURM_CPUS_PER_TASK": "1"}


@pytest.mark.parametrize(("tasks", "bind"), [(1, None), (2, "closest")])
def test_several_tasks_with_gpus_of_their_own_are_bound_to_the_closest_ones(hook, tasks, bind):
    asked = {"tres_per_task": "gres:gpu:1", "num_tasks": float(tasks), "min_cpus": float(tasks)}
    job = hook.submit("tapfinger gpus=1-4", environment={"SLURM_GPUS_PER_TASK": "1"}, **asked)
    assert job.environment.get("SLURM_GPUS_PER_TASK") == ""
    assert job.environment.get("SLURM_GPU_BIND") == bind


def test_newer_slurms_binding_of_gpus_to_tasks_is_taken_back_by_name(hook):
    environment = {"SLURM_TRES_PER_TASK": "cpu=2,gres/gpu=1", "SLURM_TRES_BIND": "gres/gpu:per_task:1"}
    asked = {"tres_per_task": "cpu=2,gres/gpu=1", "tres_bind": "gres/gpu:per_task:1", "cpus_per_task": 2.0}
    job = hook.submit("tapfinger gpus=1-4", environment=environment, num_tasks=2.0, min_cpus=4.0, **asked)
    assert job.tres_per_node == "gres/gpu:2"
    assert job.environment == {"SLURM_TRES_PER_TASK": "", "SLURM_TRES_BIND": "gres/gpu:none"}


# An agent that is not in charge, a site file that cannot be used, a job that cannot be written.

NOT_IN_CHARGE = {
    "observing": f"observe {NOW_S} 60\n",
    "advising": f"advise {NOW_S} 60\n",
    "disabled": f"disabled {NOW_S} 60\n",
    "degraded": f"degraded {NOW_S} 60\n",
    "dead for 16 s": f"enforce {NOW_S - 16} 60\n",
    "from the future": f"enforce {NOW_S + 16} 60\n",
    "empty": "",
    "half a line": f"enforce {NOW_S}",
    "no lease": f"enforce {NOW_S} 0\n",
    "a lease of more than a day": f"enforce {NOW_S} 86401\n",
    "garbage": "\x00\xff%s%n" * 100,
    "another word": f"enforcement {NOW_S} 60\n",
}


@pytest.mark.parametrize("agent", NOT_IN_CHARGE.values(), ids=NOT_IN_CHARGE.keys())
@pytest.mark.parametrize("comment", ["tapfinger gpus=1-4", "tapfinger gpus=", None])
def test_while_no_agent_is_in_charge_every_job_is_stock_slurms(lua, tmp_path, agent, comment):
    hook = Hook(lua, tmp_path, agent=agent)
    job = hook.submit(comment, partition="gpu", tres_per_job="gres:gpu:2", environment={"SLURM_GPUS": "2"})
    assert job.writes == []
    assert hook.said("user") == []
    assert hook.modify(1000, begin_time=NOW_S + 0.0) is None


def test_while_there_is_no_sign_of_life_every_job_is_stock_slurms(hook):
    hook.sign.unlink()
    assert hook.submit("tapfinger gpus=1-4").writes == []


@pytest.mark.parametrize("age_s", [-15, 0, 15])
def test_a_sign_of_life_of_15_seconds_is_young_enough(lua, tmp_path, age_s):
    hook = Hook(lua, tmp_path, agent=f"enforce {NOW_S - age_s} 7\n")
    assert hook.submit("tapfinger").begin_time == NOW_S + 7


def test_an_unmarked_job_is_not_written_to(hook):
    assert hook.submit("training run 7", tres_per_job="gres:gpu:2", environment=FROZEN).writes == []
    assert hook.submit(None, req_nodes="n1").writes == []


@pytest.mark.parametrize("site", ["", "return 7", "return {}", "return {", "error('x')", "return { hook_file = 5 }"])
def test_with_a_broken_site_file_jobs_pass_untouched_and_the_log_says_so_once(lua, tmp_path, site):
    hook = Hook(lua, tmp_path, site=site)
    for _ in range(3):
        assert hook.submit("tapfinger gpus=1-4").writes == []
    assert hook.modify(1000, begin_time=NOW_S + 0.0) is None
    (line,) = hook.said("error")
    assert "site file" in line


def test_a_site_file_without_partitions_takes_jobs_that_say_one_node(lua, tmp_path):
    hook = Hook(lua, tmp_path, site=f"return {{ hook_file = '{tmp_path / 'hook'}' }}")
    assert hook.submit("tapfinger", min_nodes=1.0, max_nodes=1.0).leased
    assert not hook.submit("tapfinger").leased


EVERYTHING = {
    "tres_per_task": "gres:gpu:1",
    "num_tasks": 2.0,
    "min_cpus": 2.0,
    "environment": {"SLURM_GPUS_PER_TASK": "1"},
}


def test_the_lease_is_written_last(hook):
    writes = hook.submit("tapfinger gpus=1-4", **EVERYTHING).writes
    assert writes[-2:] == ["admin_comment", "begin_time"]
    assert len(writes) == len(set(writes)) == 8


def test_a_job_is_never_leased_by_halves_wherever_a_write_fails(hook):
    for refused in hook.submit("tapfinger gpus=1-4", **EVERYTHING).writes:
        job = hook.submit("tapfinger gpus=1-4", refused=refused, **EVERYTHING)
        assert job.code is None
        assert job.begin_time == 0
        assert f"cannot write {refused.removeprefix('environment.')}" in hook.said("error")[-1]


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=8),
    st.floats(),
    st.sampled_from(["gres:gpu:", "gres:gpu:1:1", "gpu", ",", "=", "pa,,pb", "gres:gpu:99999999999999999999"]),
)
FIELD = st.sampled_from(
    [*STOCK, "comment", "partition", "tres_per_node", "tres_per_job", "tres_per_task", "tres_bind", "min_mem_per_node"]
)


@pytest.fixture(scope="module")
def hooks(tmp_path_factory):
    return [Hook(lua, tmp_path_factory.mktemp(lua)) for lua in LUAS]


@given(fields=st.dictionaries(FIELD, ODD, max_size=4), comment=st.sampled_from(["tapfinger", "tapfinger gpus=1-4", ""]))
@settings(max_examples=300, deadline=None)
def test_whatever_a_field_holds_the_hook_neither_raises_nor_half_leases(hooks, fields, comment):
    for hook in hooks:
        job = hook.submit(**({"comment": comment} | fields))
        assert job.code is None
        if not job.leased:
            assert job.writes in ([], ["admin_comment"])


# Updates.

LEASE = "tapfinger lease=60 ticket=x"


@pytest.mark.parametrize(
    ("uid", "change", "refused"),
    [
        (1000, {"begin_time": NOW_S + 0.0}, True),
        (1000, {"begin_time": NOW_S + 9999.0}, True),
        (1000, {"begin_time": NOW_S + 0.0, "admin_comment": f"by site {LEASE}"}, True),
        (1000, {"time_limit": 5.0}, False),
        (1000, {"priority": 0.0}, False),
        (1000, {"comment": ""}, False),
        (1000, {"begin_time": NOW_S + 0.0, "admin_comment": None}, False),
        (1000, {"begin_time": NOW_S + 0.0, "admin_comment": "tapfinger left: it uses --tmp"}, False),
        (0, {"begin_time": NOW_S + 0.0}, False),
        (0, {"begin_time": NOW_S + 0.0, "user_id": 0.0}, False),
        (0, {"begin_time": NOW_S + 0.0, "admin_comment": None}, False),
        (64030, {"begin_time": NOW_S + 0.0}, False),
    ],
    ids=str,
)
def test_only_the_owner_is_kept_from_moving_the_start_of_a_leased_job(hook, uid, change, refused):
    code = hook.modify(float(uid), **change)
    assert (code is not None) == refused
    if refused:
        assert code == 2002
        assert "StartTime" in hook.said("user")[0]


def test_an_agent_with_a_user_of_its_own_may_touch_leased_jobs_only(lua, tmp_path):
    hook = Hook(lua, tmp_path, site=site_text(tmp_path / "hook", agent_uid=997))
    assert hook.modify(997.0, begin_time=NOW_S + 0.0) is None
    assert hook.modify(997.0, priority=5.0) is None
    for admin_comment in (None, "", "tapfinger left: it uses --tmp"):
        assert hook.modify(997.0, priority=5.0, admin_comment=admin_comment) == 2002
    assert hook.modify(998.0, priority=5.0, admin_comment=None) is None


def test_an_update_passes_where_the_guard_itself_fails(hook):
    assert hook.module.modify(None, None, None, None) is None
    assert "an update passes" in hook.said("error")[0]


# Who calls the module: our own job_submit.lua, one line in a site's own, or a module of lua_job_submit_d.

CALLERS = ("ours", "the site's own", "modules")


def load_job_submit(lua: str, folder: Path, caller: str, sites_own: str = "return slurm.SUCCESS"):
    runtime = importlib.import_module(f"lupa.{lua}").LuaRuntime()
    runtime.execute(SLURM, NOW_S)
    script = folder / hook_files.SCRIPT
    if caller == "ours":
        script.write_text(hook_files.script(str(folder)).text)
    elif caller == "the site's own":
        functions = "".join(f"function slurm_job_{name}(...) {sites_own} end\n" for name in ("submit", "modify"))
        script.write_text(f"{functions}{hook_files.line_for(str(folder))}\nreturn slurm.SUCCESS\n")
    else:
        module = folder / hook_files.MODULES_FOLDER / hook_files.MODULES_CALLER
        module.parent.mkdir()
        module.write_text(hook_files.modules_caller(str(folder)).text)
        script.write_text(f"for name, f in pairs(dofile('{module}')) do _G[name] = f end\nreturn slurm.SUCCESS\n")
    assert runtime.globals().dofile(str(script)) == 0
    return runtime


def submitted(runtime, comment: str = "tapfinger"):
    fields = runtime.table_from({name: value for name, value in STOCK.items() if value is not None})
    fields.comment = comment
    fields.environment = runtime.table_from({})
    partitions = runtime.table_from({"pa": runtime.table_from({"flag_default": 1})})
    return runtime.globals().slurm_job_submit(fields, partitions, 1000), fields


@pytest.mark.parametrize("caller", CALLERS)
def test_the_sites_script_hands_over_to_the_module(lua, tmp_path, caller):
    Hook(lua, tmp_path)
    runtime = load_job_submit(lua, tmp_path, caller)
    code, fields = submitted(runtime)
    assert code == 0
    assert fields.begin_time == NOW_S + 60
    change = runtime.table_from({"begin_time": NOW_S})
    record = runtime.table_from({"user_id": 1000, "admin_comment": fields.admin_comment})
    assert runtime.globals().slurm_job_modify(change, record, runtime.table_from({}), 1000) == 2002


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize(
    "module",
    [
        None,
        "this is not lua",
        "error('no')",
        "return nil",
        "return 7",
        "return {}",
        "return { submit = function() error('no') end, modify = function() error('no') end }",
        "return { submit = function() return 'no' end, modify = function() return {} end }",
    ],
)
def test_where_the_module_is_missing_or_broken_the_sites_script_lets_jobs_pass(lua, tmp_path, module, caller):
    if module is not None:
        (tmp_path / "tapfinger.lua").write_text(module)
    runtime = load_job_submit(lua, tmp_path, caller)
    assert runtime.globals().slurm_job_submit(runtime.table_from({}), None, 1000) == 0
    assert runtime.globals().slurm_job_modify(runtime.table_from({}), None, None, 1000) == 0


def test_a_job_that_the_sites_own_script_refuses_stays_refused_and_untouched(lua, tmp_path):
    Hook(lua, tmp_path)
    code, fields = submitted(load_job_submit(lua, tmp_path, "the site's own", "return slurm.ERROR"))
    assert code == -1
    assert fields.begin_time == 0


def test_a_site_function_that_returns_nothing_lets_the_job_pass_on(lua, tmp_path):
    Hook(lua, tmp_path)
    code, fields = submitted(load_job_submit(lua, tmp_path, "the site's own", ""))
    assert code is None
    assert fields.begin_time == NOW_S + 60


def test_the_line_given_twice_counts_once(lua, tmp_path):
    Hook(lua, tmp_path)
    runtime = load_job_submit(lua, tmp_path, "the site's own")
    runtime.execute(hook_files.line_for(str(tmp_path)))
    _, fields = submitted(runtime)
    assert fields.admin_comment.count("tapfinger") == 1


# The wake-up: a real socket library, a real process.

WAKE = """
slurm = { log_error = function(...) print(...) end, log_user = function() end }
local tapfinger = dofile(arg[1])
for _ = 1, tonumber(arg[2]) do
  local job = { begin_time = 0, comment = "tapfinger", script = "x", min_cpus = 1, environment = {}, max_nodes = 1 }
  tapfinger.submit(job, {}, 1000)
  assert(job.admin_comment:find("^tapfinger lease="), job.admin_comment)
end
"""


def lua_with_sockets() -> str | None:
    for name in ("lua5.1", "lua5.3", "lua5.4"):
        if path := shutil.which(name):
            tried = subprocess.run([path, "-e", "assert(require('socket.unix').dgram)"], capture_output=True)
            if tried.returncode == 0:
                return path
    return None


@pytest.fixture
def submit_many(tmp_path):
    """Submits jobs in a Lua process that has sockets, and fails where that does not end."""
    interpreter = lua_with_sockets()
    if interpreter is None:
        pytest.skip("no Lua interpreter with LuaSocket here (Debian: lua5.1 lua-socket)")

    def submit(count: int, wake_socket: Path) -> None:
        now = subprocess.run([interpreter, "-e", "print(os.time())"], capture_output=True, text=True, check=True)
        (tmp_path / "hook").write_text(f"enforce {now.stdout.strip()} 60\n")
        (tmp_path / "tapfinger_conf.lua").write_text(site_text(tmp_path / "hook", wake_socket=str(wake_socket)))
        shutil.copy(LUA_FOLDER / "tapfinger.lua", tmp_path)
        (tmp_path / "wake.lua").write_text(WAKE)
        command = [interpreter, tmp_path / "wake.lua", tmp_path / "tapfinger.lua", str(count)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=20)
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")

    return submit


def test_a_taken_job_wakes_the_agent(submit_many, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as agent:
        agent.bind(str(tmp_path / "wake.sock"))
        submit_many(2, tmp_path / "wake.sock")
        agent.settimeout(5)
        assert [agent.recv(64), agent.recv(64)] == [b"submit\n"] * 2


def test_an_agent_that_never_reads_its_wake_ups_holds_nobody_up(submit_many, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as agent:
        agent.bind(str(tmp_path / "wake.sock"))
        submit_many(3000, tmp_path / "wake.sock")
        agent.setblocking(False)
        waiting = 0
        with pytest.raises(BlockingIOError):
            while agent.recv(64):
                waiting += 1
        assert 0 < waiting < 3000


def test_an_agent_that_is_gone_holds_nobody_up(submit_many, tmp_path):
    path = tmp_path / "wake.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as agent:
        agent.bind(str(path))
    submit_many(20, path)
    path.unlink()
    submit_many(20, path)
    submit_many(20, tmp_path / ("x" * 200))
