"""What travels between agent and policy server besides ClusterState: the answers, and how a refusal is told.

Requests are strict (ClusterState refuses unknown fields); answers may grow new fields, which an older agent passes
over. Needs only msgspec, because the agent decodes these.
"""

from typing import Any

import msgspec

from tapfinger_hpc.decision import Decision

DECIDE = "/v1/decide"
HEALTH = "/v1/health"
POLICY = "/v1/policy"
OPENAPI = "/v1/openapi.json"

DECISION_ID = "X-Decision-Id"
"""Header of a question to /v1/decide: the name that its answer is to have, in every log and in the journal."""
DECISION_ID_PATTERN = r"[A-Za-z0-9._-]{1,64}"

JSON = "application/json"
PROBLEM_JSON = "application/problem+json"
MAX_BODY_BYTES = 16 * 1024 * 1024
"""Largest state that is read: some 30,000 pending jobs (about 500 bytes each)."""


class PolicyInfo(msgspec.Struct, frozen=True):
    """Who decided."""

    name: str
    checkpoint: str = ""
    """Fingerprint of the weights; "" for a policy without any."""
    fallback_why: str = ""
    """Why this one answered in place of the configured policy; "" where it is the configured one."""


class Refusal(msgspec.Struct, frozen=True):
    """A decision of the policy that the guard refused, and why. The job waits instead."""

    decision: Decision
    why: str


class DecideResponse(msgspec.Struct, frozen=True):
    """The answer to a state: one decision for each managed, eligible pending job."""

    decision_id: str
    """The one of the question's header; without it the same state answered by the same policy has the same id."""
    policy: PolicyInfo
    decisions: tuple[Decision, ...]
    """Placements first, in the order in which they are to be carried out; then the jobs that wait."""
    refused: tuple[Refusal, ...] = ()
    """Placements that the policy proposed and the guard refused; their jobs wait in ``decisions``."""
    elapsed_ms: float = 0.0
    """Time the server took to decide."""


class Health(msgspec.Struct, frozen=True):
    """That the server lives, and whether it answers with the policy that it was told to use."""

    status: str
    """``ok``, or ``degraded`` while the fallback answers."""
    policy: PolicyInfo
    """Who gave the latest answer; before the first one, who would."""
    configured_policy: str
    uptime_s: float
    decisions_served: int
    """Answers to /v1/decide since the start."""
    fallbacks_served: int = 0
    """Those of them that the fallback gave."""
    version: str = ""


class PolicyDescription(msgspec.Struct, frozen=True):
    """What the server decides with."""

    name: str
    knowledge: str = ""
    """What it goes by, in the words of its author."""
    schema_version: int | None = None
    """Version of the state graph that the weights were trained on; None without weights."""
    checkpoint: str = ""
    """Fingerprint of the weights."""
    checkpoint_folder: str = ""
    """Where they were read from; "" for those that ship with the package."""
    constants_file: str = ""
    """Where the price heuristic's constants were read from; "" for those that ship with the package."""
    configuration: dict[str, Any] = {}
    """Sizes of the network, as written in the checkpoint."""
    training: dict[str, Any] = {}
    """Where the weights come from: scenario, knowledge, teacher, seed, iterations, versions."""
    fallback: str = ""
    """The policy that answers where this one cannot."""
    fallback_why: str = ""
    """Why it does so now; "" while it does not."""


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a request got no answer (RFC 9457, ``application/problem+json``)."""

    title: str
    status: int
    detail: str = ""
    field: str = ""
    """JSON pointer (RFC 6901) to the field that is wrong: ``/nodes/0/free/cpus``; "" where it is not about one."""
    type: str = "about:blank"
