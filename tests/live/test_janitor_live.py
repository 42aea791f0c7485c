"""The janitor on a real slurmctld: it frees what a dead agent left pinned, and leaves a live agent's jobs alone."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from agents import PRIMED, LiveAgent, command, hook_mode, is_running, request, toml_for

from slurm_plugin import hookfile
from slurm_plugin.sandbox import Sandbox
from tapfinger_hpc.state import Resources

pytestmark = pytest.mark.slurm


def killed_after_its_update(cluster: Sandbox, folder: Path) -> int:
    """An agent places a job on n1 and is killed at once, then n1 goes down; the job's number."""
    doomed = [sys.executable, str(Path(__file__).with_name("doomed_agent.py")), str(cluster.directory), str(folder)]
    ended = subprocess.run(doomed, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    cluster.set_node("n1", "down")
    return int((folder / "job").read_text())


def make_stale(cluster: Sandbox) -> None:
    hookfile.write(cluster.layout.hook_file, "enforce", time.time() - 60, 60)


def test_a_job_pinned_to_a_node_that_went_down_runs_elsewhere_with_its_own_request(
    cluster: Sandbox, tmp_path: Path
) -> None:
    job_id = killed_after_its_update(cluster, tmp_path)
    make_stale(cluster)
    pinned = cluster.job(job_id)
    assert (pinned["JobState"], pinned["ReqNodeList"], pinned["NumCPUs"]) == ("PENDING", "n1", "1")
    toml = toml_for(cluster, tmp_path)
    said = command(cluster, "janitor", "--config", str(toml), "--json")
    assert said.returncode == 0, said.stderr
    report = json.loads(said.stdout)
    assert [(repair["job_id"], repair["done"]) for repair in report["repairs"]] == [(str(job_id), True)]
    record = cluster.wait_state(job_id, "COMPLETED")
    assert (record["NodeList"], record["NumCPUs"], record["TimeLimit"]) == ("n2", "3", "00:05:00")
    assert record["TRES"] == "cpu=3,mem=5G,node=1,billing=3,gres/gpu=2"
    again = json.loads(command(cluster, "janitor", "--config", str(toml), "--json").stdout)
    assert again["repairs"] == []
    assert "by the janitor" in command(cluster, "explain", str(job_id), "--config", str(toml)).stdout


def test_the_next_agent_repairs_what_the_dead_one_left(cluster: Sandbox, tmp_path: Path) -> None:
    job_id = killed_after_its_update(cluster, tmp_path)
    agent = LiveAgent(cluster, tmp_path)
    agent.script.place(job_id, "n2", Resources(4, 3, 6000))
    agent.until(lambda: is_running(cluster, job_id), "the job to be placed anew")
    record = cluster.job(job_id)
    assert (record["NodeList"], record["NumCPUs"]) == ("n2", "4")
    assert agent.fates(job_id)[0] == "restored"
    agent.close()


def test_the_janitor_leaves_everything_to_an_agent_that_lives(cluster: Sandbox, tmp_path: Path) -> None:
    job_id = killed_after_its_update(cluster, tmp_path)
    toml = toml_for(cluster, tmp_path)
    hookfile.write(cluster.layout.hook_file, "enforce", time.time(), 60)
    before = request(cluster, job_id)
    said = command(cluster, "janitor", "--config", str(toml))
    assert said.returncode == 0
    assert "in charge" in said.stdout
    assert request(cluster, job_id) == before
    assert command(cluster, "janitor", "--config", str(toml), "--force").returncode == 0
    assert cluster.wait_state(job_id, "COMPLETED")["NumCPUs"] == "3"


def test_a_pinned_job_of_which_the_journal_is_lost_is_freed_from_its_node(cluster: Sandbox, tmp_path: Path) -> None:
    job_id = killed_after_its_update(cluster, tmp_path)
    make_stale(cluster)
    journal = tmp_path / "journal.sqlite"
    journal.write_bytes(b"not a database at all" * 100)
    for ending in ("-wal", "-shm"):
        journal.with_name(journal.name + ending).unlink(missing_ok=True)
    toml = toml_for(cluster, tmp_path)
    said = command(cluster, "janitor", "--config", str(toml))
    assert said.returncode == 0, said.stderr
    assert list(tmp_path.glob("journal.sqlite.broken-*"))
    # What it asked for is not known any more, but the amounts are within what it declared.
    record = cluster.wait_state(job_id, "COMPLETED")
    assert (record["NodeList"], record["NumCPUs"]) == ("n2", "1")


def test_a_job_that_was_requeued_without_an_agent_gets_its_own_request_back(cluster: Sandbox, tmp_path: Path) -> None:
    agent = LiveAgent(cluster, tmp_path)
    job_id = cluster.submit("sleep 300", f"--comment={PRIMED}", "--gpus=1", "-c2", "--mem=2G", "--requeue")
    agent.script.place(job_id, "n1", Resources(8, 4, 9000))
    agent.until(lambda: agent.fates(job_id) == ["started"], "the job to run")
    agent.close()
    make_stale(cluster)
    cluster.run("scontrol", "requeue", str(job_id))
    cluster.wait_for(lambda: cluster.job(job_id)["JobState"] == "PENDING", what="the job to be requeued")
    cluster.set_node("n1", "drain")
    toml = toml_for(cluster, tmp_path)
    assert command(cluster, "janitor", "--config", str(toml)).returncode == 0
    record = cluster.wait_state(job_id, "RUNNING")
    # Slurm keeps the billing of a job's first run.
    amounts = {word for word in record["TRES"].split(",") if not word.startswith("billing")}
    assert (record["NodeList"], amounts) == ("n2", {"cpu=2", "mem=2G", "node=1", "gres/gpu=1"})


def test_jobs_of_others_are_never_touched(cluster: Sandbox, tmp_path: Path) -> None:
    user_pinned = cluster.submit("sleep 60", "--nodelist=n1", "--hold", "--comment=tapfinger gpus=1-2")
    make_stale(cluster)
    toml = toml_for(cluster, tmp_path)
    before = cluster.job(user_pinned)
    said = command(cluster, "janitor", "--config", str(toml))
    assert said.returncode == 0, said.stderr
    assert "no job is pinned" in said.stdout
    assert cluster.job(user_pinned) == before


def test_without_slurmctld_the_janitor_says_so(cluster: Sandbox, tmp_path: Path) -> None:
    toml = toml_for(cluster, tmp_path)
    make_stale(cluster)
    cluster.stop_slurmctld()
    try:
        said = command(cluster, "janitor", "--config", str(toml), timeout_s=120)
    finally:
        cluster.start_slurmctld()
    assert said.returncode == 1
    assert "slurmctld up?" in said.stderr or "slurm controller" in said.stderr
    assert hook_mode(cluster) == "enforce"
