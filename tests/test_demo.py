"""The demo where no Slurm is at hand, and the parts of it that need none."""

import json
import os
import subprocess
import sys

import msgspec
import pytest

from slurm_plugin.demo import cli, job, report, side
from slurm_plugin.sandbox.userland import MACHINE
from tapfinger_hpc import workload
from tapfinger_hpc.errors import SandboxError
from tapfinger_hpc.sim.cluster_spec import ClusterSpec
from tapfinger_hpc.state import Resources
from tapfinger_hpc.units import Range, parse_mark


@pytest.mark.slow
def test_the_simulated_demo_writes_what_every_job_asked_for_was_given_and_took(tmp_path):
    file = tmp_path / "demo.json"
    command = [
        sys.executable,
        "-m",
        "tapfinger_hpc.cli",
        "demo",
        "--simulated",
        "--policy",
        "price",
        "--json",
        str(file),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Both clusters are simulated: as asked." in done.stdout
    found = msgspec.json.decode(file.read_bytes(), type=report.DemoReport)
    assert found.cluster == "simulated"
    assert len(found.jobs) == 48
    low, high = found.reduction_interval
    assert low < found.reduction < high
    mean = {name: sum(getattr(j, name).completion_s for j in found.jobs) / 48 for name in ("stock", "tapfinger")}
    assert found.reduction == pytest.approx(1 - mean["tapfinger"] / mean["stock"])
    for compared in found.jobs:
        assert compared.stock.given == compared.asked
        assert compared.tapfinger.given.covers(compared.least)
        assert compared.greatest.covers(compared.tapfinger.given)


@pytest.mark.slow
def test_every_duration_follows_from_the_amounts_given(tmp_path):
    file = tmp_path / "demo.json"
    command = [sys.executable, "-m", "tapfinger_hpc.cli", "demo", "--simulated", "--policy", "min", "--json", str(file)]
    subprocess.run(command, capture_output=True, check=True)
    trace = workload.demo_trace(seed=0)
    by_id = {item.job.job_id: item for item in trace.jobs}
    for compared in json.loads(file.read_bytes())["jobs"]:
        for one in (compared["stock"], compared["tapfinger"]):
            item = by_id[compared["job"]]
            true_s = trace.true_duration_s(item, Resources(**one["given"]))
            assert one["ran_s"] == pytest.approx(min(true_s, item.job.time_limit_s))
            assert one["outcome"] == ("COMPLETED" if true_s <= item.job.time_limit_s else "TIMEOUT")


def test_without_root_the_demo_says_why_it_simulates():
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        reason = cli._why_not_slurm(cli.Console(quiet=True), MACHINE, install=True)
    finally:
        os.seteuid(user)
    assert "root" in reason


def test_the_requested_load_of_the_demo_is_about_four_fifths():
    loads = [workload.requested_load(workload.demo_trace(seed), ClusterSpec.uniform())[1] for seed in range(20)]
    assert 0.7 < sum(loads) / len(loads) < 0.9


def test_users_of_the_demo_mostly_ask_for_one_two_or_four_gpus():
    asked = [item.job.requested.gpus for seed in range(20) for item in workload.demo_trace(seed).jobs]
    assert set(asked) == {1, 2, 4}
    assert asked.count(1) > asked.count(4) > asked.count(2)


def test_a_job_reads_its_amounts_from_what_slurm_says_it_got():
    environment = {"SLURM_CPUS_ON_NODE": "6", "SLURM_GPUS_ON_NODE": "2", "SLURM_MEM_PER_NODE": "8000"}
    assert job.granted(environment) == Resources(6, 2, 8000)
    assert job.granted({"SLURM_CPUS_ON_NODE": "4", "SLURM_MEM_PER_CPU": "1000"}) == Resources(4, 0, 4000)


def test_the_mark_that_is_submitted_declares_the_jobs_ranges():
    pending = workload.demo_trace(seed=0).jobs[0].job
    mark = parse_mark(side.comment(pending))
    assert mark.gpus == Range(pending.minimum.gpus, pending.maximum.gpus)
    assert mark.bounds(pending.requested) == (pending.minimum, pending.maximum)
    assert mark.job_class == pending.job_class


def test_tapfinger_is_told_curves_that_are_off_but_not_by_much():
    classes = workload.demo_trace(seed=0).classes
    told = cli.estimated(classes, seed=0)
    assert told == cli.estimated(classes, seed=0)
    ratios = [
        guess / exact
        for one, other in zip(told, classes, strict=True)
        for guess, exact in zip(one.speed.seconds, other.speed.seconds, strict=True)
        if exact is not None
    ]
    assert min(ratios) < 0.95 and max(ratios) > 1.05
    assert min(ratios) > 0.5 and max(ratios) < 2.0


def test_the_report_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "missing" / "demo.json"
    made = msgspec.convert(_small_report(), report.DemoReport)
    with pytest.raises(SandboxError):
        report.write_json(made, file)
    assert not file.parent.exists()


def _small_report() -> dict:
    summary = dict.fromkeys(report.stats.Summary.__struct_fields__, 0)
    return {
        "cluster": "simulated",
        "policy": "price",
        "seed": 0,
        "requested_load": 0.8,
        "stock": summary,
        "tapfinger": summary,
        "reduction": 0.0,
        "reduction_interval": [0.0, 0.0],
        "foreign_wait_s": None,
        "jobs": [],
    }


def test_sbatch_options_spell_the_request_as_a_user_would():
    pending = workload.demo_trace(seed=0).jobs[0].job
    options = side.sbatch_options(pending)
    assert f"--gres=gpu:{pending.requested.gpus}" in options
    assert f"--mem={pending.requested.mem_mb}M" in options
    assert not any(option.startswith("--comment") for option in side.sbatch_options(_foreign(pending)))


def _foreign(pending):
    return msgspec.structs.replace(pending, managed=False)
