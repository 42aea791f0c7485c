"""From a state to an answer: policy, then guard. Whatever the policy does, every job gets a decision that is safe.

A policy that raises, or answers with something that is no decision, is replaced for that answer by the fallback, and
the answer says so. Nothing kept here is needed for a decision: the counters are for /v1/health only.
"""

import hashlib
import logging
import math
import sys
import threading
import time
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from policy_server import problems
from policy_server.problems import RequestRefused
from tapfinger_hpc import __version__, decision, log
from tapfinger_hpc.decision import Decision
from tapfinger_hpc.policies.base import Policy
from tapfinger_hpc.state import ClusterState
from tapfinger_hpc.wire import DecideResponse, Health, PolicyDescription, PolicyInfo, Refusal

logger = logging.getLogger(__name__)

_ANSWER = msgspec.json.Decoder(tuple[Decision, ...])
_REASON_LETTERS = 1000


class Placer:
    """Answers states with the policy that it was given, or with the fallback and why.

    One decision at a time: a decision is pure computing on one thread, so two at once would each
    take twice as long and hold the memory of two. Who waits longer than ``patience_s`` is told to come back, because
    the agent that asked has given up by then.
    """

    def __init__(
        self,
        policy: Policy,
        fallback: Policy,
        *,
        description: PolicyDescription | None = None,
        patience_s: float = 2.0,
    ) -> None:
        """``description`` is what /v1/policy tells; its ``fallback_why`` says that ``policy`` is itself a stand-in."""
        self._policy = policy
        self._fallback = fallback
        self._description = description or PolicyDescription(name=policy.name, fallback=fallback.name)
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._started_s = time.monotonic()
        standing_in = self._description.fallback_why
        self._chosen = PolicyInfo(policy.name, "" if standing_in else self._description.checkpoint, standing_in)
        self._latest = self._chosen
        self._decisions_served = 0
        self._fallbacks_served = 0

    def decide(self, state: ClusterState, decision_id: str = "") -> DecideResponse:
        """One decision for every managed, eligible pending job of the state.

        Args:
            decision_id: what the answer is called, in the log too; "" names it after the state and who answers.

        Raises:
            RequestRefused: 503, another decision took too long.
        """
        if not self._lock.acquire(timeout=self._patience_s):
            raise RequestRefused(problems.busy(self._patience_s), headers={"Retry-After": "1"})
        try:
            response = self._answer(state, decision_id)
            self._decisions_served += 1
            self._fallbacks_served += bool(response.policy.fallback_why)
            self._latest = response.policy
        finally:
            self._lock.release()
        _log_answer(response, state)
        return response

    def warm_up(self, state: ClusterState) -> None:
        """Lets policy and fallback answer once, so that no job waits for compilers and lazy imports."""
        with self._lock:
            self._latest = self._answer(state).policy
            _proposed(self._fallback, state)

    def health(self) -> Health:
        latest = self._latest
        return Health(
            status="degraded" if latest.fallback_why else "ok",
            policy=latest,
            configured_policy=self._description.name,
            uptime_s=round(time.monotonic() - self._started_s, 3),
            decisions_served=self._decisions_served,
            fallbacks_served=self._fallbacks_served,
            version=__version__,
        )

    def description(self) -> PolicyDescription:
        return replace(self._description, fallback_why=self._latest.fallback_why)

    def _answer(self, state: ClusterState, decision_id: str = "") -> DecideResponse:
        start_s = time.perf_counter()
        info, proposed = self._propose(state)
        missing = f"{info.fallback_why or f'policy {info.name}'}: no decision for this job"
        decisions, refused = _settle(proposed, state, missing)
        return DecideResponse(
            decision_id=decision_id or _decision_id(state, info),
            policy=info,
            decisions=tuple(decisions),
            refused=tuple(refused),
            elapsed_ms=round((time.perf_counter() - start_s) * 1000, 3),
        )

    def _propose(self, state: ClusterState) -> tuple[PolicyInfo, Sequence[Decision]]:
        """What the policy proposes; what the fallback does where the policy fails; nothing where both fail."""
        try:
            return self._chosen, _proposed(self._policy, state)
        except Exception as error:  # noqa: BLE001 - a policy may fail in any way; jobs must not wait for its repair
            why = f"policy {self._policy.name} failed: {_summary(error)}"
            self._report_failure(why, error)
        try:
            return PolicyInfo(self._fallback.name, fallback_why=why), _proposed(self._fallback, state)
        except Exception as error:  # noqa: BLE001 - as above
            why = f"{why}; fallback {self._fallback.name} failed: {_summary(error)}"
            self._report_failure(why, error)
            return PolicyInfo(self._fallback.name, fallback_why=why), ()

    def _report_failure(self, why: str, error: Exception) -> None:
        """Once with its traceback, then silent until the reason changes: agents ask every second."""
        if why not in self._latest.fallback_why:
            log.event(logger, logging.WARNING, "policy-failed", why=why, error=error)


