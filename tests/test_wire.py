"""What the agent reads of the server's answers."""

import msgspec
import pytest

from tapfinger_hpc import wire
from tapfinger_hpc.decision import Decision, Placement
from tapfinger_hpc.state import Resources

PLACED = Decision("102", 1_700_000_000, Placement("gpu", "node1", Resources(4, 1, 8000)), "the cheapest place")
RESPONSE = wire.DecideResponse(
    decision_id="61c0d62fad551c17",
    policy=wire.PolicyInfo("price", fallback_why="policy tapfinger could not be loaded: no torch"),
    decisions=(PLACED,),
    refused=(wire.Refusal(PLACED, "node1 cannot take job 102 in partition gpu"),),
    elapsed_ms=1.25,
)


def test_an_answer_reads_back_as_it_was_written() -> None:
    assert msgspec.json.decode(msgspec.json.encode(RESPONSE), type=wire.DecideResponse) == RESPONSE


@pytest.mark.parametrize("kind", [wire.PolicyInfo, wire.Refusal, wire.DecideResponse, wire.Health, wire.Problem])
def test_an_older_agent_reads_the_answers_of_a_newer_server(kind: type) -> None:
    examples: dict[type, msgspec.Struct] = {
        wire.PolicyInfo: RESPONSE.policy,
        wire.Refusal: RESPONSE.refused[0],
        wire.DecideResponse: RESPONSE,
        wire.Health: wire.Health("ok", RESPONSE.policy, "price", 1.0, 0),
        wire.Problem: wire.Problem("Not Found", 404),
    }
    grown = {**msgspec.to_builtins(examples[kind]), "added_later": {"by": ["a newer server"]}}
    assert msgspec.json.decode(msgspec.json.encode(grown), type=kind) == examples[kind]


@pytest.mark.parametrize(
    "text",
    [b"", b"null", b"[]", b"<html>502 Bad Gateway</html>", b'{"decision_id":"1"}', b'{"decisions":[{"job_id":1}]}'],
)
def test_what_is_no_answer_is_not_read_as_one(text: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(text, type=wire.DecideResponse)


def test_a_problem_says_only_what_it_has_to_say() -> None:
    assert msgspec.json.decode(msgspec.json.encode(wire.Problem("Unauthorized", 401))) == {
        "title": "Unauthorized",
        "status": 401,
    }
