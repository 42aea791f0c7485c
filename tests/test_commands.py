"""Running Slurm's commands: programs of our own stand in for them."""

import os
from pathlib import Path

import pytest

from slurm_plugin.commands import CommandError, SlurmCommands
from tapfinger_hpc.config import SlurmConfig
from tapfinger_hpc.errors import SlurmError


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    return tmp_path


def script(bin_dir: Path, name: str, text: str) -> None:
    path = bin_dir / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def commands(bin_dir: Path, **more: object) -> SlurmCommands:
    return SlurmCommands(bin_dir=str(bin_dir), **more)  # type: ignore[arg-type]


def test_a_command_gets_its_arguments_as_they_are_and_no_shell_sees_them(bin_dir: Path) -> None:
    script(bin_dir, "scontrol", 'printf "%s|" "$@"')
    said = commands(bin_dir)(["scontrol", "update", "Comment=$(touch x); 'a b'\n", "*"])
    assert said.stdout == b"update|Comment=$(touch x); 'a b'\n|*|"
    assert not (bin_dir / "x").exists()


def test_a_refusal_is_a_result_with_its_words(bin_dir: Path) -> None:
    script(bin_dir, "scontrol", "echo half; echo 'Job is in held state' >&2; exit 3")
    said = commands(bin_dir)(["scontrol", "update"])
    assert (said.rc, said.stdout, said.stderr) == (3, b"half\n", "Job is in held state")


def test_a_checked_refusal_tells_command_status_and_words(bin_dir: Path) -> None:
    script(bin_dir, "squeue", "echo 'cannot contact slurmctld' >&2; exit 1")
    with pytest.raises(CommandError, match="squeue -h ended with 1: cannot contact slurmctld") as caught:
        commands(bin_dir)(["squeue", "-h"]).checked()
    assert (caught.value.argv, caught.value.rc, caught.value.stderr) == (
        ("squeue", "-h"),
        1,
        "cannot contact slurmctld",
    )


def test_a_command_that_does_not_end_is_ended_and_told(bin_dir: Path) -> None:
    script(bin_dir, "squeue", f"echo $$ > {bin_dir}/pid; exec sleep 600")
    with pytest.raises(CommandError, match=r"did not end within 0\.2 s"):
        commands(bin_dir, timeout_s=0.2)(["squeue"])
    pid = int((bin_dir / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_missing_command_says_where_it_was_looked_for(bin_dir: Path) -> None:
    with pytest.raises(SlurmError, match=r"nowhere-to-be-found was not found in .*slurm\.bin_dir"):
        commands(bin_dir)(["nowhere-to-be-found"])


def test_variables_of_whoever_started_us_do_not_change_what_is_read(
    bin_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("TZ", "America/New_York")
    script(bin_dir, "squeue", "env")
    lines = commands(bin_dir, conf="/etc/here/slurm.conf")(["squeue"]).stdout.decode().splitlines()
    assert not any(line.startswith("SQUEUE_") for line in lines)
    assert {"SLURM_TIME_FORMAT=%s", "LC_ALL=C", "TZ=UTC", "SLURM_CONF=/etc/here/slurm.conf"} <= set(lines)


def test_a_command_reads_nothing_from_our_input(bin_dir: Path) -> None:
    script(bin_dir, "scontrol", "cat; echo done")
    assert commands(bin_dir)(["scontrol"]).stdout == b"done\n"


def test_output_that_is_no_text_comes_as_it_is(bin_dir: Path) -> None:
    script(bin_dir, "squeue", r"printf '\377\000\n'; printf '\377' >&2")
    said = commands(bin_dir)(["squeue"])
    assert said.stdout == b"\xff\x00\n"
    assert said.stderr == "\N{REPLACEMENT CHARACTER}"


def test_the_configuration_decides_folder_time_and_cluster(bin_dir: Path) -> None:
    script(bin_dir, "squeue", "exec sleep 600")
    with pytest.raises(CommandError, match=r"within 0\.1 s"):
        SlurmCommands.from_config(SlurmConfig(conf="/c", bin_dir=str(bin_dir), timeout_s=0.1))(["squeue"])


def test_an_endless_command_line_is_shortened_in_messages(bin_dir: Path) -> None:
    script(bin_dir, "squeue", "exit 1")
    with pytest.raises(CommandError) as caught:
        commands(bin_dir)(["squeue", "--Format=" + "x" * 5000, *["word"] * 500]).checked()
    assert len(str(caught.value)) < 400
