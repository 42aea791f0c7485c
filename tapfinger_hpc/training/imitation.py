"""Teaches the network to decide as another policy does: collect labelled states, take steps, now and then save.

Read it top to bottom: ``train`` is the whole course. It ends by itself when its time or its steps are used up, keeps
the last good checkpoint whatever happens, and goes on where it ended when resumed.
"""

import hashlib
import math
import platform
import random
import time
from collections import deque
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import msgspec
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from tapfinger_hpc.errors import CheckpointError, TapfingerError
from tapfinger_hpc.nets.network import Network, NetworkConfig
from tapfinger_hpc.policies.base import Policy
from tapfinger_hpc.policies.learned import LearnedPolicy
from tapfinger_hpc.training import checkpoint
from tapfinger_hpc.training.checkpoint import CheckpointInfo, Training, Validation, write_whole
from tapfinger_hpc.training.episodes import HELD_OUT, TRAINING, Recorder, random_scenario, record, scenarios
from tapfinger_hpc.training.examples import WAIT, Batch, Example, collate
from tapfinger_hpc.training.validate import agreement

RESUME = "resume.safetensors"


class ImitationConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the imitation goes; every default beside its reason."""

    minutes: float = 10.0
    """Time for collecting and for steps; validation comes on top."""
    steps: int = 0
    """Ends after so many steps; 0 leaves it to the time. With steps, the same seed gives the same weights."""
    seed: int = 0
    network: NetworkConfig = NetworkConfig()
    batch: int = 48
    """States in one step."""
    learning_rate: float = 1e-3
    """At the start; falls along a cosine to a twentieth."""
    warm_up: int = 100
    """Steps in which the learning rate rises from zero."""
    weight_decay: float = 1e-4
    clip: float = 1.0
    """Greatest norm of a gradient."""
    average: float = 0.995
    """The weights that are saved are a moving average over steps: greedy decisions hang on small differences."""
    memory: int = 24000
    """States kept to learn from; some 45 kB each."""
    steps_per_episode: int = 8
    """Steps between two episodes. With 30, fewer states were learned by heart instead (loss 0.2 seen, 0.8 unseen)."""
    first_episodes: int = 12
    """Episodes of the teacher alone before the first step."""
    own_share: float = 0.4
    """Share of later episodes in which the network acts."""
    save_every: int = 500
    """Steps between two checkpoints."""
    held_out: int = 6
    """Held-out episodes on which agreement is measured."""


class Progress(msgspec.Struct, frozen=True):
    """What is reported while training goes on."""

    share: float
    """Of the time or the steps, 0 to 1."""
    step: int
    episodes: int
    states: int
    loss: float
    seconds_left: float


class TrainingError(TapfingerError):
    """Training stopped, and why; the last good checkpoint is kept."""


class _Resume(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The part of a run that is not tensors."""

    imitates: str
    seed: int
    network: NetworkConfig
    step: int
    episodes: int
    decisions: int
    seconds: float
    data_sha256: str


def train(
    config: ImitationConfig,
    teacher: Policy,
    out: Path,
    *,
    resume: bool = False,
    report: Callable[[Progress], None] = lambda progress: None,
) -> CheckpointInfo:
    """Trains, and writes the checkpoint into ``out``.

    An interruption (Ctrl-C) saves what has been learned so far, and goes on to the caller.

    Raises:
        TrainingError: the loss is not a number; the checkpoint in ``out`` is the last one before that.
        CheckpointError: ``out`` cannot be written, or what is to be resumed cannot be read.
    """
    torch.set_num_threads(1)
    run = _Run(config, teacher, out)
    if resume:
        run.resume()
    try:
        run.go(report)
    except KeyboardInterrupt:
        if run.step > run.first_step:
            run.save(measure=False)
        raise
    return run.save()


