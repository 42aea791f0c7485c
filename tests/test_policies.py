"""The policies that learn nothing: what each promises, and what all must keep whatever the state."""

import math

import pytest
from cluster_states import NODE, fixed, foreign, job, node, running, speed, state, states
from hypothesis import given, settings
from hypothesis import strategies as st

from tapfinger_hpc.decision import guard_all
from tapfinger_hpc.errors import ConfigError
from tapfinger_hpc.policies import choices, registry
from tapfinger_hpc.policies.compiled.price import Prices
from tapfinger_hpc.policies.outlook import remaining_s
from tapfinger_hpc.policies.price import PricePolicy
from tapfinger_hpc.speed import JobClass, SpeedModel, prior
from tapfinger_hpc.state import ClusterState, Partition, Resources

SCALES = JobClass("scales", speed(g1=400, g2=200, g4=100))
HALF_GAIN = JobClass("half", speed(g1=100, g2=90, g4=85))
HURTS = JobClass("hurts", speed(g1=50, g2=60, g4=80))
HEURISTICS = ["fifo", "min", "price", "random"]


def decide(name: str, seen: ClusterState) -> dict:
    """Decisions by job id."""
    return {decision.job_id: decision for decision in registry.make(name).decide(seen)}


def where(decisions: dict, job_id: str) -> str | None:
    placement = decisions[job_id].placement
    return placement.node if placement else None


def amounts(decisions: dict, job_id: str) -> Resources:
    placement = decisions[job_id].placement
    assert placement is not None, decisions[job_id].reason
    return placement.amounts


# All of them.


@pytest.mark.parametrize("name", HEURISTICS)
@settings(max_examples=60, deadline=None)
@given(seen=states())
def test_every_job_of_ours_gets_one_decision_and_each_passes_the_guard(name, seen):
    decisions = registry.make(name).decide(seen)
    assert sorted(decision.key for decision in decisions) == sorted(
        pending.key for pending in seen.pending if pending.managed and pending.eligible
    )
    placed = [decision.placement is not None for decision in decisions]
    assert placed == sorted(placed, reverse=True), "placements come first"
    _, refused, _ = guard_all(decisions, seen)
    assert refused == []
    assert all(decision.reason for decision in decisions)
    assert all(len(decision.runners_up) <= 16 for decision in decisions)


@pytest.mark.parametrize("name", HEURISTICS)
@settings(max_examples=20, deadline=None)
@given(seen=states())
def test_the_same_state_gets_the_same_answer(name, seen):
    again = ClusterState.from_json(seen.to_json())
    assert registry.make(name, seed=3).decide(seen) == registry.make(name, seed=3).decide(again)


@pytest.mark.parametrize("name", HEURISTICS)
def test_an_empty_queue_gets_no_decisions(name):
    assert registry.make(name).decide(state()) == ()


@pytest.mark.parametrize("name", ["min", "price", "random"])
def test_no_amounts_are_chosen_on_which_the_class_cannot_run(name):
    hungry = JobClass("hungry", SpeedModel((1,), (1, 2), (4000, 16000), (None, 30.0, None, 20.0)))
    seen = state(job("1", job_class="hungry"), classes=(hungry,))
    assert amounts(decide(name, seen), "1").mem_mb >= 16000


@pytest.mark.parametrize("name", ["min", "price", "random"])
def test_a_job_is_not_slowed_down_so_far_that_its_limit_would_end_it(name):
    scales = JobClass("scales", speed(g1=400, g2=200, g4=100))
    seen = state(
        job("1", job_class="scales", time_limit_s=250, requested=Resources(4, 4, 8000)),
        *(job(f"{number}", number, job_class="scales", time_limit_s=250) for number in range(2, 6)),
        classes=(scales,),
    )
    for decision in registry.make(name).decide(seen):
        if decision.placement is not None:
            assert scales.speed.duration_s(decision.placement.amounts) <= 250


