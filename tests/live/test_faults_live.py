"""Anything of ours may die at any moment: no job is lost, stuck, or given amounts that nobody decided."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from agents import PRIMED, LiveAgent, command, hook_mode, in_charge, is_running, live_agent, process, soon, toml_for

from slurm_plugin.sandbox import Sandbox
from tapfinger_hpc.state import Resources

pytestmark = pytest.mark.slurm

LEASE_S = 6


# 3: the server, the agent, both.


@pytest.mark.parametrize("victims", [("serve",), ("agent",), ("serve", "agent")], ids="+".join)
def test_leased_jobs_start_by_themselves_with_what_was_asked_whoever_is_killed(
    cluster: Sandbox, tmp_path: Path, victims: tuple[str, ...]
) -> None:
    toml = toml_for(cluster, tmp_path, lease_s=LEASE_S)
    # All nodes are busy, so that the jobs wait, leased, when the blow falls.
    blockers = [cluster.submit("sleep 600", "--exclusive", "-N2", "-p", name) for name in ("pa", "pb", "pc")]
    for blocker in blockers:
        cluster.wait_state(blocker, "RUNNING")
    with (
        process(cluster, "serve", "--config", str(toml), "--policy", "price", log=tmp_path / "serve.log") as serve,
        process(cluster, "agent", "--config", str(toml), log=tmp_path / "agent.log") as agent,
    ):
        in_charge(cluster, serve, agent)
        jobs = [cluster.submit("sleep 1", f"--comment={PRIMED}", "--gpus=2", "-c3", "--mem=4G") for _ in range(5)]
        array = cluster.submit("sleep 1", f"--comment={PRIMED}", "--array=0-2", "--gpus=2", "-c3", "--mem=4G")
        first = cluster.job(jobs[0])["EligibleTime"]
        cluster.wait_for(lambda: cluster.job(jobs[0])["EligibleTime"] > first, what="the lease to be renewed")
        for name in victims:
            (serve if name == "serve" else agent).send_signal(signal.SIGKILL)
        for blocker in blockers:
            cluster.run("scancel", str(blocker))
        for job_id in jobs:
            record = cluster.wait_state(job_id, "COMPLETED", timeout_s=90)
            assert record["TRES"] == "cpu=3,mem=4G,node=1,billing=3,gres/gpu=2"
        cluster.wait_for(
            lambda: all(one["JobState"] == "COMPLETED" for one in cluster.jobs(array)), 90, "the array to end"
        )
        if "agent" in victims:
            time.sleep(max(0.0, cluster.layout.hook_file.stat().st_mtime + 16 - time.time()))
        else:
            assert hook_mode(cluster) == "degraded"
        late = cluster.submit("true", f"--comment={PRIMED}", "--gpus=1")
        assert "lease" not in cluster.job(late).get("AdminComment", "")
        cluster.wait_state(late, "COMPLETED")


def test_after_both_came_back_jobs_are_placed_again(cluster: Sandbox, tmp_path: Path) -> None:
    toml = toml_for(cluster, tmp_path)
    for round_number in range(2):
        with (
            process(cluster, "serve", "--config", str(toml), "--policy", "min", log=tmp_path / "serve.log") as serve,
            process(cluster, "agent", "--config", str(toml), log=tmp_path / "agent.log") as agent,
        ):
            in_charge(cluster, serve, agent)
            job_id = cluster.submit("sleep 1", f"--comment={PRIMED}", "--gpus=2", "-c4")
            cluster.wait_state(job_id, "COMPLETED")
            assert _was_placed(cluster, toml, job_id), round_number
            serve.send_signal(signal.SIGKILL)
            agent.send_signal(signal.SIGKILL)
            serve.wait(), agent.wait()


# 5: slurmctld.

MOMENTS = ("before the update", "during the update", "right after the update", "once the job runs")


@pytest.mark.parametrize("moment", MOMENTS)
def test_slurmctld_killed_around_an_update_loses_no_job_and_leaves_none_stuck(
    cluster: Sandbox, tmp_path: Path, moment: str
) -> None:
    with live_agent(cluster, tmp_path, lease_s=20) as agent:
        jobs = [
            cluster.submit("sleep 2", f"--comment={PRIMED}", "--gpus=2", f"-c{3 + index}", "--mem=4G")
            for index in range(3)
        ]
        # slurmctld writes its state down every five seconds: what is younger is lost by stock Slurm too.
        _wait_for_save(cluster)
        victim = jobs[0]
        agent.script.place(victim, "n1", Resources(8, 4, 9000))
        _kill_at(agent, cluster, victim, moment)
        cluster.start_slurmctld()
        # n1 may be drained by Slurm for a "duplicate" of the job that it had forgotten.
        agent.script.place(victim, "n2", Resources(8, 4, 9000))
        agent.script.place(jobs[1], "n2", Resources(2, 1, 2000))
        agent.script.place(jobs[2], "n2", Resources(6, 1, 5000))

        def all_ended() -> bool:
            records = [cluster.job(job_id) for job_id in jobs]
            for record in records:
                # Slurm forgot that it had started the job, started it again beside itself, and holds it: stock Slurm
                # does the same, and its administrator lets it go on.
                if record["Reason"] == "launch_failed_requeued_held":
                    cluster.run("scontrol", "release", record["JobId"])
            return all(record["JobState"] == "COMPLETED" for record in records)

        agent.until(all_ended, "all jobs to end", timeout_s=150)
        decided = {
            str(victim): {"cpu=8,mem=9000M,node=1,billing=8,gres/gpu=4", "cpu=3,mem=4G,node=1,billing=3,gres/gpu=2"},
            str(jobs[1]): {"cpu=2,mem=2000M,node=1,billing=2,gres/gpu=1", "cpu=4,mem=4G,node=1,billing=4,gres/gpu=2"},
            str(jobs[2]): {"cpu=6,mem=5000M,node=1,billing=6,gres/gpu=1", "cpu=5,mem=4G,node=1,billing=5,gres/gpu=2"},
        }
        for job_id, allowed in decided.items():
            assert cluster.job(job_id)["TRES"] in allowed
        assert agent.journal.open_intents() == []


def test_a_job_number_that_is_used_again_never_gets_the_old_jobs_placement(cluster: Sandbox, tmp_path: Path) -> None:
    with live_agent(cluster, tmp_path) as agent:
        _wait_for_save(cluster)
        old = cluster.submit("sleep 60", f"--comment={PRIMED}", "--gpus=1", "-c2")
        agent.script.place(old, "n1", Resources(8, 4, 9000))

        def reuse() -> None:
            cluster.kill_slurmctld()
            cluster.start_slurmctld()
            cluster.wait_for(lambda: time.time() > submitted_s + 2, what="another second")
            again = cluster.submit("sleep 1", f"--comment={PRIMED}", "--gpus=1", "-c2")
            if again != old:
                pytest.skip(f"slurmctld had written job {old} down already, so its number was not used again")

        submitted_s = time.time()
        change = agent.cluster.apply

        def apply(update):
            agent.cluster.apply = change  # type: ignore[method-assign]
            reuse()
            agent.script.places.clear()
            return change(update)

        agent.cluster.apply = apply  # type: ignore[method-assign]
        agent.agent.cycle()
        assert agent.fates(old) == ["refused"] or agent.journal.open_intents()
        new = agent.pending(old)
        assert new is not None
        assert new.requested == Resources(2, 1, 2000)
        assert new.managed
        agent.script.place(old, "n2", Resources(4, 1, 3000))
        agent.until(lambda: is_running(cluster, old), "the new job to run")
        assert cluster.job(old)["NumCPUs"] == "4"
        agent.until(lambda: not agent.journal.open_intents(), "the old placement to be closed")


def test_a_dead_slurmctld_is_waited_for(cluster: Sandbox, tmp_path: Path) -> None:
    toml = toml_for(cluster, tmp_path)
    with (
        process(cluster, "serve", "--config", str(toml), "--policy", "min", log=tmp_path / "serve.log") as serve,
        process(cluster, "agent", "--config", str(toml), log=tmp_path / "agent.log") as agent,
    ):
        in_charge(cluster, serve, agent)
        cluster.stop_slurmctld()
        soon(lambda: hook_mode(cluster) == "degraded", "the agent to notice", timeout_s=60)
        cluster.start_slurmctld()
        soon(lambda: hook_mode(cluster) == "enforce", "the agent to go on", timeout_s=60)
        assert agent.poll() is None
        job_id = cluster.submit("true", f"--comment={PRIMED}", "--gpus=1")
        cluster.wait_state(job_id, "COMPLETED")
        shown = json.loads(command(cluster, "status", "--config", str(toml), "--json").stdout)
        # It may have been refused, or have waited in vain.
        assert any(note["kind"] == "slurm" and note["text"].startswith("squeue") for note in shown["notes"])


def test_a_broken_journal_does_not_stop_the_agent(cluster: Sandbox, tmp_path: Path) -> None:
    toml = toml_for(cluster, tmp_path)
    (tmp_path / "journal.sqlite").write_bytes(os.urandom(20_000))
    with (
        process(cluster, "serve", "--config", str(toml), "--policy", "min", log=tmp_path / "serve.log") as serve,
        process(cluster, "agent", "--config", str(toml), log=tmp_path / "agent.log") as agent,
    ):
        in_charge(cluster, serve, agent)
        job_id = cluster.submit("true", f"--comment={PRIMED}", "--gpus=2")
        cluster.wait_state(job_id, "COMPLETED")
        assert _was_placed(cluster, toml, job_id)
    (aside,) = (path for path in tmp_path.glob("journal.sqlite.broken-*"))
    assert aside.stat().st_size == 20_000


def _was_placed(cluster: Sandbox, toml: Path, job_id: int) -> bool:
    explained = json.loads(command(cluster, "explain", str(job_id), "--config", str(toml), "--json").stdout)
    return [intent["state"] for intent in explained["placements"]] in (["started"], ["gone"], ["open"])


def _wait_for_save(cluster: Sandbox) -> None:
    """Until slurmctld has written down all that happened before now, which it does every five seconds."""
    asked_s = time.time()
    # Something that has to be written after now: it may have written all the rest down already.
    cluster.submit("true", "--hold")
    cluster.wait_for(
        lambda: (cluster.layout.state / "job_state").stat().st_mtime > asked_s, 30, "slurmctld to save its state"
    )


def _kill_at(agent: LiveAgent, cluster: Sandbox, job_id: int, moment: str) -> None:
    """Lets the agent place the job and kills slurmctld (-9) at that moment."""
    change, run = agent.cluster.apply, agent.cluster._run

    def kill_before(update):
        cluster.kill_slurmctld()
        agent.cluster.apply = change  # type: ignore[method-assign]
        return change(update)

    def kill_during(argv):
        said = run(argv)
        if argv[:2] == ["scontrol", "update"] and f"JobId={job_id}" in argv:
            # The update is made, its read-back meets a dead slurmctld.
            cluster.kill_slurmctld()
            agent.cluster._run = run
        return said

    if moment == "before the update":
        agent.cluster.apply = kill_before  # type: ignore[method-assign]
        agent.agent.cycle()
    elif moment == "during the update":
        agent.cluster._run = kill_during
        agent.agent.cycle()
    elif moment == "right after the update":
        agent.until(lambda: agent.fates(job_id), "the job to be placed")
        cluster.kill_slurmctld()
    else:
        agent.until(lambda: is_running(cluster, job_id), "the job to run")
        cluster.kill_slurmctld()
    assert agent.fates(job_id), "the job was not placed"
