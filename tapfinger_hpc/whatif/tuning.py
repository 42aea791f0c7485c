"""``tapfinger tune --trace``: constants of the price heuristic for a site, found on its own past jobs.

They are looked for on workloads made of the earlier part of the trace, and kept only if the heuristic does better with
them on the later part. The network that hears its advice replays that part too, as it is what most sites run.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tapfinger_hpc.errors import ConfigError
from tapfinger_hpc.whatif import cli as whatif
from tapfinger_hpc.whatif.cli import NOT_BETTER, lent, mapping

if TYPE_CHECKING:
    from tapfinger_hpc.policies.compiled.price import Prices
    from tapfinger_hpc.whatif.adaptation import Verdict

EPISODES = 8
"""Workloads of a generation: half as many as of a scenario, as those of one site differ less."""
OF_SCENARIOS = {"name": "--scenario", "table": "--table", "portfolio": "--portfolio"}
options = whatif.learning("Tune for the jobs of this trace instead; the later part says whether it is better.")


def asked(context: click.Context) -> bool:
    """Whether it is for the jobs of a trace."""
    return whatif.asked(context, OF_SCENARIOS, whatif.OF_LEARNING)


def tune(
    out: Path,
    start: Path | None,
    first: "Prices | None",
    minutes: float,
    seed: int,
    workers: int,
    *,
    trace_file: Path,
    cluster: str,
    mapped: Sequence[str],
    manage: Any,
) -> int:
    """Searches and compares; the exit status.

    Args:
        start: the file that ``first`` comes from.
        first: the present constants; None: those that ship.
    """
    from tapfinger_hpc.policies.compiled import tune_price, tuned
    from tapfinger_hpc.sim.scenarios import CLUSTER as ANY_CLUSTER
    from tapfinger_hpc.whatif import adaptation, evaluation

    if not out.absolute().parent.is_dir():
        raise ConfigError(f"writing {str(out)!r}: there is no folder {str(out.parent)!r}; make it, or choose another")
    console, shown = Console(stderr=True, highlight=False), Console(highlight=False)
    present = first or tuned.prices(ANY_CLUSTER)
    with console.status("reading the trace and learning its job classes"):
        loaded = evaluation.load(trace_file, cluster, mapping(mapped), manage, lent())
        parts = adaptation.parts(loaded)
    try:
        with searching(console, "the site", minutes) as report:
            found = tune_price.tune(
                parts.name,
                minutes,
                seed,
                start=present,
                others=tuned.shipped(),
                drawn=parts.workloads,
                episodes=EPISODES,
                workers=workers,
                progress=report,
            )
        if found.prices == present:
            shown.print(
                f"Not better: {found.generations} generations found nothing that beats {_named(start)} on workloads of "
                "the earlier part; more --minutes or another --seed may.",
                soft_wrap=True,
            )
            return NOT_BETTER
        verdict = _judged(console, parts.held_out, present, found.prices)
    except KeyboardInterrupt:
        console.print("Stopped; nothing was written.")
        sys.exit(130)
    if verdict.better:
        found.save(out, held_out={"jobs": verdict.jobs, **_changes(verdict)})
    _show(shown, verdict, start, out)
    return 0 if verdict.better else NOT_BETTER


@contextlib.contextmanager
def searching(console: Console, name: str, minutes: float) -> Iterator[Callable[[int, float, float], None]]:
    """Shows how far a search is; gives what is to be told of each generation."""
    with timed(console, f"tuning for {name}", minutes) as tell:
        yield lambda generation, elapsed_s, spread: tell(f"generation {generation}, spread {spread:.3f}", elapsed_s)


@contextlib.contextmanager
def timed(console: Console, doing: str, minutes: float) -> Iterator[Callable[[str, float], None]]:
    """Shows how much of the time has passed; gives what is to be told of what is being done, and the seconds passed."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(doing, total=60 * minutes)
        yield lambda doing, elapsed_s: bar.update(task, completed=elapsed_s, description=doing)


def _judged(console: Console, held_out: Any, present: "Prices", found: "Prices") -> "Verdict":
    from tapfinger_hpc.policies import registry
    from tapfinger_hpc.whatif import adaptation
    from tapfinger_hpc.whatif.playing import Contender, with_constants

    pairs = []
    for name in registry.PRICED:
        one = Contender(name, name, prices=present)
        pairs.append((one, with_constants(one, found)))
    with whatif.replaying(console, len(held_out.plan.kept.jobs), 1 + 2 * len(pairs)) as tell:
        return adaptation.judged(held_out, pairs, tell)


def _show(console: Console, verdict: "Verdict", start: Path | None, out: Path) -> None:
    whatif.show_rows(console, verdict.jobs, "tuned", verdict.rows)
    heuristic, network = verdict.changes
    clear = "" if heuristic.clear else "; the interval holds 0, so it may be chance"
    console.print(f"Found constants against present: price {heuristic}{clear}", soft_wrap=True)
    console.print(f"  tapfinger, which hears what price would do: {network}", soft_wrap=True)
    if not verdict.better:
        console.print(f"Not better: {_named(start)} stay, and nothing was written.", soft_wrap=True)
        return
    console.print(f"Kept: {out}; the server takes it with server.constants, evaluate with --constants", soft_wrap=True)
    if network.low > 0:
        console.print(
            'The network does worse with them: where server.policy is "tapfinger", leave server.constants as it is.',
            style="bold",
            soft_wrap=True,
        )


def _changes(verdict: "Verdict") -> dict[str, Any]:
    from tapfinger_hpc.policies import registry

    return dict(zip(registry.PRICED, map(msgspec.to_builtins, verdict.changes), strict=True))


def _named(start: Path | None) -> str:
    return f"those of {start}" if start else "the constants that ship"
