"""Evaluations: fair, reproducible, with intervals that mean what they say; and their figures."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean, geometric_mean

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("numba")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

from tapfinger_hpc import evaluate, plots
from tapfinger_hpc.errors import ConfigError
from tapfinger_hpc.sim import cli, episodes, players, scenarios
from tapfinger_hpc.sim.bound import Bound, alone
from tapfinger_hpc.sim.scenarios import Scenario, TaskType, Workload

FIELDS = ["--scenario", "synthetic-3", "--policies", "fifo,min", "--seeds", "3", "--seed0", "40"]


def an_episode(policy: str = "fifo", seed: int = 0, tasks: int = 20) -> episodes.Episode:
    scenario = replace(scenarios.scenario("uniform-3"), tasks=tasks)
    (episode,) = episodes.play([scenarios.draw(scenario, seed)], players.make(policy, seed=0))
    return episode


def runs(policy: str, seeds: range) -> list[evaluate.Run]:
    return [evaluate.run(an_episode(policy, seed), "types") for seed in seeds]


@pytest.fixture(scope="module")
def report() -> evaluate.Report:
    bounds = [Bound(alone=2.0, programme=2.5, gap=0.001, columns=1, rounds=1)] * 2
    contest = evaluate.contest(
        "uniform-3", {name: runs(name, range(4)) for name in ("fifo", "min", "tiresias")}, bounds
    )
    return evaluate.Report("1", "fifo", (contest,))


def test_an_interval_holds_the_true_mean_in_19_of_20_cases():
    source = np.random.default_rng(0)
    found = [evaluate.interval(source.normal(5.0, 2.0, size=8)) for _ in range(1000)]
    held = fmean(one.low <= 5.0 <= one.high for one in found)
    assert 0.93 <= held <= 0.97


def test_a_difference_is_paired_by_seed():
    fifo, other = (evaluate.figures(name, runs(name, range(6))) for name in ("fifo", "min"))
    found = evaluate.difference(other, fifo)
    own = [b - a for a, b in zip(fifo.jct_of_seeds, other.jct_of_seeds, strict=True)]
    assert found.slots.mean == pytest.approx(fmean(own))
    assert found.relative.mean == pytest.approx(fmean(own) / fmean(fifo.jct_of_seeds))
    assert found.slots.half == pytest.approx(evaluate.interval(own).half)
    ratios = [b / a for a, b in zip(fifo.jct_of_seeds, other.jct_of_seeds, strict=True)]
    assert found.ratio.mean == pytest.approx(geometric_mean(ratios) - 1)
    assert found.worst == pytest.approx(max(ratios) - 1)
    assert found.clear == (abs(found.slots.mean) > found.slots.half)


def test_the_same_policy_twice_differs_by_nothing():
    one = evaluate.figures("one", runs("fifo", range(3)))
    other = evaluate.figures("other", runs("fifo", range(3)))
    assert evaluate.difference(one, other).slots == evaluate.Interval(0.0, 0.0, 0.0)


def test_figures_agree_with_the_episode_they_are_of():
    episode = an_episode()
    row = evaluate.figures("fifo", [evaluate.run(episode, "oracle")])
    times = (episode.end - episode.workload.arrival).tolist()
    assert row.mean_jct.mean == pytest.approx(fmean(times))
    assert (row.median_jct, row.max_jct) == (np.median(times), max(times))
    assert row.waiting.mean == pytest.approx(fmean((episode.start - episode.workload.arrival).tolist()))
    assert sum(row.tasks_over_time) == sum(times)
    assert row.gpu_use_over_time[0] == pytest.approx(episode.used[0, 1] / 48, abs=1e-4)
    assert row.knowledge == "oracle"
    assert row.jct_percentiles[0] == min(times)


def test_the_efficiency_of_thrifty_amounts_is_1_and_falls_with_gpus_held_for_nothing():
    rate = np.zeros((5, 5))
    rate[1:, 1:] = 0.5
    scenario = Scenario("flat", ((4, 4),), 1, 2, (TaskType("flat", (1, 1), rate),))
    workload = Workload(scenario, 0, np.array([0, 0]), np.array([0, 0]), np.ones((2, 1), bool))

    def efficiency(gpus: int) -> float:
        def decide(frame, env, parameters, out):
            waiting = frame.waiting[env, : frame.waiting_count[env]]
            for row, job in enumerate(waiting):
                out[row] = job, 0, 0, 1, gpus, 0
            return len(waiting)

        (episode,) = episodes.play([workload], episodes.CompiledPlayer("made", decide))
        return evaluate.figures("made", [evaluate.run(episode, "")]).gpu_efficiency

    assert efficiency(1) == pytest.approx(1.0)
    assert efficiency(2) == pytest.approx(0.5)


def test_use_is_counted_while_tasks_arrive():
    episode = an_episode(tasks=12)
    arriving = int(episode.workload.arrival[-1]) + 1
    row = evaluate.figures("fifo", [evaluate.run(episode, "")])
    assert arriving < len(episode.used)
    assert row.gpu_use == pytest.approx(episode.used[:arriving, 1].mean() / 48)


def test_elastic_policies_are_not_held_against_the_programme(report):
    contest = report.contests[0]
    assert set(contest.bound.above) == {"fifo", "min"}
    mean = fmean(contest.figures("fifo").jct_of_seeds[:2])
    assert contest.bound.above["fifo"] == pytest.approx(mean / 2.5 - 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0.8", (0.8,)), ("0.5,0.9", (0.5, 0.9)), ("0.3:1.1:0.2", (0.3, 0.5, 0.7, 0.9, 1.1))],
)
def test_loads_are_numbers_lists_or_ranges(text, expected):
    assert evaluate.loads(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "much", "0.3:1.1", "1.1:0.3:0.1", "0.3:1.1:0", "0", "0.5,-1"])
def test_what_is_no_load_is_refused_with_examples(text):
    with pytest.raises(ConfigError, match=r"0\.3:1\.1:0\.1"):
        evaluate.loads(text)


def test_the_command_compares_on_the_same_workloads_and_writes_all(tmp_path):
    files = tmp_path / "report.json", tmp_path / "plots"
    done = CliRunner().invoke(cli.evaluate, [*FIELDS, "--json", str(files[0]), "--plots", str(files[1])])
    assert done.exit_code == 0, done.output
    report = msgspec.json.decode(files[0].read_bytes(), type=evaluate.Report)
    (contest,) = report.contests
    assert (contest.scenario, contest.first_seed, contest.seeds) == ("synthetic-3", 40, 3)
    workloads = [scenarios.workload("synthetic-3", seed) for seed in (40, 41, 42)]
    for row in contest.policies:
        own = episodes.play(workloads, players.make(row.policy, seed=40))
        assert row.jct_of_seeds == pytest.approx([episode.mean_jct for episode in own])
        assert row.policy in done.output
    assert f"{contest.figures('fifo').mean_jct.mean:.3f}" in done.output
    assert {path.suffix for path in files[1].iterdir()} == {".svg", ".png"}


@pytest.mark.slow
def test_workers_and_their_number_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "SEEDS_OF_A_TASK", 2)
    found = []
    for workers in ("1", "2"):
        file = tmp_path / f"{workers}.json"
        done = CliRunner().invoke(cli.evaluate, [*FIELDS, "--workers", workers, "--json", str(file)])
        assert done.exit_code == 0, done.output
        report = msgspec.json.decode(file.read_bytes(), type=evaluate.Report)
        rows = [msgspec.structs.replace(row, decisions_per_s=0.0) for row in report.contests[0].policies]
        found.append((rows, report.contests[0].differences))
    assert found[0] == found[1]


@pytest.mark.slow
def test_bounds_come_with_the_policy_name_bound_and_lie_below_the_policies(tmp_path):
    file = tmp_path / "report.json"
    arguments = ["--scenario", "synthetic-3", "--policies", "fifo,bound", "--seeds", "3", "--bound-seeds", "2"]
    done = CliRunner().invoke(cli.evaluate, [*arguments, "--json", str(file)])
    assert done.exit_code == 0, done.output
    (contest,) = msgspec.json.decode(file.read_bytes(), type=evaluate.Report).contests
    assert [row.policy for row in contest.policies] == ["fifo"]
    assert contest.bound.seeds == 2
    assert contest.bound.alone.mean <= contest.bound.programme.mean
    own = [alone(scenarios.workload("synthetic-3", seed)).mean() for seed in range(3)]
    assert contest.alone.mean == pytest.approx(fmean(own))
    assert contest.bound.alone.mean == pytest.approx(fmean(own[:2]))
    assert contest.bound.above["fifo"] >= 0
    assert "Lower bound, 2 workloads" in done.output


def test_weights_play_under_names_of_their_own_at_once_or_task_by_task(tmp_path):
    folder = tmp_path / "weights"
    torch = pytest.importorskip("torch")
    from tapfinger_hpc import checkpoint
    from tapfinger_hpc.nets.config import NetworkConfig
    from tapfinger_hpc.nets.policy_network import PolicyNetwork

    torch.manual_seed(0)
    network = PolicyNetwork(NetworkConfig(hidden=16, heads=2))
    training = checkpoint.Training(
        "synthetic-3", "oracle", "", seed=0, iterations=0, minutes=0, episodes=0, workers=1, versions={}
    )
    checkpoint.save(folder, network.config, network.weights(), training)
    file = tmp_path / "report.json"
    arguments = ["--scenario", "synthetic-3", "--policies", "fifo", "--seeds", "1", "--json", str(file)]
    named = ["--checkpoint", f"mine={folder}", "--single-task", f"slowly={folder}"]
    done = CliRunner().invoke(cli.evaluate, [*arguments, *named])
    assert done.exit_code == 0, done.output
    (contest,) = msgspec.json.decode(file.read_bytes(), type=evaluate.Report).contests
    assert [(row.policy, row.knowledge) for row in contest.policies[1:]] == [("mine", "oracle"), ("slowly", "oracle")]
    assert 0 < contest.figures("mine").passes_per_task < contest.figures("slowly").passes_per_task
    assert contest.figures("fifo").passes_per_task == 0


def test_the_learned_policy_without_a_folder_is_the_one_that_ships(tmp_path):
    file = tmp_path / "report.json"
    done = CliRunner().invoke(
        cli.evaluate,
        [
            "--scenario",
            "synthetic-3",
            "--policies",
            "min,tapfinger",
            "--seeds",
            "1",
            "--no-settle",
            "--json",
            str(file),
        ],
    )
    assert done.exit_code == 0, done.output
    (contest,) = msgspec.json.decode(file.read_bytes(), type=evaluate.Report).contests
    assert contest.figures("tapfinger").passes_per_task > 0
    assert contest.figures("tapfinger").mean_jct.mean < contest.figures("min").mean_jct.mean


def test_a_folder_without_weights_is_a_usage_error(tmp_path):
    arguments = ["--scenario", "synthetic-3", "--policies", "fifo", "--checkpoint", f"mine={tmp_path}"]
    done = CliRunner().invoke(cli.evaluate, arguments)
    assert done.exit_code == 2
    assert str(tmp_path) in done.output.replace("\n", "")


@pytest.mark.parametrize("command", [cli.simulate, cli.evaluate], ids=lambda command: command.name)
def test_the_manual_names_every_option(command):
    manual = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    section = manual.split("`tapfinger evaluate`")[command.name == "evaluate"]
    for option in command.params:
        assert f"`{option.opts[0]}`" in section


def test_a_file_that_cannot_be_written_is_said_before_anything_is_played(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="choose another"):
        CliRunner().invoke(
            cli.evaluate, [*FIELDS, "--json", str(tmp_path / "file" / "report.json")], catch_exceptions=False
        )


@pytest.mark.slow
def test_a_load_sweep_is_one_contest_for_each_load(tmp_path):
    file = tmp_path / "report.json"
    arguments = ["--scenario", "synthetic-3", "--policies", "fifo", "--seeds", "1", "--load", "0.4,0.8"]
    done = CliRunner().invoke(cli.evaluate, [*arguments, "--json", str(file), "--plots", str(tmp_path)])
    assert done.exit_code == 0, done.output
    contests = msgspec.json.decode(file.read_bytes(), type=evaluate.Report).contests
    assert [contest.load for contest in contests] == pytest.approx([0.4, 0.8])
    assert contests[0].policies[0].waiting.mean < contests[1].policies[0].waiting.mean
    stems = {path.stem for path in tmp_path.glob("*.svg")}
    assert stems == {
        "synthetic-3-load-sweep",
        *(f"synthetic-3-load-{load}-{kind}" for load in ("0.40", "0.80") for kind in ("completion", "over-time")),
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--scenario", "synthetic-3,hetero-7", "--policies", "fifo"], "hetero-6, uniform-3"),
        (["--scenario", "synthetic-3", "--policies", "fifo,first"], "random, min, fifo"),
        (["--scenario", "synthetic-3", "--policies", "fifo", "--reference", "price"], "'price' is not among"),
        (["--scenario", "synthetic-3", "--policies", "bound"], "no policy to play"),
        (["--scenario", "synthetic-3", "--policies", ","], "expected at least one name"),
        (["--scenario", "synthetic-3", "--policies", "fifo", "--checkpoint", "mine"], "expected NAME=FOLDER"),
        (["--scenario", "synthetic-3", "--policies", "fifo", "--curve", "mine"], "expected NAME=FILE"),
        (["--scenario", "synthetic-3", "--policies", "fifo", "--load", "high"], "loads 'high'"),
    ],
)
def test_what_cannot_be_evaluated_is_said_before_anything_is_played(arguments, expected):
    done = CliRunner().invoke(cli.evaluate, arguments)
    assert done.exit_code == 2
    assert expected in done.output


@pytest.mark.slow
def test_the_same_report_makes_the_same_figures(report, tmp_path):
    curve = plots.Curve("mine", np.arange(50.0), np.linspace(9, 3, 50))
    first, second = (plots.draw(report, tmp_path / name, [curve]) for name in ("first", "second"))
    assert {path.stem for path in first} == {"uniform-3-completion", "uniform-3-over-time", "learning-curve"}
    for path, other in zip(first, second, strict=True):
        assert path.read_bytes() == other.read_bytes()
        assert len(path.read_bytes()) > 5000


def test_a_learning_curve_is_read_from_the_log_of_a_training(tmp_path):
    log = tmp_path / "metrics.jsonl"
    lines = [{"step": 1, "seconds": 60, "mean_jct": 9.5}, {"step": 2, "seconds": 90, "loss": 0.1}]
    text = "\n".join(json.dumps(line) for line in [*lines, {"step": 3, "seconds": 120, "mean_jct": 4.0}])
    log.write_text(text + '\n{"step": 4, "sec', encoding="utf-8")
    curve = plots.read_curve("mine", log)
    assert curve.minutes.tolist() == [1.0, 2.0]
    assert curve.mean_jct.tolist() == [9.5, 4.0]


@pytest.mark.parametrize("text", ["", '{"step": 1}\n', 'no json\n{"seconds": 1, "mean_jct": 2}\n'])
def test_a_log_without_a_curve_is_refused(text, tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl"):
        plots.read_curve("mine", log)
