"""Multi-agent PPO on the compiled simulator, read from top to bottom: collect, advantages, update.

After the paper: all agents of an environment share a team reward, and the critic stands apart from the actor. Three
things were found to matter. The reward is moved in time so that it is paid when its cause is decided (a placement pays
for what it takes longer than it could at best, a slot for the tasks that wait), which leaves the episode's sum as it
is. The discount is below 1. And several episodes are played on every workload: arrivals cause most of the spread of
returns, so an episode is measured against its siblings at the same slot, which met the same arrivals (after Mao et al.,
"Variance reduction for reinforcement learning in input-driven environments", ICLR'19).

In event time siblings decide at times of their own. What follows a decision is then discounted by the time that
passes, and a decision is held against what the siblings' were worth at its time: between the two next to it in
proportion, as most of a return is waiting, which grows evenly; 0 when a sibling is at its end. None of that hangs on
the action itself, so it takes out noise and adds no bias.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch

from tapfinger_hpc.frame import Frame
from tapfinger_hpc.nets.policy_network import Critic, GraphTensors, PolicyNetwork
from tapfinger_hpc.policies.decoding import Decision, Decoder, Draw, Simulated
from tapfinger_hpc.sim import core
from tapfinger_hpc.sim.core import Truth
from tapfinger_hpc.sim.episodes import pass_slot
from tapfinger_hpc.sim.knowledge import Belief
from tapfinger_hpc.sim.scenarios import Workload
from tapfinger_hpc.training.batch import Batch, log_probability_of_chosen, take_step
from tapfinger_hpc.training.team import Team


class PPOConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How PPO goes; every default beside its reason."""

    workloads: int = 8
    """Different workloads in one collection, over all processes."""
    siblings: int = 8
    """Episodes on each of them."""
    discount: float = 0.86
    """For the time that a task takes at best. With 1 the noise of all later arrivals drowns what a decision does."""
    trace: float = 0.95
    """Lambda of generalised advantage estimation, for each slot."""
    overloaded_discount: float = 0.97
    """Where more work arrives than can be done a decision is felt to the end of the backlog."""
    overloaded_trace: float = 0.98
    clip: float = 0.2
    repeats: int = 2
    """Passes over what was collected."""
    slots: int = 4
    """Slots of all environments in one step of the optimiser, at least."""
    steps: int = 20
    """Times such slots that an episode is taken in: the longer it is, the more of it is in one step. Hundreds of small
    steps on one collection follow its noise (testbed-3: +0.3 % over price in place of -1.6 %)."""
    learning_rate: float = 3e-4
    """At the start; falls to a twentieth."""
    critic_rate: float = 1e-3
    entropy: float = 0.0
    norm: float = 0.5
    """Greatest norm of a gradient."""


@dataclass
class Events:
    """When decisions were made, where that is not the same for all episodes."""

    timed: np.ndarray  # bool [env] in event time
    time: np.ndarray  # float64 [decision, env]
    passed: np.ndarray  # float64 [decision, env] until the next, in the scenario's unit; in slots always 1


@dataclass
class Collected:
    """Episodes as they were played, decision by decision: one for each slot, or several where agents take one task."""

    decisions: list[Decision]
    rewards: np.ndarray  # float64 [decision, env] in units of what a usual slot costs
    alive: np.ndarray  # bool [decision, env] that took part in it
    discount: np.ndarray  # float64 [decision, env] of what comes after; 1 where no slot passes
    mean_jct: np.ndarray  # float64 [env]
    events: Events | None = None
    """None: all are in slots."""
    trace: np.ndarray | float = 1.0
    """float64 [env] lambda of each slot."""


