"""The sandbox on a real Slurm: that it is one, that it stays by itself, and that nothing of it stays."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from slurm_plugin.sandbox import Sandbox, SandboxSpec, register
from tapfinger_hpc.errors import SandboxError

pytestmark = pytest.mark.slurm

TAPFINGER = (sys.executable, "-m", "tapfinger_hpc.cli", "sandbox")


@pytest.fixture
def small(release: str) -> SandboxSpec:
    return SandboxSpec(nodes=2, partitions=1, accounting=False, release=release)


@pytest.fixture
def accounted_for(small: SandboxSpec) -> SandboxSpec:
    return replace(small, accounting=True)


@pytest.fixture
def command_up(release: str, folder: Path) -> list[str]:
    """The command that starts a sandbox in the folder."""
    return [*TAPFINGER, "up", f"--dir={folder}", *([f"--release={release}"] if release else [])]


@pytest.fixture
def folder(sandbox: Sandbox) -> Iterator[Path]:
    """A free name for a sandbox, short and reachable for every user, which pytest's own folder is not."""
    with tempfile.TemporaryDirectory(prefix="tf-") as parent:
        Path(parent).chmod(0o755)
        yield Path(parent) / "sandbox"
        with contextlib.suppress(SandboxError):
            Sandbox.attach(Path(parent) / "sandbox").down()


def traces(directory: Path, *words: str) -> list[str]:
    """Whatever on this machine has to do with the folder, found without the sandbox's own means."""
    found = [str(directory)] if directory.exists() else []
    found += [f"register: {entry}" for entry in register.entries() if entry.directory == directory]
    return found + mentioning(str(directory), *words)


def mentioning(*words: str) -> list[str]:
    """The living processes with one of these words in their arguments, environment or open files."""
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if int(process.name) == os.getpid() or process.joinpath("stat").read_text().rpartition(")")[2][1] == "Z":
                continue
            text = process.joinpath("cmdline").read_bytes() + process.joinpath("environ").read_bytes()
            links = " ".join(str(link.readlink()) for link in (process / "cwd", *(process / "fd").iterdir()))
            if any(word in text.decode(errors="replace") or word in links for word in words):
                found.append(f"{process.name}: {text[:100]!r}")
    return found