def test_an_unknown_policy_is_refused_with_the_known_names():
    with pytest.raises(ConfigError, match="fifo, min, price, random, tapfinger"):
        registry.make("priec")


def test_the_random_policy_draws_from_its_seed():
    seen = state(*(job(f"{number}") for number in range(1, 5)))
    answers = {registry.make("random", seed=seed).decide(seen) for seed in range(8)}
    assert len(answers) > 1


# fifo


def test_first_come_first_served_with_what_was_asked_for():
    seen = state(job("2", 5, requested=Resources(8, 2, 8000)), job("1", 9), nodes=(node("n1"),))
    decisions = registry.make("fifo").decide(seen)
    assert [decision.job_id for decision in decisions] == ["2", "1"]
    assert amounts(decide("fifo", seen), "2") == Resources(8, 2, 8000)


def test_a_request_outside_its_own_range_is_brought_into_it():
    seen = state(job("1", requested=Resources(32, 8, 1000), tasks=3))
    assert amounts(decide("fifo", seen), "1") == Resources(15, 4, 4000)


def test_the_head_of_the_line_keeps_its_nodes_from_those_behind_it():
    whole = fixed("1", NODE)
    parts = (Partition("pa", ("n1",)), Partition("pb", ("n2",)))
    half = node("n1", Resources(8, 2, 32000))
    seen = state(whole, job("2", 1), job("3", 2, partitions=("pb",)), nodes=(half, node("n2")), partitions=parts)
    decisions = decide("fifo", seen)
    assert where(decisions, "1") is None
    assert where(decisions, "2") is None
    assert "job 1 is ahead" in decisions["2"].reason
    assert where(decisions, "3") == "n2"


def test_a_job_is_not_cut_down_to_a_small_node_where_a_larger_one_could_run_it():
    small = node("n1", Resources(8, 2, 32000), capacity=Resources(8, 2, 32000))
    asks_for_four = job("1", requested=Resources(16, 4, 8000))
    decisions = decide("fifo", state(asks_for_four, nodes=(small, node("n2", Resources(8, 2, 64000)))))
    assert where(decisions, "1") is None
    assert amounts(decide("fifo", state(asks_for_four, nodes=(small,))), "1") == Resources(8, 2, 8000)


# min


def test_min_gives_the_least_and_lets_small_jobs_pass():
    half = (node("n1", Resources(8, 2, 32000)),)
    seen = state(fixed("1", NODE), job("2", 1, job_class="half"), nodes=half, classes=(HALF_GAIN,))
    decisions = decide("min", seen)
    assert where(decisions, "1") is None
    assert amounts(decisions, "2") == Resources(1, 1, 4000)


# price


def gpus_given(*jobs, classes, nodes=None, **fields) -> dict[str, int]:
    decisions = decide("price", state(*jobs, classes=classes, nodes=nodes, **fields))
    return {job_id: made.placement.amounts.gpus if made.placement else 0 for job_id, made in decisions.items()}


def test_a_lone_job_gets_what_makes_it_fast():
    assert gpus_given(job("1", job_class="scales"), classes=(SCALES,)) == {"1": 4}


def test_gpus_that_do_not_help_are_not_given():
    asks_for_four = job("1", job_class="hurts", requested=Resources(16, 4, 8000))
    assert gpus_given(asks_for_four, classes=(HURTS,)) == {"1": 1}


def test_the_more_jobs_wait_the_less_each_gets():
    one = (node("n1"),)
    known = JobClass("some", speed(g1=100, g2=70, g4=50))
    alone = gpus_given(job("1", job_class="some"), classes=(known,), nodes=one)
    crowd = [job(f"{number}", number, job_class="some") for number in range(1, 9)]
    crowded = gpus_given(*crowd, classes=(known,), nodes=one)
    assert alone["1"] == 4
    assert max(crowded.values()) < 4
    assert sum(given > 0 for given in crowded.values()) > 1


