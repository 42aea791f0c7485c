"""A whole course of training in a scenario: imitation first, then PPO; it can be killed and goes on exactly.

Read it top to bottom: ``train`` is the course. Everything that a later iteration depends on (weights, moments of the
optimisers, the state of the random source, how far it is) is written whole after every few iterations, so a run that
was killed and resumed makes the same weights as one that was not. What is saved for use is a moving average of the
weights, as greedy decisions hang on small differences.
"""

import hashlib
import json
import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
import torch
from msgspec.structs import replace
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from tapfinger_hpc import checkpoint
from tapfinger_hpc.checkpoint import CheckpointInfo, Training
from tapfinger_hpc.errors import CheckpointError, ConfigError, TapfingerError
from tapfinger_hpc.files import whole_or_not_at_all
from tapfinger_hpc.nets.config import NetworkConfig
from tapfinger_hpc.nets.policy_network import Critic, PolicyNetwork
from tapfinger_hpc.policies import settling
from tapfinger_hpc.policies.compiled import price, tuned
from tapfinger_hpc.sim import episodes, experience, scenarios
from tapfinger_hpc.sim.episodes import CompiledPlayer
from tapfinger_hpc.sim.experience import Experience
from tapfinger_hpc.sim.knowledge import Belief
from tapfinger_hpc.sim.levels import CURVES, LEVELS, ORACLE, TYPES
from tapfinger_hpc.sim.scenarios import Scenario, Workload
from tapfinger_hpc.training import following, ppo
from tapfinger_hpc.training.ppo import PPOConfig
from tapfinger_hpc.training.team import Team

STATE = "resume.bin"
METRICS = "metrics.jsonl"
FIRST_SEED = 10_000_000
"""Workloads of training have seeds from here on; those below are for evaluation."""
SEEDS_OF_A_RUN = 1_000_000


class CourseConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a course goes; every default beside its reason."""

    scenario: str
    """A name, or several with commas between, whose workloads take turns."""
    knowledge: str = ORACLE
    """What the policy is told of the tasks' times, one of ``levels.LEVELS``."""
    minutes: float = 20.0
    iterations: int = 0
    """Ends after so many iterations; 0 leaves it to the time. With iterations, the same seed gives the same weights."""
    seed: int = 0
    teacher: str = "price"
    """Imitated at first; "" begins with PPO from random weights."""
    imitation: float = 0.15
    """Share of the course that is imitation."""
    imitation_rate: float = 1e-3
    own_share: float = 0.5
    """Share of slots in which the network acts while it is taught."""
    advice: float = 2.0
    """What is added to the logits of what the price heuristic advises when PPO begins. Imitation goes without the
    advice, so it leaves doubt where there is reason to doubt. 0: the network never hears any."""
    clusters: int = 0
    """How many different clusters each drawn scenario has; on each the constants of the advice are settled once
    (``policies.settling``), as they are in play. 0: another for every workload, and constants for any cluster."""
    network: NetworkConfig = NetworkConfig()
    ppo: PPOConfig = PPOConfig()
    average: float = 0.99
    """Of the moving average of the weights, for each iteration that goes by in steps of the optimiser / 16."""
    save_every: int = 5
    """Iterations between two saved states."""


def ablated(config: CourseConfig, names: Iterable[str]) -> CourseConfig:
    """The same course without these parts, of ``ABLATIONS``."""
    network = config.network
    for name in names:
        if name == "attention":
            network = replace(network, rounds=0)
        elif name == "imitation":
            config = replace(config, teacher="")
        elif name == "advice":
            config = replace(config, advice=0.0)
        else:
            network = replace(network, without=replace(network.without, **{name.replace("-", "_"): True}))
    return replace(config, network=network)


class Progress(msgspec.Struct, frozen=True):
    """What is reported after every iteration."""

    share: float
    """Of the time or the iterations, 0 to 1."""
    iteration: int
    phase: str
    seconds: float
    episodes: int
    told: dict[str, float]


