"""The agent on a real slurmctld: what it places runs as decided, what is not its own it leaves, and it says why."""

import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from agents import (
    COMPILING_S,
    PRIMED,
    USER,
    LiveAgent,
    Script,
    command,
    gpus_come_and_go,
    hook_mode,
    in_charge,
    is_running,
    live_agent,
    process,
    request,
    server_config,
    soon,
    toml_for,
)
from msgspec.structs import replace

from slurm_plugin.client import PolicyClient
from slurm_plugin.sandbox import Sandbox, SandboxSpec
from tapfinger_hpc.decision import Decision, Placement
from tapfinger_hpc.errors import ServerError
from tapfinger_hpc.state import ClusterState, Resources
from tapfinger_hpc.wire import DecideResponse, PolicyInfo

pytestmark = pytest.mark.slurm

REPORT = """#!/bin/bash
echo "batch cpus=$SLURM_CPUS_ON_NODE gpus=${SLURM_GPUS_ON_NODE:-0} devices=$CUDA_VISIBLE_DEVICES"
srun bash -c 'echo "step tasks=$SLURM_NTASKS cpus=$SLURM_CPUS_ON_NODE devices=$CUDA_VISIBLE_DEVICES"'
"""

SPELLINGS = {
    "--gres": (["--gres=gpu:2", "-c4", "--mem=4G"], 1),
    "--gpus": (["--gpus=2", "-c4", "--mem-per-cpu=1G"], 1),
    "--gpus-per-node": (["--gpus-per-node=2", "-n2", "-c2"], 2),
    "--gpus-per-task": (["--gpus-per-task=1", "-n2", "--mem=3G"], 2),
    "no GPUs": (["-c4"], 1),
    "-n": (["-n4", "--mem-per-cpu=500"], 4),
}


@pytest.fixture
def agent(cluster: Sandbox, tmp_path: Path) -> Iterator[LiveAgent]:
    with live_agent(cluster, tmp_path) as started:
        yield started


def devices(line: str) -> set[str]:
    return set(filter(None, line.rpartition("devices=")[2].split(",")))


# 1 and 2: amounts.


@pytest.mark.core
@pytest.mark.parametrize("amounts", [Resources(8, 4, 9000), Resources(4, 1, 1500)], ids=["grown", "shrunk"])
def test_every_spelling_of_a_request_gets_just_what_was_decided(
    agent: LiveAgent, cluster: Sandbox, amounts: Resources
) -> None:
    jobs = {}
    decided = dict.fromkeys(SPELLINGS, amounts)
    if not gpus_come_and_go(cluster):
        decided |= {name: replace(amounts, gpus=0) for name in ("no GPUs", "-n")}
    for position, (name, (options, _)) in enumerate(SPELLINGS.items()):
        partition, node = [("pa", "n1"), ("pa", "n2"), ("pb", "n3"), ("pb", "n4"), ("pc", "n5"), ("pc", "n6")][position]
        jobs[name] = cluster.submit(REPORT, f"--comment={PRIMED}", "-p", partition, *options, as_user=USER)
        agent.script.place(jobs[name], node, decided[name], partition)
    agent.until(lambda: all(cluster.job(one)["JobState"] == "COMPLETED" for one in jobs.values()), "all to end")
    for name, job_id in jobs.items():
        record, lines = cluster.job(job_id), cluster.output(job_id).splitlines()
        tasks, gpus = SPELLINGS[name][1], decided[name].gpus
        tres = f"cpu={amounts.cpus},mem={amounts.mem_mb}M,node=1,billing={amounts.cpus}"
        assert record["TRES"] == (f"{tres},gres/gpu={gpus}" if gpus else tres), name
        assert f"batch cpus={amounts.cpus} gpus={gpus}" in lines[0], name
        assert len(lines) == 1 + tasks, name
        assert all(f"tasks={tasks} cpus={amounts.cpus}" in line for line in lines[1:]), name
        assert len(set().union(*map(devices, lines[1:]))) == gpus == len(devices(lines[0])), name
        agent.until(
            lambda job_id=job_id: agent.fates(job_id) == ["started"] or agent.fates(job_id) == ["gone"], "its fate"
        )


