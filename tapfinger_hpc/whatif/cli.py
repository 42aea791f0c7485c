"""``tapfinger evaluate --trace``: what policies would have made of a site's own jobs, on its own cluster."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    "settles": "--settle",
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
OF_LEARNING = {"cluster": "--cluster", "mapped": "--partition", "manage": "--manage"}
"""Options that `train` and `tune` have of a trace."""
NOT_BETTER = 3
"""Exit status where what was learned of a trace is not better than what there is, and so is not kept."""
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
    click.option(
        "--draws",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Replay changed amounts again with so many other speed curves, so that intervals hold their doubt too.",
    ),
    click.option(
        "--constants",
        "constants_file",
        type=_FILE,
        help="Replay price and tapfinger also with these constants, which `tapfinger tune` made.",
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
    "draws": "--draws",
    "constants_file": "--constants",
}


def options(command: Callable) -> Callable:
    """What a replay is told on the command line."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def learning(told: str) -> Callable[[Callable], Callable]:
    """What learning of a trace is told on the command line; ``told`` says of --trace what is learned."""

    def decorated(command: Callable) -> Callable:
        for option in (MANAGE, PARTITION, CLUSTER, click.option("--trace", "trace_file", type=_FILE, help=told)):
            command = option(command)
        return command

    return decorated


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
    draws: int,
    classes_file: Path | None,
    constants_file: Path | None,
) -> None:
    """Replays the trace and tells what came of it."""
    from tapfinger_hpc.speed import read_classes
    from tapfinger_hpc.whatif import evaluation, playing, report

    contenders, compared = contenders_of(policies, checkpoints), list[tuple[str, str]]()
    if constants_file is not None:
        contenders, compared = also_with(constants_file, contenders)
    for contender in contenders:
        contender.made()  # an unknown name or weights that cannot be used are told before anything is replayed
    console = Console(stderr=True)
    chosen = {BOTH: (report.KEPT, report.CHANGED), KEEP: (report.KEPT,), CHANGE: (report.CHANGED,)}[amounts]
    believed = None if classes_file is None else read_classes(classes_file)
    with console.status("reading the trace and learning its job classes"):
        loaded = evaluation.load(trace_file, cluster, mapping(mapped), manage, lent())
        prepared = evaluation.prepare(
            loaded, from_s=loaded.second(since), until_s=loaded.second(until), jobs=jobs, told=believed
        )
    try:
        count = playing.count(prepared.plan, contenders, chosen, draws)
        with replaying(console, len(prepared.plan.kept.jobs), count) as tell:
            found = list(
                playing.replays(
                    prepared.plan, prepared.shape.spec, contenders, amounts=chosen, draws=draws, report=tell
                )
            )
    except KeyboardInterrupt:
        console.print("Stopped; nothing was written.")
        sys.exit(130)
    told = evaluation.reported(prepared, found, draws, compared)
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(told), indent=1) + b"\n")
    show(Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False), told)
    for path in draw(told) if draw is not None else ():
        console.print(f"drawn: {path}", highlight=False)


