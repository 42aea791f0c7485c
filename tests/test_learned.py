"""The learned policy: whatever its weights say, its decisions hold; the same state gets the same answer."""

import random
from functools import lru_cache
from statistics import fmean

import pytest
import torch
from cluster_states import NODE, fixed, foreign, job, node, running, speed, state, states
from hypothesis import given, settings
from msgspec.structs import replace

from tapfinger_hpc import checkpoint, fit
from tapfinger_hpc.decision import Decision, guard_all
from tapfinger_hpc.live import MAX_REFUSALS
from tapfinger_hpc.nets.config import NetworkConfig
from tapfinger_hpc.nets.policy_network import PolicyNetwork
from tapfinger_hpc.policies import registry
from tapfinger_hpc.policies.learned import LearnedPolicy
from tapfinger_hpc.policies.price import PricePolicy
from tapfinger_hpc.sim.cluster_spec import ClusterSpec
from tapfinger_hpc.sim.run import replay
from tapfinger_hpc.speed import JobClass
from tapfinger_hpc.state import ClusterState, Partition, Resources
from tapfinger_hpc.workload import demo_trace

torch.set_num_threads(1)
BOTH = (Partition("pa", ("n1",)), Partition("pb", ("n2",)))


@lru_cache
def untrained(seed: int = 0, waiting: float = 0.0) -> LearnedPolicy:
    """A policy of random weights, more or less inclined to wait."""
    torch.manual_seed(seed)
    network = PolicyNetwork(NetworkConfig(hidden=16))
    with torch.no_grad():
        network.wait[2].bias += waiting
    return LearnedPolicy(network.compiled())


@lru_cache
def indifferent(waiting: float) -> LearnedPolicy:
    """All weights are zero: every option is as good as any other; only waiting is worth something."""
    network = PolicyNetwork(NetworkConfig(hidden=16))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.wait[2].bias += waiting
    return LearnedPolicy(network.compiled())


@lru_cache
def shipped() -> LearnedPolicy:
    return LearnedPolicy.load()


def placements(decisions: tuple[Decision, ...]) -> dict[str, str]:
    return {each.job_id: str(each.placement) for each in decisions if each.placement is not None}


@given(states())
@settings(max_examples=60, deadline=None)
def test_every_managed_job_gets_one_decision_and_every_placement_passes_the_guard(given: ClusterState) -> None:
    for policy in (untrained(1, waiting=-3.0), untrained(2), shipped()):
        decisions = policy.decide(given)
        ours = sorted(each.key for each in given.pending if each.managed and each.eligible)
        assert sorted(each.key for each in decisions) == ours
        allowed, refused, _ = guard_all(decisions, given)
        assert refused == []
        waits = [each.placement is None for each in allowed]
        assert waits == sorted(waits), "placements come first"


@given(states())
@settings(max_examples=40, deadline=None)
def test_the_same_state_gets_the_same_answer_however_it_was_listed(given: ClusterState) -> None:
    draw, shuffled = random.Random(5), given
    for part in ("nodes", "partitions", "pending", "running", "classes"):
        items = list(getattr(given, part))
        draw.shuffle(items)
        shuffled = replace(shuffled, **{part: tuple(items)})
    answer = shipped().decide(given)
    assert shipped().decide(given) == answer
    assert shipped().decide(shuffled) == answer
    assert shipped().decide(ClusterState.from_json(given.to_json())) == answer


@given(states())
@settings(max_examples=40, deadline=None)
def test_runners_up_could_have_been_chosen(given: ClusterState) -> None:
    for decision in untrained(3, waiting=-3.0).decide(given):
        if decision.placement is None:
            continue
        (waiting,) = (each for each in given.pending if each.key == decision.key)
        assert any(other.placement is None for other in decision.runners_up)
        for other in decision.runners_up:
            if other.placement is not None:
                assert other.placement != decision.placement
                assert fit.allowed(waiting, other.placement.amounts)
                assert fit.fits_node(waiting, given.node(other.placement.node), other.placement.amounts)


