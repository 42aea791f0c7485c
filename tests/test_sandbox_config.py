"""What a sandbox writes, refuses and claims, shown without starting Slurm."""

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_plugin.sandbox import SandboxSpec, conf, files, packages, processes, register
from slurm_plugin.sandbox.layout import Layout
from slurm_plugin.sandbox.register import PortBlock
from slurm_plugin.sandbox.sandbox import parse_records
from tapfinger_hpc import config
from tapfinger_hpc.errors import ConfigError, SandboxError

LAYOUT = Layout(Path("/tmp/sb"))
PORTS = PortBlock(first=20000, count=8)
HOST = conf.Host("vm", is_loopback=True)


def slurm_conf(spec: SandboxSpec) -> list[str]:
    return conf.slurm_conf(spec, LAYOUT, PORTS, cluster="tf1", host=HOST).splitlines()


def keys(lines: list[str]) -> dict[str, str]:
    pairs = (line.partition("=") for line in lines if not line.startswith(("NodeName", "PartitionName")))
    return {key: value for key, _, value in pairs}


# What is wanted.


@given(nodes=st.integers(1, 60), partitions=st.integers(1, 60))
def test_every_node_is_in_one_partition_and_shares_differ_by_one_at_most(nodes: int, partitions: int) -> None:
    if partitions > nodes:
        with pytest.raises(SandboxError, match=f"partitions={partitions}: expected 1 to {nodes}"):
            SandboxSpec(nodes=nodes, partitions=partitions)
        return
    dealt = SandboxSpec(nodes=nodes, partitions=partitions).partition_nodes()
    assert [node for share in dealt.values() for node in share] == [f"n{i}" for i in range(1, nodes + 1)]
    sizes = [len(share) for share in dealt.values()]
    assert len(sizes) == partitions
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"nodes": 0}, "nodes=0: expected 1 to 600"),
        ({"gpus": -1}, "gpus=-1"),
        ({"memory_mb": 3}, "memory_mb=3: expected 16 to"),
        ({"default_minutes": 20, "max_minutes": 10}, "default_minutes=20: expected 1 to 10"),
        ({"partition_names": ("gpu",)}, "expected 3 of them"),
        ({"partition_names": ("a", "b", "b")}, "each may be given once"),
        ({"overlapping": ("pa",)}, "each may be given once"),
        ({"overlapping": ("p a",)}, "'p a'"),
    ],
)
def test_a_spec_that_cannot_be_is_refused_with_the_value(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(SandboxError) as refusal:
        msgspec.convert(arguments, SandboxSpec)
    assert says in str(refusal.value)


def test_partitions_are_named_as_those_of_the_lab() -> None:
    assert SandboxSpec().partition_nodes() == {"pa": ("n1", "n2"), "pb": ("n3", "n4"), "pc": ("n5", "n6")}


# What is written.


def test_slurm_conf_has_the_nodes_and_partitions_of_the_spec() -> None:
    lines = slurm_conf(SandboxSpec(overlapping=("every",), max_minutes=60))
    assert (
        "NodeName=DEFAULT CPUs=16 Boards=1 SocketsPerBoard=1 CoresPerSocket=16 ThreadsPerCore=1 RealMemory=64000 "
        "Gres=gpu:4 State=UNKNOWN" in lines
    )
    assert "NodeName=n[1-6] NodeHostname=vm NodeAddr=127.0.0.1 Port=[20002-20007]" in lines
    assert [line for line in lines if line.startswith("PartitionName")] == [
        "PartitionName=DEFAULT MaxTime=60 DefaultTime=10 DefMemPerCPU=1000 State=UP",
        "PartitionName=pa Nodes=n[1-2] Default=YES",
        "PartitionName=pb Nodes=n[3-4]",
        "PartitionName=pc Nodes=n[5-6]",
        "PartitionName=every Nodes=n[1-6]",
    ]


def test_stock_differs_only_by_the_hook_and_the_job_end_event() -> None:
    with_hook, stock = keys(slurm_conf(SandboxSpec())), keys(slurm_conf(SandboxSpec(hook=False)))
    assert set(with_hook) - set(stock) == {"JobSubmitPlugins", "JobCompType", "JobCompLoc"}
    assert {key: with_hook[key] for key in stock} == stock
    assert stock["SchedulerParameters"] == "batch_sched_delay=0,sched_interval=5,bf_interval=10"


def test_without_accounting_nothing_asks_for_it() -> None:
    without = keys(slurm_conf(SandboxSpec(accounting=False)))
    assert without["AccountingStorageType"] == "accounting_storage/none"
    assert "AccountingStorageTRES" not in without  # fatal there
    assert keys(slurm_conf(SandboxSpec()))["AccountingStorageTRES"] == "gres/gpu"


def test_without_gpus_nothing_mentions_them() -> None:
    spec = SandboxSpec(gpus=0)
    assert not [line for line in slurm_conf(spec) if "gpu" in line.lower()]
    assert conf.gres_conf(spec, LAYOUT) == "AutoDetect=off\n"


@pytest.mark.parametrize(("means", "alone"), [("127.0.0.1", True), ("127.0.1.1", False), ("10.0.0.5", False)])
def test_slurm_listens_on_loopback_alone_where_the_name_of_the_machine_means_it(means: str, alone: bool) -> None:
    host = files.this_host(resolve=lambda name: means)
    lines = conf.slurm_conf(SandboxSpec(), LAYOUT, PORTS, cluster="tf1", host=host).splitlines()
    assert f"SlurmctldHost={host.name}(127.0.0.1)" in lines
    assert ("CommunicationParameters" in keys(lines)) is alone


def test_a_machine_whose_name_nobody_knows_is_no_obstacle() -> None:
    def unknown(name: str) -> str:
        raise socket.gaierror(-2, "Name or service not known")

    assert not files.this_host(resolve=unknown).is_loopback


def test_further_lines_come_last_so_that_they_win() -> None:
    assert slurm_conf(SandboxSpec(extra_conf=("KillWait=1", "MaxJobCount=9")))[-2:] == ["KillWait=1", "MaxJobCount=9"]


def test_every_path_in_the_files_is_inside_the_folder() -> None:
    spec = SandboxSpec(nodes=1, partitions=1, gpus=1)
    texts = [
        "\n".join(slurm_conf(spec)),
        conf.gres_conf(spec, LAYOUT),
        conf.slurmdbd_conf(LAYOUT, PORTS),
        conf.tapfinger_toml(spec, LAYOUT),
    ]
    values = [word for text in texts for line in text.splitlines() for word in line.replace('"', "").split("=")]
    paths = {value.strip() for value in values if value.strip().startswith("/")}
    assert len(paths) > 10
    assert {path for path in paths if not path.startswith("/tmp/sb/")} == {"/bin/true"}


@pytest.mark.parametrize(
    ("version", "plugin"), [((22, 5), "cgroup/v1"), ((23, 11), "cgroup/v1"), ((24, 11), "disabled")]
)
def test_cgroups_are_off_in_the_words_of_the_version(version: tuple[int, int], plugin: str) -> None:
    assert conf.cgroup_conf(version) == f"CgroupPlugin={plugin}\n"


def test_our_configuration_is_one_that_we_can_read(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.tapfinger.mkdir()
    files.write_agent_files(layout, SandboxSpec(lease_s=7, extra_toml='[partitions.pb]\ngpus = "1-4"\n'))
    loaded = config.load(layout.tapfinger_toml)
    assert loaded.agent.mode == "enforce"
    assert loaded.agent.lease_s == 7
    assert loaded.slurm.conf == str(layout.slurm_conf)
    assert loaded.partitions["pb"].gpus == "1-4"
    with pytest.raises(ConfigError, match="gqus"):
        files.write_agent_files(layout, SandboxSpec(extra_toml='[partitions.pb]\ngqus = "1-4"\n'))


def test_the_hook_is_told_of_partitions_that_are_managed_as_a_whole(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.etc.mkdir()
    layout.tapfinger.mkdir()
    spec = SandboxSpec(extra_toml='[partitions.pb]\ncpus = "2-8"\n')
    files.write_agent_files(layout, spec)
    files.write_hook(layout, spec)
    site = (layout.etc / "tapfinger_conf.lua").read_text()
    managed = [line for line in site.splitlines() if "managed = true" in line]
    assert len(managed) == 1
    assert '"pb"' in managed[0]
    assert '"2-8"' in managed[0]
    assert {"job_submit.lua", "tapfinger.lua"} <= {script.name for script in layout.etc.iterdir()}


def test_the_job_end_event_sends_the_job_id_and_never_waits(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.wake_script.parent.mkdir()
    layout.tapfinger.mkdir()
    layout.wake_script.write_text(conf.wake_script(layout))
    layout.wake_script.chmod(0o755)

    def job_ends(job: int) -> None:
        subprocess.run([layout.wake_script], env={"JOBID": str(job)}, check=True, timeout=20)

    job_ends(1)  # nobody listens
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wake:
        wake.bind(str(layout.wake_socket))
        job_ends(2)
        assert wake.recv(100) == b"job-end 2"
        wake.settimeout(0)
        with contextlib.suppress(BlockingIOError):  # an agent that hangs: its queue is full
            while True:
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
                    other.setblocking(False)
                    other.sendto(b"x", str(layout.wake_socket))
        job_ends(3)
    job_ends(4)  # the agent was killed and left its socket


# Where it may be.


def test_a_new_folder_is_made_and_an_empty_one_taken(tmp_path: Path) -> None:
    made = files.make_directory(tmp_path / "new")
    assert made.is_dir()
    assert stat.S_IMODE(made.stat().st_mode) == 0o755
    assert files.make_directory(made) == made


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SandboxError, match=r"in use and not by a sandbox \(it holds thesis.tex\)"):
        files.make_directory(tmp_path)
    (tmp_path / "sandbox.json").touch()
    with pytest.raises(SandboxError, match="tapfinger sandbox down --dir"):
        files.make_directory(tmp_path)


def test_a_folder_that_others_can_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(SandboxError, match="can be written by others"):
        files.make_directory(tmp_path)


@pytest.mark.parametrize("name", ["with blank", "a,b", "x#y", "%n", "n[1-2]", "a=b", "quote'"])
def test_a_folder_whose_name_slurm_would_misread_is_refused(name: str) -> None:
    with pytest.raises(SandboxError, match="goes into Slurm's configuration"):
        files.check_directory(Path("/tmp") / name)


def test_a_folder_too_deep_for_a_unix_socket_is_refused() -> None:
    longest = Path("/tmp") / ("x" * (107 - len("/tmp//tapfinger/server.sock")))
    Layout(longest).check_length()
    with pytest.raises(
        SandboxError, match=r"too long for the Unix socket server.sock in it \(108 bytes, at most 107\)"
    ):
        files.check_directory(longest.with_name(longest.name + "x"))


def test_a_folder_that_slurm_could_not_reach_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(SandboxError, match="is closed to other users"):
        files.check_directory(tmp_path / "sandbox")


def test_the_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    spec = SandboxSpec(nodes=2, partitions=1, partition_names=("gpu",), extra_conf=("KillWait=1",))
    manifest = files.Manifest(cluster="tf1", first_port=20000, port_count=4, spec=spec)
    files.write_manifest(Layout(tmp_path), manifest)
    assert files.read_manifest(Layout(tmp_path)) == manifest
    Layout(tmp_path).manifest.write_text('{"cluster": 1}')
    with pytest.raises(SandboxError, match=r"sandbox.json cannot be read: Expected `str`, got `int`"):
        files.read_manifest(Layout(tmp_path))
    Layout(tmp_path).manifest.unlink()
    with pytest.raises(SandboxError, match="no sandbox in"):
        files.read_manifest(Layout(tmp_path))


# Which ports are its own.


@pytest.fixture
def own_register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(register, "REGISTER", tmp_path / "register")
    return tmp_path


def folder(parent: Path, name: str) -> Path:
    made = parent / name
    made.mkdir()
    return made


def test_claims_never_overlap_and_a_released_one_is_given_again(own_register: Path) -> None:
    first = register.claim(folder(own_register, "a"), nodes=6)
    second = register.claim(folder(own_register, "b"), nodes=6)
    assert first.count == second.count == 8
    assert first.first + first.count <= second.first
    register.release(own_register / "a")
    assert register.claim(folder(own_register, "c"), nodes=6) == first
    register.release(own_register / "b")
    register.release(own_register / "c")
    assert not register.REGISTER.exists()


def test_a_port_on_which_somebody_listens_is_not_claimed(own_register: Path) -> None:
    free = register.claim(folder(own_register, "a"), nodes=1)
    register.release(own_register / "a")
    with socket.create_server(("127.0.0.1", free.first + 1)):
        block = register.claim(own_register / "a", nodes=1)
    assert free.first + 1 not in range(block.first, block.first + block.count)


def test_the_claim_of_a_folder_that_was_removed_by_hand_lapses(own_register: Path) -> None:
    first = register.claim(folder(own_register, "a"), nodes=1)
    (own_register / "a").rmdir()
    assert register.claim(folder(own_register, "b"), nodes=1) == first
    assert [entry.directory for entry in register.entries()] == [own_register / "b"]


def test_many_claims_at_once_get_different_ports(own_register: Path) -> None:
    folders = [folder(own_register, f"s{number}") for number in range(12)]
    script = (
        "import sys; from pathlib import Path; from slurm_plugin.sandbox import register\n"
        "register.REGISTER = Path(sys.argv[1])\n"
        "for name in sys.argv[2:]: register.claim(Path(name), nodes=3)\n"
    )
    shares = [[str(path) for path in folders[start::3]] for start in range(3)]
    commands = [subprocess.Popen([sys.executable, "-c", script, str(register.REGISTER), *share]) for share in shares]
    assert [command.wait(timeout=60) for command in commands] == [0, 0, 0]
    ports = [port for e in register.entries() for port in range(e.ports.first, e.ports.first + e.ports.count)]
    assert len(ports) == len(set(ports)) == 12 * 5


def test_claims_and_releases_at_once_never_meet_a_vanished_register(own_register: Path) -> None:
    """Each release may remove the register that the other is waiting for."""
    failures: list[Exception] = []

    def claim_and_release(directory: Path) -> None:
        try:
            for _ in range(60):
                register.claim(directory, nodes=1)
                register.release(directory)
        except Exception as error:  # noqa: BLE001 - told in the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=claim_and_release, args=(folder(own_register, name),)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert not register.REGISTER.exists()


def test_a_sandbox_is_an_orphan_once_its_process_is_gone(own_register: Path) -> None:
    directory = folder(own_register, "a")
    register.claim(directory, nodes=1)
    assert not register.entries()[0].is_orphan()  # ours while it starts
    file = next(register.REGISTER.glob("*.json"))
    content = json.loads(file.read_text())
    content["owner"]["start_ticks"] -= 1  # our pid, but of an earlier process
    file.write_text(json.dumps(content))
    assert register.entries()[0].is_orphan()
    register.untie(directory)
    assert not register.entries()[0].is_orphan()  # it stays until somebody ends it
    register.tie(directory)
    assert not register.entries()[0].is_orphan()


def test_no_room_for_the_nodes_says_what_to_do(own_register: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(register, "LAST_PORT", register.FIRST_PORT + 5)
    with pytest.raises(SandboxError, match="tapfinger sandbox list"):
        register.claim(folder(own_register, "a"), nodes=6)


# Which processes are its own.


def marked(directory: Path, *command: str) -> subprocess.Popen[bytes]:
    return known(subprocess.Popen(command, env={"PATH": os.environ["PATH"], processes.MARK: str(directory)}))


def known(started: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    """The process once it can be known: for a moment a new one has no environment."""
    while not Path(f"/proc/{started.pid}/environ").read_bytes():
        assert started.poll() is None
    return started


@contextlib.contextmanager
def sleeping(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A marked process that is gone afterwards, whatever happens."""
    with marked(directory, "sleep", "600") as started:
        try:
            yield started
        finally:
            started.kill()


def test_all_processes_of_a_sandbox_are_ended_and_no_others(tmp_path: Path) -> None:
    ours = marked(tmp_path / "a", "sh", "-c", "env -i sleep 600 & trap '' TERM; env -i sh -c 'sleep 600; sleep 600'")
    theirs = marked(tmp_path / "ab", "sleep", "600")
    try:
        while len(processes.of_sandbox(tmp_path / "a", "")) < 4:
            assert ours.poll() is None
        found = processes.of_sandbox(tmp_path / "a", "")
        processes.end_all(tmp_path / "a", "")
        assert ours.wait(timeout=10) == -signal.SIGKILL
        assert all(processes.has_ended(process) for process in found)
        assert theirs.poll() is None
    finally:
        theirs.kill()
        theirs.wait()


def test_the_process_of_a_job_is_known_by_its_cluster_and_a_users_own_is_not(tmp_path: Path) -> None:
    of_job = {"SLURM_CLUSTER_NAME": "tf1", "SLURMD_NODENAME": "n1"}
    of_user = {"SLURM_CLUSTER_NAME": "tf1"}
    started = [known(subprocess.Popen(["/bin/sleep", "600"], env=env)) for env in (of_job, of_user)]
    try:
        assert [process.pid for process in processes.of_sandbox(tmp_path, "tf1")] == [started[0].pid]
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_what_left_its_job_is_known_by_its_output_and_whoever_reads_that_is_not(tmp_path: Path) -> None:
    jobs = Layout(tmp_path).jobs
    jobs.mkdir()
    with (jobs / "slurm-1.out").open("w+") as output:
        escaped = subprocess.Popen(["/bin/sleep", "600"], env={}, stdout=output, start_new_session=True)
        reader = subprocess.Popen(["/bin/sleep", "600"], env={}, stdin=output, cwd=jobs, start_new_session=True)
    try:
        assert [process.pid for process in processes.of_sandbox(tmp_path, "tf1")] == [escaped.pid]
    finally:
        for process in (escaped, reader):
            process.kill()
            process.wait()


def test_a_process_that_is_no_daemon_of_the_sandbox_is_not_taken_for_one(tmp_path: Path) -> None:
    with sleeping(tmp_path) as daemon:
        assert processes.daemon(daemon.pid, tmp_path) is not None
        assert processes.daemon(daemon.pid, tmp_path / "other") is None
        daemon.kill()
    assert processes.daemon(daemon.pid, tmp_path) is None
    assert processes.daemon(os.getpid(), tmp_path) is None


def test_a_signal_for_an_earlier_process_with_the_pid_is_not_sent(tmp_path: Path) -> None:
    with sleeping(tmp_path) as running:
        process = processes.daemon(running.pid, tmp_path)
        assert process is not None
        assert not processes.send(process._replace(start_ticks=process.start_ticks - 1), signal.SIGKILL)
        assert running.poll() is None
        assert processes.send(process, signal.SIGKILL)
        assert running.wait(timeout=10) == -signal.SIGKILL


def test_waiting_for_something_that_ended_shows_its_log_at_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("one\ntwo\n\nfatal: no\n")
    with pytest.raises(
        SandboxError, match=r"starting it: it ended; the log \S+ ends with: \n  one\n  two\n  fatal: no"
    ):
        processes.wait_until(lambda: False, doing="starting it", log=lambda: log, timeout_s=60, alive=lambda: False)
    with pytest.raises(SandboxError, match=r"not ready after 0 s; the log \S+ ends with: \(no log: No such file"):
        processes.wait_until(lambda: False, doing="starting it", log=lambda: tmp_path / "none", timeout_s=0)


def test_a_listener_is_seen_without_connecting_to_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert processes.listening(port)
    assert not processes.listening(port)


# What has to be installed.


def test_no_service_starts_while_packages_are_installed_and_the_policy_is_gone_afterwards(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    with packages.no_service_starts(policy):
        assert subprocess.run([policy, "mariadb", "start"], check=False).returncode == 101
    assert not policy.exists()
    with pytest.raises(SandboxError), packages.no_service_starts(policy):
        raise SandboxError("apt-get failed")
    assert not policy.exists()


def test_the_policy_of_a_site_stands(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 0\n")
    with packages.no_service_starts(policy):
        assert policy.read_text() == "#!/bin/sh\nexit 0\n"
    assert policy.exists()


def test_our_policy_that_a_killed_installation_left_is_removed_by_the_next(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    with packages.no_service_starts(policy):
        left = policy.read_text()
    policy.write_text(left)
    with packages.no_service_starts(policy):
        assert subprocess.run([policy, "mariadb", "start"], check=False).returncode == 101
    assert not policy.exists()


def test_the_emulator_is_never_installed() -> None:
    """It makes itself the machine's slurmctld and slurmd."""
    wanted = {*packages._PROGRAMS.values(), *packages._ACCOUNTING_PROGRAMS.values()}
    assert {"slurmctld", "slurmd", "slurmdbd", "munge", "mariadb-server"} <= wanted
    assert not any("emulator" in package for package in wanted)


# What scontrol says.

SHOW_JOB = """\
JobId=7 ArrayJobId=5 ArrayTaskId=1 JobName=train Epoch=3
   UserId=nobody(65534) GroupId=nogroup(65534) MCS_label=N/A
   JobState=PENDING Reason=BeginTime Dependency=(null)
   TRES=cpu=4,mem=4000M,node=1,billing=4,gres/gpu=2
   Socks/Node=* NtasksPerN:B:S:C=0:0:*:* CoreSpec=*
   AdminComment=tapfinger lease=60 ticket=1a
   Comment=tapfinger gpus=1-4 cpus=2-16 Mine=1
   StdErr=/tmp/sb/jobs/slurm-7.out
   Power=
   TresPerNode=gres:gpu:2

JobId=8 JobName=b
   JobState=RUNNING Reason=None Dependency=(null)
"""


def test_the_fields_of_scontrol_are_read_with_the_blanks_and_signs_that_users_type() -> None:
    first, second = parse_records(SHOW_JOB, "JobId")
    assert first["JobId"] == "7"
    assert first["JobName"] == "train Epoch=3"
    assert first["Reason"] == "BeginTime"
    assert first["TRES"] == "cpu=4,mem=4000M,node=1,billing=4,gres/gpu=2"
    assert first["Comment"] == "tapfinger gpus=1-4 cpus=2-16 Mine=1"
    assert first["AdminComment"] == "tapfinger lease=60 ticket=1a"
    assert first["Power"] == ""
    assert second == {"JobId": "8", "JobName": "b", "JobState": "RUNNING", "Reason": "None", "Dependency": "(null)"}
    assert parse_records("No jobs in the system\n", "JobId") == ()
