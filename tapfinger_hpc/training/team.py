"""Several processes that train together: who we are, and how gradients become one.

Started by ``torchrun`` or by ``srun``; a lone process is a team of one. Gloo, so that any small cluster can do it.
"""

import os
import zlib
from collections.abc import Iterable, Mapping
from datetime import timedelta

import torch
import torch.distributed as dist

from tapfinger_hpc.errors import ConfigError

PATIENCE = timedelta(minutes=10)
"""How long the others wait for one that has died or is stuck."""


class Team:
    """The processes of one training run."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def leads(self) -> bool:
        """Whether this one writes files and reports."""
        return self.rank == 0

    def average(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Makes every gradient the mean over the team."""
        if self.size == 1:
            return
        gradients = [each.grad if each.grad is not None else torch.zeros_like(each) for each in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        begun = 0
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = flat[begun : begun + gradient.numel()].view_as(gradient).clone()
            begun += gradient.numel()

    def greatest(self, value: float) -> float:
        """The greatest of everyone's values."""
        return self._reduced(value, dist.ReduceOp.MAX)

    def mean(self, value: float) -> float:
        return self._reduced(value, dist.ReduceOp.SUM) / self.size

    def wait(self) -> None:
        """Until everyone has come as far."""
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        if self.size > 1:
            dist.destroy_process_group()

    def _reduced(self, value: float, operation: dist.ReduceOp.RedOpType) -> float:
        if self.size == 1:
            return value
        held = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(held, operation)
        return float(held)


def join(environment: Mapping[str, str] = os.environ) -> Team:
    """The team that ``torchrun`` or ``srun`` started this process for.

    Raises:
        ConfigError: the environment names a team, but not how to find it.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        rank, size = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    elif "SLURM_STEP_NUM_TASKS" in environment and "SLURM_PROCID" in environment:
        rank, size = _number(environment, "SLURM_PROCID"), _number(environment, "SLURM_STEP_NUM_TASKS")
    else:
        return Team()
    if size == 1:
        return Team()
    host = environment.get("MASTER_ADDR") or environment.get("SLURM_LAUNCH_NODE_IPADDR")
    # Two steps of one job, two jobs of one host, or two throw-away clusters must not meet at the same port.
    step = environment.get("SLURM_JOB_ID", "0") + environment.get("SLURM_STEP_ID", "0")
    number = zlib.crc32(environment.get("SLURM_CLUSTER_NAME", "").encode()) + (int(step) if step.isdecimal() else 0)
    # Above the ports that Linux hands out by itself.
    port = environment.get("MASTER_PORT") or str(61000 + number % 4000)
    if not host:
        raise ConfigError(
            f"training as one of {size} processes: neither MASTER_ADDR nor SLURM_LAUNCH_NODE_IPADDR says where the "
            "first one is; start with torchrun or srun, or set MASTER_ADDR"
        )
    dist.init_process_group("gloo", init_method=f"tcp://{host}:{port}", rank=rank, world_size=size, timeout=PATIENCE)
    return Team(rank, size)


def join_file(path: str, rank: int, size: int) -> Team:
    """A team of processes of one machine, which meet at a file."""
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=size, timeout=PATIENCE)
    return Team(rank, size)


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment[name]
    if not value.isdecimal():
        raise ConfigError(f"{name}={value!r} in the environment: expected a whole number")
    return int(value)