def test_a_job_that_two_agents_want_is_placed_once() -> None:
    for seed in range(5):
        wanted = [fixed(str(number), Resources(4, 1, 8000), partitions=("pa", "pb")) for number in range(4)]
        decisions = untrained(seed, waiting=-20.0).decide(state(*wanted, partitions=BOTH))
        assert len(placements(decisions)) == len({each.key for each in decisions}) == 4


def test_of_two_agents_that_want_a_job_alike_the_one_with_more_room_gets_it() -> None:
    wanted = job("1", partitions=("pa", "pb"))
    nodes = [node("n1", NODE - Resources(8, 2, 32000)), node("n2")]
    (decision,) = indifferent(-50.0).decide(state(wanted, nodes=nodes, partitions=BOTH))
    assert decision.placement is not None
    assert decision.placement.partition == "pb"
    assert "over pa" in decision.reason


def test_where_all_is_equal_the_first_partition_gets_the_job() -> None:
    (decision,) = indifferent(-50.0).decide(state(job("1", partitions=("pa", "pb")), partitions=BOTH))
    assert decision.placement is not None
    assert decision.placement.partition == "pa"


def test_a_policy_that_would_rather_wait_does_not_leave_an_idle_cluster_idle() -> None:
    decisions = indifferent(50.0).decide(state(job("1"), job("2"), job("3", partitions=("pb",)), partitions=BOTH))
    assert sorted({each.placement.partition for each in decisions if each.placement}) == ["pa", "pb"]
    assert any("idle" in each.reason for each in decisions)


def test_a_policy_that_would_rather_wait_waits_while_something_runs_where_the_job_could() -> None:
    holding = running("9", "n1", Resources(1, 1, 1000))
    nodes = [node("n1", NODE - Resources(1, 1, 1000)), node("n2")]
    (decision,) = indifferent(50.0).decide(state(job("1"), nodes=nodes, running=(holding,)))
    assert decision.placement is None
    assert "rather wait" in decision.reason


def test_a_job_that_several_agents_half_want_is_taken_by_one_of_them() -> None:
    held = Resources(1, 1, 1000)
    busy = [node("n1", NODE - held), node("n2", NODE - held)]
    holding = (running("8", "n1", held), running("9", "n2", held))
    by_one, by_two = (
        indifferent(0.3).decide(state(job("1", partitions=names), nodes=busy, partitions=BOTH, running=holding))
        for names in (("pa",), ("pa", "pb"))
    )
    assert by_one[0].placement is None
    assert by_two[0].placement is not None


def test_a_choice_that_the_guard_refuses_is_not_made_and_the_next_is_tried() -> None:
    """Job 2 is not ours, comes first, and will need all of n1 when job 9 ends; n2 is of no use to it."""
    first = foreign("2", NODE, priority=5000, time_limit_s=600)
    nodes = [
        node("n1", NODE - Resources(1, 1, 1000)),
        node("n2", Resources(8, 2, 32000), capacity=Resources(8, 2, 32000)),
    ]
    holding = running("9", "n1", Resources(1, 1, 1000), end_limit_s=200)
    given = state(job("1"), first, nodes=nodes, running=(holding,))
    for seed in range(6):
        (decision,) = untrained(seed, waiting=-20.0).decide(given)
        assert decision.placement is not None
        assert decision.placement.node == "n2"


def test_a_job_that_the_guard_refuses_everywhere_waits_and_says_why() -> None:
    first = foreign("2", NODE, priority=5000, time_limit_s=600)
    holding = running("9", "n1", Resources(1, 1, 1000), end_limit_s=200)
    given = state(job("1"), first, nodes=[node("n1", NODE - Resources(1, 1, 1000))], running=(holding,))
    (decision,) = untrained(waiting=-20.0).decide(given)
    assert decision.placement is None
    assert "would start later" in decision.reason


