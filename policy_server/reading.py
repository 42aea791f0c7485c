"""Turns the body of a request into a ClusterState, or says which field is wrong. Pure."""

from collections.abc import Iterator
from itertools import chain

import msgspec

from policy_server import problems
from policy_server.problems import RequestRefused
from tapfinger_hpc.state import ClusterState, JobKey

_Contradiction = tuple[str, str]
"""JSON pointer and what is wrong there."""


def read_state(body: bytes) -> ClusterState:
    """The state in this body.

    Raises:
        RequestRefused: 400 where it is not JSON; 422 where it is no state, or contradicts itself.
    """
    try:
        state = ClusterState.from_json(body)
    except msgspec.ValidationError as error:
        raise RequestRefused(_problem(error, body)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestRefused(problems.not_json(str(error) or type(error).__name__)) from error
    contradiction = next(chain(_nodes(state, body), _jobs(state, body)), None)
    if contradiction is not None:
        field, detail = contradiction
        raise RequestRefused(problems.invalid_state(detail, field))
    return state


def _problem(error: msgspec.ValidationError, body: bytes):
    """msgspec stops at the first wrong value: what follows it in the body may not even be JSON."""
    try:
        return problems.of_validation(error, body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as malformed:
        return problems.not_json(str(malformed))


def _nodes(state: ClusterState, body: bytes) -> Iterator[_Contradiction]:
    for node in state.nodes:
        if not node.capacity.covers(node.free):
            position = _position(body, "nodes", name=node.name)
            yield f"/nodes/{position}/free", f"node {node.name}: {node.free} free, of {node.capacity} configured"
    for partition in state.partitions:
        if len(set(partition.nodes)) != len(partition.nodes):
            position = _position(body, "partitions", name=partition.name)
            yield f"/partitions/{position}/nodes", f"partition {partition.name} names a node twice"


def _jobs(state: ClusterState, body: bytes) -> Iterator[_Contradiction]:
    running: set[JobKey] = {job.key for job in state.running}
    for job in state.pending:
        wrong = None
        if job.key in running:
            wrong = "job_id", f"job {job.job_id} is both pending and running"
        elif job.managed and job.nodes_wanted > 1:
            wrong = "nodes_wanted", f"job {job.job_id} wants {job.nodes_wanted} nodes; a managed job has one"
        if wrong is not None:
            field, detail = wrong
            position = _position(body, "pending", job_id=job.job_id, submit_time_s=job.submit_time_s)
            yield f"/pending/{position}/{field}", detail


def _position(body: bytes, field: str, **named: object) -> int:
    """Where in the request's own order this item stands: the state has put them in canonical order."""
    items = msgspec.json.decode(body)[field]
    return next(index for index, item in enumerate(items) if all(item[key] == value for key, value in named.items()))
