"""The OpenAPI 3.1 document of the server, made from the very types that it reads and writes. Pure."""

from typing import Any

import msgspec

from policy_server.example import EXAMPLE_STATE
from tapfinger_hpc import __version__, wire
from tapfinger_hpc.state import ClusterState

_SCHEMAS = "#/components/schemas/"


def document() -> dict[str, Any]:
    """The whole document as plain values."""
    kinds = (ClusterState, wire.DecideResponse, wire.Health, wire.PolicyDescription, wire.Problem)
    _, schemas = msgspec.json.schema_components(kinds, ref_template=_SCHEMAS + "{name}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "TapFinger-HPC policy server",
            "version": __version__,
            "description": "Answers the state of a Slurm cluster with placements. Keeps nothing between requests.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "A unix socket, or TCP on loopback with a token."}],
        # Over the unix socket its file mode is the only lock, over TCP the token is.
        "security": [{}, {"token": []}],
        "paths": {
            wire.DECIDE: {
                "post": _operation(
                    "decide",
                    "One decision for every managed, eligible pending job of the state",
                    wire.DecideResponse,
                    {400: "not JSON", 413: "too large", 415: "not application/json", 422: "no usable state"}
                    | {503: "another decision is under way"},
                    body=ClusterState,
                )
            },
            wire.HEALTH: {"get": _operation("health", "That the server lives, and who answers", wire.Health)},
            wire.POLICY: {"get": _operation("policy", "What the server decides with", wire.PolicyDescription)},
            wire.OPENAPI: {"get": _operation("openapi", "This document", None)},
        },
        "components": {"schemas": schemas, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def document_json() -> bytes:
    return msgspec.json.encode(document())


def _operation(
    name: str,
    summary: str,
    answer: type | None,
    refusals: dict[int, str] | None = None,
    *,
    body: type | None = None,
) -> dict[str, Any]:
    answer_schema = {"$ref": _SCHEMAS + answer.__name__} if answer else {"type": "object"}
    responses: dict[str, Any] = {"200": {"description": summary, "content": {wire.JSON: {"schema": answer_schema}}}}
    for status, why in ({401: "no token, or a wrong one (TCP only)"} | (refusals or {})).items():
        responses[str(status)] = {
            "description": why,
            "content": {wire.PROBLEM_JSON: {"schema": {"$ref": _SCHEMAS + wire.Problem.__name__}}},
        }
    operation: dict[str, Any] = {"operationId": name, "summary": summary, "responses": responses}
    if body is not None:
        operation["parameters"] = [
            {
                "name": wire.DECISION_ID,
                "in": "header",
                "required": False,
                "description": "what the answer is called, in its decision_id and in the server's log",
                "schema": {"type": "string", "pattern": f"^{wire.DECISION_ID_PATTERN}$"},
            }
        ]
        content = {"schema": {"$ref": _SCHEMAS + body.__name__}, "example": msgspec.to_builtins(EXAMPLE_STATE)}
        operation["requestBody"] = {"required": True, "content": {wire.JSON: content}}
    return operation
