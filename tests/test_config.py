"""The configuration file: defaults, and what is said of a wrong one."""

from pathlib import Path

import click
import pytest

from tapfinger_hpc import cli, config
from tapfinger_hpc.errors import ConfigError
from tapfinger_hpc.units import Range


def write(folder: Path, text: str) -> Path:
    path = folder / "tapfinger.toml"
    path.write_text(text)
    return path


def test_an_empty_file_gives_the_defaults_and_only_observes(tmp_path):
    loaded = config.load(write(tmp_path, ""))
    assert loaded == config.Config()
    assert loaded.agent.mode == "observe"


def test_every_section_is_read(tmp_path):
    loaded = config.load(
        write(
            tmp_path,
            '[server]\npolicy = "price"\n[agent]\nmode = "enforce"\nlease_s = 30\n[slurm]\ntimeout_s = 3.5\n'
            '[partitions.gpu]\ngpus = "1-4"\nmem = "4G-8G"\n',
        )
    )
    assert (loaded.server.policy, loaded.agent.mode, loaded.agent.lease_s) == ("price", "enforce", 30)
    assert loaded.slurm.timeout_s == 3.5
    mark = config.partition_mark(loaded.partitions["gpu"])
    assert mark.gpus == Range(1, 4)
    assert mark.mem_mb == Range(4096, 8192)
    assert mark.cpus is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[agent]\nmodus = 'enforce'\n", [":2: agent.modus: unknown; did you mean agent.mode?"]),
        ("\n[agnet]\nmode = 'enforce'\n", [":2: agnet: unknown; did you mean agent?"]),
        ("mode = 'enforce'\n", [":1: mode: unknown; did you mean agent.mode?"]),
        (
            "[agent]\ntimeout_s = 1\n",
            [":2: agent.timeout_s: unknown; did you mean server.timeout_s or slurm.timeout_s?"],
        ),
        ("[slurm]\nxyzzy = 1\n", [":2: slurm.xyzzy: unknown; known here: backend, bin_dir, conf, timeout_s"]),
        (
            "[agent]\nmode = 'force'\n",
            [":2: agent.mode: expected one of", "'observe'", "did you mean 'enforce'?", "'force'"],
        ),
        ("[agent]\nlease_s = 2\n", [":2: agent.lease_s: expected a whole number from 5 to 86400, seen 2"]),
        ("[agent]\nlease_s = 'long'\n", [":2: agent.lease_s: expected a whole number", "seen 'long'"]),
        ("[slurm]\ntimeout_s = inf\n", [":2: slurm.timeout_s: expected a number above 0 up to 86400, seen inf"]),
        ("[slurm]\ntimeout_s = nan\n", [":2: slurm.timeout_s: expected a number", "seen nan"]),
        ("agent = 3\n", [":1: agent: expected a section [agent], seen 3"]),
        ("[partitions]\ngpu = '1-4'\n", [":2: partitions.gpu: expected a section [partitions.gpu], seen '1-4'"]),
        ("# one\n[server\n", [":2: not TOML"]),
        ("[server]\npolicy = 'a'\npolicy = 'b'\n", [":3: not TOML: Cannot overwrite a value"]),
        ("[partitions.gpu]\ncpus = '2'\ngpus = '4-1'\n", [":3: partitions.gpu.gpus: gpus=4-1"]),
        ("[partitions.gpu]\nmem = '4G class=x'\n", [":2: partitions.gpu.mem", "mem=4G class=x"]),
        ("[partitions.gpu]\nzpus = '1'\n", [":2: partitions.gpu.zpus: unknown; did you mean partitions.gpu.gpus?"]),
    ],
)
def test_a_wrong_file_is_refused_with_line_key_and_the_nearest_right_one(tmp_path, text, said):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert str(caught.value).startswith(f"configuration {path}:")
    for part in said:
        assert part in str(caught.value)


def test_all_mistakes_are_told_at_once_in_the_order_of_their_lines(tmp_path):
    text = """[server]
socket = [
  "a"]
compiled = '''
lease_s = 1
'''
[partitions.gpu]
zpus = "1"
[agent]
lease_s = 1   # too short
"quoted key" = 1
"""
    with pytest.raises(ConfigError) as caught:
        config.load(write(tmp_path, text))
    places = [line.split(": ")[:2] for line in str(caught.value).replace(str(tmp_path), "").splitlines()]
    assert places == [
        ["configuration /tapfinger.toml:2", "server.socket"],
        ["configuration /tapfinger.toml:8", "partitions.gpu.zpus"],
        ["configuration /tapfinger.toml:10", "agent.lease_s"],
        ["configuration /tapfinger.toml:11", "agent.quoted key"],
    ]


def test_a_missing_file_is_an_error_where_it_was_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(tmp_path / "none.toml")


@pytest.mark.parametrize(
    "command",
    [
        ["agent", "--once"],
        ["doctor"],
        ["explain", "1"],
        ["janitor"],
        ["learn"],
        ["profile", "--class=a", __file__],
        ["report"],
        ["serve"],
        ["status"],
        ["trace", "collect", "--output={folder}/out"],
    ],
    ids=lambda command: command[0],
)
def test_no_command_starts_with_a_configuration_that_is_half_right(tmp_path, capsys, command):
    path = write(tmp_path, "[server]\nsocket = '/nowhere/s'\n[agent]\nmodus = 'enforce'\n")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as ended:
        cli.main([*(word.format(folder=tmp_path) for word in command), f"--config={path}"])
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == (
        "",
        f"tapfinger: configuration {path}:4: agent.modus: unknown; did you mean agent.mode?\n",
    )
    assert sorted(tmp_path.iterdir()) == before


def test_every_command_that_reads_the_configuration_is_tried_above():
    # Those of tapfinger_hpc neither serve nor touch a cluster; they are slow to load.
    near = [
        name for name, place in cli.COMMANDS.items() if not place.startswith(("tapfinger_hpc.", "slurm_plugin.demo"))
    ]
    commands = {name: cli.tapfinger.get_command(click.Context(cli.tapfinger), name) for name in near}
    reading = {name for name, command in commands.items() if command and _reads_configuration(command)}
    mark = next(mark for mark in test_no_command_starts_with_a_configuration_that_is_half_right.pytestmark)
    assert {words[0] for words in mark.args[1]} == reading


def _reads_configuration(command: click.Command) -> bool:
    if isinstance(command, click.Group):
        return any(_reads_configuration(child) for child in command.commands.values())
    return any("--config" in parameter.opts for parameter in command.params)