def when(predicate: Callable[[], object], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not predicate():
        assert time.monotonic() < deadline, "the awaited thing did not happen"
        time.sleep(0.05)


@pytest.mark.core
def test_a_job_sees_just_the_gpus_it_was_given(cluster: Sandbox) -> None:
    job = cluster.submit(
        "echo gpus=$CUDA_VISIBLE_DEVICES on $SLURM_GPUS_ON_NODE of $SLURM_CPUS_ON_NODE", "--gres=gpu:3", "-c5"
    )
    cluster.wait_state(job, "COMPLETED")
    assert cluster.output(job).strip() == "gpus=0,1,2 on 3 of 5"


def test_a_job_may_start_steps_with_srun(cluster: Sandbox) -> None:
    job = cluster.submit(
        "srun --ntasks=1 --gres=gpu:1 sh -c 'echo step $SLURM_STEP_ID has $CUDA_VISIBLE_DEVICES'", "--gres=gpu:1"
    )
    cluster.wait_state(job, "COMPLETED")
    assert cluster.output(job).strip() == "step 0 has 0"


@pytest.mark.core
def test_an_ordinary_user_can_submit_and_is_accounted_for(cluster: Sandbox) -> None:
    job = cluster.submit("id --user --name", "--comment=tapfinger gpus=1-2", as_user="nobody")
    cluster.wait_state(job, "COMPLETED")
    assert cluster.output(job).strip() == "nobody"
    cluster.wait_for(
        lambda: "nobody|COMPLETED|tapfinger gpus=1-2" in accounted(cluster, job), what="slurmdbd to have the job"
    )


def accounted(cluster: Sandbox, job: int) -> str:
    return cluster.run("sacct", "-X", "-P", "--noheader", f"--jobs={job}", "--format=user,state,comment").stdout


def test_the_end_of_a_job_is_told_to_the_wake_socket(cluster: Sandbox) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wake:
        wake.bind(str(cluster.layout.wake_socket))
        cluster.layout.wake_socket.chmod(0o666)
        wake.settimeout(30)
        job = cluster.submit("true")
        received = wake.recv(100).decode()
        while not received.startswith("job-end"):  # the hook sends there as well
            received = wake.recv(100).decode()
    assert received == f"job-end {job}"


def test_a_job_ends_well_where_nobody_listens_at_the_wake_socket(cluster: Sandbox) -> None:
    assert not cluster.layout.wake_socket.exists()
    job = cluster.submit("true")
    assert cluster.wait_state(job, "COMPLETED", "FAILED")["JobState"] == "COMPLETED"


def test_two_sandboxes_at_once_know_nothing_of_each_other(cluster: Sandbox, folder: Path, small: SandboxSpec) -> None:
    with Sandbox.up(small, folder) as other:
        ours = set(range(cluster.ports.first, cluster.ports.first + cluster.ports.count))
        theirs = set(range(other.ports.first, other.ports.first + other.ports.count))
        assert not ours & theirs
        job = other.submit("sleep 600")
        other.wait_state(job, "RUNNING")
        assert cluster.run("squeue", "--noheader").stdout == ""
    assert cluster.missing() == ()
    assert cluster.run("scontrol", "ping").stdout.strip().endswith("UP")


def test_down_leaves_no_process_and_no_file_though_jobs_are_running(folder: Path, accounted_for: SandboxSpec) -> None:
    sandbox = Sandbox.up(accounted_for, folder)
    plain = sandbox.submit("sleep 76541 & sleep 76542", as_user="nobody")
    hiding = sandbox.submit("(env -i setsid sleep 76543 &); env -i sleep 76544")
    stubborn = sandbox.submit("trap '' TERM INT HUP; sleep 76545; sleep 76546")
    for job in (plain, hiding, stubborn):
        sandbox.wait_state(job, "RUNNING")
    when(lambda: all(mentioning(f"sleep\0{76540 + n}") for n in range(1, 6)))
    sandbox.down()
    assert traces(folder, "sleep\x007654") == []
    sandbox.down()  # twice is no error


@pytest.mark.parametrize("victims", [("slurmctld",), ("munged", "mariadb"), ("slurmdbd", "slurmd.n1", "slurmctld")])
def test_down_works_after_daemons_were_killed(
    folder: Path, victims: tuple[str, ...], accounted_for: SandboxSpec
) -> None:
    sandbox = Sandbox.up(accounted_for, folder)
    sandbox.wait_state(sandbox.submit("sleep 76547"), "RUNNING")
    for name in victims:
        os.kill(sandbox.running()[name], signal.SIGKILL)
    when(lambda: set(sandbox.missing()) == set(victims))
    Sandbox.attach(folder).down()
    assert traces(folder, "sleep\x0076547") == []


def test_down_ends_a_sandbox_whose_folder_was_removed_by_hand(folder: Path, small: SandboxSpec) -> None:
    sandbox = Sandbox.up(small, folder)
    sandbox.wait_state(sandbox.submit("sleep 76549"), "RUNNING")
    shutil.rmtree(folder, ignore_errors=True)
    assert Sandbox.end(folder)
    assert traces(folder, "sleep\x0076549") == []
    assert not Sandbox.end(folder)


def test_an_up_that_fails_shows_the_log_and_cleans_up(folder: Path, accounted_for: SandboxSpec) -> None:
    with pytest.raises(SandboxError, match=r"starting slurmctld: it ended(.|\n)*unrecognized key: NoSuchKey"):
        Sandbox.up(replace(accounted_for, extra_conf=("NoSuchKey=1",)), folder)
    assert traces(folder) == []


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("reached", ["sandbox.json", "munge/munge.socket", "mysql", "run/slurmdbd.pid"])
def test_an_interrupted_up_cleans_up(
    folder: Path, with_signal: signal.Signals, reached: str, command_up: list[str]
) -> None:
    command = subprocess.Popen(command_up, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    when((folder / reached).exists)
    command.send_signal(with_signal)
    command.communicate(timeout=60)
    assert command.returncode == 1
    assert traces(folder) == []


def test_a_sandbox_whose_process_was_killed_is_ended_by_the_next_one(folder: Path, small: SandboxSpec) -> None:
    script = (
        "from pathlib import Path; import sys, time; from slurm_plugin.sandbox import Sandbox, SandboxSpec\n"
        f"with Sandbox.up({small!r}, Path({str(folder)!r})):\n"
        "    print('up', flush=True); time.sleep(600)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "up\n"
    owner.kill()
    owner.communicate(timeout=30)
    assert Sandbox.attach(folder).missing() == ()
    with Sandbox.up(small):
        assert traces(folder) == []


@pytest.mark.parametrize("reached", ["sandbox.json", "mysql"])
def test_a_start_that_was_killed_is_ended_by_the_next_one(
    folder: Path, reached: str, small: SandboxSpec, command_up: list[str]
) -> None:
    command = subprocess.Popen(command_up, stdout=subprocess.DEVNULL)
    when((folder / reached).exists)
    command.kill()
    command.wait(timeout=30)
    assert traces(folder) != []
    with Sandbox.up(small):
        assert traces(folder) == []


def test_a_stranger_with_the_pid_of_a_daemon_is_spared(folder: Path, small: SandboxSpec) -> None:
    with Sandbox.up(small, folder) as sandbox, subprocess.Popen(["sleep", "60"]) as stranger:
        sandbox.kill_slurmctld()
        (sandbox.layout.run / "slurmctld.pid").write_text(f"{stranger.pid}\n")
        sandbox.kill_slurmctld()
        assert "slurmctld" in sandbox.missing()
        sandbox.down()
        assert stranger.poll() is None
        stranger.kill()


def test_it_works_without_accounting_and_without_hook(sandbox_factory: Callable[[SandboxSpec], Sandbox]) -> None:
    stock = sandbox_factory(SandboxSpec(nodes=2, partitions=2, accounting=False, hook=False))
    job = stock.submit("echo $SLURM_JOB_PARTITION", "--partition=pb", "--gres=gpu:1")
    stock.wait_state(job, "COMPLETED")
    assert stock.output(job).strip() == "pb"
    assert "slurmdbd" not in stock.running()
    settings = stock.run("scontrol", "show", "config").stdout
    assert re.search(r"^JobSubmitPlugins +=", settings, re.MULTILINE)
    assert "tapfinger" not in settings.replace(str(stock.directory), "")
    assert not re.search(r"lua|jobcomp/script", settings)


def test_with_and_without_hook_the_scheduling_is_set_up_alike(
    cluster: Sandbox, sandbox_factory: Callable[[SandboxSpec], Sandbox]
) -> None:
    stock = sandbox_factory(SandboxSpec(nodes=2, partitions=2, accounting=False, hook=False))

    def scheduling(one: Sandbox) -> list[str]:
        settings = one.run("scontrol", "show", "config").stdout.splitlines()
        return [line for line in settings if line.startswith(("Sched", "Select", "Priority", "Preempt", "KillWait"))]

    assert len(scheduling(cluster)) > 10
    assert scheduling(cluster) == scheduling(stock)


def test_reset_brings_everything_back(cluster: Sandbox) -> None:
    running = cluster.submit("sleep 600", "--gres=gpu:4", as_user="nobody")
    cluster.submit("sleep 600", "--hold")
    cluster.submit("sleep 600", "--array=1-3", "--partition=pb", "--exclusive")
    cluster.wait_state(running, "RUNNING")
    cluster.set_node("n5", "down")
    cluster.set_node("n6", "drain")
    cluster.run("scontrol", "update", "partitionname=pc", "state=down")
    cluster.stop_slurmd("n3")
    cluster.kill_slurmctld()
    cluster.layout.hook_file.write_text("enforce 0 60\n")
    assert set(cluster.missing()) == {"slurmctld", "slurmd.n3"}

    cluster.reset()

    assert cluster.missing() == ()
    assert cluster.run("squeue", "--noheader", "--all").stdout == ""
    states = cluster.run("sinfo", "--noheader", "--Node", "--format=%N %a %T").stdout.splitlines()
    assert states == [f"n{number} up idle" for number in range(1, 7)]
    assert sorted(file.name for file in cluster.layout.tapfinger.iterdir()) == ["classes.json", "tapfinger.toml"]
    job = cluster.submit("true", "--partition=pc")
    cluster.wait_state(job, "COMPLETED")


@pytest.mark.parametrize("restarted", [False, True])
def test_reset_ends_steps_that_a_killed_slurmctld_forgot(cluster: Sandbox, restarted: bool) -> None:
    job = cluster.submit("trap '' TERM; sleep 76548; sleep 76548")
    cluster.wait_state(job, "RUNNING")
    cluster.kill_slurmctld()  # before it has written down that the job runs
    if restarted:
        cluster.start_slurmctld()
    cluster.reset()
    assert mentioning("sleep\x0076548") == []
    next_job = cluster.submit("sleep 600")
    assert next_job > job
    cluster.wait_state(next_job, "RUNNING")


def test_slurmctld_starts_after_a_crash_soon_after_its_first_start(folder: Path, accounted_for: SandboxSpec) -> None:
    with Sandbox.up(accounted_for, folder) as sandbox:
        sandbox.kill_slurmctld()
        sandbox.start_slurmctld()
        assert sandbox.missing() == ()


@pytest.mark.core
def test_a_daemon_is_known_though_its_pid_file_holds_the_rest_of_a_longer_number(cluster: Sandbox) -> None:
    before = cluster.running()
    for name in ("slurmctld", "slurmd.n2"):
        with (cluster.layout.run / f"{name}.pid").open("a") as file:
            file.write("5\n")
    assert cluster.running() == before
    cluster.stop_slurmctld()
    assert cluster.run("scontrol", "ping", check=False).returncode != 0
    assert cluster.missing() == ("slurmctld",)


def test_slurmctld_knows_its_jobs_after_a_crash(cluster: Sandbox) -> None:
    job = cluster.submit("sleep 600")
    cluster.wait_state(job, "RUNNING")
    cluster.stop_slurmctld()  # saves; a kill could come before the state was written
    cluster.start_slurmctld()
    cluster.kill_slurmctld()
    cluster.start_slurmctld()
    assert cluster.job(job)["JobState"] == "RUNNING"


def test_an_overlapping_partition_holds_all_nodes(sandbox_factory: Callable[[SandboxSpec], Sandbox]) -> None:
    spec = SandboxSpec(
        nodes=3, partitions=2, partition_names=("small", "big"), overlapping=("every",), accounting=False, gpus=0
    )
    overlapping = sandbox_factory(spec)
    listed = overlapping.run("sinfo", "--noheader", "--format=%R %D %N").stdout.splitlines()
    assert sorted(listed) == ["big 2 n[2-3]", "every 3 n[1-3]", "small 1 n1"]
    job = overlapping.submit("true", "--partition=every", "--nodelist=n1")
    overlapping.wait_state(job, "COMPLETED")


def test_the_command_brings_a_sandbox_up_shows_it_and_takes_it_down(folder: Path, release: str) -> None:
    def tapfinger(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*TAPFINGER, *arguments], capture_output=True, text=True, timeout=120, check=False)

    where = ("--dir", str(folder))
    of = ("--release", release) if release else ()
    up = json.loads(
        tapfinger("up", *where, *of, "--nodes=2", "--partitions=2", "--gpus=1", "--no-accounting", "--json").stdout
    )
    assert up["partitions"] == {"pa": ["n1"], "pb": ["n2"]}
    again = tapfinger("up", *where)
    assert again.returncode == 1
    assert "there is a sandbox in" in again.stderr

    submitted = tapfinger("shell", *where, "sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 600").stdout
    when(
        lambda: (
            tapfinger("shell", *where, "squeue", "--noheader", "--format=%i %T").stdout
            == f"{submitted.strip()} RUNNING\n"
        )
    )
    assert tapfinger("shell", *where, "false").returncode == 1
    status = tapfinger("status", *where)
    assert status.returncode == 0
    assert "n2 pb idle 0/16/0/16 64000 gpu:1" in status.stdout
    assert str(folder) in tapfinger("list").stdout

    os.kill(up["daemons"]["slurmd.n2"], signal.SIGKILL)
    when(lambda: tapfinger("status", *where).returncode == 1)
    assert "not running: slurmd.n2" in tapfinger("status", *where).stdout

    assert tapfinger("down", *where).returncode == 0
    assert traces(folder) == []
    assert tapfinger("down", *where).returncode == 0
    nothing = tapfinger("status", *where)
    assert nothing.returncode == 1
    assert "no sandbox in" in nothing.stderr


def test_a_folder_that_is_in_use_is_left_as_it_is(folder: Path, small: SandboxSpec) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_text("all I have")
    with pytest.raises(SandboxError, match="in use"):
        Sandbox.up(small, folder)
    assert (folder / "thesis.tex").read_text() == "all I have"
