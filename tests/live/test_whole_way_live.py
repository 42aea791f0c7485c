"""From a site's own jobs to decisions by a policy of its own, on a real slurmctld and slurmdbd, command by command."""

import json
import time
from pathlib import Path

import pytest
from agents import PRIMED, USER, command, from_now_on, in_charge, is_running, process, toml_for

from slurm_plugin.client import PolicyClient
from slurm_plugin.sandbox import Sandbox
from tapfinger_hpc import checkpoint, config
from tapfinger_hpc.speed import read_classes
from tapfinger_hpc.training.adapting import COURSE, NOT_BETTER

pytestmark = pytest.mark.slurm

SHAPES = {2: 4, 4: 2, 8: 1}
"""Seconds that a job of the site takes, by its CPUs."""
WAVES, EACH = 8, 4


def done(box: Sandbox, *words: str, timeout_s: float = 60, codes: tuple[int, ...] = (0,)) -> int:
    ran = command(box, *words, timeout_s=timeout_s)
    assert ran.returncode in codes, f"tapfinger {' '.join(words)}: {ran.stdout}{ran.stderr}"
    return ran.returncode


def test_the_jobs_that_ran_make_the_policy_that_decides_the_next(cluster: Sandbox, tmp_path: Path) -> None:
    begun_s = from_now_on()
    wanted: set[str] = set()
    for _ in range(WAVES):
        for cpus, seconds in SHAPES.items():
            asked = (f"--array=1-{EACH}", f"--comment={PRIMED} class=naps", f"-c{cpus}", "--gres=gpu:1", "--mem=1G")
            array = cluster.submit(f"sleep {seconds}", *asked, as_user=USER)
            wanted |= {f"{array}_{task}" for task in range(1, EACH + 1)}
        time.sleep(1.5)
    toml, trained = toml_for(cluster, tmp_path), tmp_path / "site"
    source, trace, classes = (str(tmp_path / name) for name in ("sacct.txt", "site.jsonl", "classes.json"))

    def in_accounting() -> bool:
        """slurmdbd hears of an end a moment later."""
        done(cluster, "trace", "collect", "--since", str(begun_s), "-o", source, "--config", str(toml))
        done(cluster, "trace", "convert", source, "-o", trace, codes=(0, 1))
        lines = Path(trace).read_text().splitlines() if Path(trace).exists() else []
        return wanted <= {json.loads(line)["job"]["job_id"] for line in lines[1:]}

    cluster.wait_for(in_accounting, timeout_s=120, what="all jobs in accounting")

    done(cluster, "trace", "fit", trace, "-o", classes)
    (naps,) = read_classes(Path(classes))
    assert (naps.name, naps.observations) == ("naps", len(wanted))

    nodes = tmp_path / "nodes.txt"
    nodes.write_text("\n".join(cluster.run("scontrol", "show", what).stdout for what in ("nodes", "partitions")))
    words = ("train", "--trace", trace, "--cluster", str(nodes), "--minutes", "0.5", "--out", str(trained))
    judged = done(cluster, *words, timeout_s=280, codes=(0, NOT_BETTER))
    # A minute's training need not be better; what is served here is what was trained, either way.
    weights = trained if judged == 0 else trained / COURSE
    assert (trained / checkpoint.DESCRIPTION).exists() == (judged == 0)
    info = checkpoint.describe(weights)
    assert info.training.iterations > 0

    text = toml.read_text().replace("[server]", f'[server]\ncheckpoint = "{weights}"')
    toml.write_text(text.replace("[agent]", f'[agent]\nclasses_file = "{classes}"'))
    with (
        process(cluster, "serve", "--config", str(toml), log=tmp_path / "serve.log") as serve,
        process(cluster, "agent", "--config", str(toml), log=tmp_path / "agent.log") as agent,
    ):
        in_charge(cluster, serve, agent)
        like_them = (f"--comment={PRIMED} class=naps", "-c2", "--gres=gpu:1", "--mem=2G")
        next_one = cluster.submit("sleep 5", *like_them, as_user=USER)
        cluster.wait_for(lambda: is_running(cluster, next_one), timeout_s=60, what="the next job to run")
        served = PolicyClient(config.load(toml).server).health()
        explained = command(cluster, "explain", str(next_one), "--config", str(toml)).stdout
    assert (served.policy.name, served.policy.checkpoint) == ("tapfinger", info.fingerprint), served
    assert "placed" in explained, explained
