"""The command ``tapfinger``. Subcommands live in their own rooms and are imported only when called."""

import importlib
import sys
from collections.abc import Sequence

import click
from click.shell_completion import CompletionItem

from tapfinger_hpc import __version__
from tapfinger_hpc.errors import TapfingerError

COMMANDS = {
    "agent": "slurm_plugin.cli:agent",
    "bench": "tapfinger_hpc.cli:bench",
    "demo": "slurm_plugin.demo.cli:demo",
    "doctor": "slurm_plugin.cli:doctor",
    "evaluate": "tapfinger_hpc.sim.cli:evaluate",
    "explain": "slurm_plugin.cli:explain",
    "install": "slurm_plugin.install.cli:install",
    "janitor": "slurm_plugin.cli:janitor",
    "learn": "slurm_plugin.cli:learn",
    "profile": "slurm_plugin.cli:profile",
    "report": "slurm_plugin.cli:report",
    "sandbox": "slurm_plugin.sandbox.cli:sandbox",
    "serve": "policy_server.cli:serve",
    "simulate": "tapfinger_hpc.sim.cli:simulate",
    "status": "slurm_plugin.cli:status",
    "trace": "trace_tools.cli:trace",
    "train": "tapfinger_hpc.training.cli:train",
    "tune": "tapfinger_hpc.policies.compiled.tune_cli:tune",
    "uninstall": "slurm_plugin.install.cli:uninstall",
}
"""Where each subcommand is. Strings, so that nothing is imported before it is called."""

GRAFTED = {"trace": {"collect": "slurm_plugin.accounting:collect"}}
"""Subcommands that stand in a group of another room than their own."""

LENT = {
    "cluster": "slurm_plugin.cluster_file:read",
    "classes": "trace_tools.learning:of_trace",
    "moment": "trace_tools.since:moment_s",
}
"""What a replay of a trace asks of other rooms (``whatif.evaluation.Lent``)."""

SUMMARIES = {
    "agent": "Watch the queue and place managed jobs.",
    "bench": "Measure the live system, the simulator, or the policy.",
    "demo": "Run the same jobs on stock Slurm and with TapFinger.",
    "doctor": "Check Slurm, hook, agent and server, and say what to do.",
    "evaluate": "Compare policies, also on your own past jobs.",
    "explain": "Say what was decided for a job, and why.",
    "install": "Put TapFinger on this Slurm controller.",
    "janitor": "Free jobs that a dead agent left pinned (one shot).",
    "learn": "Learn job classes from the jobs that the agent saw end.",
    "profile": "Run a script where the model of its job class is least sure.",
    "report": "What TapFinger saved, or would have saved.",
    "sandbox": "A real throw-away Slurm cluster with fake GPUs.",
    "serve": "Run the policy server.",
    "simulate": "Play a scenario with one policy, and write down what it did.",
    "status": "What agent and server are doing now.",
    "trace": "Make and check workload traces.",
    "train": "Train a policy.",
    "tune": "Tune the price heuristic for a scenario, or your own past jobs.",
    "uninstall": "Take TapFinger off again, without a trace.",
}
"""One line each for ``tapfinger --help``, kept here because reading them there would import everything."""


BENCHES = {
    "accounting": "trace_tools.bench:accounting",
    "decision": "tapfinger_hpc.policies.bench:decision",
    "live": "slurm_plugin.bench:live",
    "simulator": "tapfinger_hpc.sim.bench:simulator",
    "speeds": "trace_tools.speed_cli:speeds",
}
BENCH_SUMMARIES = {
    "accounting": "How long it takes to read accounting, and how much memory.",
    "decision": "How long the learned policy takes for one decision.",
    "live": "Submission, decision and start, on throw-away clusters.",
    "simulator": "Environment steps a second of the compiled simulator.",
    "speeds": "How well speed models foretell what they have not seen.",
}


class LazyGroup(click.Group):
    """A group that imports a subcommand when it is called."""

    def __init__(self, *arguments, places: dict[str, str], summaries: dict[str, str], **fields) -> None:
        super().__init__(*arguments, **fields)
        self._places, self._summaries = places, summaries

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted(self._places)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in self._places:
            return None
        command = _at(self._places[name])
        for child, place in GRAFTED.get(name, {}).items():
            command.add_command(_at(place), child)
        return command

    def shell_complete(self, context: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [name for name in self.list_commands(context) if name.startswith(incomplete)]
        options = click.Command.shell_complete(self, context, incomplete)
        return [*(CompletionItem(name, help=self._summaries[name]) for name in names), *options]

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._summaries[name]) for name in sorted(self._places)])


def borrowed(name: str):
    """What another room lends, of ``LENT``."""
    return _at(LENT[name])


def _at(place: str):
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


@click.command(
    cls=LazyGroup,
    places=COMMANDS,
    summaries=SUMMARIES,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="tapfinger")
def tapfinger() -> None:
    """TapFinger-HPC: learned placement and resource amounts for machine-learning jobs on Slurm."""


@click.command(cls=LazyGroup, places=BENCHES, summaries=BENCH_SUMMARIES)
def bench() -> None:
    """Measure the live system, the simulator, or the policy."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: prints our own errors in one line and exits with 1; click's usage errors exit with 2."""
    try:
        tapfinger.main(args=arguments, prog_name="tapfinger")
    except TapfingerError as error:
        click.echo(f"tapfinger: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
