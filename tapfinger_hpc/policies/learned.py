"""The learned policy: one agent for each partition, all with the same weights, answering the same state the same way.

The graph is encoded once. Then, round after round, every agent picks a task or waits, Bayes settles who gets a task
that several want, and the winners choose node and amounts; it ends when all agents wait. Each placement passes the
guard before it counts, so a network that is wrong can waste room but not break anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from tapfinger_hpc import graph
from tapfinger_hpc.decision import Alternative, Decision, Placement, after, guard
from tapfinger_hpc.nets.pointers import Pointers
from tapfinger_hpc.nets.served import ServedNetwork
from tapfinger_hpc.nets.tensors import graph_tensors, option_tensors
from tapfinger_hpc.room import AMOUNT_HEADS, Options, Pick, Room
from tapfinger_hpc.state import ClusterState, PendingJob
from tapfinger_hpc.training import checkpoint

MAX_REFUSALS = 64
"""So many choices may the guard refuse in one decision; then what is left waits."""


class LearnedPolicy:
    """A trained network as a policy. Greedy: it draws nothing at random and keeps nothing between calls."""

    name = "tapfinger"

    def __init__(self, network: ServedNetwork, info: checkpoint.CheckpointInfo | None = None) -> None:
        # One decision is too small to share out; more threads only make it wait for them.
        torch.set_num_threads(1)
        self._network = network
        self.info = info

    @classmethod
    def load(cls, folder: Path | None = None) -> "LearnedPolicy":
        """The policy of a checkpoint; None is the one that ships with the package.

        Raises:
            CheckpointError: it cannot be used, and why.
        """
        return cls(*checkpoint.load_served(folder or checkpoint.DEFAULT))

    @classmethod
    def of(cls, network: Pointers) -> "LearnedPolicy":
        """The policy of a network as it is now, for instance in training."""
        return cls(ServedNetwork(network.config, network.state_dict()))

    @torch.inference_mode()
    def decide(self, state: ClusterState) -> tuple[Decision, ...]:
        """Placements first, in the order in which they are to be carried out; then the jobs that wait."""
        return _Decoding(self._network, state).run()


@dataclass(frozen=True)
class Claim:
    """An agent's wish for a task."""

    pick: Pick
    probability: float
    waiting: float
    """Probability that the same agent gave to waiting."""
    score: float
    """Of all agents that want the task the highest gets it."""
    rivals: tuple[tuple[int, float], ...] = ()
    """Other agents that wanted it, and their score."""
    why: str = ""


@dataclass(frozen=True)
class Chosen:
    """What a pointer chose in one row, and what it would have chosen otherwise."""

    value: int
    probability: float
    second: int | None
    second_probability: float


