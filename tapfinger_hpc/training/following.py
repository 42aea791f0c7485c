"""Imitation: the network's rounds choose what a compiled policy's list of placements says, and are labelled so."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from tapfinger_hpc.features.graph import COLUMNS
from tapfinger_hpc.features.options import AGENT_COLUMNS, OPTION_COLUMNS, Options
from tapfinger_hpc.frame import Frame
from tapfinger_hpc.nets.config import Without
from tapfinger_hpc.nets.policy_network import PolicyNetwork
from tapfinger_hpc.policies.decoding import NOTHING, WAIT, Decision, Decoder, Draw, Simulated
from tapfinger_hpc.sim import core
from tapfinger_hpc.sim.core import compiled
from tapfinger_hpc.sim.episodes import pass_slot
from tapfinger_hpc.sim.knowledge import Belief
from tapfinger_hpc.sim.scenarios import Workload
from tapfinger_hpc.training.batch import Batch, log_probability_of_chosen, take_step
from tapfinger_hpc.training.team import Team


class Follow:
    """Chooses as a compiled policy decides on the states as they are now; each agent takes its placements in order.

    Where agents are offered their first task alone, it is asked in every round what it would do with these.
    """

    def __init__(
        self, decide, parameters: np.ndarray, frame: Frame, envs: np.ndarray, without: Without = NOTHING
    ) -> None:
        self._decide, self._parameters, self._without = decide, parameters, without
        self._frame, self._envs = frame, envs
        self._plans = np.zeros((len(envs), frame.waiting.shape[1], 6), np.int64)
        self._ask()

    def _ask(self) -> None:
        asked = zip(self._envs.tolist(), self._plans, strict=True)
        self._counts = np.array(
            [self._decide(self._frame, env, self._parameters, plan) for env, plan in asked], np.int64
        )
        self._done = np.zeros(self._plans.shape[:2], np.bool_)

    def _ask_about(self, offered: Options) -> None:
        """As if agents saw nothing but what is offered to them."""
        seen = self._frame.seen
        before = seen[self._envs]
        seen[self._envs] = False
        seen[self._envs[offered.env[offered.row_of]], offered.value, offered.partition[offered.row_of]] = True
        self._ask()
        seen[self._envs] = before

    def __call__(self, offered: Options, of_options: np.ndarray | None, of_waiting: np.ndarray | None) -> np.ndarray:
        if of_waiting is None and len(offered.job) and offered.job[0] >= 0:
            return _places(
                offered, self._frame.menu, self._frame.kind, self._envs, self._plans, self._counts, self._done
            )
        if self._without.pointer:
            self._ask_about(offered)
        return _tasks(offered, self._plans, self._counts, self._done)


@compiled
def _tasks(offered: Options, plans: np.ndarray, counts: np.ndarray, done: np.ndarray) -> np.ndarray:
    chosen = np.full(len(offered.env), WAIT)
    option = 0
    for row in range(len(offered.env)):
        env = offered.env[row]
        first = counts[env]
        while option < len(offered.row_of) and offered.row_of[option] == row:
            for place in range(first):
                if (
                    plans[env, place, 0] == offered.value[option]
                    and plans[env, place, 1] == offered.partition[row]
                    and not done[env, place]
                ):
                    first = place
                    chosen[row] = option
                    break
            option += 1
    return chosen


@compiled
def _places(
    offered: Options,
    menu: np.ndarray,
    kind: np.ndarray,
    envs: np.ndarray,
    plans: np.ndarray,
    counts: np.ndarray,
    done: np.ndarray,
) -> np.ndarray:
    chosen = np.zeros(len(offered.env), np.int64)
    option = 0
    for row in range(len(offered.env)):
        env, job = offered.env[row], offered.job[row]
        wanted = -1
        for place in range(counts[env]):
            if plans[env, place, 0] == job:
                wanted = place
                done[env, place] = True
        begun, found = option, -1
        while option < len(offered.row_of) and offered.row_of[option] == row:
            if wanted >= 0 and offered.value[option] == plans[env, wanted, 2]:
                amounts = menu[envs[env], kind[envs[env], job], offered.choice[option]]
                if (
                    amounts[0] == plans[env, wanted, 3]
                    and amounts[1] == plans[env, wanted, 4]
                    and amounts[2] == plans[env, wanted, 5]
                ):
                    found = option
            option += 1
        chosen[row] = found if found >= 0 else begun
    return chosen


def lessons(
    network: PolicyNetwork,
    decide,
    parameters: np.ndarray,
    workloads: Sequence[Workload],
    own_share: float,
    source: np.random.Generator,
    beliefs: Sequence[Belief | None] | None = None,
) -> list[Decision]:
    """Plays one episode of each workload, in each slot either as the teacher says, which is kept, or as the network
    draws: so it meets states to which its own decisions lead. Both are told the times that ``beliefs`` say.
    """
    frame, truth = core.environments(workloads, beliefs=beliefs)
    world, draw = Simulated(frame, truth), Draw(source)
    without = network.config.without
    own_decoder = Decoder(network.compiled(), frame, without=without)
    teacher_decoder = Decoder(None, frame, without=without)
    kept: list[Decision] = []
    envs = np.arange(len(workloads))
    while len(envs):
        own = source.random(len(envs)) < own_share
        for _ in own_decoder.slot(world, envs[own], lambda _: draw):
            pass
        follow = partial(Follow, decide, parameters, frame, without=without)
        for decision in teacher_decoder.slot(world, envs[~own], follow, record=True):
            if decision.steps:
                kept.append(decision)
        envs = pass_slot(frame, truth, envs)
    return kept


def unseen(taught: Sequence[Decision]) -> dict[str, np.ndarray]:
    """bool [column] numbers that are 0 in all of these states, by kind of graph node, and for agents and both heads.

    What says of advice is not among them: lessons go without.
    """
    values = {kind: [decision.graphs.features[kind] for decision in taught] for kind in COLUMNS}
    steps = [step.rows for decision in taught for step in decision.steps]
    values["agent"] = [rows.agents for rows in steps]
    for head in OPTION_COLUMNS:
        values[head] = [rows.features for rows in steps if rows.task == (head == "task")]
    names = {**COLUMNS, "agent": AGENT_COLUMNS, **OPTION_COLUMNS}
    return {
        name: (np.concatenate(found) == 0).all(axis=0) & np.array(["advised" not in column for column in names[name]])
        for name, found in values.items()
    }


def learn(
    network: PolicyNetwork,
    optimizer: torch.optim.Optimizer,
    taught: Sequence[Decision],
    source: np.random.Generator,
    team: Team,
    *,
    slots: int,
    norm: float,
) -> float:
    """One pass over labelled decisions; the mean cross-entropy of the teacher's choices."""
    losses = []
    steps = round(team.greatest(-(-len(taught) // slots)))
    for chosen in np.array_split(source.permutation(len(taught)), steps):
        optimizer.zero_grad()
        batch = Batch([taught[index] for index in chosen])
        embeddings = network.encode(batch.graphs)
        loss = torch.zeros((), requires_grad=True)
        for step in batch.steps:
            found, _, _ = log_probability_of_chosen(network, embeddings, step)
            loss = loss - found.sum() / batch.rows
        loss.backward()
        take_step(network, optimizer, norm, team)
        losses.append(loss.item())
    return float(np.mean(losses))
