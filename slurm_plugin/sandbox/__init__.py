"""A real throw-away Slurm cluster with fake GPUs, for demo, tests and benchmarks."""

from slurm_plugin.sandbox.sandbox import Sandbox
from slurm_plugin.sandbox.spec import SandboxSpec

__all__ = ["Sandbox", "SandboxSpec"]
