"""``tapfinger tune``: finds the price heuristic's constants for a scenario, or a site, and writes them to a file."""

import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from tapfinger_hpc.errors import ConfigError
from tapfinger_hpc.whatif import tuning


@click.command()
@click.option("--scenario", "name", help="Its name; random: for any slotted cluster; cluster: live.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=5.0, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="JSON file to write.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Threads.")
@click.option("--table", type=click.Path(dir_okay=False, path_type=Path), help="Measurements of the test-bed.")
@click.option(
    "--start",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Constants to start from, and to beat: an earlier --out.",
)
@click.option(
    "--portfolio",
    type=click.IntRange(min=1),
    help="Make so many sets of constants that together serve drawn clusters; of random,cluster, by turns.",
)
@tuning.options
@click.pass_context
def tune(
    context: click.Context,
    name: str,
    minutes: float,
    out: Path,
    seed: int,
    workers: int,
    table: Path | None,
    start: Path | None,
    portfolio: int | None,
    **site: Any,
) -> None:
    """Tune the price heuristic for a scenario, or on a site's own past jobs.

    Each generation of candidates plays workloads of its own, the same for all of them. With --scenario what was found
    is kept only if it beats what the search started from on workloads held out from it. With --trace and --cluster
    it is found on the earlier part of the trace, and kept only if it also does better on the later one.
    """
    of_site = tuning.asked(context)
    try:
        from tapfinger_hpc.policies import constants
        from tapfinger_hpc.policies.compiled import tune_portfolio, tune_price, tuned
        from tapfinger_hpc.sim import scenarios
    except ModuleNotFoundError as error:
        raise ConfigError(f"tuning needs {error.name}: install tapfinger-hpc[evaluate]") from error
    if portfolio and not of_site:
        names = name.split(",")
        if wrong := [each for each in names if each not in scenarios.DRAWN]:
            raise ConfigError(f"--portfolio is of drawn clusters ({', '.join(scenarios.DRAWN)}), not {wrong[0]!r}")
        with tuning.timed(Console(stderr=True), "drawing clusters", minutes) as tell:
            made = tune_portfolio.make(names, portfolio, minutes, seed, progress=tell)
        tune_portfolio.save(made, out)
        click.echo(f"{name}: {len(made)} sets of constants; wrote {out}")
        return
    first = constants.read(start) if start else None
    if of_site:
        sys.exit(tuning.tune(out, start, first, minutes, seed, workers, **site))
    scenario = name if name in scenarios.DRAWN else scenarios.scenario(name, table)
    with tuning.searching(Console(stderr=True), name, minutes) as report:
        found = tune_price.tune(
            scenario, minutes, seed, start=first or tuned.prices(name), workers=workers, progress=report
        )
    found.save(out)
    unit = "mean logarithm of completion times" if isinstance(scenario, str) else "slots"
    click.echo(
        f"{name}: {found.mean:.4f} {unit} on {tune_price.HELD_OUT} workloads held out (from {found.started_at:.4f}), "
        f"{found.generations} generations; wrote {out}"
    )
