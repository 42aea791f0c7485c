"""Differences between releases of Slurm, and where programs of another Debian release are found."""

from pathlib import Path

import pytest

from slurm_plugin import versions
from slurm_plugin.sandbox import packages, userland
from slurm_plugin.sandbox.userland import MACHINE, Userland
from tapfinger_hpc.errors import SandboxError


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("slurm 22.05.8", (22, 5)),
        ("slurm-wlm 24.11.5\n", (24, 11)),
        ("26.05.5-1", (26, 5)),
        ("sacct: fatal: no", versions.UNKNOWN),
    ],
)
def test_a_version_is_read_in_the_words_of_each_program(said: str, version: versions.Version) -> None:
    assert versions.read(said) == version


@pytest.mark.parametrize(
    ("version", "cgroups_off", "no_means_alone", "gpus_come_and_go"),
    [
        (versions.UNKNOWN, "cgroup/v1", True, True),
        ((22, 5), "cgroup/v1", True, True),
        ((23, 11), "cgroup/v1", True, False),
        ((24, 11), "disabled", True, False),
        ((25, 11), "disabled", False, False),
        ((26, 5), "disabled", False, True),
        ((31, 11), "disabled", False, True),
    ],
)
def test_a_release_has_what_came_with_it_or_before(
    version: versions.Version, cgroups_off: str, no_means_alone: bool, gpus_come_and_go: bool
) -> None:
    found = versions.of(version)
    assert found.cgroups_off == cgroups_off
    assert ("NO" in found.exclusive_words) == no_means_alone
    assert found.gpus_come_and_go == gpus_come_and_go
    assert found.exclusive_words >= versions.EXCLUSIVE


def test_sacct_is_asked_for_states_that_it_knows() -> None:
    assert "OOM" not in versions.ended_states((17, 11)).split(",")
    assert versions.ended_states((22, 5)) == versions.ended_states(versions.UNKNOWN)


@pytest.fixture
def trixie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Userland:
    """A release of which there is little more than slurmctld."""
    monkeypatch.setattr(userland, "CACHE", tmp_path)
    for folder in ("etc", "usr/bin", "usr/sbin"):
        (tmp_path / "trixie" / folder).mkdir(parents=True)
    (tmp_path / "trixie/usr/sbin/slurmctld").symlink_to("/etc/alternatives/only-there")
    (tmp_path / "trixie/etc/passwd").write_text("root:x:0:0::/:/bin/sh\nslurm:x:64030:64031::/:/bin/false\n")
    return Userland("trixie")


def test_programs_and_users_of_a_release_are_those_of_its_folder(trixie: Userland) -> None:
    assert trixie.program("slurmctld") == "/usr/sbin/slurmctld"
    assert trixie.program("sh") is None
    assert trixie.owner("slurm") == (64030, 64031)
    with pytest.raises(SandboxError, match=r"no user 'nobody' in .*trixie/etc/passwd"):
        trixie.owner("nobody")
    absent = packages.missing(trixie, accounting=False)
    assert "slurmctld" not in absent
    assert absent["slurmd"] == "slurmd"


def test_programs_of_this_machine_are_run_as_they_are() -> None:
    assert MACHINE.prefix(Path("/tmp/pid")) == ()
    assert MACHINE.owner("root") == (0, 0)
    assert str(MACHINE.program("sh")).endswith("/sh")


def test_a_release_that_nobody_tried_is_refused() -> None:
    with pytest.raises(SandboxError, match="'buster': expected one of bookworm, trixie, sid"):
        Userland("buster")
