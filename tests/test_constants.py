"""Constants of the price heuristic in a file: read with suspicion, and decided by wherever a server is told to."""

import json
import math

import pytest
import torch
from click.testing import CliRunner
from cluster_states import job, speed, state

from policy_server.loading import load_placer
from tapfinger_hpc import checkpoint
from tapfinger_hpc.config import ServerConfig
from tapfinger_hpc.errors import ConfigError
from tapfinger_hpc.nets.config import NetworkConfig
from tapfinger_hpc.nets.policy_network import PolicyNetwork
from tapfinger_hpc.policies import constants, registry
from tapfinger_hpc.policies.compiled import tune_cli, tuned
from tapfinger_hpc.policies.compiled.price import Prices
from tapfinger_hpc.sim.cli import evaluate
from tapfinger_hpc.speed import JobClass

SHIPPED = tuned.prices("cluster")
CHEAP, DEAR = SHIPPED._replace(base=0.01, load=0.01), SHIPPED._replace(base=20.0)
"""Where amounts cost little a lonely job takes all that make it faster, else the least."""
LONELY = state(job("1", job_class="known"), classes=(JobClass("known", speed(g1=100, g4=40)),))


@pytest.fixture
def file(tmp_path):
    def made(prices: Prices) -> str:
        path = tmp_path / "constants.json"
        constants.write(path, prices, {"scenario": "site-1"})
        return str(path)

    return made


def gpus(policy) -> int:
    (decision,) = policy.decide(LONELY)
    assert decision.placement is not None
    return decision.placement.amounts.gpus


def test_constants_that_were_written_are_read_again(tmp_path):
    path = tmp_path / "constants.json"
    constants.write(path, DEAR, {"generations": 7})
    assert constants.read(path) == DEAR
    assert json.loads(path.read_text())["generations"] == 7


def test_where_they_cannot_be_written_is_said(tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        constants.write(tmp_path / "nowhere" / "constants.json", DEAR, {})


def without(name: str) -> dict:
    return {key: value for key, value in SHIPPED._asdict().items() if key != name}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "not JSON"),
        ("[]", "expected"),
        ('{"constants": {}}', "expected"),
        (json.dumps({"prices": {**SHIPPED._asdict(), "bass": 1}}), "prices.bass is not a constant"),
        (json.dumps({"prices": without("soon")}), "prices.soon is missing"),
        (json.dumps({"prices": {**SHIPPED._asdict(), "base": "much"}}), "prices.base: .*'much'"),
        (json.dumps({"prices": {**SHIPPED._asdict(), "base": True}}), "prices.base: .*True"),
        (json.dumps({"prices": {**SHIPPED._asdict(), "base": math.nan}}), "prices.base: .*nan"),
        (json.dumps({"prices": {**SHIPPED._asdict(), "patience": 40.0}}), "prices.patience: .*from 0.5 to 4, seen 40"),
    ],
)
def test_a_file_that_holds_no_constants_is_refused_with_what_is_wrong(tmp_path, content, why):
    path = tmp_path / "constants.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=why) as refused:
        constants.read(path)
    assert str(path) in str(refused.value)
    assert "tapfinger tune" in str(refused.value)


def test_the_live_heuristic_goes_by_them():
    assert (gpus(registry.make("price", prices=CHEAP)), gpus(registry.make("price", prices=DEAR))) == (4, 1)


def test_the_server_has_its_policy_and_its_fallback_go_by_them(file, tmp_path):
    served = load_placer(ServerConfig(policy="price", constants=file(DEAR)))
    standing_in = load_placer(ServerConfig(checkpoint=str(tmp_path / "nowhere"), constants=file(DEAR)))
    for placer, name in ((served, "price"), (standing_in, "price")):
        answer = placer.decide(LONELY)
        assert answer.policy.name == name
        assert answer.decisions[0].placement.amounts.gpus == 1
        assert placer.description().constants_file == str(tmp_path / "constants.json")


def test_the_network_that_is_served_hears_the_advice_of_them(file, tmp_path):
    torch.manual_seed(0)
    heeding = PolicyNetwork(NetworkConfig(hidden=8, rounds=1, heads=1))
    heeding.heed(1000.0)
    training = checkpoint.Training(
        "nowhere", "oracle", "", seed=0, iterations=0, minutes=0.0, episodes=0, workers=1, versions={}
    )
    folder = tmp_path / "heeding"
    checkpoint.save(folder, heeding.config, heeding.weights(), training, advice=tuple(CHEAP))
    for prices, expected in ((CHEAP, 4), (DEAR, 1)):
        placer = load_placer(ServerConfig(checkpoint=str(folder), constants=file(prices)))
        answer = placer.decide(LONELY)
        assert answer.policy.name == "tapfinger"
        assert answer.decisions[0].placement.amounts.gpus == expected


@pytest.mark.parametrize("policy", ["price", "tapfinger", "fifo"])
def test_a_server_does_not_start_with_constants_that_cannot_be_used(tmp_path, policy):
    with pytest.raises(ConfigError, match=r"gone\.json"):
        load_placer(ServerConfig(policy=policy, constants=str(tmp_path / "gone.json")))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--trace", "t", "--cluster", "c", "--scenario", "random"], ["--scenario", "--trace"]),
        (["--trace", "t", "--cluster", "c", "--table", "t"], ["--table", "--trace"]),
        (["--trace", "t"], ["--trace", "--cluster"]),
        (["--manage", "gpu", "--scenario", "random"], ["--manage", "--trace"]),
        ([], ["--scenario", "--trace"]),
    ],
)
def test_options_of_tune_that_do_not_go_together_are_named(arguments, named, tmp_path):
    done = CliRunner().invoke(tune_cli.tune, ["--out", str(tmp_path / "out"), *arguments])
    assert done.exit_code == 2
    assert all(option in done.output for option in named)


@pytest.mark.parametrize(
    ("policies", "holds", "named"),
    [("fifo,easy", SHIPPED, "price and tapfinger"), ("price", None, "gone.json")],
)
def test_constants_that_no_policy_goes_by_or_that_cannot_be_read_are_told_at_once(
    file, tmp_path, policies, holds, named
):
    path = file(holds) if holds else str(tmp_path / "gone.json")
    given = ["--trace", "t", "--cluster", "c", "--policies", policies, "--constants", path]
    done = CliRunner().invoke(evaluate, given)
    assert done.exit_code == 2
    assert named in done.output
