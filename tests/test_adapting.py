"""Workloads made of a site's own jobs, and ``tapfinger train --trace``: adapted, and kept only if it is better."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from msgspec.structs import replace
from test_whatif import grid_class, job, planned

from tapfinger_hpc.cli import tapfinger
from tapfinger_hpc.errors import TraceError
from tapfinger_hpc.sim.cluster_spec import ClusterSpec
from tapfinger_hpc.state import Resources
from tapfinger_hpc.trace import Trace, TraceJob
from tapfinger_hpc.training import cli
from tapfinger_hpc.whatif.report import Change
from tapfinger_hpc.whatif.site import SiteWorkloads

SPEC = ClusterSpec.uniform(1, 2, Resources(16, 4, 64000))


def a_past(count: int = 120) -> Trace:
    """Of each three jobs one has a range, one keeps its amounts, and one is not ours, on two nodes."""
    jobs: list[TraceJob] = []
    for number in range(1, count, 3):
        jobs += [
            job(number, Resources(4, 1, 32000), elapsed_s=400.0),
            job(number + 1, Resources(2, 1, 8000), state="FAILED", elapsed_s=90.0),
            job(number + 2, Resources(16, 4, 20000), nodes=2, elapsed_s=700.0),
        ]
    plan = planned(*jobs, known=grid_class([0.3] * 4))
    assert plan.changed is not None
    return replace(
        plan.changed,
        jobs=tuple(replace(item, job=replace(item.job, partitions=("pa",))) for item in plan.changed.jobs),
    )


def test_a_workload_is_a_stretch_of_the_past():
    drawn = SiteWorkloads(a_past(), SPEC)
    one, again, other = drawn(3), drawn(3), drawn(4)
    assert (one.arrival == again.arrival).all()
    assert (one.pace == again.pace).all()
    assert len(one.pace) != len(other.pace) or (one.pace != other.pace).any()
    assert one.arrival[0] == 0.0
    assert not one.others[0]
    assert (np.diff(one.arrival) >= 0).all()
    assert one.reachable.all()


def test_every_job_of_a_workload_can_run_on_what_it_may_get():
    workload = SiteWorkloads(a_past(), SPEC)(5)
    kinds = [workload.scenario.types[number] for number in workload.type]
    for kind, others, asked in zip(kinds, workload.others, workload.asked, strict=True):
        assert np.isfinite(kind.slots).any()
        if others:
            assert np.isfinite(kind.slots[asked[0], asked[1]])
            assert (asked <= workload.scenario.nodes[0]).all()
    ranges = {len(kind.menu) for kind in kinds}
    assert 1 in ranges, "jobs that keep their amounts have no choice"
    assert max(ranges) > 3


def test_jobs_of_several_nodes_are_as_many_of_others():
    workload = SiteWorkloads(a_past(), SPEC)(6)
    of_others = workload.asked[workload.others]
    assert (of_others == (8, 2, 10000)).all()
    assert workload.others.sum() > (~workload.others).sum() * 0.8


def test_jobs_take_about_as_long_as_they_did():
    past = SiteWorkloads(a_past(), SPEC)
    seconds = []
    for seed in range(20):
        workload = past(seed)
        for number in np.flatnonzero(workload.others):
            kind, asked = workload.scenario.types[workload.type[number]], workload.asked[number]
            seconds.append(kind.slots[asked[0], asked[1]] * workload.pace[number])
    assert np.mean(seconds) == pytest.approx(700, rel=0.05)


def test_the_load_is_that_of_the_jobs_as_they_were():
    workload = SiteWorkloads(a_past(), SPEC)(7)
    seconds = {(4, 1): 400.0, (2, 1): 90.0, (8, 2): 700.0}
    held = np.zeros(2)
    for kind, others, asked in zip(workload.type, workload.others, workload.asked, strict=True):
        amounts = tuple(asked[:2]) if others else (2, 1) if len(workload.scenario.types[kind].menu) == 1 else (4, 1)
        held += np.array(amounts) * seconds[amounts]
    expected = (held / (32, 8) / workload.arrival[-1]).max()
    assert workload.scenario.load == pytest.approx(expected, rel=1e-6)


def test_too_few_jobs_of_ours_are_told():
    with pytest.raises(TraceError, match="at least 50"):
        SiteWorkloads(a_past(30), SPEC)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--trace", "t", "--cluster", "c", "--scenario", "random"], ["--scenario", "--trace"]),
        (["--trace", "t", "--cluster", "c", "--ablate", "bayes"], ["--ablate", "--trace"]),
        (["--trace", "t"], ["--trace", "--cluster"]),
        (["--manage", "gpu", "--scenario", "random"], ["--manage", "--trace"]),
        ([], ["--scenario", "--trace"]),
    ],
)
def test_options_that_do_not_go_together_are_named(arguments, named, tmp_path):
    done = CliRunner().invoke(cli.train, ["--out", str(tmp_path / "out"), *arguments])
    assert done.exit_code == 2
    assert all(option in done.output for option in named)


@pytest.mark.slow
@pytest.mark.parametrize("better", [True, False])
def test_adapted_weights_are_kept_only_if_they_are_better(tmp_path, monkeypatch, better):
    """One iteration decides nothing, so what the later part says is given; all else is real."""
    from tapfinger_hpc.whatif import report

    monkeypatch.setattr(report, "between", lambda *_: Change(-0.1 if better else 0.1, -0.2, 0.3))
    made, cluster, out = tmp_path / "made.jsonl", tmp_path / "site.toml", tmp_path / "out"
    CliRunner().invoke(tapfinger, ["trace", "synth", "--jobs", "120", "-o", str(made)], catch_exceptions=False)
    cluster.write_text(
        '[[node]]\nnames = "n[1-6]"\ncpus = 16\ngpus = 4\nmem = "64000M"\n'
        + "".join(
            f'[[partition]]\nname = "p{p}"\nnodes = "n[{n}-{n + 1}]"\n' for p, n in zip("abc", (1, 3, 5), strict=True)
        )
    )
    given = ["--trace", str(made), "--cluster", str(cluster), "--out", str(out), "--iterations", "1"]
    done = CliRunner().invoke(tapfinger, ["train", *given])
    assert done.exit_code == (0 if better else 3), done.output
    assert (out / "checkpoint.json").exists() == better
    assert (out / "course" / "resume.bin").exists()
    assert "Adapted against present" in done.output
    training = json.loads((out / "course" / "checkpoint.json").read_bytes())["training"]
    assert training["scenario"].startswith("site-")
    assert training["iterations"] == 1