def collect(
    network: PolicyNetwork,
    workloads: Sequence[Workload],
    config: PPOConfig,
    source: np.random.Generator,
    prices: np.ndarray | None = None,
    beliefs: Sequence[Belief | None] | None = None,
) -> Collected:
    """Plays one episode of each workload with drawn actions, and keeps everything.

    Args:
        prices: [workload, constant] of the price heuristic, whose advice the network hears.
        beliefs: what the network is told of the tasks' times; it is paid for the true ones.
    """
    frame, truth = core.environments(workloads, beliefs=beliefs)
    world, draw = Simulated(frame, truth), Draw(source)
    decoder = Decoder(network.compiled(), frame, prices, without=network.config.without)
    best = np.array([np.mean([kind.slots.min() for kind in each.scenario.types]) for each in workloads])
    overloaded = np.array([each.scenario.load >= 1.0 for each in workloads])
    of_slot = np.where(overloaded, config.overloaded_discount, config.discount) ** (1 / best)
    trace = np.where(overloaded, config.overloaded_trace, config.trace)
    unit = np.array([each.scenario.unit for each in workloads])
    timed = np.array([each.scenario.slot == 0 for each in workloads])
    usual = best * [each.scenario.arrivals for each in workloads] * unit
    envs = np.arange(len(workloads))
    decisions: list[Decision] = []
    rewards: list[np.ndarray] = []
    alive: list[np.ndarray] = []
    discounts: list[np.ndarray] = []
    passings: list[np.ndarray] = []
    times: list[np.ndarray] = []
    while len(envs):
        made = list(decoder.slot(world, envs, lambda _: draw, record=True))
        begun, before = _clocks(frame, truth, len(workloads)), truth.look["waited"].copy()
        envs = pass_slot(frame, truth, envs)
        passed = _clocks(frame, truth, len(workloads)) - begun
        waited = (truth.look["waited"] - before)[: len(workloads)]
        for decision in made:
            here, there = np.zeros(len(workloads), bool), decision.envs
            here[there] = True
            reward, discount = np.zeros(len(workloads)), np.ones(len(workloads))
            reward[there] = -(decision.excess + decision.last * waited[there]) / usual[there]
            discount[there] = np.where(decision.last, of_slot[there] ** passed[there], 1.0)
            decisions.append(decision)
            rewards.append(reward)
            alive.append(here)
            discounts.append(discount)
            passings.append(np.where(timed, passed / unit, 1.0))
            times.append(begun)
    mean_jct = np.array([core.mean_completion_time(frame, truth, env) for env in range(len(workloads))])
    events = Events(timed, np.array(times), np.array(passings)) if timed.any() else None
    return Collected(decisions, np.array(rewards), np.array(alive), np.array(discounts), mean_jct, events, trace)


def _clocks(frame: Frame, truth: Truth, count: int) -> np.ndarray:
    """float64 [env] the time that it is, which is not always the one that is shown."""
    return frame.now[truth.look["actual"][:count]]


