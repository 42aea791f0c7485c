"""The policy server through Flask's own client: answers, refusals, and what a failing policy costs."""

import json
import logging
import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from flask.testing import FlaskClient
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from werkzeug.test import TestResponse

from policy_server import openapi
from policy_server.app import create_app
from policy_server.example import EXAMPLE_STATE
from policy_server.loading import load_placer
from policy_server.placer import Placer
from tapfinger_hpc import wire
from tapfinger_hpc.config import ServerConfig
from tapfinger_hpc.decision import Decision, Placement, guard_all
from tapfinger_hpc.policies import registry
from tapfinger_hpc.state import ClusterState, Node, Partition, PendingJob, Resources

TOKEN = "correct-horse-battery-staple"
NUMPY_POLICIES = ("fifo", "min", "random", "price")


class Answering:
    """A policy that answers with what a test gives it, whatever its type."""

    name = "answering"

    def __init__(self, answer: Callable[[ClusterState], Any]) -> None:
        self._answer = answer

    def decide(self, state: ClusterState) -> Any:
        return self._answer(state)


def client_of(policy: str | Answering = "fifo", **options: Any) -> FlaskClient:
    made = registry.make(policy) if isinstance(policy, str) else policy
    return create_app(Placer(made, registry.make("min")), **options).test_client()


def ask(client: FlaskClient, state: ClusterState | bytes, **headers: str) -> TestResponse:
    body = state if isinstance(state, bytes) else state.to_json()
    return client.post(wire.DECIDE, data=body, headers={"Content-Type": wire.JSON, **headers})


def answer(client: FlaskClient, state: ClusterState) -> wire.DecideResponse:
    response = ask(client, state)
    assert response.status_code == 200, response.text
    assert response.content_type == wire.JSON
    return msgspec.json.decode(response.data, type=wire.DecideResponse)


def problem(response: TestResponse, status: int) -> wire.Problem:
    assert response.status_code == status, response.text
    assert response.content_type == wire.PROBLEM_JSON
    told = msgspec.json.decode(response.data, type=wire.Problem)
    assert told.status == status
    return told


def health(client: FlaskClient) -> wire.Health:
    return msgspec.json.decode(client.get(wire.HEALTH).data, type=wire.Health)


