"""``tapfinger evaluate --trace``: what policies would have made of a site's own jobs, on its own cluster."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from click.core import ParameterSource
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from tapfinger_hpc.whatif.evaluation import Lent
    from tapfinger_hpc.whatif.report import Fidelity, Row, WhatIf

OF_SCENARIOS = {
    "scenario_names": "--scenario",
    "seeds": "--seeds",
    "seed0": "--seed0",
    "reference": "--reference",
    "load_text": "--load",
    "with_bound": "--bound",
    "bound_seeds": "--bound-seeds",
    "curves": "--curve",
    "table": "--table",
    "knowledge": "--knowledge",
    "classes_file": "--classes",
    "singles": "--single-task",
    "workers": "--workers",
}
"""Options of ``evaluate`` that mean nothing where a trace is replayed."""
BOTH, KEEP, CHANGE = "both", "keep", "change"
_FILE = click.Path(dir_okay=False, path_type=Path)
CLUSTER = click.option(
    "--cluster", help="Of the trace: slurm.conf, what `scontrol show nodes` prints, a TOML file, or live."
)
PARTITION = click.option(
    "--partition", "mapped", multiple=True, help="With --trace, OLD=NEW: jobs of OLD go to NEW; repeatable."
)
MANAGE = click.option(
    "--manage",
    type=click.Choice(("all", "gpu", "marked")),
    default="all",
    show_default=True,
    help="Jobs of the trace that policies decide on: all of one node, those with GPUs, or those with the mark.",
)
_OPTIONS = (
    click.option("--trace", "trace_file", type=_FILE, help="Replay this trace instead of scenarios."),
    CLUSTER,
    click.option("--since", help="Only jobs submitted from then on: 30d before the last, 2025-01-31, or seconds."),
    click.option("--until", help="Only jobs submitted before then."),
    click.option("--jobs", type=click.IntRange(min=1), help="Only the first so many of them."),
    PARTITION,
    MANAGE,
    click.option(
        "--amounts",
        type=click.Choice((BOTH, KEEP, CHANGE)),
        default=BOTH,
        show_default=True,
        help="Whether policies may also change how much a job gets, where its class's speed is known.",
    ),
)
OF_TRACES = {
    "cluster": "--cluster",
    "since": "--since",
    "until": "--until",
    "jobs": "--jobs",
    "mapped": "--partition",
    "manage": "--manage",
    "amounts": "--amounts",
}


def options(command: Callable) -> Callable:
    """What a replay is told on the command line."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def asked(
    context: click.Context,
    of_scenarios: Mapping[str, str] = OF_SCENARIOS,
    of_traces: Mapping[str, str] = OF_TRACES,
) -> bool:
    """Whether it is about a trace; options that do not go together are a usage error that names both.

    Args:
        of_scenarios: parameters that mean nothing with a trace, and the options that set them; the scenario is first.
        of_traces: the other way round.
    """
    given = [name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if "trace_file" not in given:
        wrong = [of_traces[name] for name in given if name in of_traces]
        if wrong:
            raise click.UsageError(f"{wrong[0]} goes with --trace alone.")
        if next(iter(of_scenarios)) not in given:
            raise click.UsageError("Give --scenario, or --trace with --cluster.")
        return False
    wrong = [of_scenarios[name] for name in given if name in of_scenarios]
    if wrong:
        raise click.UsageError(f"{wrong[0]} and --trace do not go together: a trace has its own jobs and cluster.")
    if "cluster" not in given:
        raise click.UsageError(
            "--trace needs --cluster: slurm.conf, what `scontrol show nodes` prints, a TOML file, or live."
        )
    return True


def evaluate(
    trace_file: Path,
    cluster: str,
    policies: Sequence[str],
    checkpoints: Mapping[str, Path],
    json_file: Path | None,
    draw: Callable[["WhatIf"], Sequence[Path]] | None,
    *,
    since: str | None,
    until: str | None,
    jobs: int | None,
    mapped: Sequence[str],
    manage: Any,
    amounts: str,
) -> None:
    """Replays the trace and tells what came of it."""
    from tapfinger_hpc.whatif import evaluation, playing, report

    contenders = contenders_of(policies, checkpoints)
    for contender in contenders:
        contender.made()  # an unknown name or weights that cannot be used are told before anything is replayed
    console = Console(stderr=True)
    chosen = {BOTH: (report.KEPT, report.CHANGED), KEEP: (report.KEPT,), CHANGE: (report.CHANGED,)}[amounts]
    with console.status("reading the trace and learning its job classes"):
        loaded = evaluation.load(trace_file, cluster, mapping(mapped), manage, lent())
        prepared = evaluation.prepare(loaded, from_s=loaded.second(since), until_s=loaded.second(until), jobs=jobs)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    each = len(prepared.plan.kept.jobs)
    try:
        with Progress(*columns, console=console) as shown:
            total = each * playing.count(prepared.plan, contenders, chosen)
            bar = shown.add_task("replaying", total=total)
            done = 0

            def tell(name: str, ended: int) -> None:
                shown.update(bar, completed=done + ended, description=name)

            found = []
            for one in playing.replays(prepared.plan, prepared.shape.spec, contenders, amounts=chosen, report=tell):
                found.append(one)
                done += each
            shown.update(bar, completed=total, description="replayed")
    except KeyboardInterrupt:
        console.print("Stopped; nothing was written.")
        sys.exit(130)
    told = evaluation.reported(prepared, found)
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(told), indent=1) + b"\n")
    show(Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False), told)
    for path in draw(told) if draw is not None else ():
        console.print(f"drawn: {path}", highlight=False)