def advantages(
    collected: Collected, values: np.ndarray, siblings: int, trace: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """Advantages, of spread 1 on each workload, and returns, float64 [decision, env]; ``values`` is the critic's, 0
    where it has none.
    """
    slots, envs = collected.rewards.shape
    events = collected.events
    advantage = np.zeros((slots, envs))
    following, next_value = np.zeros(envs), np.zeros(envs)
    for slot in range(slots - 1, -1, -1):
        discount, here = collected.discount[slot], collected.alive[slot]
        surprise = collected.rewards[slot] + discount * next_value - values[slot]
        keep = trace if events is None else trace ** events.passed[slot]
        following = np.where(here, surprise + discount * keep * following, following)
        advantage[slot] = following
        next_value = np.where(here, values[slot], next_value)
    returns = advantage + values
    if siblings > 1:
        grouped = advantage.reshape(slots, -1, siblings)
        others = ((grouped.sum(axis=2, keepdims=True) - grouped) / (siblings - 1)).reshape(slots, envs)
        if events is not None:
            for env in np.flatnonzero(events.timed).tolist():
                others[:, env] = _at_the_same_time(events.time, collected.alive, advantage, env, siblings)
        advantage = advantage - others
    for first in range(0, envs, siblings):
        group, there = advantage[:, first : first + siblings], collected.alive[:, first : first + siblings]
        # Each workload by itself: returns of a cluster that is overloaded spread ten times as far as those of one that
        # is not, and would leave the latter's without a say.
        advantage[:, first : first + siblings] = np.where(there, group / (group[there].std() + 1e-8), 0.0)
    return advantage, returns


def _at_the_same_time(
    time: np.ndarray, alive: np.ndarray, advantage: np.ndarray, env: int, siblings: int
) -> np.ndarray:
    """float64 [decision] the mean of what the siblings' advantages are at the times of this episode's decisions."""
    first = env - env % siblings
    total = np.zeros(len(advantage))
    for sibling in range(first, first + siblings):
        if sibling != env:
            there = alive[:, sibling]
            total += np.interp(time[:, env], time[there, sibling], advantage[there, sibling], right=0.0)
    return total / (siblings - 1)


class Learner:
    """Actor, critic and their optimisers."""

    def __init__(self, network: PolicyNetwork, critic: Critic, config: PPOConfig, team: Team) -> None:
        self.network, self.critic, self.config, self.team = network, critic, config, team
        self.actor_optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate, eps=1e-5)
        self.critic_optimizer = torch.optim.Adam(critic.parameters(), lr=config.critic_rate, eps=1e-5)

    def learn(self, collected: Collected, source: np.random.Generator) -> dict[str, float]:
        """One update from what was collected; returns what is worth logging."""
        values = np.zeros(collected.rewards.shape)
        with torch.no_grad():
            for slot, decision in enumerate(collected.decisions):
                values[slot, decision.envs] = self.critic(GraphTensors.of(decision.graphs)).numpy()
        advantage, returns = advantages(collected, values, self.config.siblings, collected.trace)
        told: dict[str, list[float]] = {"policy_loss": [], "value_loss": [], "clipped": [], "entropy": [], "kl": []}
        count = len(collected.decisions)
        passed = np.count_nonzero((collected.discount < 1).any(axis=1))
        together = max(self.config.slots, math.ceil(passed / self.config.steps))
        steps = round(self.team.greatest(math.ceil(count / together)))
        for _ in range(self.config.repeats):
            for chosen in np.array_split(source.permutation(count), steps):
                self._step([collected.decisions[slot] for slot in chosen], advantage[chosen], returns[chosen], told)
        alive = collected.alive
        explained = 1 - np.var((returns - values)[alive]) / max(1e-12, np.var(returns[alive]))
        return {name: float(np.mean(found)) for name, found in told.items()} | {"explained": float(explained)}

    def _step(
        self, decisions: list[Decision], advantage: np.ndarray, returns: np.ndarray, told: dict[str, list[float]]
    ) -> None:
        config, batch = self.config, Batch(decisions)
        worth = _of_states(advantage, decisions)
        self.actor_optimizer.zero_grad()
        self.critic_optimizer.zero_grad()
        value_loss = ((self.critic(batch.graphs) - _of_states(returns, decisions)) ** 2).mean()
        value_loss.backward()
        embeddings = self.network.encode(batch.graphs)
        loss = torch.zeros((), requires_grad=True)
        clipped = entropy = kl = 0.0
        for step in batch.steps:
            now, of_options, of_waiting = log_probability_of_chosen(self.network, embeddings, step)
            change = now - torch.from_numpy(step.log_probability)
            ratio = change.exp()
            gain = worth[torch.from_numpy(step.env)]
            gain = torch.minimum(ratio * gain, ratio.clamp(1 - config.clip, 1 + config.clip) * gain)
            spread = -(of_options.exp() * of_options).sum() - (of_waiting.exp() * of_waiting).sum()
            loss = loss - (gain.sum() + config.entropy * spread) / batch.rows
            with torch.no_grad():
                clipped += ((ratio - 1).abs() > config.clip).sum().item() / batch.rows
                entropy += spread.item() / batch.rows
                kl += (ratio - 1 - change).sum().item() / batch.rows
        loss.backward()
        take_step(self.network, self.actor_optimizer, config.norm, self.team)
        take_step(self.critic, self.critic_optimizer, config.norm, self.team)
        for name, total in zip(told, (loss.item(), value_loss.item(), clipped, entropy, kl), strict=True):
            told[name].append(total)


def _of_states(values: np.ndarray, decisions: list[Decision]) -> torch.Tensor:
    """float32 [state] the values [slot, env] of the states of these slots' decisions, one after the other."""
    found = [of_env[decision.envs] for of_env, decision in zip(values, decisions, strict=True)]
    return torch.from_numpy(np.concatenate(found)).float()