def busy_cluster(seed: int, nodes: int = 4, pending: int = 12) -> ClusterState:
    """A cluster with jobs of ours and of others, held jobs, two partitions and a node that is down."""
    draw = random.Random(seed)
    names = [f"n{number}" for number in range(nodes)]
    return ClusterState(
        time_s=10_000.0,
        nodes=tuple(
            Node(name, Resources(16, 4, 64000), Resources(draw.randint(0, 16), draw.randint(0, 4), 64000), name != "n0")
            for name in names
        ),
        partitions=(Partition("a", tuple(names[: nodes // 2 + 1])), Partition("b", tuple(names[nodes // 2 :]))),
        pending=tuple(
            PendingJob(
                job_id=str(100 + number),
                submit_time_s=9_000 + number,
                partitions=draw.choice([("a",), ("b",), ("a", "b")]),
                requested=Resources(4, 2, 8000),
                minimum=Resources(1, draw.randint(0, 1), 1000),
                maximum=Resources(8, draw.randint(1, 4), 16000),
                priority=draw.randint(0, 100),
                time_limit_s=3600,
                managed=draw.random() < 0.8,
                eligible=draw.random() < 0.9,
            )
            for number in range(pending)
        ),
    )


def as_json(state: ClusterState) -> Any:
    """What the wire carries, as plain lists and dictionaries that a test may change."""
    return json.loads(state.to_json())


def ours(state: ClusterState) -> set[tuple[str, int]]:
    return {job.key for job in state.pending if job.managed and job.eligible}


# -- answers


@pytest.mark.parametrize("policy", NUMPY_POLICIES)
@pytest.mark.parametrize("seed", range(5))
def test_every_managed_eligible_job_gets_one_decision_that_the_guard_allows(policy: str, seed: int) -> None:
    state = busy_cluster(seed)
    given = answer(client_of(policy), state)
    assert given.policy == wire.PolicyInfo(policy)
    assert sorted(decision.key for decision in given.decisions) == sorted(ours(state))
    assert guard_all(given.decisions, state)[1] == []
    waits = [decision.placement is None for decision in given.decisions]
    assert waits == sorted(waits), "placements come before the jobs that wait"


@pytest.mark.parametrize("policy", NUMPY_POLICIES)
def test_the_same_state_gets_the_same_answer_from_another_server_and_in_any_order(policy: str) -> None:
    state = busy_cluster(7)
    shuffled = as_json(state)
    for items in (shuffled["nodes"], shuffled["partitions"], shuffled["pending"]):
        random.Random(1).shuffle(items)
    client = client_of(policy)
    answer(client, busy_cluster(8))
    first = answer(client_of(policy), state)
    second = msgspec.json.decode(ask(client, json.dumps(shuffled).encode()).data, type=wire.DecideResponse)
    assert first.policy == wire.PolicyInfo(policy)
    assert replace(first, elapsed_ms=0.0) == replace(second, elapsed_ms=0.0)


def test_another_state_has_another_decision_id() -> None:
    client = client_of()
    later = replace(EXAMPLE_STATE, time_s=EXAMPLE_STATE.time_s + 1)
    assert answer(client, EXAMPLE_STATE).decision_id != answer(client, later).decision_id


def test_an_answer_has_the_name_that_the_question_gives_it_and_so_has_the_log(caplog) -> None:
    with caplog.at_level(logging.INFO):
        response = ask(client_of(), EXAMPLE_STATE, **{wire.DECISION_ID: "asked-7"})
    assert json.loads(response.data)["decision_id"] == "asked-7"
    answered, placement = caplog.messages
    assert answered.startswith("event=answered decision=asked-7 policy=fifo jobs=1 placed=1 ")
    assert placement.startswith("event=placement decision=asked-7 job=102 place=")


def test_what_is_refused_or_goes_wrong_is_logged_under_the_name_of_its_question(caplog) -> None:
    assert ask(client_of(), b"{", **{wire.DECISION_ID: "asked-8"}).status_code == 400
    assert "event=refused path=/v1/decide decision=asked-8 status=400" in caplog.text


@pytest.mark.parametrize("name", ["two words", "x" * 65, "line\u0085break", "a=b"])
def test_a_name_that_would_spoil_the_log_is_refused(name: str, caplog) -> None:
    response = ask(client_of(), EXAMPLE_STATE, **{wire.DECISION_ID: name})
    assert wire.DECISION_ID in problem(response, 400).detail
    assert name not in caplog.text


def test_a_state_without_jobs_gets_an_empty_answer() -> None:
    assert answer(client_of(), replace(EXAMPLE_STATE, pending=())).decisions == ()


def test_concurrent_requests_get_the_answers_that_they_would_get_alone() -> None:
    app = create_app(Placer(registry.make("random"), registry.make("min"), patience_s=60.0))
    states = [busy_cluster(seed) for seed in range(8)]
    alone = {state: answer(app.test_client(), state).decisions for state in states}
    together: list[tuple[ClusterState, Any]] = []

    def asker(number: int) -> None:
        client = app.test_client()
        for turn in range(8):
            state = states[(number + turn) % len(states)]
            together.append((state, answer(client, state).decisions))

    threads = [threading.Thread(target=asker, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(together) == 64
    assert all(decisions == alone[state] for state, decisions in together)


def test_who_would_wait_too_long_for_another_decision_is_told_to_come_back() -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(_state: ClusterState) -> tuple[Decision, ...]:
        entered.set()
        leave.wait(30)
        return ()

    app = create_app(Placer(Answering(slow), registry.make("min"), patience_s=0.05))
    first = threading.Thread(target=ask, args=(app.test_client(), EXAMPLE_STATE))
    first.start()
    try:
        assert entered.wait(30)
        refused = ask(app.test_client(), EXAMPLE_STATE)
        assert health(app.test_client()).decisions_served == 0, "health answers while a decision is under way"
    finally:
        leave.set()
        first.join()
    assert "0.05 s" in problem(refused, 503).detail
    assert refused.headers["Retry-After"] == "1"
    assert ask(app.test_client(), EXAMPLE_STATE).status_code == 200


# -- a policy that fails


def boom(_state: ClusterState) -> tuple[Decision, ...]:
    raise RuntimeError("weights are\n not finite")


def test_a_policy_that_raises_is_replaced_by_the_fallback_and_health_says_why() -> None:
    client = client_of(Answering(boom))
    assert health(client).status == "ok"
    state = busy_cluster(3)
    given = answer(client, state)
    why = "policy answering failed: RuntimeError: weights are not finite"
    assert given.policy == wire.PolicyInfo("min", fallback_why=why)
    assert given.decisions == answer(client_of("min"), state).decisions
    told = health(client)
    assert (told.status, told.policy.fallback_why, told.configured_policy) == ("degraded", why, "answering")
    assert (told.decisions_served, told.fallbacks_served) == (1, 1)
    assert msgspec.json.decode(client.get(wire.POLICY).data, type=wire.PolicyDescription).fallback_why == why


def test_a_policy_that_recovers_is_used_again() -> None:
    answers = iter([boom, registry.make("fifo").decide])
    client = client_of(Answering(lambda state: next(answers)(state)))
    assert [answer(client, EXAMPLE_STATE).policy.name for _ in range(2)] == ["min", "answering"]
    assert health(client).status == "ok"


def test_where_policy_and_fallback_fail_every_job_waits_with_the_reason() -> None:
    client = create_app(Placer(Answering(boom), Answering(boom))).test_client()
    given = answer(client, EXAMPLE_STATE)
    assert [decision.placement for decision in given.decisions] == [None]
    assert "weights are not finite" in given.decisions[0].reason


@pytest.mark.parametrize(
    "garbage",
    [
        None,
        "place them all",
        {"102": "node1"},
        [Decision("102", 1_699_999_970, "node1", "no placement")],  # type: ignore[arg-type]
        [Decision("102", 1_699_999_970, None, "not finite", score=float("nan"))],
        [Decision("", -1, None, "no such job")],
        [Decision("102", 1_699_999_970, None, "x" * 1001)],
        [object()],
        [Decision("102", 1_699_999_970, None, "worded score", score="high")],  # type: ignore[arg-type]
    ],
)
def test_an_answer_that_is_no_decisions_counts_as_a_failure_of_the_policy(garbage: Any) -> None:
    given = answer(client_of(Answering(lambda _state: garbage)), EXAMPLE_STATE)
    assert given.policy.name == "min"
    assert given.policy.fallback_why.startswith("policy answering failed: ")
    assert [decision.job_id for decision in given.decisions] == ["102"]


def test_a_score_of_never_travels_as_the_least_number() -> None:
    never = Decision("102", 1_699_999_970, None, "no node can run it", score=float("-inf"))
    (given,) = answer(client_of(Answering(lambda _state: (never,))), EXAMPLE_STATE).decisions
    assert given == replace(never, score=-sys.float_info.max)


def placing(job_id: str, submit_time_s: int, node: str, amounts: Resources, partition: str = "gpu") -> Decision:
    return Decision(job_id, submit_time_s, Placement(partition, node, amounts), "because")


FITTING = placing("102", 1_699_999_970, "node1", Resources(2, 1, 8000))


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (placing("102", 1_699_999_970, "node9", Resources(2, 1, 8000)), "node node9 cannot take job 102"),
        (placing("102", 1_699_999_970, "node2", Resources(2, 1, 8000), "cpu"), "partition cpu is not open"),
        (placing("102", 1_699_999_970, "node2", Resources(99, 1, 8000)), "outside what job 102 declares"),
        (placing("102", 1_699_999_970, "node1", Resources(8, 4, 32000)), "does not fit on node1"),
    ],
)
def test_a_placement_that_the_guard_refuses_becomes_a_wait_and_is_told_apart(wrong: Decision, why: str) -> None:
    given = answer(client_of(Answering(lambda _state: (wrong,))), EXAMPLE_STATE)
    (waiting,) = given.decisions
    assert waiting.placement is None
    assert why in waiting.reason
    assert given.refused == (wire.Refusal(wrong, given.refused[0].why),)
    assert why in given.refused[0].why


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        (placing("103", 1_699_999_990, "node2", Resources(16, 4, 64000)), "job 103 is left to Slurm"),
        (placing("102", 5, "node2", Resources(2, 1, 8000)), "job 102 is no longer pending"),
        (Decision("999", 5, None, "wait"), "job 999 is not a managed, eligible pending job"),
        (Decision("102", 1_699_999_970, None, "wait"), "job 102 was decided before"),
        (FITTING, "job 102 was decided before"),
    ],
)
def test_a_decision_too_many_is_refused_and_the_right_one_stands(extra: Decision, why: str) -> None:
    given = answer(client_of(Answering(lambda _state: (FITTING, extra))), EXAMPLE_STATE)
    assert given.decisions == (FITTING,)
    assert [refusal.decision for refusal in given.refused] == [extra]
    assert why in given.refused[0].why


def test_a_job_that_the_policy_forgot_waits_with_a_reason() -> None:
    given = answer(client_of(Answering(lambda _state: ())), EXAMPLE_STATE)
    assert given.decisions == (Decision("102", 1_699_999_970, None, "policy answering: no decision for this job"),)


def test_placements_that_do_not_fit_together_are_taken_in_their_order() -> None:
    half = Resources(8, 2, 1000)
    job = replace(EXAMPLE_STATE.pending[0], minimum=half, maximum=half)
    jobs = tuple(replace(job, job_id=str(number)) for number in range(6))
    state = replace(EXAMPLE_STATE, pending=jobs)
    greedy = [placing(job.job_id, job.submit_time_s, "node2", half) for job in jobs]
    given = answer(client_of(Answering(lambda _state: greedy)), state)
    assert [decision.placement is not None for decision in given.decisions] == [True, True, *[False] * 4]
    assert given.decisions[:2] == tuple(greedy[:2])


# -- requests that cannot be answered


def changed(path: str, value: Any) -> bytes:
    """The example state with one place of its JSON changed; ``path`` as ``nodes.0.free``."""
    document = as_json(EXAMPLE_STATE)
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    target = document
    for step in steps:
        target = target[step]
    target[last] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("path", "value", "field", "detail"),
    [
        ("time_s", "noon", "/time_s", 'Expected `float`, got `str`, seen: "noon"'),
        ("time_s", -1, "/time_s", "Expected `float` >= 0.0, seen: -1"),
        ("nodes.1.free.cpus", -4, "/nodes/1/free/cpus", "Expected `int` >= 0, seen: -4"),
        ("nodes.1.free.gpus", 0.5, "/nodes/1/free/gpus", "Expected `int`, got `float`, seen: 0.5"),
        ("nodes.0.cpu_step", 65, "/nodes/0/cpu_step", "Expected `int` <= 64, seen: 65"),
        ("nodes.0.capacity", None, "/nodes/0/capacity", "Expected `object`, got `null`"),
        ("nodes.0.name", "", "/nodes/0/name", "length >= 1"),
        ("nodes.0.name", "node2", "/nodes", "'node2' is listed twice"),
        ("nodes.1.free.cpus", 17, "/nodes/1/free", "17 CPUs, 4 GPUs, 64000 MiB free, of 16 CPUs"),
        ("partitions.0.nodes", ["node1", "nowhere"], "/partitions", "'nowhere', which is not among nodes"),
        ("partitions.0.nodes", ["node1", "node1"], "/partitions/0/nodes", "names a node twice"),
        ("partitions.0.nodes", [1], "/partitions/0/nodes/0", "Expected `str`, got `int`"),
        ("pending.0.managed", "yes", "/pending/0/managed", "Expected `bool`"),
        ("pending.0.minimum.gpus", 5, "/pending/0", "minimum 2 CPUs, 5 GPUs"),
        ("pending.0.partitions", [], "/pending/0", "no partition"),
        ("pending.0.nodes_wanted", 2, "/pending/0/nodes_wanted", "a managed job has one"),
        ("pending.0.job_id", "", "/pending/0/job_id", "length >= 1"),
        ("pending.0.shoe_size", 43, "/pending/0/shoe_size", "unknown field `shoe_size`"),
        ("running.0.shares.0.amounts.mem_mb", 2**41, "/running/0/shares/0/amounts/mem_mb", "Expected `int` <="),
        ("classes.0.speed.seconds", [1.0], "/classes/0/speed/seconds", "1 entries for a grid of 4 points"),
        ("classes.0.speed.seconds.2", 0, "/classes/0/speed/seconds/2", "Expected `float` > 0.0, seen: 0"),
        ("a/b~c", 1, "/a~1b~0c", "unknown field `a/b~c`"),
    ],
)
def test_a_wrong_field_is_named_with_the_value_that_was_seen(path: str, value: Any, field: str, detail: str) -> None:
    told = problem(ask(client_of(), changed(path, value)), 422)
    assert told.field == field
    assert detail in told.detail


def test_a_missing_field_is_named() -> None:
    document = as_json(EXAMPLE_STATE)
    del document["nodes"][1]["capacity"]
    assert problem(ask(client_of(), json.dumps(document).encode()), 422).field == "/nodes/1/capacity"


def test_a_job_that_is_both_pending_and_running_is_named_where_the_request_has_it() -> None:
    document = as_json(EXAMPLE_STATE)
    document["pending"].reverse()
    document["running"].append({**document["running"][0], "job_id": "102", "submit_time_s": 1_699_999_970})
    told = problem(ask(client_of(), json.dumps(document).encode()), 422)
    assert (told.field, told.detail) == ("/pending/1/job_id", "job 102 is both pending and running")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b'{"time_s": NaN}', b"\xff\xfe", b'{"\xff": 1}', b'{"time_s":"\\ud800"}', b"[" * 100_000],
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    assert problem(ask(client_of(), body), 400).title == "The body is not JSON"


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_another_content_type_is_refused(content_type: str) -> None:
    response = client_of().post(wire.DECIDE, data=EXAMPLE_STATE.to_json(), content_type=content_type)
    assert "application/json" in problem(response, 415).detail


