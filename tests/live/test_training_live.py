"""Training as a Slurm job: two ranks under a real srun find each other and train one network."""

import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from slurm_plugin.sandbox import Sandbox
from tapfinger_hpc import checkpoint

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

LONGEST_S = 400
"""Half a minute where each rank has a core of its own, minutes where both share a busy one."""


def test_two_ranks_under_srun_train_one_network(cluster: Sandbox) -> None:
    with tempfile.TemporaryDirectory(prefix="tf-") as folder:
        out, log = Path(folder) / "trained", Path(folder) / "log"
        train = (
            f"srun --ntasks=2 --nodes=2 --output={log} {sys.executable} -m tapfinger_hpc.cli "
            f"train --scenario synthetic-3 --iterations 2 --out {out}"
        )
        job = cluster.submit(train, "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=1")
        ended = cluster.wait_state(job, "COMPLETED", "FAILED", timeout_s=LONGEST_S)
        said = log.read_text() if log.exists() else "(no output)"
        assert ended["JobState"] == "COMPLETED", said
        assert (out / checkpoint.DESCRIPTION).exists(), said
        trained = checkpoint.load(out)[1].training
        assert (trained.workers, trained.iterations) == (2, 2), said
        # Each rank played other workloads; only with a gradient in common do both have the same weights.
        leader, other = (load((out / name).read_bytes()[32:]) for name in ("resume.bin", "resume-1.bin"))
        assert leader["state"].tolist() != other["state"].tolist()
        for name in leader:
            if name != "state":
                torch.testing.assert_close(leader[name], other[name], rtol=0, atol=0, msg=name)


def test_a_lone_step_under_srun_trains_alone(cluster: Sandbox) -> None:
    with tempfile.TemporaryDirectory(prefix="tf-") as folder:
        out = Path(folder) / "trained"
        train = f"srun {sys.executable} -m tapfinger_hpc.cli train --scenario synthetic-3 --iterations 1 --out {out}"
        job = cluster.submit(train)
        cluster.wait_state(job, "COMPLETED", timeout_s=LONGEST_S)
        assert checkpoint.load(out)[1].training.workers == 1
