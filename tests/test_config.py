"""The configuration file: defaults, and what is said of a wrong one."""

from pathlib import Path

import pytest

from tapfinger_hpc import config
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
        ("[agent]\nmodus = 'enforce'\n", ["modus", "did you mean 'mode'", "$.agent"]),
        ("[agnet]\nmode = 'enforce'\n", ["agnet", "did you mean 'agent'"]),
        ("[agent]\nmode = 'force'\n", ["force", "$.agent.mode"]),
        ("[agent]\nlease_s = 2\n", ["$.agent.lease_s", ">= 5"]),
        ("[agent]\nlease_s = 'long'\n", ["$.agent.lease_s", "int"]),
        ("[server\n", ["is not TOML"]),
        ("[partitions.gpu]\ngpus = '4-1'\n", ["partitions.gpu", "gpus=4-1"]),
        ("[partitions.gpu]\nmem = '4G class=x'\n", ["partitions.gpu", "mem=4G class=x"]),
        ("[partitions.gpu]\nzpus = '1'\n", ["zpus"]),
    ],
)
def test_a_wrong_file_names_the_file_and_the_key(tmp_path, text, said):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    for part in [str(path), *said]:
        assert part in str(caught.value)


def test_a_missing_file_is_an_error_where_it_was_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(tmp_path / "none.toml")