@contextlib.contextmanager
def replaying(console: Console, jobs: int, count: int) -> Iterator[Callable[[str, int], None]]:
    """Shows how far so many replays of so many jobs are; gives what is to be told of each."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as shown:
        bar, names = shown.add_task("replaying", total=jobs * count), list[str]()

        def tell(name: str, ended: int) -> None:
            if name not in names:
                names.append(name)
            shown.update(bar, completed=jobs * (len(names) - 1) + ended, description=name)

        yield tell
        shown.update(bar, completed=jobs * count, description="replayed")


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


def also_with(constants_file: Path, contenders: Sequence[Any]) -> tuple[list[Any], list[tuple[str, str]]]:
    """Those that go by constants of the price heuristic, or hear its advice, once more with those of a file; and the
    names of each two that differ in nothing else.
    """
    from tapfinger_hpc.policies import constants, registry
    from tapfinger_hpc.whatif.playing import with_constants

    prices = constants.read(constants_file)
    again = {one.name: with_constants(one, prices) for one in contenders if one.policy in registry.PRICED}
    if not again:
        raise click.UsageError(f"--constants is for {' and '.join(registry.PRICED)}; --policies has neither")
    both = [each for one in contenders for each in (one, again.get(one.name)) if each is not None]
    return both, [(other.name, name) for name, other in again.items()]


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
    for title, table in _tables(found):
        _print(console, title, table)
    if found.ranged and len(found.rows) > 1:
        console.print(
            "What changed amounts bring rests on the fitted speed models: nobody ran those jobs on other amounts. "
            "The other rows rest on times that were measured.",
            soft_wrap=True,
        )
    resampled = f"{found.blocks} stretches of time"
    if found.draws:
        resampled += f", and where amounts may change {found.draws} draws of the speed models"
    console.print(
        f"Changes are of means over the same jobs; 95 % intervals from resampling {resampled}.", soft_wrap=True
    )
    for pair in found.pairs:
        console.print(f"{pair}", style="bold", soft_wrap=True)


def show_rows(console: Console, jobs: int, learned: str, rows: Sequence["Row"]) -> None:
    """What came of the later part of a trace; ``learned`` says what was done with the earlier one."""
    console.print(f"On the last {jobs:,} jobs of the trace, which were not {learned} on, mean completion time:")
    wide = max(len(row.policy) for row in rows)
    for row in rows:
        against = f"   {row.completion} against easy" if row.completion else ""
        console.print(f"  {row.policy:{wide}} {span(row.mean_completion_s):>9}{against}", soft_wrap=True)


def _show_fidelity(console: Console, fidelity: "Fidelity") -> None:
    table = _empty("")
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
    title = f"How far to trust it: stock Slurm replayed against what accounting says ({fidelity.jobs:,} jobs)"
    _print(console, title, table)
    correlation = "none can be given" if fidelity.correlation is None else f"{fidelity.correlation:.2f}"
    console.print(
        f"{fidelity.near:.0%} of completion times are within 5 min or a quarter of the real ones; rank correlation of "
        f"waiting {correlation}.",
        soft_wrap=True,
    )
    if not fidelity.waits_as_it_was:
        more = "longer" if fidelity.replayed_mean_waiting_s > fidelity.real_mean_waiting_s else "less"
        console.print(
            f"Jobs wait much {more} here than they did: the cluster, or what made them wait, is not that of the trace. "
            "Do not trust what follows about waiting.",
            style="bold",
            soft_wrap=True,
        )


def _tables(found: "WhatIf") -> Iterator[tuple[str, Table]]:
    """Completion, then waiting and what was held, each with its title."""
    completion, waiting = _empty("policy", "amounts"), _empty("policy", "amounts")
    for heading in ("mean", "change (95 %)", "median", "95th percentile"):
        completion.add_column(heading, justify="right")
        waiting.add_column(heading, justify="right")
    for heading in ("GPUs", "CPUs", "cut off"):
        waiting.add_column(heading, justify="right")
    for row in found.rows:
        amounts = f"{row.changed:,} changed" if row.changed else row.amounts
        completion.add_row(
            row.policy,
            amounts,
            span(row.mean_completion_s),
            str(row.completion or "-"),
            span(row.median_completion_s),
            span(row.p95_completion_s),
        )
        waiting.add_row(
            row.policy,
            amounts,
            span(row.mean_waiting_s),
            str(row.waiting or "-"),
            span(row.median_waiting_s),
            span(row.p95_waiting_s),
            f"{row.gpu_use:.1%}",
            f"{row.cpu_use:.1%}",
            f"{row.cut_off:,}",
        )
    yield "What would have changed, against stock Slurm's replay: from submission to the end", completion
    yield "From submission to the start; what was held while jobs arrived; jobs that their time limit ended", waiting


def _empty(*headings: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    return table


def _print(console: Console, title: str, table: Table) -> None:
    # A title of the table itself would be broken to the table's width.
    console.print(title, style="bold", soft_wrap=True)
    console.print(table)


def span(seconds: float) -> str:
    """A time in words."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def _meaning(name: str) -> str:
    from tapfinger_hpc.whatif.admission import ASSUMED, LEFT_OUT

    return {**LEFT_OUT, **ASSUMED}[name]
