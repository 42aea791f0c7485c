"""The report on a real cluster: an agent that watches sees jobs wait and end, and says what it would have saved."""

import json
from pathlib import Path

import pytest
from agents import PRIMED, Script, command, live_agent, toml_for

from slurm_plugin.sandbox import Sandbox
from tapfinger_hpc.state import Resources

pytestmark = pytest.mark.slurm


def report(box: Sandbox, toml: Path) -> dict:
    said = command(box, "report", "--json", "--config", str(toml))
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout)


def test_what_watching_would_have_saved_is_told_of_jobs_that_waited(cluster: Sandbox, tmp_path: Path) -> None:
    script = Script()
    toml = toml_for(cluster, tmp_path, mode="observe")
    with live_agent(cluster, tmp_path, script, mode="observe") as agent:
        # One GPU of each node stays free: too few for what was asked for, enough for what is decided.
        blockers = [
            cluster.submit("sleep 60", f"--nodelist={node}", "--gpus=3", "-c1", "--mem=1G") for node in ("n1", "n2")
        ]
        for blocker in blockers:
            cluster.wait_state(blocker, "RUNNING")
        waits = cluster.submit("sleep 3", f"--comment={PRIMED}", "--gpus=2", "-c4", "--mem=4G")
        script.place(waits, "n1", Resources(4, 1, 4096))
        agent.until(lambda: agent.journal.history(str(waits)).told, "a decision that nobody carries out")
        assert agent.refusals(waits) == []
        cluster.run("scancel", *map(str, blockers))
        agent.until(lambda: cluster.job(waits)["JobState"] == "RUNNING", "Slurm to start it by itself")
        at_once = cluster.submit("sleep 3", f"--comment={PRIMED}", "--gpus=1", "-c1", "-p", "pb", "--mem=1G")
        cluster.wait_state(at_once, "RUNNING")
        agent.until(
            lambda: {job.job_id for _, job in agent.journal.ended_after(0)} == {str(waits), str(at_once)},
            "both of ours to end",
        )
    found = report(cluster, toml)
    assert found["ended"] == 2
    (account,) = found["accounts"]
    assert (account["job_id"], account["way"], account["placed"]) == (str(waits), "watched", True)
    assert account["stock_amounts"] == {"cpus": 4, "gpus": 2, "mem_mb": 4096}
    assert account["tapfinger_amounts"] == {"cpus": 4, "gpus": 1, "mem_mb": 4096}
    assert (account["basis"], account["tapfinger_ran_s"] > account["stock_ran_s"]) == ("prior", True)
    assert found["left_out"] == {"it started before anything was decided": 1}
    assert found["enforced"] is None


def test_what_enforcing_did_is_held_against_stock_slurm_on_the_clusters_nodes(cluster: Sandbox, tmp_path: Path) -> None:
    toml = toml_for(cluster, tmp_path)
    with live_agent(cluster, tmp_path) as agent:
        job_id = cluster.submit("sleep 4", f"--comment={PRIMED} class=sleeper", "--gpus=1", "-c2", "--mem=2G")
        agent.script.place(job_id, "n1", Resources(2, 2, 2048))
        agent.until(lambda: agent.fates(job_id) == ["started"], "the job to run")
        agent.until(lambda: agent.journal.ended_after(0), "the job to end")
    found = report(cluster, toml)
    (account,) = found["accounts"]
    assert (account["way"], account["placed"]) == ("enforced", True)
    assert account["stock_amounts"] == {"cpus": 2, "gpus": 1, "mem_mb": 2048}
    assert account["tapfinger_amounts"] == {"cpus": 2, "gpus": 2, "mem_mb": 2048}
    # The cluster was empty, so stock Slurm would have started it at once.
    assert account["stock_waited_s"] == 0
    assert found["enforced"]["jobs"] == 1