class _Decoding:
    """One decision under way."""

    def __init__(self, network: ServedNetwork, state: ClusterState) -> None:
        self._network, self._given = network, state
        self._graph = graph.build(state)
        self._state = state  # as the placements so far leave it
        self._placed: list[Decision] = []
        self._refused: dict[int, str] = {}  # job -> the guard's last reason
        self._refusals = 0
        self._declined: dict[int, tuple[int, float, float]] = {}  # job -> agent, its probability, that of waiting

    def run(self) -> tuple[Decision, ...]:
        if self._graph.jobs:
            self._room = Room(self._graph)
            self._embeddings: dict[str, torch.Tensor] | None = None
            while self._refusals < MAX_REFUSALS and (options := self._room.tasks()) is not None:
                claims = self._claims(options)
                if not claims:
                    break
                self._carry_out(claims)
                self._declined = {}  # what was thought before these placements does not hold after them
                self._room.next_round()
        return (*self._placed, *self._waiting())

    # Who takes what.

    def _claims(self, options: Options) -> list[Claim]:
        """The tasks taken in this round, each by one agent, the surest first."""
        log_options, log_waiting = self._log_probabilities(options)
        probability, waiting = np.exp(log_options), np.exp(log_waiting)
        best = _best_of_rows(probability, options.row_of, len(waiting))
        self._remember(options, probability, waiting)
        # Where several agents could take a job as well as each other, none is sure that it is the one to do it: what
        # counts is whether any of them would.
        wanted = np.bincount(options.values, weights=probability)  # [job]
        wishes = [
            Claim(
                Pick(int(options.partitions[agent]), int(options.values[option])),
                float(probability[option]),
                float(waiting[agent]),
                0.0,
            )
            for agent, option in enumerate(best)
            if waiting[agent] < 0.5 or wanted[options.values[option]] > 0.5
        ]
        if not wishes:
            wishes = self._better_than_idling(options, probability, waiting)
        return sorted(self._settle(wishes), key=lambda claim: (-claim.probability, claim.pick.partition))

    def _settle(self, wishes: Sequence[Claim]) -> list[Claim]:
        """Gives every task to one of the agents that want it: to the one that it most probably belongs to.

        Bayes, for the agent given the task: p(task | agent) * p(agent), and an agent is the likelier the more of the
        task's least amounts it has free. Ties go to the first partition in canonical order. Losers do nothing.
        """
        by_job: dict[int, list[Claim]] = {}
        for claim in wishes:
            by_job.setdefault(claim.pick.job, []).append(claim)
        settled = []
        for job, rivals in by_job.items():
            if len(rivals) == 1:
                settled.append(rivals[0])
                continue
            headroom = np.array([self._room.headroom(claim.pick.partition, job) for claim in rivals])
            prior = np.exp(headroom - headroom.max())
            scores = np.array([claim.probability for claim in rivals]) * prior / prior.sum()
            scores = scores / scores.sum()
            winner = int(np.argmax(scores))
            lost = tuple((c.pick.partition, float(s)) for c, s in zip(rivals, scores, strict=True))
            claim = rivals[winner]
            settled.append(
                Claim(
                    claim.pick,
                    claim.probability,
                    claim.waiting,
                    float(scores[winner]),
                    tuple(entry for entry in lost if entry[0] != claim.pick.partition),
                )
            )
        return settled

    def _better_than_idling(self, options: Options, probability: np.ndarray, waiting: np.ndarray) -> list[Claim]:
        """Where all agents would wait: the likeliest task, if it has nothing to wait for.

        Nothing that runs could make more room for a job whose every node is idle, so waiting for that might never end.
        """
        idle = [option for option, job in enumerate(options.values) if self._room.waits_for_nothing(int(job))]
        if not idle:
            return []
        option = max(idle, key=lambda option: (probability[option], -option))
        agent = int(options.row_of[option])
        pick = Pick(int(options.partitions[agent]), int(options.values[option]))
        why = "every node it may use is idle, so waiting would bring nothing"
        return [Claim(pick, float(probability[option]), float(waiting[agent]), 0.0, why=why)]

    def _remember(self, options: Options, probability: np.ndarray, waiting: np.ndarray) -> None:
        """What the agents thought of the tasks that they may not take, for the reasons."""
        self._declined = {}
        for option in np.argsort(probability, kind="stable"):
            agent = int(options.row_of[option])
            self._declined[int(options.values[option])] = (
                int(options.partitions[agent]),
                float(probability[option]),
                float(waiting[agent]),
            )

    # Where, and how much of what.

    def _carry_out(self, claims: Sequence[Claim]) -> None:
        """Chooses node and amounts of every claim, and places those that the guard lets pass."""
        picks = [claim.pick for claim in claims]
        nodes = self._choose(self._room.nodes_for(picks))
        picks = [Pick(pick.partition, pick.job, node.value) for pick, node in zip(picks, nodes, strict=True)]
        chosen = [[node] for node in nodes]
        for head in AMOUNT_HEADS:
            only = self._room.only_amounts(head, picks)
            amounts = (
                [Chosen(amount, 1.0, None, 0.0) for amount in only]
                if only is not None
                else self._choose(self._room.amounts_for(head, picks))
            )
            picks = [pick.with_amount(head, amount.value) for pick, amount in zip(picks, amounts, strict=True)]
            for so_far, amount in zip(chosen, amounts, strict=True):
                so_far.append(amount)
        for claim, pick, parts in zip(claims, picks, chosen, strict=True):
            self._try(claim, pick, parts)

    def _try(self, claim: Claim, pick: Pick, parts: Sequence[Chosen]) -> None:
        if not self._room.fits(pick):
            return  # an agent that shares the node was faster; the next round knows what it left
        placement = self._placement(pick)
        decision = self._decision(claim, pick, placement, parts)
        why = guard(decision, self._state)
        if why is None:
            self._state = after(self._state, self._graph.jobs[pick.job], placement)
            self._room.place(pick)
            self._placed.append(decision)
        else:
            # It fits, so it is refused for the sake of a job of others, and would be again on this node.
            self._room.forbid(pick)
            self._refused[pick.job] = why
            self._refusals += 1

    def _placement(self, pick: Pick) -> Placement:
        state = self._given
        return Placement(state.partitions[pick.partition].name, state.nodes[pick.node].name, pick.amounts)

    # The network.

    def _log_probabilities(self, options: Options) -> tuple[np.ndarray, np.ndarray]:
        if self._embeddings is None:
            self._embeddings = self._network.encode(graph_tensors(self._graph))
        of_options, of_waiting = self._network.log_probabilities(self._embeddings, option_tensors(self._graph, options))
        return of_options.numpy(), of_waiting.numpy()

    def _choose(self, options: Options) -> list[Chosen]:
        rows = len(options.partitions)
        if len(options.values) == rows:
            return [Chosen(int(value), 1.0, None, 0.0) for value in options.values]
        probability = np.exp(self._log_probabilities(options)[0])
        best = _best_of_rows(probability, options.row_of, rows)
        others = probability.copy()
        others[best] = -1.0
        second = _best_of_rows(others, options.row_of, rows)
        return [
            Chosen(
                int(options.values[first]),
                float(probability[first]),
                int(options.values[other]) if other != first else None,
                max(0.0, float(others[other])),
            )
            for first, other in zip(best, second, strict=True)
        ]

    # For people.

    def _decision(self, claim: Claim, pick: Pick, placement: Placement, parts: Sequence[Chosen]) -> Decision:
        job = self._graph.jobs[pick.job]
        score = claim.probability * float(np.prod([part.probability for part in parts]))
        return Decision(
            job_id=job.job_id,
            submit_time_s=job.submit_time_s,
            placement=placement,
            reason=self._reason(claim, pick, parts)[:1000],
            score=score,
            runners_up=self._runners_up(claim, pick, parts, score),
        )

    def _reason(self, claim: Claim, pick: Pick, parts: Sequence[Chosen]) -> str:
        state, amounts = self._given, pick.amounts
        node, gpus, cpus, mem = parts
        name = state.partitions[pick.partition].name
        words = [f"partition {name} takes it (probability {claim.probability:.2f}; waiting {claim.waiting:.2f})"]
        if claim.why:
            words.append(claim.why)
        if claim.rivals:
            rivals = ", ".join(f"{state.partitions[rival].name} ({score:.2f})" for rival, score in claim.rivals)
            words.append(f"preferred ({claim.score:.2f}) over {rivals}")
        words.append(
            f"{state.nodes[pick.node].name} ({node.probability:.2f}) with "
            f"{amounts.gpus} GPUs ({gpus.probability:.2f}), {amounts.cpus} CPUs ({cpus.probability:.2f}), "
            f"{amounts.mem_mb} MiB ({mem.probability:.2f})"
        )
        words.append(f"expected to run {_seconds(self._room.expected_s(pick))}")
        return "; ".join(words)

    def _runners_up(self, claim: Claim, pick: Pick, parts: Sequence[Chosen], score: float) -> tuple[Alternative, ...]:
        """Waiting, the second node and the second amount of each resource, everything else being equal."""
        others = [Alternative(None, claim.waiting)]
        node, *amounts = parts
        if node.second is not None:
            moved = Pick(pick.partition, pick.job, node.second, pick.given)
            if self._room.fits(moved):
                others.append(Alternative(self._placement(moved), score * _ratio(node)))
        for (head, _), part in zip(pick.given, amounts, strict=True):
            if part.second is not None:
                given = tuple((name, part.second if name == head else amount) for name, amount in pick.given)
                changed = Pick(pick.partition, pick.job, pick.node, given)
                if self._room.fits(changed):
                    others.append(Alternative(self._placement(changed), score * _ratio(part)))
        return tuple(sorted(others, key=lambda other: -other.score))

    def _waiting(self) -> list[Decision]:
        placed = {decision.key for decision in self._placed}
        index = {job.key: position for position, job in enumerate(self._graph.jobs)}
        return [
            self._wait(job, index.get(job.key))
            for job in self._given.pending
            if job.managed and job.eligible and job.key not in placed
        ]

    def _wait(self, job: PendingJob, position: int | None) -> Decision:
        score = 0.0
        if position is None:
            reason = "no node that is up and open to it could run it, or none in time"
        elif position in self._refused:
            reason = f"not placed for the sake of others: {self._refused[position]}"
        elif position in self._declined:
            agent, probability, score = self._declined[position]
            name = self._given.partitions[agent].name
            reason = f"partition {name} would rather wait ({score:.2f}) than start it now ({probability:.2f})"
        elif self._refusals >= MAX_REFUSALS:
            reason = f"{self._refusals} choices were refused for the sake of jobs of others, so none was tried for it"
        else:
            reason = f"its least amounts ({job.minimum}) are not free on any node it may use"
        return Decision(
            job_id=job.job_id,
            submit_time_s=job.submit_time_s,
            placement=None,
            reason=reason[:1000],
            score=score,
        )


def _best_of_rows(values: np.ndarray, row_of: np.ndarray, rows: int) -> list[int]:
    """Position of the greatest value of each row; the first of equals. Rows stand together, in ascending order."""
    starts = np.searchsorted(row_of, np.arange(rows + 1))
    return [int(start + np.argmax(values[start:end])) for start, end in pairwise(starts)]


def _ratio(part: Chosen) -> float:
    return part.second_probability / max(part.probability, 1e-12)


def _seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