def test_refusals_come_to_an_end() -> None:
    first = foreign("1000", NODE, priority=5000, time_limit_s=600)
    holding = running("9", "n1", Resources(1, 1, 1000), end_limit_s=200)
    many = [job(str(number)) for number in range(1, 3 * MAX_REFUSALS)]
    given = state(*many, first, nodes=[node("n1", NODE - Resources(1, 1, 1000))], running=(holding,))
    decisions = untrained(waiting=-20.0).decide(given)
    assert len(decisions) == len(many)
    assert placements(decisions) == {}


def test_a_job_without_room_and_one_that_can_never_run_say_so() -> None:
    full = [node("n1", Resources()), node("n2", Resources())]
    no_room, never = untrained().decide(state(job("1"), fixed("2", Resources(64, 1, 1000)), nodes=full))
    assert "not free" in no_room.reason
    assert "can run it" in never.reason


def test_a_reason_names_agent_node_amounts_and_probabilities() -> None:
    (decision,) = indifferent(-50.0).decide(state(job("1")))
    place = decision.placement
    assert place is not None
    for word in (
        place.partition,
        place.node,
        f"{place.amounts.gpus} GPUs",
        f"{place.amounts.cpus} CPUs",
        "probability",
    ):
        assert word in decision.reason


def test_a_job_for_which_others_leave_no_room_does_not_blame_the_partition() -> None:
    decisions = untrained(waiting=-20.0).decide(state(fixed("1", NODE), fixed("2", NODE), nodes=[node("n1")]))
    assert decisions[0].placement is not None
    assert "not free" in decisions[1].reason


def test_a_state_in_which_nothing_is_ours_gets_no_decisions() -> None:
    assert untrained().decide(ClusterState(0.0, (), ())) == ()
    assert untrained().decide(state(foreign("1", Resources(1, 1, 1000)), job("2", eligible=False))) == ()


def test_the_shipped_policy_is_the_one_that_the_registry_makes() -> None:
    policy = registry.make("tapfinger")
    assert isinstance(policy, LearnedPolicy)
    assert policy.info == checkpoint.describe(checkpoint.DEFAULT)
    assert policy.info.training.scenario == "random,cluster"
    assert sum(file.stat().st_size for file in checkpoint.DEFAULT.iterdir()) < 2_000_000


def test_the_shipped_policy_gives_more_gpus_to_the_job_that_gains_by_them() -> None:
    classes = (JobClass("flat", speed(g1=600, g2=598, g4=597)), JobClass("steep", speed(g1=600, g2=300, g4=150)))
    given = state(job("1", job_class="flat"), job("2", job_class="steep"), classes=classes)
    gpus = {each.job_id: each.placement.amounts.gpus for each in shipped().decide(given) if each.placement}
    assert gpus["2"] > gpus["1"] == 1


@given(states())
@settings(max_examples=30, deadline=None)
def test_a_network_that_heeds_the_advice_alone_places_what_the_heuristic_does(given: ClusterState) -> None:
    expected = placements(PricePolicy().decide(given))
    decisions = heeding().decide(given)
    refused = any("for the sake of others" in each.reason or "refused" in each.reason for each in decisions)
    if not refused:
        found = placements(decisions)
        assert {key: found.get(key) for key in expected} == expected


@lru_cache
def heeding() -> LearnedPolicy:
    torch.manual_seed(0)
    network = PolicyNetwork(NetworkConfig(hidden=16))
    network.heed(1000.0)
    return LearnedPolicy(network.compiled())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2_000_001, 2_000_002, 2_000_003])
def test_the_shipped_policy_beats_stock_slurm_on_the_demo(seed: int) -> None:
    trace = demo_trace(seed)

    def mean_completion_s(policy: LearnedPolicy | None) -> float:
        records = replay(trace, ClusterSpec.uniform(), policy, interval_s=1.0)
        return fmean(record.completion_s for record in records)

    assert mean_completion_s(shipped()) < 0.8 * mean_completion_s(None)
