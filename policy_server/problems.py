"""How the server says no: RFC 9457 problems that name the field, the value seen and the next step. Pure."""

import re
from http import HTTPStatus
from typing import Any

import msgspec

from tapfinger_hpc import wire
from tapfinger_hpc.errors import TapfingerError

_WHERE = re.compile(r"(?P<what>.*?)(?: - at `(?P<path>\$.*)`)?", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]")
_ABOUT_A_KEY = re.compile(r"Object (?:contains unknown|missing required) field `(.*)`", re.DOTALL)
_NAMED_FIELD = re.compile(r"([a-z_]+): ")
_SHOWN_LETTERS = 80


class RequestRefused(TapfingerError):
    """A request that gets a problem instead of an answer."""

    def __init__(self, problem: wire.Problem, headers: dict[str, str] | None = None) -> None:
        super().__init__(problem.detail or problem.title)
        self.problem = problem
        self.headers = headers or {}


def of_status(status: int, detail: str = "") -> wire.Problem:
    """A problem that its HTTP status says all about."""
    return wire.Problem(title=HTTPStatus(status).phrase, status=status, detail=detail)


def not_json(why: str) -> wire.Problem:
    return wire.Problem(
        type="urn:tapfinger:problem:not-json",
        title="The body is not JSON",
        status=400,
        detail=f"{why}; send a ClusterState as described at {wire.OPENAPI}",
    )


def invalid_state(detail: str, field: str) -> wire.Problem:
    """JSON that is no state, or a state that contradicts itself; ``field`` is a JSON pointer."""
    return wire.Problem(
        type="urn:tapfinger:problem:invalid-state",
        title="The state cannot be used",
        status=422,
        detail=detail,
        field=field,
    )


def too_large(limit_bytes: int) -> wire.Problem:
    return wire.Problem(
        type="urn:tapfinger:problem:too-large",
        title="The body is too large",
        status=413,
        detail=f"at most {limit_bytes} bytes are read; send only the pending jobs that can start",
    )


def wrong_content(detail: str) -> wire.Problem:
    return wire.Problem(
        type="urn:tapfinger:problem:content-type",
        title="The body is of another type",
        status=415,
        detail=detail,
    )


def busy(waited_s: float) -> wire.Problem:
    return wire.Problem(
        type="urn:tapfinger:problem:busy",
        title="Another decision is under way",
        status=503,
        detail=f"waited {waited_s:g} s for it to end; ask again with a fresh state",
    )


def of_validation(error: msgspec.ValidationError, body: bytes) -> wire.Problem:
    """Turns msgspec's message (``Expected `int` >= 0 - at `$.nodes[0].free.cpus` ``) into a problem with a pointer."""
    match = _WHERE.fullmatch(str(error))
    assert match is not None
    what, path = match["what"], match["path"] or "$"
    steps = [name or index for name, index in _STEP.findall(path)]
    if key := _ABOUT_A_KEY.fullmatch(what):
        return invalid_state(what, pointer([*steps, key[1]]))
    if field := _NAMED_FIELD.match(what):
        return invalid_state(what, pointer([*steps, field[1]]))
    return invalid_state(what + _value_seen(body, steps), pointer(steps))


def pointer(steps: list[str]) -> str:
    """A JSON pointer (RFC 6901) of these object keys and list positions."""
    return "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps)


def _value_seen(body: bytes, steps: list[str]) -> str:
    """The scalar at this place, for people; "" where there is none or it is a whole object or list."""
    value: Any = msgspec.json.decode(body)
    for step in steps:
        value = value[int(step)] if isinstance(value, list) else value[step]
    if isinstance(value, dict | list):
        return ""
    text = msgspec.json.encode(value).decode()
    return f", seen: {text if len(text) <= _SHOWN_LETTERS else text[:_SHOWN_LETTERS] + '...'}"
