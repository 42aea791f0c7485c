"""The command line: what it lists, and how it fails."""

import subprocess
import sys

import click
import pytest

from tapfinger_hpc import cli


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tapfinger_hpc.cli", *arguments], capture_output=True, text=True, check=False
    )


def test_help_lists_every_command_with_a_line():
    done = run("--help")
    assert done.returncode == 0
    for name, summary in cli.SUMMARIES.items():
        assert f"  {name} " in done.stdout
        assert summary in done.stdout
    assert set(cli.SUMMARIES) == set(cli.COMMANDS)


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_loads_and_has_help(name):
    command = cli.tapfinger.get_command(click.Context(cli.tapfinger), name)
    assert isinstance(command, click.Command)
    assert command.help
    assert run(name, "--help").returncode == 0


def test_an_unknown_command_is_a_usage_error():
    done = run("plya")
    assert done.returncode == 2
    assert "plya" in done.stderr


def test_our_own_errors_are_one_line_and_exit_1():
    done = run("status", "--config", "/nonexistent/tapfinger.toml")
    assert done.returncode == 1
    assert done.stderr.startswith("tapfinger: configuration '/nonexistent/tapfinger.toml' cannot be read")
    assert "Traceback" not in done.stderr
