"""The cluster of a what-if, read from a real slurm.conf and from the slurmctld that runs with it."""

import pytest

from slurm_plugin import cluster_file
from slurm_plugin.commands import SlurmCommands
from slurm_plugin.sandbox import Sandbox
from tapfinger_hpc import config

pytestmark = pytest.mark.slurm


def test_slurm_conf_is_read_as_slurmctld_reads_it(cluster: Sandbox) -> None:
    live = cluster_file.of_live(SlurmCommands.from_config(config.load(cluster.tapfinger_toml).slurm))
    written = cluster_file.read(str(cluster.layout.slurm_conf))
    assert written.spec == live.spec
    assert written.memory_counts
    assert len(live.spec.nodes) == 6