def loss_of(network: Network, batch: Batch) -> torch.Tensor:
    """Cross-entropy of the teacher's choices: for each head the mean over its rows, and the sum over the heads."""
    embeddings = network.encode(batch.graph)
    total = torch.zeros(())
    for labelled in batch.heads.values():
        of_options, of_waiting = network.log_probabilities(embeddings, labelled.options)
        waits = labelled.labels == WAIT
        chosen = of_options[labelled.labels.clamp(min=0)]
        if len(of_waiting):
            chosen = torch.where(waits, of_waiting, chosen)
        total = total - chosen.mean()
    return total


class _Run:
    """One course of training under way."""

    def __init__(self, config: ImitationConfig, teacher: Policy, out: Path) -> None:
        torch.manual_seed(config.seed)
        self.config, self.teacher, self.out = config, teacher, out
        self.network = Network(config.network)
        self.averaged = Network(config.network)
        self.averaged.load_state_dict(self.network.state_dict())
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.memory: deque[Example] = deque(maxlen=config.memory)
        self.digest = hashlib.sha256()
        self.step = self.episodes = self.decisions = 0
        self.earlier_s = 0.0
        self.started_s = time.monotonic()
        self.first_step = 0
        self.loss = math.nan
        self.saved_step = 0

    # The course.

    def go(self, report: Callable[[Progress], None]) -> None:
        self.started_s = time.monotonic()
        self.first_step = self.step
        draw = random.Random(f"batches {self.config.seed} {self.step}")
        stream = scenarios(TRAINING, first=self.config.seed * 1_000_000 + self.episodes)
        collected = 0
        while self._share() < 1.0:
            number, scenario = next(stream)
            own = self.step > 0 and draw.random() < self.config.own_share
            actor = LearnedPolicy.of(self.averaged) if own else self.teacher
            recorder = Recorder(self.teacher, actor, f"{self.config.seed} {number}", self.digest)
            self.memory.extend(record(scenario, recorder))
            self.episodes += 1
            collected += 1
            self.decisions += len(recorder.examples)
            report(self._progress())
            if collected < self.config.first_episodes or not self.memory:
                continue
            for _ in range(self.config.steps_per_episode):
                if self._share() >= 1.0:
                    break
                self._take_step(draw)
                report(self._progress())
                if self.step % self.config.save_every == 0:
                    self.save(measure=False)

    def _take_step(self, draw: random.Random) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self.network.train()
        batch = collate(draw.choices(self.memory, k=self.config.batch))
        loss = loss_of(self.network, batch)
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            raise TrainingError(
                f"step {self.step + 1}: the loss is {loss.item()} and the gradient {norm.item()}; "
                + (f"the checkpoint of step {self.saved_step} is kept in {str(self.out)!r}" if self.saved_step else "")
                + "; try another seed"
            )
        self.optimizer.step()
        self.step += 1
        self._average()
        self.loss = loss.item() if math.isnan(self.loss) else 0.98 * self.loss + 0.02 * loss.item()

    @torch.no_grad()
    def _average(self) -> None:
        # Young averages forget faster, or they would hold on to the random weights of the start.
        keep = min(self.config.average, (1 + self.step) / (10 + self.step))
        for slow, fast in zip(self.averaged.parameters(), self.network.parameters(), strict=True):
            slow.lerp_(fast, 1 - keep)

    def _learning_rate(self) -> float:
        falling = 0.05 + 0.95 * (1 + math.cos(math.pi * min(1.0, self._share()))) / 2
        return self.config.learning_rate * falling * min(1.0, (self.step - self.first_step + 1) / self.config.warm_up)

    def _share(self) -> float:
        if self.config.steps:
            return (self.step - self.first_step) / self.config.steps
        return (time.monotonic() - self.started_s) / (60 * self.config.minutes)

    def _progress(self) -> Progress:
        share = self._share()
        gone = time.monotonic() - self.started_s
        left = gone / share - gone if share > 0 else math.inf
        return Progress(min(1.0, share), self.step, self.episodes, self.decisions, self.loss, max(0.0, left))

    # What is kept.

    def save(self, *, measure: bool = True) -> CheckpointInfo:
        """Writes the averaged weights, and what it takes to go on from here."""
        seconds = self.earlier_s + time.monotonic() - self.started_s
        info = checkpoint.save(self.out, self.averaged, self._training(seconds, measure))
        state = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        state |= {f"averaged.{name}": value for name, value in self.averaged.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            moments = self.optimizer.state.get(parameter, {})
            state |= {f"{key}.{name}": value for key, value in moments.items()}
        about = _Resume(
            imitates=self.teacher.name,
            seed=self.config.seed,
            network=self.config.network,
            step=self.step,
            episodes=self.episodes,
            decisions=self.decisions,
            seconds=seconds,
            data_sha256=self.digest.hexdigest(),
        )
        tensors = {key: value.contiguous() for key, value in state.items()}
        write_whole(self.out / RESUME, save_tensors(tensors, {"about": msgspec.json.encode(about).decode()}))
        self.saved_step = self.step
        return info

    def resume(self) -> None:
        """Goes on from what an earlier run left in the folder; its states are not kept, new ones are collected."""
        path = self.out / RESUME
        try:
            content = path.read_bytes()
            about = msgspec.json.decode(_metadata(content)["about"], type=_Resume)
            tensors = load_tensors(content)
        except OSError as error:
            raise CheckpointError(
                f"{str(path)!r} cannot be resumed: {error.strerror}; train without --resume"
            ) from error
        except Exception as error:
            raise CheckpointError(f"{str(path)!r} cannot be resumed: {error}; train without --resume") from error
        wanted = (self.teacher.name, self.config.seed, self.config.network)
        if (about.imitates, about.seed, about.network) != wanted:
            raise CheckpointError(
                f"{str(path)!r} imitates {about.imitates} with seed {about.seed} and {about.network}, "
                f"not {self.teacher.name} with seed {self.config.seed}: give the same, or train without --resume"
            )
        for network, prefix in ((self.network, "network."), (self.averaged, "averaged.")):
            network.load_state_dict(
                {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            )
        for name, parameter in self.network.named_parameters():
            moments = {
                key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in tensors
            }
            if moments:
                self.optimizer.state[parameter] = moments
        self.step, self.episodes, self.decisions = about.step, about.episodes, about.decisions
        self.earlier_s = about.seconds
        self.digest.update(about.data_sha256.encode())

    def _training(self, seconds: float, measure: bool) -> Training:
        return Training(
            imitates=self.teacher.name,
            seed=self.config.seed,
            steps=self.step,
            minutes=round(seconds / 60, 2),
            episodes=self.episodes,
            decisions=self.decisions,
            data_sha256=self.digest.hexdigest(),
            versions={
                "python": platform.python_version(),
                **{name: version(name) for name in ("torch", "torch-geometric", "numpy")},
            },
            agreement=self._agreement() if measure else {},
        )

    def _agreement(self) -> dict[str, float]:
        examples: list[Example] = []
        for number in range(self.config.held_out):
            recorder = Recorder(self.teacher, self.teacher, f"held out {number}")
            examples += record(random_scenario(HELD_OUT, number), recorder)
        return {head: round(share, 4) for head, share in agreement(self.averaged, examples).items()}


def _metadata(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file: its header is JSON, after eight bytes with its length."""
    length = int.from_bytes(content[:8], "little")
    header = msgspec.json.decode(content[8 : 8 + length])
    return dict(header["__metadata__"])


def with_validation(folder: Path, validation: tuple[Validation, ...]) -> CheckpointInfo:
    """Writes what validation showed into a checkpoint's description."""
    network, info = checkpoint.load(folder)
    return checkpoint.save(folder, network, msgspec.structs.replace(info.training, validation=validation))
