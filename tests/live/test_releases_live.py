"""Slurm of another Debian release: really that one, on this machine's files, and gone without a mount."""

import os
import subprocess
from pathlib import Path

import pytest
from agents import USER

from slurm_plugin.sandbox import Sandbox, packages, releases, userland
from slurm_plugin.sandbox.userland import Userland
from tapfinger_hpc.errors import SandboxError

pytestmark = [pytest.mark.slurm, pytest.mark.core]


def mounts() -> set[str]:
    return {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}


@pytest.fixture
def other(cluster: Sandbox, release: str) -> Userland:
    if not release:
        pytest.skip("all of it is this machine's own Slurm; try --slurm-release trixie")
    return Userland(release)


def test_daemons_commands_and_jobs_are_those_of_the_release(cluster: Sandbox, other: Userland) -> None:
    version = (other.folder / "etc/debian_version").read_text()
    job = cluster.submit("cat /etc/debian_version; sbatch --version", as_user=USER)
    cluster.wait_state(job, "COMPLETED")
    assert cluster.output(job).startswith(version)
    assert cluster.run("scontrol", "--version").stdout in cluster.output(job)
    for name in ("slurmctld", "slurmd.n1", "munged"):
        assert Path(f"/proc/{cluster.running()[name]}/root/etc/debian_version").read_text() == version
    by_path = subprocess.run(["scontrol", "--version"], env=cluster.env, capture_output=True, text=True, check=True)
    assert by_path.stdout == cluster.run("scontrol", "--version").stdout


def test_a_job_reads_and_writes_this_machines_files(cluster: Sandbox, other: Userland, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("from outside\n")
    job = cluster.submit(f"tr a-z A-Z <{tmp_path}/in >{tmp_path}/out; pwd", f"--chdir={tmp_path}", "--output=here")
    cluster.wait_state(job, "COMPLETED")
    assert (tmp_path / "out").read_text() == "FROM OUTSIDE\n"
    assert (tmp_path / "here").read_text() == f"{tmp_path}\n"


def test_nothing_is_mounted_on_this_machine(cluster: Sandbox, other: Userland) -> None:
    assert not [mount for mount in mounts() if mount.startswith(str(userland.CACHE))]
    host = Path("/usr").stat()
    there = Path(f"/proc/{cluster.running()['munged']}/root/usr").stat()
    assert (host.st_dev, host.st_ino) != (there.st_dev, there.st_ino)


def test_commands_work_without_the_daemon_whose_namespace_they_share(cluster: Sandbox, other: Userland) -> None:
    before = cluster.run("scontrol", "--version").stdout
    pid = cluster.layout.munge_pid.read_text()
    cluster.layout.munge_pid.write_text(f"{os.getpid()}\n")
    try:
        assert cluster.run("scontrol", "--version").stdout == before
    finally:
        cluster.layout.munge_pid.write_text(pid)


def test_a_release_that_cannot_be_fetched_says_why_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := releases.why_not_installable():
        pytest.skip(reason)
    (tmp_path / "debootstrap").write_text('#!/bin/sh\nmkdir -p "$3/usr"; echo "E: no network here"; exit 9\n')
    (tmp_path / "debootstrap").chmod(0o755)
    for module in (releases, userland):
        monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(releases, "SEARCH_PATH", f"{tmp_path}:{releases.SEARCH_PATH}")
    with pytest.raises(SandboxError, match=r"fetching Debian sid ended with 9(.|\n)*no network here"):
        releases.install(Userland("sid"))
    assert "fetch it with: tapfinger sandbox install --release sid" in packages.why_not(Userland("sid"))
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["sid.lock", "sid.log"]
