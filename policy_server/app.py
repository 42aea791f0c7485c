"""The Flask application: four routes, and every refusal as ``application/problem+json``.

Reads the body, asks the placer, writes the answer. It keeps nothing and knows no Slurm.
"""

import hmac
import logging
import re

import msgspec
from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge

from policy_server import openapi, problems
from policy_server.placer import Placer
from policy_server.problems import RequestRefused
from policy_server.reading import read_state
from tapfinger_hpc import log, wire

logger = logging.getLogger(__name__)


def create_app(placer: Placer, *, token: str | None = None, max_body_bytes: int = wire.MAX_BODY_BYTES) -> Flask:
    """The application around this placer. With a token, every request must carry it as ``Authorization: Bearer``."""
    app = Flask("policy_server", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = max_body_bytes
    document = openapi.document_json()

    def decide() -> Response:
        decision_id = _decision_id()
        g.decision_id = decision_id
        return _json(placer.decide(read_state(_body()), decision_id))

    def health() -> Response:
        return _json(placer.health())

    def policy() -> Response:
        return _json(placer.description())

    def openapi_json() -> Response:
        return Response(document, mimetype=wire.JSON)

    for path, method, view in (
        (wire.DECIDE, "POST", decide),
        (wire.HEALTH, "GET", health),
        (wire.POLICY, "GET", policy),
        (wire.OPENAPI, "GET", openapi_json),
    ):
        app.add_url_rule(path, view_func=view, methods=[method], provide_automatic_options=False)
    if token is not None:
        app.before_request(lambda: _require(token))
    app.register_error_handler(RequestRefused, lambda error: _problem(error.problem, error.headers))
    app.register_error_handler(HTTPException, _http_problem)
    app.register_error_handler(Exception, _unexpected)
    return app


def _decision_id() -> str:
    """What the caller calls this question; "" where it leaves that to us. It goes into logs: letters and figures."""
    given = request.headers.get(wire.DECISION_ID, "")
    if given and not re.fullmatch(wire.DECISION_ID_PATTERN, given):
        raise RequestRefused(problems.of_status(400, f"{wire.DECISION_ID}: expected {wire.DECISION_ID_PATTERN}"))
    return given


def _body() -> bytes:
    if request.mimetype != wire.JSON:
        raise RequestRefused(
            problems.wrong_content(f"Content-Type {request.content_type or ''!r}: send {wire.JSON}, in UTF-8")
        )
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise RequestRefused(problems.wrong_content(f"Content-Encoding {encoding!r}: send the JSON as it is"))
    return request.get_data(cache=False)


def _require(token: str) -> None:
    """Nothing about what was wrong: neither that a token was sent, nor how much of it was right."""
    sent = request.headers.get("Authorization", "").encode("utf-8", "replace")
    if not hmac.compare_digest(sent, f"Bearer {token}".encode()):
        raise RequestRefused(problems.of_status(401), headers={"WWW-Authenticate": "Bearer"})


def _http_problem(error: HTTPException) -> Response:
    """What Flask itself refuses: unknown route, wrong method, body too large."""
    if isinstance(error, RequestEntityTooLarge):
        return _problem(problems.too_large(request.max_content_length or 0))
    if isinstance(error, MethodNotAllowed):
        allowed = ", ".join(sorted(error.valid_methods or ()))
        detail = f"{request.method} {request.path}: this route answers to {allowed}"
        return _problem(problems.of_status(405, detail), {"Allow": allowed})
    if error.code == 404:
        return _problem(problems.of_status(404, f"no route {request.path!r}; they are listed at {wire.OPENAPI}"))
    return _problem(problems.of_status(error.code or 500, error.description or ""))


def _unexpected(error: Exception) -> Response:
    """A mistake of ours: the log has the traceback, the client gets none of it."""
    decision_id = g.get("decision_id", "")
    log.event(
        logger, logging.ERROR, "failed", method=request.method, path=request.path, decision=decision_id, error=error
    )
    return _problem(problems.of_status(500, "the server's log says more; please report it"))


def _json(answer: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(answer), mimetype=wire.JSON)


def _problem(problem: wire.Problem, headers: dict[str, str] | None = None) -> Response:
    level = logging.DEBUG if problem.status == 404 else logging.WARNING
    log.event(
        logger,
        level,
        "refused",
        path=request.path,
        decision=g.get("decision_id", ""),
        status=problem.status,
        title=problem.title,
        field=problem.field,
        why=problem.detail,
    )
    body = msgspec.json.encode(problem)
    return Response(body, status=problem.status, headers=headers, content_type=wire.PROBLEM_JSON)
