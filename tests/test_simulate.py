"""What ``tapfinger simulate`` writes can be checked by anyone: here by a second, slow simulator in plain Python."""

import copy
import json
import math
from dataclasses import replace

import pytest
from click.testing import CliRunner

pytest.importorskip("numba")

from tapfinger_hpc.sim import dump, players, scenarios
from tapfinger_hpc.sim.cli import simulate
from tapfinger_hpc.sim.episodes import play

WINDOW = 10
MOST = 16
ELASTIC = ("tiresias", "optimus", "optimus-published")


class Broken(AssertionError):
    """The line contradicts itself or the rules."""


def usual(capacities, switch_weight):
    """The published setting: IMG takes four slots whatever it has, LM makes use of GPUs."""
    return {
        "capacities": capacities,
        "switch_weight": switch_weight,
        "minimum": {"IMG": (2, 1), "LM": (2, 1)},
        "step": lambda kind, cpus, gpus, done: 0.25 if kind == "IMG" else math.tanh(gpus / 16) * math.sqrt(1.2 - done),
    }


RULES = {
    "hetero-6": usual([(size, size) for size in (4, 8, 12, 16, 24, 32)], 1.0),
    "uniform-3": usual([(16, 16)] * 3, 1.0),
    "synthetic-3": usual([(16, 16)] * 3, 0.5),
}


def rules_of(line):
    if line["scenario"] in RULES:
        return RULES[line["scenario"]]
    cluster = line["cluster"]
    kinds = {kind["name"]: kind for kind in cluster["types"]}

    def step(name, cpus, gpus, done):
        rate = kinds[name]["rate"][cpus][gpus]
        return rate * math.sqrt(1.2 - done) if kinds[name]["curved"] else rate

    return {
        "capacities": cluster["capacities"],
        "switch_weight": cluster["switch_weight"],
        "minimum": {name: kind["minimum"] for name, kind in kinds.items()},
        "step": step,
    }


def must(condition, *what):
    if not condition:
        raise Broken(*what)


def check(line):
    """Plays the line again slot by slot; raises ``Broken`` where it breaks a rule or claims another completion time."""
    rules = rules_of(line)
    agents = range(len(rules["capacities"]))
    tasks = {task["id"]: task for task in line["tasks"]}
    windows, queues = [[None] * WINDOW for _ in agents], [[] for _ in agents]
    running, progress, completed, placed = {}, {}, {}, set()
    due = list(line["tasks"])
    must([task["arrival"] for task in due] == sorted(task["arrival"] for task in due), "tasks in order of arrival")
    elastic = line["policy"] in ELASTIC
    must(elastic or len(line["placements"]) == len(tasks), "placements for", len(tasks), "tasks")
    slot = 0
    while len(completed) < len(tasks):
        must(slot < 100_000, "never ends")
        while due and due[0]["arrival"] == slot:
            task = due.pop(0)
            for agent in task["reachable"]:
                if None in windows[agent]:
                    windows[agent][windows[agent].index(None)] = task["id"]
                else:
                    queues[agent].append(task["id"])
        for agent in agents:
            while queues[agent] and None in windows[agent]:
                windows[agent][windows[agent].index(None)] = queues[agent].pop(0)
        changed = set()
        for entry in (entry for entry in line["placements"] if entry["slot"] == slot):
            number, agent, amounts = entry["task"], entry["agent"], (entry["cpu"], entry["gpu"])
            kind = tasks[number]["type"]
            must(agent in tasks[number]["reachable"], number, "is placed where it cannot be reached")
            # Tiresias and Optimus may leave tasks with less than the minimum; these then stand still.
            least = (0, 0) if elastic else rules["minimum"][kind]
            enough = all(low <= amount <= MOST for low, amount in zip(least, amounts, strict=True))
            must(enough, number, "is given too little or too much")
            if number in placed:
                must(number in running, number, "is changed after its end")
                changed.add(number)
            else:
                must(number in windows[agent], number, "is not in the window of", agent)
                placed.add(number)
                progress[number] = 0.0
                windows = [[None if one == number else one for one in window] for window in windows]
                queues = [[one for one in queue if one != number] for queue in queues]
            running[number] = (agent, *amounts)
        for agent, capacity in enumerate(rules["capacities"]):
            for resource in (0, 1):
                held = sum(one[1 + resource] for one in running.values() if one[0] == agent)
                must(held <= capacity[resource], "agent", agent, "holds", held, "of", capacity)
        for number, (_, cpus, gpus) in list(running.items()):
            kind = tasks[number]["type"]
            if all(least <= amount for least, amount in zip(rules["minimum"][kind], (cpus, gpus), strict=True)):
                step = rules["step"](kind, cpus, gpus, progress[number])
                progress[number] += step * (rules["switch_weight"] if number in changed else 1.0)
            if progress[number] >= 1 - 1e-9:
                completed[number] = slot + 1
                del running[number]
        slot += 1
    must(len(line["placements"]) == sum(entry["slot"] < slot for entry in line["placements"]), "placed after the end")
    must({entry["task"]: entry["slot"] for entry in line["completions"]} == completed, "other completion times")
    ages = [completed[number] - task["arrival"] for number, task in tasks.items()]
    must(abs(sum(ages) / len(ages) - line["mean_jct"]) < 1e-9, "another mean")


