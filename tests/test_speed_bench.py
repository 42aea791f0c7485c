"""The measured curves, the prior learned from them, and how well the rest is foretold."""

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from tapfinger_hpc import trace as traces
from tapfinger_hpc.cli import tapfinger
from tapfinger_hpc.errors import TraceError
from tapfinger_hpc.sim.cluster_spec import ClusterSpec
from tapfinger_hpc.workload import WorkloadKnobs, random_trace
from trace_tools import curves, prior, speed_bench

DATA = Path(__file__).parents[2] / "shared" / "data"
TABLE = DATA / "tapfinger" / "trace_container.csv"
needs_table = pytest.mark.skipif(not TABLE.exists(), reason="the test-bed table does not come with the package")


def made_up_table(path: Path) -> Path:
    """A task whose GPUs want two CPUs each, measured twice."""
    rows = [
        f"made,{cpus},{gpus},{factor * 90 / gpus * max(1.0, 2 * gpus / cpus):.3f},x"
        for cpus in range(1, 9)
        for gpus in range(1, 5)
        for factor in (1.0, 1.02)
    ]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_every_shipped_curve_names_its_source_and_is_relative_to_its_first_point():
    shipped = curves.shipped()
    assert {curve.source for curve in shipped} == {"gavel", "pollux"}
    for curve in shipped:
        gpus, seconds = zip(*curve.seconds, strict=True)
        assert seconds[0] == 1
        assert list(gpus) == sorted(set(gpus))
        assert len(gpus) >= curves.FEWEST_POINTS
        assert all(one > 0 for one in seconds)


@pytest.mark.skipif(not (DATA / "traces" / "gavel").exists(), reason="the originals are not here")
def test_the_shipped_curves_are_those_of_the_originals():
    gavel = curves.of_gavel(DATA / "traces" / "gavel" / "simulation_throughputs.json")
    pollux = curves.of_pollux(DATA / "traces" / "pollux")
    assert list(curves.shipped()) == gavel + pollux


def test_curves_that_are_read_from_their_source_are_those_that_were_there(tmp_path):
    source = tmp_path / "throughputs.json"
    rates = {f"('LM (batch size 5)', {gpus})": {"null": rate} for gpus, rate in ((1, 10.0), (2, 16.0), (4, 20.0))}
    rates["('LM (batch size 5)', 8)"] = {"null": 0.0}
    source.write_bytes(msgspec.json.encode({"k80": rates}))
    (curve,) = curves.of_gavel(source)
    assert (curve.family, curve.seconds) == ("LM", ((1, 1.0), (2, 0.625), (4, 0.5)))
    with pytest.raises(TraceError, match="cannot be read"):
        curves.of_pollux(tmp_path)


def test_a_prior_learned_from_curves_favours_shapes_like_them():
    flat = [curves.Curve("made", f"flat{number}", "", ((1, 1.0), (2, 1.0), (4, 1.0))) for number in range(40)]
    steep = [curves.Curve("made", f"steep{number}", "", ((1, 1.0), (2, 0.5), (4, 0.25))) for number in range(40)]
    slopes = []
    for measured in (flat, steep):
        learned = speed_bench.learned_prior(measured, {})
        weights = [sum(row) for row in learned.weights]
        slopes.append(sum(weight * shape.slopes[2] for weight, shape in zip(weights, learned.shapes, strict=True)))
    assert slopes[0] > slopes[1] + 0.2


def test_what_is_tested_is_not_learned_from():
    learned = speed_bench.learned_prior(curves.shipped(), {}, "pollux ncf")
    assert "pollux ncf" not in learned.learned_from
    assert "pollux bert" in learned.learned_from


def test_figures_of_a_made_up_table_are_small_errors_and_honest_intervals(tmp_path):
    table = speed_bench.table(made_up_table(tmp_path / "table.csv"))
    figures = {one.seen: one for one in speed_bench.measure([], table, draws=20)}
    assert figures["a fifth of the cells"].median_error < 0.2
    assert figures["a fifth of the cells"].inside_90 > 0.7
    assert figures["a fifth of the cells"].median_error < figures["three cells"].median_error


@pytest.mark.slow
def test_two_points_of_a_curve_foretell_the_others_within_a_quarter():
    """The prior has seen no curve of the same model."""
    tested = [curve for curve in curves.shipped() if curve.source == "pollux"]
    (figures,) = speed_bench.measure(tested, {}, draws=2)
    assert figures.median_error < 0.25
    assert figures.inside_90 >= 0.85


@pytest.mark.slow
@needs_table
def test_the_testbed_table_is_foretold_from_a_fifth_of_its_cells_and_from_three():
    figures = list(speed_bench.measure(curves.shipped(), speed_bench.table(TABLE), draws=60))
    for one in figures:
        if one.seen == "a fifth of the cells":
            assert one.median_high < 0.1, one
        elif one.seen == "three cells":
            assert one.median_high < 0.3, one
        if "cells" in one.seen:
            assert 0.82 <= one.inside_90 <= 0.97, one
    alone = [one for one in figures if one.what in ("gavel", "pollux")]
    assert len(alone) == 2
    assert all(one.median_high < 0.25 and one.inside_90 > 0.83 for one in alone)


@needs_table
def test_the_shipped_prior_is_made_by_the_command_that_the_manual_names(tmp_path):
    output = tmp_path / "prior.json"
    done = CliRunner().invoke(tapfinger, ["trace", "prior", "--table", str(TABLE), "-o", str(output)])
    assert done.exit_code == 0, done.output
    made = msgspec.json.decode(output.read_bytes(), type=prior.Prior)
    assert made.shapes == prior.shipped().shapes
    for row, shipped in zip(made.weights, prior.shipped().weights, strict=True):
        assert row == pytest.approx(shipped, abs=1e-4)


def test_jobs_of_a_trace_are_foretold_from_those_before_them(tmp_path):
    trace = random_trace(5, ClusterSpec.uniform(), WorkloadKnobs(jobs=300, classes=3, size_follows_request=0.0))
    file = tmp_path / "trace.jsonl"
    traces.write(trace, file)
    done = CliRunner().invoke(tapfinger, ["bench", "speeds", "--trace", str(file), "--json"])
    assert done.exit_code == 0, done.output
    found = {one["seen"]: one for one in msgspec.json.decode(done.output)}
    assert {"1 jobs of the class", "50 jobs of the class"} <= set(found)
    assert found["50 jobs of the class"]["draws"] >= 1
    assert sum(one["inside_90"] for one in found.values()) / len(found) > 0.7


def test_a_table_that_is_none_is_refused_with_what_was_expected(tmp_path):
    broken = tmp_path / "table.csv"
    broken.write_text("mnist,one,2,3\n", encoding="utf-8")
    with pytest.raises(TraceError, match="expected lines task,cpus,gpus,seconds"):
        speed_bench.table(broken)


@pytest.mark.slow
def test_the_bench_command_prints_figures_as_json(tmp_path):
    table = made_up_table(tmp_path / "table.csv")
    done = CliRunner().invoke(tapfinger, ["bench", "speeds", "--table", str(table), "--draws", "2", "--json"])
    assert done.exit_code == 0, done.output
    found = msgspec.json.decode(done.output)
    assert {one["what"] for one in found} == {"made", "gavel", "gavel, several nodes", "pollux"}