def test_short_jobs_come_before_long_ones():
    long, short = JobClass("long", speed(g1=5000)), JobClass("short", speed(g1=20))
    quarter = (node("n1", Resources(4, 1, 16000)),)
    given = gpus_given(
        job("1", 0, job_class="long"), job("2", 50, job_class="short"), classes=(long, short), nodes=quarter
    )
    assert given == {"1": 0, "2": 1}


def test_a_job_that_has_waited_very_long_comes_before_a_short_one():
    long, short = JobClass("long", speed(g1=500)), JobClass("short", speed(g1=400))
    quarter = (node("n1", Resources(4, 1, 16000)),)
    jobs = job("1", 0, job_class="long"), job("2", 99_990, job_class="short")
    given = gpus_given(*jobs, classes=(long, short), nodes=quarter, time_s=100_000.0)
    assert given == {"1": 1, "2": 0}


def test_a_job_waits_for_room_that_is_soon_free_if_that_is_worth_it():
    busy = (node("n1", Resources(4, 1, 16000)),)
    ends_soon = running("9", "n1", Resources(12, 3, 48000), start_time_s=3, end_limit_s=5000, job_class="short")
    short = JobClass("short", speed(g1=100))
    steep = JobClass("steep", speed(g1=4000, g4=100))
    seen = state(
        job("1", 90, job_class="steep", time_limit_s=None), nodes=busy, running=(ends_soon,), classes=(short, steep)
    )
    decisions = decide("price", seen)
    assert where(decisions, "1") is None
    assert "worth waiting" in decisions["1"].reason
    assert decisions["1"].runners_up[0].placement is not None
    flat = JobClass("flat", speed(g1=100, g2=98, g4=97))
    assert gpus_given(job("1", 90, job_class="flat"), nodes=busy, running=(ends_soon,), classes=(short, flat)) == {
        "1": 1
    }


def test_a_starving_job_keeps_a_node_from_jobs_that_would_delay_it():
    nodes = (node("n1", Resources(8, 2, 32000)),)
    ends = running("9", "n1", Resources(8, 2, 32000), end_limit_s=100_600, start_time_s=99_000)
    whole = fixed("1", NODE, job_class="quick", time_limit_s=300)
    late = fixed("2", Resources(4, 1, 8000), 99_999, job_class="slow", time_limit_s=90_000)
    known = (JobClass("quick", speed(g1=100)), JobClass("slow", speed(g1=50_000)))
    seen = state(whole, late, nodes=nodes, running=(ends,), classes=known, time_s=100_000.0)
    heedless = Prices(keepers=0.0)  # nobody keeps anything from others, unless it starves
    for patience, placed in ((9.0, set()), (math.inf, {"2"})):
        decisions = PricePolicy(heedless, patience).decide(seen)
        assert {decision.job_id for decision in decisions if decision.placement} == placed


def test_jobs_of_others_are_left_their_room_and_smaller_amounts_are_tried():
    theirs = foreign("9", Resources(8, 2, 32000), priority=5000)
    seen = state(job("1", job_class="scales", time_limit_s=90_000), theirs, nodes=(node("n1"),), classes=(SCALES,))
    assert amounts(decide("price", seen), "1").gpus <= 2


def test_runners_up_are_scored_and_none_is_better_than_what_was_chosen():
    seen = state(job("1", job_class="scales"), job("2", 1, job_class="half"), classes=(SCALES, HALF_GAIN))
    for decision in decide("price", seen).values():
        scores = [alternative.score for alternative in decision.runners_up]
        assert scores == sorted(scores, reverse=True)
        assert scores
        assert scores[0] <= decision.score


def test_a_job_that_no_node_can_run_waits_with_the_reason():
    too_large = fixed("1", Resources(4, 8, 8000))
    assert "no node" in decide("price", state(too_large))["1"].reason


# Choices and outlook.