def lent() -> "Lent":
    """What other rooms know."""
    from tapfinger_hpc import cli as rooms
    from tapfinger_hpc.whatif.evaluation import Lent

    return Lent(**{name: rooms.borrowed(name) for name in rooms.LENT})


def contenders_of(policies: Sequence[str], checkpoints: Mapping[str, Path]) -> list[Any]:
    """The policies of the command line; one that has weights of its own may have any name."""
    from tapfinger_hpc.policies import registry
    from tapfinger_hpc.whatif.playing import Contender

    names = [*policies, *(name for name in checkpoints if name not in policies)]
    return [
        Contender(
            name, "tapfinger" if name in checkpoints and name not in registry.NAMES else name, checkpoints.get(name)
        )
        for name in names
    ]


def mapping(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Partitions of the cluster by those of the trace, of OLD=NEW."""
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        old, equals, new = text.partition("=")
        if not (old and equals and new):
            raise click.UsageError(f"--partition {text!r}: expected OLD=NEW, such as gpu-old=gpu")
        found[old] = (*found.get(old, ()), *new.split(","))
    return found


# What is shown.

WIDTH = 140
_CHANGE = "change (95 %)"


def show(console: Console, found: "WhatIf") -> None:
    """The report as text: what was replayed, how far it is to be trusted, what would have changed."""
    console.print(f"[bold]{found.trace}[/bold] on {found.cluster}", soft_wrap=True)
    console.print(
        f"{found.jobs:,} jobs submitted over {span(found.window_s)}; {found.managed:,} of them managed, "
        f"{found.ranged:,} with amounts that may change ({found.classes} job classes known)",
        soft_wrap=True,
    )
    for name, count in {**found.left_out, **found.assumed}.items():
        word = "left out" if name in found.left_out else "assumed"
        console.print(f"{word}: {count:,} {name}: {_meaning(name)}", soft_wrap=True)
    for note in found.notes:
        console.print(f"note: {note}", soft_wrap=True)
    console.print()
    if found.fidelity is not None:
        _show_fidelity(console, found.fidelity)
        console.print()
    console.print(_table(found))
    if found.ranged and len(found.rows) > 1:
        console.print(
            "What changed amounts bring rests on the fitted speed models: nobody ran those jobs on other amounts. "
            "The other rows rest on times that were measured.",
            soft_wrap=True,
        )
    console.print(
        f"Changes are of means over the same jobs; 95 % intervals from resampling {found.blocks} stretches of time.",
        soft_wrap=True,
    )


def _show_fidelity(console: Console, fidelity: "Fidelity") -> None:
    table = Table(
        title=f"How far to trust it: stock Slurm replayed against what accounting says ({fidelity.jobs:,} jobs)",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("")
    for heading in ("waiting, mean", "median", "completion, mean", "median"):
        table.add_column(heading, justify="right")
    for name in ("real", "replayed"):
        table.add_row(
            {"real": "accounting", "replayed": "replayed"}[name],
            *(
                span(getattr(fidelity, f"{name}_{what}_s"))
                for what in ("mean_waiting", "median_waiting", "mean_completion", "median_completion")
            ),
        )
    console.print(table)
    correlation = "none can be given" if fidelity.correlation is None else f"{fidelity.correlation:.2f}"
    console.print(
        f"{fidelity.near:.0%} of completion times are within 5 min or a quarter of the real ones; rank correlation of "
        f"waiting {correlation}.",
        soft_wrap=True,
    )


def _table(found: "WhatIf") -> Table:
    table = Table(
        title="What would have changed, against stock Slurm's replay",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for heading in ("policy", "amounts"):
        table.add_column(heading, no_wrap=True)
    for heading in (
        "completion, mean",
        _CHANGE,
        "median",
        "p95",
        "waiting, mean",
        _CHANGE,
        "GPU use",
        "CPU use",
        "cut off",
    ):
        table.add_column(heading, justify="right", min_width=24 if heading == _CHANGE else None)
    for row in found.rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: "Row") -> tuple[str, ...]:
    return (
        row.policy,
        f"{row.changed:,} changed" if row.changed else row.amounts,
        span(row.mean_completion_s),
        str(row.completion or "-"),
        span(row.median_completion_s),
        span(row.p95_completion_s),
        span(row.mean_waiting_s),
        str(row.waiting or "-"),
        f"{row.gpu_use:.1%}",
        f"{row.cpu_use:.1%}",
        f"{row.cut_off:,}",
    )


def span(seconds: float) -> str:
    """A time in words."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def _meaning(name: str) -> str:
    from tapfinger_hpc.whatif.admission import ASSUMED, LEFT_OUT

    return {**LEFT_OUT, **ASSUMED}[name]
