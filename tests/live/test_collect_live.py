"""The real sacct of a real slurmdbd: what ran is collected, converted, and is what was asked for."""

from pathlib import Path

import pytest
from agents import from_now_on
from click.testing import CliRunner

from slurm_plugin.accounting import collect
from slurm_plugin.sandbox import Sandbox
from tapfinger_hpc import trace as traces
from tapfinger_hpc.errors import TraceError
from tapfinger_hpc.state import Resources
from trace_tools.convert import Wanted, convert

pytestmark = pytest.mark.slurm


@pytest.mark.core
def test_jobs_that_ran_come_back_from_accounting(cluster: Sandbox, tmp_path: Path):
    begun_s = from_now_on()
    odd = "a | name\nover two lines"
    plain = cluster.submit(
        "sleep 3", "--comment=tapfinger class=resnet gpus=1-2", "-c2", "--gres=gpu:1", "--mem=2G", "-t7"
    )
    named = cluster.submit("srun sleep 1", f"--job-name={odd}", "-c3")
    array = cluster.submit("exit 3", "--array=0-1")
    cancelled = cluster.submit("sleep 99", "--begin=now+1hour")
    cluster.run("scancel", str(cancelled))
    for job in (plain, named):
        cluster.wait_state(job, "COMPLETED")
    wanted = {str(plain), str(named), f"{array}_0", f"{array}_1"}
    found: dict[str, traces.TraceJob] = {}

    def told() -> bool:
        """slurmdbd hears of an end a moment later."""
        source, made = tmp_path / "sacct.txt", tmp_path / "t.jsonl"
        done = CliRunner().invoke(
            collect, ["--since", str(begun_s), "-o", str(source), "--config", str(cluster.tapfinger_toml)]
        )
        assert done.exit_code == 0, done.output
        try:
            header = convert([str(source)], made, Wanted(since_s=begun_s))
        except TraceError:
            return False
        found.update({item.job.job_id: item for item in traces.read_jobs(made)})
        return wanted <= found.keys() and header.counts.get("never-ran") == 1

    cluster.wait_for(told, what="all jobs in accounting")
    ran = found[str(plain)]
    assert ran.ran is not None
    assert (ran.ran.amounts, ran.ran.state, ran.job.time_limit_s) == (Resources(2, 1, 2048), "COMPLETED", 420)
    assert 2 <= ran.ran.elapsed_s <= 6
    assert ran.job.submit_time_s >= begun_s
    assert ran.job.user
    assert found[str(named)].ran.name.replace("\n", " ") == odd.replace("\n", " ")
    assert {found[f"{array}_{task}"].ran.state for task in (0, 1)} == {"FAILED"}
    assert str(cancelled) not in found