def written(scenario, policy, seed):
    """A line as it is read back."""
    workload = scenarios.workload(scenario, seed)
    (episode,) = play([workload], players.make(policy, seed=seed, scenario=workload.scenario))
    return json.loads(json.dumps(dump.record(episode, policy)))


@pytest.mark.parametrize("scenario", ["uniform-3", "synthetic-3", "random"])
@pytest.mark.parametrize("policy", ["random", "fifo", "srtf", "tiresias", "optimus"])
def test_another_simulator_comes_to_the_same_completion_times(scenario, policy):
    line = written(scenario, policy, 3)
    check(line)
    if policy in ("tiresias", "optimus"):
        assert len(line["placements"]) > len(line["tasks"])


@pytest.mark.slow
@pytest.mark.parametrize("policy", [name for name in players.NAMES if name not in ("tapfinger", "price-settled")])
@pytest.mark.parametrize("scenario", ["hetero-6", "uniform-3", "synthetic-3", "random"])
def test_every_policy_keeps_to_the_rules_on_many_workloads(scenario, policy):
    for seed in range(3):
        check(written(scenario, policy, seed))


@pytest.fixture(scope="module")
def line():
    return written("uniform-3", "fifo", 0)


def test_the_second_simulator_refuses_what_is_not_so(line):
    def wrong(change):
        changed = copy.deepcopy(line)
        change(changed)
        with pytest.raises(Broken) as error:
            check(changed)
        return str(error.value)

    def elsewhere(changed):
        entry = next(one for one in changed["placements"] if len(changed["tasks"][one["task"]]["reachable"]) < 3)
        entry["agent"] = ({0, 1, 2} - set(changed["tasks"][entry["task"]]["reachable"])).pop()

    assert "cannot be reached" in wrong(elsewhere)
    assert "too little" in wrong(lambda changed: changed["placements"][0].update(gpu=0))
    assert "other completion" in wrong(lambda changed: changed["completions"][7].update(slot=10**4))
    assert "another mean" in wrong(lambda changed: changed.update(mean_jct=changed["mean_jct"] + 0.001))
    assert "window" in wrong(lambda changed: changed["placements"][-1].update(slot=0))
    assert "holds" in wrong(lambda changed: [one.update(cpu=16, gpu=16) for one in changed["placements"]])


def test_a_line_has_the_fields_that_were_agreed_on(line):
    assert list(line) == ["scenario", "policy", "seed", "tasks", "placements", "completions", "mean_jct", "knowledge"]
    assert list(line["tasks"][0]) == ["id", "arrival", "type", "reachable"]
    assert list(line["placements"][0]) == ["task", "slot", "agent", "cpu", "gpu"]
    assert list(line["completions"][0]) == ["task", "slot"]


def test_the_command_writes_one_line_for_each_seed(tmp_path):
    file = tmp_path / "new" / "dump.jsonl"
    arguments = ["--scenario", "synthetic-3", "--policy", "fifo", "--seed", "5", "--episodes", "2", "--dump", str(file)]
    done = CliRunner().invoke(simulate, arguments)
    assert done.exit_code == 0, done.output
    lines = [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()]
    assert [line["seed"] for line in lines] == [5, 6]
    for line in lines:
        check(line)
    assert f"{(lines[0]['mean_jct'] + lines[1]['mean_jct']) / 2:.3f} slots of 2 episodes" in done.output


def test_a_random_cluster_stands_in_its_line():
    cluster = written("random", "fifo", 1)["cluster"]
    scenario = scenarios.workload("random", 1).scenario
    assert cluster["capacities"] == [list(pair) for pair in scenario.capacities]
    assert len(cluster["types"]) == len(scenario.types)


@pytest.mark.parametrize(
    ("arguments", "known"),
    [
        (["--scenario", "hetero-7", "--policy", "fifo"], scenarios.NAMES),
        (["--scenario", "hetero-6", "--policy", "first"], players.NAMES),
    ],
)
def test_an_unknown_name_is_answered_with_those_that_are_known(arguments, known):
    done = CliRunner().invoke(simulate, arguments)
    assert done.exit_code == 2
    assert all(name in done.output for name in known)


def test_a_scaled_load_is_the_load_and_leaves_the_rest_as_it_is():
    scenario, scaled = scenarios.scenario("hetero-6"), scenarios.workload("hetero-6", 0, load=0.3).scenario
    assert scaled.load == pytest.approx(0.3)
    assert scaled.arrivals < scenario.arrivals
    assert vars(replace(scaled, arrivals=scenario.arrivals)).items() >= vars(replace(scenario)).items()
