"""Job classes learned on a real slurmctld: jobs end, and the next are asked about with their speed."""

from pathlib import Path

import msgspec
import pytest
from agents import PRIMED, USER, LiveAgent, command, toml_for

from slurm_plugin.classes import ClassesFile
from slurm_plugin.sandbox import Sandbox
from tapfinger_hpc.speed import JobClass
from tapfinger_hpc.state import Resources
from trace_tools.classes import class_of

pytestmark = pytest.mark.slurm

ASKED = ("-c1", "--gpus=1", "--mem=1500")


def test_jobs_that_end_become_a_class_that_the_next_ones_are_decided_with(cluster: Sandbox, tmp_path: Path) -> None:
    classes_file = tmp_path / "classes.json"
    agent = LiveAgent(cluster, tmp_path, classes=ClassesFile(classes_file))
    try:
        amounts = {"n1": Resources(2, 1, 2000), "n2": Resources(4, 2, 4000)}
        jobs = {}
        for node, wanted in amounts.items():
            jobs[node] = cluster.submit("sleep 2", f"--comment={PRIMED} class=naps", *ASKED, as_user=USER)
            agent.script.place(jobs[node], node, wanted)
        late = cluster.submit("sleep 60", f"--comment={PRIMED} class=naps", "-t1", *ASKED, as_user=USER)
        agent.until(lambda: len(agent.journal.ended_after(0)) == 2, "both to be journalled")
        kept = {job.job_id: job for _, job in agent.journal.ended_after(0)}
        for node, wanted in amounts.items():
            job = kept[str(jobs[node])]
            assert (job.state, job.granted) == ("COMPLETED", wanted)
            assert 1 <= job.elapsed_s <= 10
            assert job.requested == Resources(1, 1, 1500)
            assert job.user == USER
        said = command(cluster, "learn", "--config", str(toml_for(cluster, tmp_path)), "--output", str(classes_file))
        assert said.returncode == 0, said.stderr
        agent.until(lambda: agent.script.asked[-1].classes, "a question with the class")
        (known,) = agent.script.asked[-1].classes
        assert (known.name, known.observations) == ("naps", 2)
        assert 1 < known.speed.duration_s(Resources(4, 2, 4000)) < 20
        assert msgspec.json.decode(classes_file.read_bytes())
        cluster.run("scancel", str(late))
    finally:
        agent.close()


def test_jobs_that_declare_no_class_have_that_of_their_user_account_and_name(cluster: Sandbox, tmp_path: Path) -> None:
    agent = LiveAgent(cluster, tmp_path)
    try:
        named = f"--job-name=nap 2024-05-01 x\t|{'y' * 20}"
        job_id = cluster.submit("sleep 2", f"--comment={PRIMED}", named, *ASKED, as_user=USER)
        array = cluster.submit("sleep 1", f"--comment={PRIMED}", "--array=1-2", "--job-name=many_7", as_user=USER)
        agent.script.place(job_id, "n1", Resources(2, 1, 2000))
        agent.until(lambda: agent.journal.ended_after(0), "the job to be journalled")
        ((_, job),) = agent.journal.ended_after(0)
        assert (job.user, job.name) == (USER, f"nap 2024-05-01 x\t|{'y' * 20}")
        classes = {one.job_id: one.job_class for state in agent.script.asked for one in state.pending}
        assert classes[str(job_id)] == class_of(job)
        assert classes[f"{array}_1"] == classes[f"{array}_2"] == f"{USER}/{job.account}/many_#"
        cluster.run("scancel", str(array))
    finally:
        agent.close()


def test_a_profile_runs_a_script_and_leaves_a_class_behind(cluster: Sandbox, tmp_path: Path) -> None:
    script, output = tmp_path / "nap.sh", tmp_path / "classes.json"
    script.write_text(
        "#!/bin/bash\n#SBATCH --output=/dev/null\nsleep $((1 + 12 / (SLURM_CPUS_ON_NODE + SLURM_GPUS_ON_NODE)))\n"
    )
    cluster.run("chmod", "755", str(script))
    said = command(
        cluster, "profile", "--config", str(toml_for(cluster, tmp_path)), "--class", "nap", "--gpus", "1-2", "--cpus",
        "1-8", "--mem", "1G", "--runs", "4", "--output", str(output), str(script), timeout_s=120,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert said.stdout.count("COMPLETED after") >= 2
    (made,) = msgspec.json.decode(output.read_bytes(), type=tuple[JobClass, ...])
    assert made.name == "nap"
    assert made.observations == said.stdout.count("COMPLETED after")
    few, many = (made.speed.duration_s(Resources(cpus, gpus, 1024)) for cpus, gpus in ((1, 1), (8, 2)))
    assert many < few
