"""``tapfinger tune``: finds the price heuristic's constants for a scenario and writes them to a file."""

from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tapfinger_hpc.errors import ConfigError


@click.command()
@click.option("--scenario", "name", required=True, help="Its name; random: for any slotted cluster; cluster: live.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=5.0, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="JSON file to write.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--table", type=click.Path(dir_okay=False, path_type=Path), help="Measurements of the test-bed.")
@click.option(
    "--start", type=click.Path(dir_okay=False, path_type=Path), help="Constants to start from: an earlier --out."
)
def tune(name: str, minutes: float, out: Path, seed: int, table: Path | None, start: Path | None) -> None:
    """Tune the price heuristic for a scenario.

    Each generation of candidates plays workloads of its own, the same for all of them. What was found is kept only if
    it beats what the search started from on workloads held out from it.
    """
    try:
        from tapfinger_hpc.policies.compiled import tune_price, tuned
        from tapfinger_hpc.sim import scenarios
    except ModuleNotFoundError as error:
        raise ConfigError(f"tuning needs {error.name}: install tapfinger-hpc[train]") from error
    scenario = name if name in scenarios.DRAWN else scenarios.scenario(name, table)
    first = tune_price.load(start) if start else tuned.prices(name)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"tuning for {name}", total=60 * minutes)

        def report(generation: int, elapsed_s: float, spread: float) -> None:
            bar.update(task, completed=elapsed_s, description=f"generation {generation}, spread {spread:.3f}")

        found = tune_price.tune(scenario, minutes, seed, start=first, progress=report)
    found.save(out)
    unit = "mean logarithm of completion times" if isinstance(scenario, str) else "slots"
    click.echo(
        f"{name}: {found.mean:.4f} {unit} on {tune_price.HELD_OUT} workloads held out (from {found.started_at:.4f}), "
        f"{found.generations} generations; wrote {out}"
    )