def _log_answer(response: DecideResponse, state: ClusterState) -> None:
    """One line for each placement; answers that place nothing come every second or so, and are for those who debug."""
    placements = [one for one in response.decisions if one.placement is not None]
    log.event(
        logger,
        logging.INFO if placements or response.refused else logging.DEBUG,
        "answered",
        decision=response.decision_id,
        policy=response.policy.name,
        fallback_why=response.policy.fallback_why,
        jobs=len(response.decisions),
        placed=len(placements),
        refused=len(response.refused),
        ms=response.elapsed_ms,
    )
    tickets = {job.key: job.ticket for job in state.pending} if placements else {}
    for one in placements:
        log.event(
            logger,
            logging.INFO,
            "placement",
            decision=response.decision_id,
            job=one.job_id,
            ticket=tickets.get(one.key, ""),
            place=one.placement,
            reason=one.reason,
        )


def _proposed(policy: Policy, state: ClusterState) -> Sequence[Decision]:
    """The policy's answer with every type checked, because the guard relies on types.

    Raises:
        Exception: whatever the policy raises, and msgspec's where its answer is not decisions.
    """
    return _ANSWER.decode(msgspec.json.encode([_finite(one) for one in policy.decide(state)]))


def _finite(one: Decision) -> Decision:
    """JSON has no infinity: a policy may score "never" so, and means the least number. NaN stays, and is refused."""
    if not isinstance(one, Decision) or not math.isinf(one.score):
        return one
    return replace(one, score=math.copysign(sys.float_info.max, one.score))


def _settle(proposed: Sequence[Decision], state: ClusterState, missing: str) -> tuple[list[Decision], list[Refusal]]:
    """One decision for each job that is ours, placements first; what the guard refuses waits, and is told apart.

    ``missing`` is the reason of jobs that the policy passed over.
    """
    ours = {job.key for job in state.pending if job.managed and job.eligible}
    refused: list[Refusal] = []
    first: dict[tuple[str, int], Decision] = {}
    for one in proposed:
        if one.key not in ours and one.placement is None:
            refused.append(Refusal(one, f"job {one.job_id} is not a managed, eligible pending job of this state"))
        elif one.key in first:
            refused.append(Refusal(one, f"job {one.job_id} was decided before in the same answer"))
        else:
            first[one.key] = one
    allowed, not_allowed, _ = decision.guard_all(first.values(), state)
    refused += [Refusal(one, why) for one, why in not_allowed]
    settled = {one.key: one for one in allowed}
    for one, why in not_allowed:
        if one.key in ours:
            settled[one.key] = _waits(one.key, f"the guard refused {one.placement}: {why}")
    for job in state.pending:
        if job.key in ours and job.key not in settled:
            settled[job.key] = _waits(job.key, missing)
    return sorted(settled.values(), key=lambda one: one.placement is None), refused


def _waits(key: tuple[str, int], reason: str) -> Decision:
    return Decision(job_id=key[0], submit_time_s=key[1], placement=None, reason=reason[:_REASON_LETTERS])


def _decision_id(state: ClusterState, info: PolicyInfo) -> str:
    """Names the question and who answered it, so that an answer in a log can be found again by asking again."""
    content = state.to_json() + msgspec.json.encode(info)
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _summary(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