@pytest.mark.parametrize("name", SPELLINGS)
def test_without_ranges_only_node_and_order_are_decided(agent: LiveAgent, cluster: Sandbox, name: str) -> None:
    options, _ = SPELLINGS[name]
    stock = cluster.submit(REPORT, "--nodelist=n1", *options, as_user=USER)
    expected = cluster.wait_state(stock, "COMPLETED")
    job_id = cluster.submit(REPORT, "--comment=tapfinger", *options, as_user=USER)
    asked = agent.pending(job_id)
    assert asked is not None
    assert asked.minimum == asked.maximum == asked.requested
    agent.script.place(job_id, "n2", asked.requested)
    agent.until(lambda: cluster.job(job_id)["JobState"] == "COMPLETED", "the job to end")
    record = cluster.job(job_id)
    assert record["NodeList"] == "n2"
    for field in ("TRES", "NumCPUs", "NumTasks", "CPUs/Task", "TimeLimit", "UserId", "WorkDir"):
        assert record[field] == expected[field], field
    assert [len(devices(line)) for line in cluster.output(job_id).splitlines()] == [
        len(devices(line)) for line in cluster.output(stock).splitlines()
    ]


def test_amounts_outside_the_declared_range_are_refused_by_the_agents_own_guard(
    agent: LiveAgent, cluster: Sandbox
) -> None:
    job_id = cluster.submit("true", "--comment=tapfinger gpus=1-2", "--gpus=1")
    agent.script.place(job_id, "n1", Resources(1, 4, 1000))
    agent.until(lambda: agent.refusals(job_id), "a refusal")
    assert "outside what job" in agent.refusals(job_id)[0]
    assert agent.fates(job_id) == []
    assert cluster.job(job_id)["TRES"].endswith("gres/gpu=1")


# 6: the life of jobs.


def test_tasks_of_an_array_are_placed_one_by_one_within_its_limit(agent: LiveAgent, cluster: Sandbox) -> None:
    array = cluster.submit("sleep 2", "--array=1-5%2", f"--comment={PRIMED}", "--gpus=1", "--time=1")
    for task in range(1, 6):
        agent.script.place(f"{array}_{task}", "n1" if task % 2 else "n2", Resources(task, 1, 2000))
    most = 0

    def ended() -> bool:
        nonlocal most
        records = cluster.jobs(array)
        most = max(most, sum(record["JobState"] == "RUNNING" for record in records))
        return len(records) == 5 and all(record["JobState"] == "COMPLETED" for record in records)

    agent.until(ended, "all tasks to end")
    assert most <= 2
    assert {record["NumCPUs"] for record in cluster.jobs(array)} == {"1", "2", "3", "4", "5"}


def test_a_dependent_job_is_placed_once_its_dependency_is_met(agent: LiveAgent, cluster: Sandbox) -> None:
    first = cluster.submit("sleep 3")
    job_id = cluster.submit("true", f"--dependency=afterok:{first}", f"--comment={PRIMED}", "--gpus=1")
    agent.script.place(job_id, "n2", Resources(2, 1, 2000))
    agent.agent.cycle()
    assert agent.fates(job_id) == []
    agent.until(lambda: is_running(cluster, job_id), "the dependent job to run")
    assert cluster.job(job_id)["NodeList"] == "n2"


def test_a_job_of_several_partitions_runs_in_the_chosen_one(agent: LiveAgent, cluster: Sandbox) -> None:
    job_id = cluster.submit("true", "-p", "pa,pc", f"--comment={PRIMED}", "--gpus=1")
    agent.script.place(job_id, "n6", Resources(2, 1, 2000), "pc")
    agent.until(lambda: is_running(cluster, job_id), "the job to run")
    assert (cluster.job(job_id)["Partition"], cluster.job(job_id)["NodeList"]) == ("pc", "n6")