def test_choices_are_worth_having_and_read_the_model_as_it_reads_itself():
    seen = state(job("1", job_class="scales"), classes=(SCALES,))
    table = choices.of(seen, seen.pending[0], NODE)
    assert [each.gpus for each in table.amounts()] == [1, 2, 3, 4]
    assert {each.cpus for each in table.amounts()} == {1}, "more CPUs do nothing for this class"
    for each, seconds in zip(table.amounts(), table.seconds, strict=True):
        assert seconds == pytest.approx(SCALES.speed.duration_s(each))


models = st.builds(
    lambda cpus, gpus, mem, seconds: SpeedModel(cpus, gpus, mem, tuple(seconds[: len(cpus) * len(gpus) * len(mem)])),
    st.sampled_from([(1,), (1, 4), (2, 3, 16)]),
    st.sampled_from([(0,), (1, 2), (0, 1, 8)]),
    st.sampled_from([(1000,), (2000, 9000)]),
    st.lists(st.none() | st.floats(1, 1e5), min_size=18, max_size=18),
)


@given(
    models, st.lists(st.tuples(st.integers(0, 70), st.integers(0, 9), st.integers(0, 99_999)), min_size=1, max_size=9)
)
def test_many_durations_at_once_are_those_of_the_model_one_by_one(model, rows):
    seconds, _ = choices.seconds_on(model, choices.np.array(rows))
    for row, at_once in zip(rows, seconds, strict=True):
        one = model.duration_s(Resources(*row))
        assert at_once == pytest.approx(one) or (math.isinf(one) and math.isinf(at_once))


@pytest.mark.parametrize("name", ["fifo", "min", "price", "random"])
def test_where_memory_is_not_counted_jobs_are_placed_without_it(name):
    uncounted = {"requested": Resources(4, 1, 0), "minimum": Resources(1, 1, 0), "maximum": Resources(16, 4, 0)}
    hungry = JobClass("hungry", SpeedModel((1,), (1, 2), (4000, 16000), (None, 30.0, None, 20.0)))
    seen = state(job("1", job_class="hungry", **uncounted), job("2", 1, **uncounted), classes=(hungry,))
    assert all(decision.placement is not None for decision in decide(name, seen).values())


def test_an_unknown_job_gets_nothing_slower_than_what_it_asks_for():
    asked = Resources(4, 2, 8000)
    seen = state(job("1", requested=asked))
    as_asked = prior(asked, 3600).duration_s(asked)
    for each in choices.of(seen, seen.pending[0], NODE).amounts():
        assert prior(asked, 3600).duration_s(each) <= as_asked * 1.01


def test_the_time_limit_tells_of_the_length_of_a_job_whose_class_varies():
    wide = JobClass("wide", SpeedModel((1,), (1,), (1,), (100.0,), (1.0,)))
    narrow = JobClass("narrow", SpeedModel((1,), (1,), (1,), (100.0,), (0.01,)))

    def expected(job_class: str, limit_s: int) -> float:
        seen = state(job("1", job_class=job_class, time_limit_s=limit_s), classes=(wide, narrow))
        return float(choices.of(seen, seen.pending[0], NODE).seconds.min())

    assert expected("wide", 6000) > 1.5 * expected("wide", 600)
    assert expected("narrow", 6000) == pytest.approx(100, rel=0.01)


@given(st.floats(1, 1e4), st.floats(0, 2), st.integers(0, 20_000))
def test_a_running_job_is_expected_to_end_and_not_after_its_limit(seconds, log_std, elapsed_s):
    known = JobClass("known", SpeedModel((1,), (1,), (1,), (seconds,), (log_std,)))
    held = running("1", "n1", Resources(1, 1, 1000), start_time_s=0, end_limit_s=15_000, job_class="known")
    rest_s = remaining_s(state(running=(held,), classes=(known,), time_s=float(elapsed_s)), held)
    assert 0 <= rest_s <= max(0, 15_000 - elapsed_s)
    if elapsed_s == 0:
        assert rest_s == pytest.approx(min(seconds, 15_000))