def test_a_compressed_body_is_refused() -> None:
    assert "gzip" in problem(ask(client_of(), EXAMPLE_STATE, **{"Content-Encoding": "gzip"}), 415).detail


def test_json_with_a_charset_is_read() -> None:
    assert ask(client_of(), EXAMPLE_STATE, **{"Content-Type": "application/json; charset=utf-8"}).status_code == 200


def test_a_body_above_the_limit_is_refused_and_one_at_the_limit_is_read() -> None:
    body = EXAMPLE_STATE.to_json()
    assert ask(client_of(max_body_bytes=len(body)), body).status_code == 200
    assert f"at most {len(body) - 1} bytes" in problem(ask(client_of(max_body_bytes=len(body) - 1), body), 413).detail


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/decide/", "/v2/decide", "/static/x", "/v1/../etc/passwd"])
def test_an_unknown_route_is_a_problem_that_says_where_the_routes_are(path: str) -> None:
    assert wire.OPENAPI in problem(client_of().get(path), 404).detail


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", wire.DECIDE, "POST"),
        ("OPTIONS", wire.DECIDE, "POST"),
        ("POST", wire.HEALTH, "GET, HEAD"),
        ("DELETE", wire.POLICY, "GET, HEAD"),
        ("PUT", wire.OPENAPI, "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(method: str, path: str, allowed: str) -> None:
    response = client_of().open(path, method=method)
    assert allowed in problem(response, 405).detail
    assert response.headers["Allow"] == allowed


@pytest.mark.parametrize("path", [wire.DECIDE, wire.HEALTH, wire.POLICY, wire.OPENAPI, "/nowhere"])
@pytest.mark.parametrize("sent", [None, "", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, "\xff"])
def test_without_the_token_no_route_says_anything(path: str, sent: str | None) -> None:
    headers = {} if sent is None else {"Authorization": sent}
    response = client_of(token=TOKEN).open(path, method="POST" if path == wire.DECIDE else "GET", headers=headers)
    assert problem(response, 401) == wire.Problem("Unauthorized", 401)
    assert response.headers["WWW-Authenticate"] == "Bearer"


def test_with_the_token_the_routes_answer() -> None:
    client = client_of(token=TOKEN)
    assert ask(client, EXAMPLE_STATE, Authorization=f"Bearer {TOKEN}").status_code == 200
    assert client.get(wire.HEALTH, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_a_mistake_of_ours_is_a_problem_without_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Placer):
        def health(self) -> wire.Health:
            raise KeyError("inner workings")

    client = create_app(Broken(registry.make("fifo"), registry.make("min"))).test_client()
    told = problem(client.get(wire.HEALTH), 500)
    assert "inner workings" not in told.detail
    assert "inner workings" in caplog.text


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FUZZED = client_of("random")


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_body_gets_an_answer_or_a_problem(body: bytes) -> None:
    problem(ask(FUZZED, body), 400 if not _is_json(body) else 422)


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_any_change_of_a_state_gets_an_answer_or_a_problem_that_names_a_field(data: st.DataObject) -> None:
    document = as_json(EXAMPLE_STATE)
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(_places(document)))
        near = st.sampled_from([0, 1, 2**40, 1_699_999_970, "node1", "102", "103", "gpu", "", None, True])
        container[key] = data.draw(JSON_VALUES | near)
    response = ask(FUZZED, json.dumps(document).encode())
    if response.status_code == 200:
        state = ClusterState.from_json(json.dumps(document).encode())
        given = msgspec.json.decode(response.data, type=wire.DecideResponse)
        assert {decision.key for decision in given.decisions} == ours(state)
        assert guard_all(given.decisions, state)[1] == []
        assert given.policy.fallback_why == ""
    else:
        problem(response, 422)