@pytest.mark.core
@pytest.mark.parametrize("by_admin", [True, False], ids=["admin", "user"])
def test_a_held_job_stays_held_and_is_placed_once_released(agent: LiveAgent, cluster: Sandbox, by_admin: bool) -> None:
    job_id = cluster.submit("true", f"--comment={PRIMED}", "--gpus=1", as_user=USER)
    who = None if by_admin else USER
    cluster.run("scontrol", "hold", str(job_id), as_user=who)
    agent.script.place(job_id, "n1", Resources(2, 1, 2000))
    for _ in range(3):
        agent.agent.cycle()
    assert agent.fates(job_id) == []
    assert cluster.job(job_id)["Reason"] == ("JobHeldAdmin" if by_admin else "JobHeldUser")
    cluster.run("scontrol", "release", str(job_id), as_user=who)
    agent.until(lambda: is_running(cluster, job_id), "the released job to run")
    assert cluster.job(job_id)["NumCPUs"] == "2"


def test_what_the_user_changes_while_the_job_waits_is_what_counts(agent: LiveAgent, cluster: Sandbox) -> None:
    job_id = cluster.submit("true", "--comment=tapfinger", "--gpus=1", "-c2", as_user=USER)
    agent.agent.cycle()
    changes = ["NumCPUs=3", "MinCPUsNode=3", "CPUsPerTask=3", "Gres=gpu:2", "TimeLimit=7"]
    cluster.run("scontrol", "update", f"jobid={job_id}", *changes, as_user=USER)
    asked = agent.pending(job_id)
    assert asked is not None
    assert (asked.requested.cpus, asked.requested.gpus) == (3, 2)
    agent.script.place(job_id, "n2", asked.requested)
    agent.until(lambda: is_running(cluster, job_id), "the job to run")
    record = cluster.job(job_id)
    assert (record["NumCPUs"], record["TimeLimit"], record["NodeList"]) == ("3", "00:07:00", "n2")