class TrainingError(TapfingerError):
    """Training stopped, and why; the last good checkpoint is kept."""


class _Counters(msgspec.Struct, forbid_unknown_fields=True):
    """The part of a run that is not tensors."""

    config: CourseConfig
    workers: int
    iteration: int = 0
    episodes: int = 0
    seconds: float = 0.0
    seed: int = 0
    """Of the next workload."""
    heeds: bool = False
    """Whether the network hears advice by now."""


def train(
    config: CourseConfig,
    out: Path,
    *,
    table: Path | None = None,
    start: Path | None = None,
    resume: bool = False,
    team: Team | None = None,
    drawn: Callable[[int], Workload] | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> CheckpointInfo:
    """Trains, and writes the checkpoint into ``out``.

    Args:
        table: the test-bed measurements, for scenarios that replay them.
        drawn: the workload of a seed, where ``config.scenario`` is only the name of what it draws from.
        start: a checkpoint whose weights the course begins with.
        team: the processes that train together; every one of them makes this call.

    Raises:
        TrainingError: a loss or gradient is not a number; the checkpoint in ``out`` is the last one before that.
        CheckpointError: ``out`` cannot be written, or what is to be resumed cannot be read.
        ScenarioError: the scenario is not known, or needs a table.
    """
    torch.set_num_threads(1)
    course = _Course(config, out, table, team or Team(), drawn)
    if start is not None:
        course.begin_with(start)
    elif not resume:
        course.begin()
    if resume:
        course.resume()
    while course.share() < 1.0:
        try:
            told = course.iterate()
        except RuntimeError as error:
            if "non-finite" in str(error):
                raise TrainingError(
                    f"training stopped in iteration {course.counters.iteration + 1}: a gradient is not a number; "
                    f"{str(out)!r} holds the last good state; go on with --resume and another seed or learning rate"
                ) from error
            raise
        course.note(told, report)
        if course.counters.iteration % config.save_every == 0:
            course.save()
    return course.save()


class _Course:
    """A course under way in one process of the team."""

    def __init__(
        self,
        config: CourseConfig,
        out: Path,
        table: Path | None,
        team: Team,
        drawn: Callable[[int], Workload] | None = None,
    ) -> None:
        if config.ppo.workloads % team.size:
            raise TrainingError(
                f"{config.ppo.workloads} workloads of an iteration cannot be shared among {team.size} processes; "
                "choose a number of processes that divides it"
            )
        torch.manual_seed(config.seed)
        self.config, self.out, self.table, self.team = config, out, table, team
        if config.knowledge not in LEVELS:
            raise ConfigError(f"knowledge {config.knowledge!r} is not known; known: {', '.join(LEVELS)}")
        self.scenarios = config.scenario.split(",")
        self.drawn = drawn
        self.homes: dict[tuple[str, int], Scenario] = {}
        # An unknown name or a missing table is said at once.
        firsts = self._draw(range(len(self.scenarios)))
        self.experience: Experience | None = None
        if config.knowledge == TYPES and drawn is None and not set(self.scenarios) <= set(scenarios.DRAWN):
            if len(firsts) > 1:
                raise ConfigError(
                    f"knowledge {TYPES!r} is what was learned of the types of one scenario, and {config.scenario!r} "
                    f"are several; train in one, or in drawn ones ({', '.join(scenarios.DRAWN)})"
                )
            self.experience = experience.learn(firsts[0].scenario)
        self.network, self.averaged, self.critic = (
            PolicyNetwork(config.network),
            PolicyNetwork(config.network),
            Critic(config.network.hidden),
        )
        self.averaged.load_state_dict(self.network.state_dict())
        self.prices = tuned.prices(self.scenarios[0], config.knowledge).array()
        self.learner = ppo.Learner(self.network, self.critic, config.ppo, team)
        self.counters = _Counters(config, team.size, seed=FIRST_SEED + config.seed * SEEDS_OF_A_RUN)
        self.source = np.random.default_rng((config.seed, team.rank))
        self.started = time.monotonic()
        self.phase = ""

    # The course.

    def share(self) -> float:
        """How much of the course is done, 0 to 1; the same for everyone in the team."""
        if self.config.iterations:
            return self.counters.iteration / self.config.iterations
        return self.team.greatest(min(1.0, self.seconds() / (60 * self.config.minutes)))

    def seconds(self) -> float:
        return self.counters.seconds + time.monotonic() - self.started

    def iterate(self) -> dict[str, float]:
        """One iteration: imitation at first, later PPO."""
        share = self.share()
        if self.config.teacher and share < self.config.imitation:
            self.phase = "imitation"
            told = self._imitate(share / self.config.imitation)
        else:
            if self.config.advice and not self.counters.heeds:
                for network in (self.network, self.averaged):
                    network.heed(self.config.advice)
                self.counters.heeds = True
            self.phase = "ppo"
            begun = self.config.imitation if self.config.teacher else 0.0
            told = self._improve((share - begun) / max(1e-9, 1 - begun))
        self.counters.iteration += 1
        self._average()
        return told

    def _imitate(self, done: float) -> dict[str, float]:
        config = self.config
        # The same moments serve both phases: what Adam knows of the curvature is worth keeping.
        optimizer = self.learner.actor_optimizer
        _set_rate(optimizer, config.imitation_rate * max(0.1, 1 - done))
        workloads = self._workloads(config.ppo.workloads * config.ppo.siblings)
        own_share = config.own_share if self.counters.iteration else 0.0
        taught = following.lessons(
            self.network, price.decide, self.prices, workloads, own_share, self.source, self._told(workloads)
        )
        losses = [
            following.learn(
                self.network,
                optimizer,
                taught,
                self.source,
                self.team,
                slots=config.ppo.slots,
                norm=config.ppo.norm,
            )
            for _ in range(config.ppo.repeats)
        ]
        return {"loss": losses[-1]}

    def _improve(self, done: float) -> dict[str, float]:
        config = self.config.ppo
        _set_rate(self.learner.actor_optimizer, config.learning_rate * max(0.05, 1 - done))
        workloads = [each for each in self._workloads(config.workloads) for _ in range(config.siblings)]
        prices = self._prices(workloads)
        heard = prices if self.counters.heeds else None
        collected = ppo.collect(self.network, workloads, config, self.source, heard, self._told(workloads))
        told = self.learner.learn(collected, self.source)
        # On the same workloads, for a single collection's mean says more of its arrivals than of the policy.
        heuristic = [
            episodes.play([workload], CompiledPlayer("price", price.decide, constants, self.config.knowledge))[0]
            for workload, constants in list(zip(workloads, prices, strict=True))[:: config.siblings]
        ]
        over = collected.mean_jct / np.repeat([episode.mean_jct for episode in heuristic], config.siblings)
        return {
            "mean_jct": self.team.mean(float(collected.mean_jct.mean())),
            "over_price": self.team.mean(float(over.mean())),
            **told,
        }

    def _workloads(self, count: int) -> list[Workload]:
        """New ones, other ones for each process; ``count`` is for the whole team."""
        first = self.counters.seed
        self.counters.seed += count
        self.counters.episodes += count
        mine = range(first + self.team.rank, first + count, self.team.size)
        return self._draw(mine)

    def _draw(self, seeds: Iterable[int]) -> list[Workload]:
        if self.drawn is not None:
            return [self.drawn(seed) for seed in seeds]
        return [self._workload(seed) for seed in seeds]

    def _workload(self, seed: int) -> Workload:
        name = self.scenarios[seed % len(self.scenarios)]
        if not (self.config.clusters and name in scenarios.DRAWN):
            return scenarios.workload(name, seed, table=self.table)
        home = FIRST_SEED + self.config.seed * SEEDS_OF_A_RUN + seed // len(self.scenarios) % self.config.clusters
        if (name, home) not in self.homes:
            self.homes[name, home] = scenarios.workload(name, home).scenario
        return scenarios.draw(self.homes[name, home], seed)

    def _prices(self, workloads: list[Workload]) -> np.ndarray:
        """float64 [workload, constant] of the price heuristic, as the network hears them there."""
        if not self.config.clusters or self.drawn is not None or self.config.knowledge == CURVES:
            return np.tile(self.prices, (len(workloads), 1))
        return np.array([settling.settle(each.scenario).array() for each in workloads])

    def _told(self, workloads: list[Workload]) -> list[Belief | None]:
        return experience.beliefs(workloads, self.config.knowledge, self.experience)

    def _average(self) -> None:
        # Early weights must not linger: over the first iterations it is a plain mean.
        keep = min(self.config.average ** (1 / 4), self.counters.iteration / (self.counters.iteration + 3))
        with torch.no_grad():
            for averaged, now in zip(self.averaged.parameters(), self.network.parameters(), strict=True):
                averaged.lerp_(now, 1 - keep)

    # What stays.

    def note(self, told: dict[str, float], report: Callable[[Progress], None]) -> None:
        """Writes a line of metrics and reports."""
        if not self.team.leads:
            return
        counters = self.counters
        progress = Progress(
            min(1.0, counters.iteration / self.config.iterations)
            if self.config.iterations
            else min(1.0, self.seconds() / (60 * self.config.minutes)),
            counters.iteration,
            self.phase,
            self.seconds(),
            counters.episodes,
            told,
        )
        line = {
            "step": counters.iteration,
            "seconds": round(progress.seconds, 3),
            "seed": self.config.seed,
            "phase": self.phase,
            "episodes": counters.episodes,
            **{name: value for name, value in told.items() if math.isfinite(value)},
        }
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            with (self.out / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise CheckpointError(f"{str(self.out / METRICS)!r} cannot be written: {error.strerror}") from error
        report(progress)

    def save(self) -> CheckpointInfo:
        """Writes what resuming needs, then the checkpoint; the leader of a team alone writes the latter."""
        counters = self.counters
        counters.seconds = self.seconds()
        self.started = time.monotonic()
        text = msgspec.json.encode(
            {"counters": msgspec.to_builtins(counters), "source": _source_state(self.source)}, order="sorted"
        )
        tensors = dict(self._tensors())
        tensors["state"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        content = save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()})
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            with whole_or_not_at_all(self._state_file(), CheckpointError) as partial:
                partial.write_bytes(hashlib.sha256(content).digest() + content)
        except OSError as error:
            raise CheckpointError(f"{str(self._state_file())!r} cannot be written: {error.strerror}") from error
        training = Training(
            scenario=self.config.scenario,
            knowledge=self.config.knowledge,
            teacher=self.config.teacher,
            seed=self.config.seed,
            iterations=counters.iteration,
            minutes=round(counters.seconds / 60, 2),
            episodes=counters.episodes,
            workers=self.team.size,
            versions={
                "python": platform.python_version(),
                **{name: version(name) for name in ("torch", "torch-geometric", "numpy", "numba", "tapfinger-hpc")},
            },
        )
        if self.team.leads:
            advice = tuple(self.prices.tolist()) if counters.heeds else ()
            checkpoint.save(self.out, self.config.network, self.averaged.weights(), training, advice, self.experience)
        self.team.wait()
        return checkpoint.describe(self.out)

    def begin(self) -> None:
        """Takes random weights, but none for numbers that are always 0 in this scenario."""
        first = FIRST_SEED + self.config.seed * SEEDS_OF_A_RUN
        workloads = self._draw(range(first, first + 4))
        source = np.random.default_rng(self.config.seed)
        told = self._told(workloads)
        taught = following.lessons(self.network, price.decide, self.prices, workloads, 0.0, source, told)
        unseen = following.unseen(taught)
        for network in (self.network, self.averaged):
            network.silence(unseen)

    def begin_with(self, folder: Path) -> None:
        """Takes the weights of a checkpoint."""
        weights, info = checkpoint.read(folder)
        for network in (self.network, self.averaged):
            try:
                network.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()})
            except RuntimeError as error:
                raise CheckpointError(f"checkpoint {str(folder)!r} is of another network: {error}") from error
        if info.advice:
            self.prices, self.counters.heeds = np.array(info.advice), True

    def resume(self) -> None:
        """Goes on where an earlier run in the same folder was saved."""
        path = self._state_file()
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{str(path)!r} cannot be read to resume: {error.strerror}") from error
        digest, content = content[:32], content[32:]
        if hashlib.sha256(content).digest() != digest:
            raise CheckpointError(
                f"{str(path)!r} is truncated or changed; begin anew, or with --start from a checkpoint"
            )
        try:
            tensors = load_tensors(content)
            state = json.loads(bytes(tensors.pop("state").tolist()))
            counters = msgspec.convert(state["counters"], _Counters)
        except (SafetensorError, ValueError, KeyError) as error:
            raise CheckpointError(f"{str(path)!r} cannot be read to resume: {error}") from error
        same = {"minutes", "iterations"}
        for name in CourseConfig.__struct_fields__:
            if name not in same and getattr(counters.config, name) != getattr(self.config, name):
                raise CheckpointError(
                    f"{str(self.out)!r} was trained with {name} = {getattr(counters.config, name)}, not "
                    f"{getattr(self.config, name)}; resume with the same, or begin in another folder"
                )
        if counters.workers != self.team.size:
            raise CheckpointError(
                f"{str(self.out)!r} was trained by {counters.workers} processes, not {self.team.size}; take as many"
            )
        for name, tensor in self._tensors():
            if name not in tensors or tensors[name].shape != tensor.shape:
                raise CheckpointError(f"{str(path)!r} has no {name} of shape {tuple(tensor.shape)}")
            with torch.no_grad():
                tensor.copy_(tensors[name])
        self.counters = msgspec.structs.replace(counters, config=self.config)
        self._forget_later_metrics()
        self.source.bit_generator.state = _as_state(state["source"])
        self.started = time.monotonic()

    def _forget_later_metrics(self) -> None:
        """Iterations after the state that is resumed are done again."""
        path = self.out / METRICS
        if self.team.leads and path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if _step_of(line) <= self.counters.iteration]
            with whole_or_not_at_all(path, CheckpointError) as partial:
                partial.write_text("".join(kept), encoding="utf-8")

    def _state_file(self) -> Path:
        return self.out / (STATE if self.team.leads else f"resume-{self.team.rank}.bin")

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Everything that training changes, by name."""
        for name, module in (("network", self.network), ("averaged", self.averaged), ("critic", self.critic)):
            for key, tensor in module.state_dict().items():
                yield f"{name}.{key}", tensor
        for name, optimizer in (("actor", self.learner.actor_optimizer), ("critic", self.learner.critic_optimizer)):
            for number, parameter in enumerate(optimizer.param_groups[0]["params"]):
                held = optimizer.state[parameter]
                if not held:
                    held["step"] = torch.tensor(0.0)
                    held["exp_avg"], held["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                for key in ("step", "exp_avg", "exp_avg_sq"):
                    yield f"{name}_optimizer.{number}.{key}", held[key]


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _source_state(source: np.random.Generator) -> dict:
    state = source.bit_generator.state
    # JSON numbers end at 2**53 in many readers; these have 128 bits.
    return {**state, "state": {name: str(value) for name, value in state["state"].items()}}


def _as_state(written: dict) -> dict:
    return {**written, "state": {name: int(value) for name, value in written["state"].items()}}


def _step_of(line: str) -> float:
    """Of a line of metrics; one that a kill cut short counts as later than all."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