def _places(value: Any) -> list[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    here = [(value, key) for key in keys]
    return here + [place for key in keys for place in _places(value[key])]


def _is_json(body: bytes) -> bool:
    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


# -- what the server tells of itself


def test_health_counts_the_answers_and_not_the_refusals() -> None:
    client = client_of()
    for _ in range(3):
        answer(client, EXAMPLE_STATE)
    ask(client, b"{}")
    told = health(client)
    assert (told.status, told.policy.name, told.decisions_served, told.fallbacks_served) == ("ok", "fifo", 3, 0)
    assert told.uptime_s >= 0


def test_a_checkpoint_that_cannot_be_loaded_costs_the_policy_and_not_the_server(tmp_path: Path) -> None:
    placer = load_placer(ServerConfig(policy="tapfinger", checkpoint=str(tmp_path / "nowhere"), fallback="min"))
    client = create_app(placer).test_client()
    told = health(client)
    assert (told.status, told.configured_policy, told.policy.name) == ("degraded", "tapfinger", "min")
    assert "nowhere" in told.policy.fallback_why
    given = answer(client, EXAMPLE_STATE)
    assert given.policy == told.policy
    assert health(client).fallbacks_served == 1


@pytest.fixture
def checkpoint_folder(tmp_path: Path) -> Path:
    """A checkpoint whose weights were never trained."""
    torch = pytest.importorskip("torch")
    from tapfinger_hpc import checkpoint
    from tapfinger_hpc.nets.config import NetworkConfig
    from tapfinger_hpc.nets.policy_network import PolicyNetwork

    torch.manual_seed(0)
    network = PolicyNetwork(NetworkConfig(hidden=8, rounds=1, heads=1))
    training = checkpoint.Training(
        "nowhere", "oracle", "", seed=0, iterations=0, minutes=0.0, episodes=0, workers=1, versions={}
    )
    checkpoint.save(tmp_path / "untrained", network.config, network.weights(), training)
    return tmp_path / "untrained"


def test_the_learned_policy_is_served_and_its_checkpoint_told(checkpoint_folder: Path) -> None:
    client = create_app(load_placer(ServerConfig(checkpoint=str(checkpoint_folder)))).test_client()
    state = busy_cluster(2)
    given = answer(client, state)
    told = msgspec.json.decode(client.get(wire.POLICY).data, type=wire.PolicyDescription)
    assert given.policy == wire.PolicyInfo("tapfinger", checkpoint=told.checkpoint)
    assert sorted(decision.key for decision in given.decisions) == sorted(ours(state))
    assert guard_all(given.decisions, state)[1] == []
    assert replace(answer(client, state), elapsed_ms=0.0) == replace(given, elapsed_ms=0.0)
    assert len(told.checkpoint) == 12
    assert (told.configuration["hidden"], told.training["scenario"], told.fallback) == (8, "nowhere", "price")
    assert isinstance(told.schema_version, int)


def test_a_torn_checkpoint_leaves_the_answers_to_the_fallback(checkpoint_folder: Path) -> None:
    (weights,) = checkpoint_folder.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    client = create_app(load_placer(ServerConfig(checkpoint=str(checkpoint_folder)))).test_client()
    given = answer(client, EXAMPLE_STATE)
    assert given.policy.name == "price"
    assert weights.name in given.policy.fallback_why


def test_the_openapi_document_has_every_route_with_its_method_and_no_other() -> None:
    app = create_app(Placer(registry.make("fifo"), registry.make("min")))
    routes = {
        (rule.rule, method) for rule in app.url_map.iter_rules() for method in rule.methods or () if method != "HEAD"
    }
    paths = json.loads(app.test_client().get(wire.OPENAPI).data)["paths"]
    assert {(path, method.upper()) for path, methods in paths.items() for method in methods} == routes


def test_every_reference_of_the_openapi_document_leads_somewhere() -> None:
    document = openapi.document()
    references = {value for container, key in _places(document) if key == "$ref" and (value := container[key])}
    assert references
    for reference in references:
        target: Any = document
        for step in reference.removeprefix("#/").split("/"):
            target = target[step]
        assert target["type"] == "object"


def test_the_openapi_document_describes_the_request_as_strictly_as_it_is_read() -> None:
    schema = openapi.document()["components"]["schemas"]["ClusterState"]
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["time_s", "nodes", "partitions"]


def test_the_openapi_document_is_valid() -> None:
    validator = pytest.importorskip("openapi_spec_validator")
    validator.validate(json.loads(openapi.document_json()))


def test_the_example_of_the_openapi_document_is_answered() -> None:
    operation = openapi.document()["paths"][wire.DECIDE]["post"]
    example = operation["requestBody"]["content"][wire.JSON]["example"]
    assert ask(client_of(), json.dumps(example).encode()).status_code == 200