def test_a_users_change_to_a_placed_job_that_cannot_start_survives(
    agent: LiveAgent, cluster: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slurm_plugin.placed.START_PATIENCE_S", 2.0)
    job_id = cluster.submit("true", f"--comment={PRIMED}", "--gpus=1", "-c2", as_user=USER)
    agent.script.place(job_id, "n1", Resources(4, 1, 4000))
    blocker = _block_between_look_and_update(agent, cluster, "n1")
    agent.until(lambda: agent.fates(job_id) == ["open"], "the job to be placed")
    cluster.run("scontrol", "update", f"jobid={job_id}", "Gres=gpu:3", as_user=USER)
    agent.until(lambda: agent.fates(job_id) == ["restored"], "the placement to be taken back")
    record = cluster.job(job_id)
    assert record["ReqNodeList"] == "(null)"
    assert "gres/gpu=3" in record["TRES"]
    cluster.run("scancel", str(blocker))


def test_a_cancelled_job_is_forgotten(agent: LiveAgent, cluster: Sandbox) -> None:
    job_id = cluster.submit("sleep 60", f"--comment={PRIMED}", "--gpus=1")
    agent.script.place(job_id, "n1", Resources(2, 1, 2000))
    _before_the_update(agent, lambda: cluster.run("scancel", str(job_id)))
    agent.until(lambda: agent.refusals(job_id) or agent.fates(job_id) in (["refused"], ["gone"]), "it to be told")
    assert cluster.job(job_id)["JobState"] == "CANCELLED"
    agent.agent.cycle()
    assert agent.journal.open_intents() == []


@pytest.mark.core
def test_a_requeued_job_starts_anew_with_its_own_request(agent: LiveAgent, cluster: Sandbox) -> None:
    job_id = cluster.submit(
        "sleep 300", f"--comment={PRIMED}", "--gpus=1", "-c2", "--mem=2G", "-p", "pa,pb", "--requeue"
    )
    agent.script.place(job_id, "n1", Resources(8, 4, 9000))
    agent.until(lambda: agent.fates(job_id) == ["started"], "the job to run")
    agent.script.places.clear()
    cluster.run("scontrol", "requeue", str(job_id))
    agent.until(lambda: agent.fates(job_id) == ["restored"], "the requeued job to get its request back")
    job = agent.pending(job_id)
    assert job is not None
    assert job.managed
    assert (job.requested, job.partitions) == (Resources(2, 1, 2048), ("pa", "pb"))
    agent.script.place(job_id, "n3", Resources(4, 2, 3000), "pb")
    agent.until(lambda: agent.fates(job_id)[-1] == "started", "the job to run again")
    assert (cluster.job(job_id)["NodeList"], cluster.job(job_id)["NumCPUs"]) == ("n3", "4")


LEFT = {
    "several nodes": (["-N2"], "several nodes"),
    "node list": (["--nodelist=n2"], "--nodelist"),
    "own begin": (["--begin=now+1hour"], "--begin"),
    "malformed mark": (["--comment=tapfinger gpus=4-1"], "gpus=4-1"),
}


@pytest.mark.parametrize("case", LEFT)
def test_a_job_that_cannot_be_ours_is_left_to_slurm_with_a_reason(
    agent: LiveAgent, cluster: Sandbox, case: str
) -> None:
    options, reason = LEFT[case]
    job_id = cluster.submit("sleep 1", f"--comment={PRIMED}", *options)
    agent.agent.cycle()
    toml = toml_for(cluster, Path(agent.config.agent.journal).parent)
    said = command(cluster, "explain", str(job_id), "--config", str(toml))
    assert said.returncode == 0, said.stderr
    assert "left to Slurm as it is" in said.stdout
    assert reason in said.stdout
    assert agent.fates(job_id) == []


def test_a_het_job_is_left_to_slurm(agent: LiveAgent, cluster: Sandbox) -> None:
    script = f"#!/bin/bash\n#SBATCH --comment='{PRIMED}'\n#SBATCH -n1\n#SBATCH hetjob\n#SBATCH -n1\nsleep 1\n"
    job_id = cluster.submit(script)
    agent.agent.cycle()
    assert all(not job.managed for job in agent.script.asked[-1].pending)
    cluster.wait_state(job_id, "COMPLETED")


@pytest.mark.parametrize("tool", ["srun", "salloc"])
def test_interactive_jobs_start_at_once(agent: LiveAgent, cluster: Sandbox, tool: str) -> None:
    ended = cluster.run(tool, f"--comment={PRIMED}", "-n1", "true", timeout_s=30)
    assert ended.returncode == 0


# 7 and 8.


@pytest.mark.core
def test_observe_and_advise_change_nothing_and_tell_what_they_would_do(cluster: Sandbox, tmp_path: Path) -> None:
    for mode in ("observe", "advise"):
        folder = tmp_path / mode
        folder.mkdir()
        with live_agent(cluster, folder, mode=mode) as agent:
            job_id = cluster.submit("sleep 60", "--hold", f"--comment={PRIMED}", "--gpus=1")
            cluster.run("scontrol", "update", f"jobid={job_id}", "starttime=now+300")
            cluster.run("scontrol", "release", str(job_id))
            agent.script.place(job_id, "n2", Resources(4, 2, 4000))
            before = request(cluster, job_id)
            for _ in range(3):
                agent.agent.cycle()
            assert hook_mode(cluster) == mode
            assert request(cluster, job_id) == before
            cluster.run("scancel", str(job_id))


def test_observe_explains_what_it_would_have_done(cluster: Sandbox, tmp_path: Path) -> None:
    blocker = cluster.submit("sleep 300", "--exclusive", "-N2")
    cluster.wait_state(blocker, "RUNNING")
    with live_agent(cluster, tmp_path, mode="observe") as agent:
        job_id = cluster.submit("true", f"--comment={PRIMED}", "--gpus=1", "-p", "pa")
        agent.until(lambda: agent.journal.history(str(job_id)).told, "a decision")
        cluster.run("scancel", str(blocker))
        agent.script.place(job_id, "n1", Resources(4, 2, 4000))
        agent.until(lambda: cluster.job(job_id)["JobState"] == "COMPLETED", "Slurm to run it")
        assert cluster.job(job_id)["NumCPUs"] == "1"
        said = command(cluster, "explain", str(job_id), "--config", str(toml_for(cluster, tmp_path, mode="observe")))
    assert "policy script" in said.stdout
    assert "mode observe" in said.stdout


def test_the_disable_file_stops_the_agent_within_one_cycle(agent: LiveAgent, cluster: Sandbox) -> None:
    job_id = cluster.submit("sleep 60", f"--comment={PRIMED}", "--gpus=1")
    agent.agent.cycle()
    before = cluster.job(job_id)
    Path(agent.config.agent.disable_file).touch()
    agent.script.place(job_id, "n2", Resources(4, 2, 4000))
    agent.agent.cycle()
    assert hook_mode(cluster) == "disabled"
    assert cluster.job(job_id)["EligibleTime"] == before["EligibleTime"]
    assert agent.fates(job_id) == []
    # A job that comes now is stock Slurm's.
    other = cluster.submit("true", f"--comment={PRIMED}", "--gpus=1")
    cluster.wait_state(other, "COMPLETED")
    Path(agent.config.agent.disable_file).unlink()
    agent.until(lambda: is_running(cluster, job_id), "the agent to go on")
    assert cluster.job(job_id)["NumCPUs"] == "4"


# 10: answers that cannot be used.


@contextmanager
def server_that(folder: Path, talk: Callable[[socket.socket], None]) -> Iterator[None]:
    """A listening socket whose every connection is handled so."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "server.sock"))
    listener.listen(8)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=lambda one=connection: _talk(one), daemon=True).start()

    def _talk(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            talk(connection)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        (folder / "server.sock").unlink()


def hang(connection: socket.socket) -> None:
    time.sleep(30)


def trickle(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(1000):
        connection.sendall(b" ")
        time.sleep(0.1)


def garbage(connection: socket.socket) -> None:
    connection.recv(1 << 20)
    connection.sendall(bytes(range(256)) * 40)


def wrong_types(connection: socket.socket) -> None:
    connection.recv(1 << 20)
    body = b'{"decision_id": 7, "policy": [], "decisions": "all"}'
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


def hang_up(connection: socket.socket) -> None:
    connection.recv(10)


@pytest.mark.parametrize("talk", [hang, trickle, garbage, wrong_types, hang_up])
def test_a_server_that_cannot_be_used_delays_a_job_by_its_lease_at_most(
    cluster: Sandbox, tmp_path: Path, talk: Callable[[socket.socket], None]
) -> None:
    script = Script()
    ask: list[Callable[[ClusterState], DecideResponse]] = [script]
    client = PolicyClient(server_config(tmp_path))
    with (
        live_agent(cluster, tmp_path, lambda state: ask[0](state), lease_s=5) as agent,
        server_that(tmp_path, talk),
    ):
        job_id = cluster.submit("true", f"--comment={PRIMED}", "--gpus=2", "-c3")
        ask[0] = client.decide
        agent.until(lambda: hook_mode(cluster) == "degraded", "the agent to notice")
        agent.until(lambda: is_running(cluster, job_id), "the lease to run out")
        assert cluster.job(job_id)["NumCPUs"] == "3"
        assert any(
            note.kind == "server" and "leases are not renewed" in note.text for note in agent.journal.agent_notes()
        )
        ask[0] = script
        agent.until(lambda: hook_mode(cluster) == "enforce", "the agent to come back")


def test_an_answer_for_a_job_that_has_ended_or_never_was_is_recorded_and_breaks_nothing(
    agent: LiveAgent, cluster: Sandbox
) -> None:
    ended = cluster.submit("true", "--gpus=1")
    cluster.wait_state(ended, "COMPLETED")
    other = cluster.submit("sleep 60", f"--comment={PRIMED}", "--gpus=1")
    place = Placement("pa", "n1", Resources(1, 1, 1000))
    answer = agent.script

    def decide(state: ClusterState) -> DecideResponse:
        extra = [
            Decision(str(ended), 1, place, "late"),
            Decision("999999", 5, place, "never"),
            Decision("x\n", 0, place, ""),
        ]
        good = answer(state)
        return DecideResponse(good.decision_id, PolicyInfo("script"), (*extra, *good.decisions))

    answer.place(other, "n1", Resources(2, 1, 2000))
    agent.agent._decide = decide
    agent.until(lambda: is_running(cluster, other), "the other job to run")
    assert "no longer pending" in agent.refusals(ended)[0]
    assert "no longer pending" in agent.refusals("999999")[0]


def test_an_answer_that_no_longer_fits_is_refused_on_a_fresh_look(agent: LiveAgent, cluster: Sandbox) -> None:
    job_id = cluster.submit("sleep 60", f"--comment={PRIMED}", "--gpus=1")
    agent.script.place(job_id, "n1", Resources(4, 2, 4000))
    answer = agent.script

    def decide(state: ClusterState) -> DecideResponse:
        blocker = cluster.submit("sleep 300", "--exclusive", "--nodelist=n1")
        cluster.wait_state(blocker, "RUNNING")
        agent.agent._decide = answer
        return answer(state)

    agent.agent._decide = decide
    agent.until(lambda: agent.refusals(job_id), "a refusal")
    assert "does not fit on n1" in agent.refusals(job_id)[0]
    assert agent.fates(job_id) == []


def test_a_placed_job_that_does_not_start_is_taken_back(
    agent: LiveAgent, cluster: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slurm_plugin.placed.START_PATIENCE_S", 2.0)
    monkeypatch.setattr("slurm_plugin.placed.RETRY_S", (0.1, 0.1))
    job_id = cluster.submit("true", f"--comment={PRIMED}", "--gpus=1", "-c2")
    before = agent.pending(job_id)
    agent.script.place(job_id, "n1", Resources(4, 2, 4000))
    blocker = _block_between_look_and_update(agent, cluster, "n1")
    agent.until(lambda: agent.fates(job_id) == ["restored"], "the placement to be taken back")
    after = agent.pending(job_id)
    assert before is not None and after is not None
    assert (after.requested, after.priority, after.managed) == (before.requested, before.priority, True)
    assert cluster.job(job_id)["ReqNodeList"] == "(null)"
    agent.script.place(job_id, "n2", Resources(4, 2, 4000))
    agent.until(lambda: is_running(cluster, job_id), "the second placement")
    assert cluster.job(job_id)["NodeList"] == "n2"
    cluster.run("scancel", str(blocker))


def test_a_limit_that_forbids_the_placement_holds_and_the_job_runs_as_asked(sandbox_factory, tmp_path: Path) -> None:
    box = sandbox_factory(SandboxSpec(extra_conf=("AccountingStorageEnforce=associations,limits,qos",)))
    box.run("sacctmgr", "-i", "add", "account", "lab")
    user = "games"  # 26.05 has no associations for nobody
    box.run("sacctmgr", "-i", "add", "user", user, "account=lab")
    box.run("sacctmgr", "-i", "modify", "qos", "normal", "set", "maxtresperjob=gres/gpu=1")
    with live_agent(box, tmp_path, lease_s=5) as agent:
        job_id = box.submit("true", f"--comment={PRIMED}", "--gpus=1", as_user=user)
        agent.script.place(job_id, "n1", Resources(4, 2, 4000))
        agent.until(lambda: agent.fates(job_id) == ["restored"], "the placement to be taken back")
        agent.agent._decide = lambda state: (_ for _ in ()).throw(ServerError("away"))
        agent.until(lambda: is_running(box, job_id), "the lease to run out")
        assert "QOSMaxGRESPerJob" in agent.journal.history(str(job_id)).intents[0].why
        assert box.job(job_id)["TRES"].endswith("gres/gpu=1")


def test_explain_finds_tasks_of_an_array(agent: LiveAgent, cluster: Sandbox) -> None:
    array = cluster.submit("sleep 30", "--array=1-3", f"--comment={PRIMED}", "--gpus=1")
    agent.script.place(f"{array}_2", "n2", Resources(2, 1, 2000))
    agent.until(lambda: agent.fates(f"{array}_2") == ["started"], "the task to run")
    toml = str(toml_for(cluster, Path(agent.config.agent.journal).parent))
    raw = cluster.job(f"{array}_2")["JobId"]
    for name in (f"{array}_2", raw):
        assert "policy script placed it on n2" in command(cluster, "explain", name, "--config", toml).stdout
    assert "It is an array" in command(cluster, "explain", str(array), "--config", toml).stdout
    assert "let it wait" in command(cluster, "explain", f"{array}_1", "--config", toml).stdout


def test_a_placed_job_whose_node_goes_down_is_taken_back_at_once(agent: LiveAgent, cluster: Sandbox) -> None:
    job_id = cluster.submit("true", f"--comment={PRIMED}", "--gpus=1", "-c2")
    agent.script.place(job_id, "n1", Resources(4, 2, 4000))
    _before_the_update(agent, lambda: cluster.set_node("n1", "down"))
    agent.until(lambda: agent.fates(job_id) and agent.fates(job_id)[0] != "open", "the placement to be taken back")
    assert agent.fates(job_id)[0] in ("restored", "refused")
    job = agent.pending(job_id)
    assert job is not None
    assert job.managed


def test_a_job_that_waits_too_long_is_given_to_slurm(cluster: Sandbox, tmp_path: Path) -> None:
    with live_agent(cluster, tmp_path, max_hold_s=2) as agent:
        job_id = cluster.submit("true", f"--comment={PRIMED}", "--gpus=1")
        agent.until(lambda: is_running(cluster, job_id), "Slurm to start it")
        assert ("given up", "no place within 2 s") in agent.notes(job_id)
        assert cluster.job(job_id)["NumCPUs"] == "1"


def test_an_agent_that_ends_leaves_nothing_pinned(cluster: Sandbox, tmp_path: Path) -> None:
    agent = LiveAgent(cluster, tmp_path)
    job_id = cluster.submit("true", f"--comment={PRIMED}", "--gpus=1", "-c2")
    agent.script.place(job_id, "n1", Resources(4, 2, 4000))
    blocker = _block_between_look_and_update(agent, cluster, "n1")
    agent.until(lambda: agent.fates(job_id) == ["open"], "the job to be placed")
    agent.close()
    record = cluster.wait_state(job_id, "COMPLETED")
    assert (record["NodeList"], record["NumCPUs"]) == ("n2", "2")
    assert hook_mode(cluster) == ""
    cluster.run("scancel", str(blocker))


# The processes.


def test_agent_and_server_place_jobs_and_say_so(cluster: Sandbox, tmp_path: Path) -> None:
    toml = toml_for(cluster, tmp_path)
    with (
        process(cluster, "serve", "--config", str(toml), "--policy", "price", log=tmp_path / "serve.log") as serve,
        process(cluster, "agent", "--config", str(toml), log=tmp_path / "agent.log") as agent,
    ):
        in_charge(cluster, serve, agent)
        jobs = [
            cluster.submit("sleep 2", "--comment=tapfinger gpus=1-4 cpus=1-8 class=demo", "--gpus=2", as_user=USER)
            for _ in range(4)
        ]
        unmarked = cluster.submit("true")
        for job_id in jobs:
            cluster.wait_state(job_id, "COMPLETED")
        shown = json.loads(command(cluster, "status", "--config", str(toml), "--json").stdout)
        assert shown["agent"]["mode"] == "enforce"
        assert shown["server"]["policy"]["name"] == "price"
        soon(
            lambda: _placements(cluster, toml).get("started", 0) + _placements(cluster, toml).get("gone", 0) == 4,
            "fates",
        )
        said = command(cluster, "explain", str(jobs[0]), "--config", str(toml))
        assert "policy price placed it on" in said.stdout
        assert "does not ask for tapfinger" in command(cluster, "explain", str(unmarked), "--config", str(toml)).stdout
        missing = command(cluster, "explain", "424242", "--config", str(toml))
        assert missing.returncode == 1
        assert "Nothing is known" in missing.stdout
        second = command(cluster, "agent", "--config", str(toml))
        assert second.returncode == 1
        assert f"another agent (process {agent.pid})" in second.stderr
        agent.terminate()
        assert agent.wait(timeout=20) == 0
    assert hook_mode(cluster) == ""
    assert not cluster.layout.wake_socket.exists()
    dead = command(cluster, "explain", str(jobs[0]), "--config", str(toml))
    assert "policy price placed it on" in dead.stdout
    assert "No agent is alive" in dead.stdout


def test_one_look_is_enough_to_see_what_would_be_done(cluster: Sandbox, tmp_path: Path) -> None:
    toml = toml_for(cluster, tmp_path, mode="observe")
    blocker = cluster.submit("sleep 300", "--exclusive", "-N2", "-p", "pa")
    cluster.wait_state(blocker, "RUNNING")
    job_id = cluster.submit("true", f"--comment={PRIMED}", "--gpus=1", "-p", "pa")
    with process(cluster, "serve", "--config", str(toml), "--policy", "price", log=tmp_path / "serve.log"):
        soon(lambda: "policy price" in (tmp_path / "serve.log").read_text(), "the server", timeout_s=COMPILING_S)
        once = command(cluster, "agent", "--once", "--config", str(toml))
    assert once.returncode == 0, once.stderr
    assert "policy price let it wait" in command(cluster, "explain", str(job_id), "--config", str(toml)).stdout


def _placements(cluster: Sandbox, toml: Path) -> dict[str, int]:
    return json.loads(command(cluster, "status", "--config", str(toml), "--json").stdout)["placements"]


def _before_the_update(agent: LiveAgent, event: Callable[[], object]) -> None:
    """Lets something happen after the last look of the agent's guard, before the job is changed."""
    change = agent.cluster.apply

    def apply(update):
        agent.cluster.apply = change  # type: ignore[method-assign]
        event()
        return change(update)

    agent.cluster.apply = apply  # type: ignore[method-assign]


def _block_between_look_and_update(agent: LiveAgent, cluster: Sandbox, node: str) -> int:
    """A job of somebody else takes the node in the moment before ours is placed there; its id."""
    blocker = cluster.submit("sleep 300", "--exclusive", f"--nodelist={node}", "--begin=now+1hour")

    def take() -> None:
        cluster.run("scontrol", "update", f"jobid={blocker}", "starttime=now")
        cluster.wait_state(blocker, "RUNNING")

    _before_the_update(agent, take)
    return blocker


def test_tapfinger_agent_refuses_a_configuration_that_it_cannot_use(cluster: Sandbox, tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("[agent]\nmode = 'enforced'\n")
    said = command(cluster, "agent", "--config", str(broken))
    assert said.returncode == 1
    assert "mode" in said.stderr
    assert isinstance(said, subprocess.CompletedProcess)
