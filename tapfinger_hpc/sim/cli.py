"""``tapfinger simulate`` and ``tapfinger evaluate``: what policies do in the scenarios, and how good they are."""

import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import click
import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tapfinger_hpc import __version__
from tapfinger_hpc.errors import CheckpointError, ConfigError, ScenarioError
from tapfinger_hpc.sim.levels import CURVES, LEVELS
from tapfinger_hpc.speed import JobClass, read_classes
from tapfinger_hpc.whatif import cli as whatif

if TYPE_CHECKING:
    from tapfinger_hpc import evaluate as evaluation
    from tapfinger_hpc.sim.bound import Bound

SEEDS_OF_A_TASK = 25
"""Episodes that a worker plays at a time. Not a matter of the number of workers: results must not hang on it."""
WIDTH = 140
_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)
_SETTLES = click.option(
    "--settle/--no-settle",
    "settles",
    default=True,
    help="Weights for any cluster first look for the constants of their advice on each drawn cluster, some seconds.",
)
_CLASSES = click.option(
    "--classes",
    "classes_file",
    type=_FILE,
    help="What --knowledge curves is told, or with --trace the policies: job classes, as `trace fit` learns them.",
)


@click.command()
@click.option("--scenario", required=True, help="Its name; an unknown one is answered with those that are known.")
@click.option("--policy", required=True, help="Its name; an unknown one is answered with those that are known.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the first workload.")
@click.option("--episodes", type=click.IntRange(min=1), default=1, show_default=True, help="One of each next seed.")
@click.option("--load", type=float, help="Instead of the scenario's own.")
@click.option("--dump", type=_FILE, help="File for one JSON line of each episode; without it only means are shown.")
@click.option("--trace", "trace_file", type=_FILE, help="File for the tasks as jobs that have ended, a trace.")
@click.option("--table", type=_FILE, help="Measurements of the authors' test-bed, for the scenarios that replay them.")
@click.option("--knowledge", type=click.Choice(LEVELS), help="What the policy knows of a task's speed.")
@_CLASSES
@click.option("--checkpoint", type=_FOLDER, help="Folder of the weights, for a learned policy.")
@click.option("--single-task", is_flag=True, help="A learned policy places one task per agent and look at the state.")
@_SETTLES
def simulate(
    scenario: str,
    policy: str,
    seed: int,
    episodes: int,
    load: float | None,
    dump: Path | None,
    trace_file: Path | None,
    table: Path | None,
    knowledge: str | None,
    classes_file: Path | None,
    checkpoint: Path | None,
    single_task: bool,
    settles: bool,
) -> None:
    """Play episodes of a scenario with one policy, and write down what it did."""
    evaluation = _load_evaluation()
    from tapfinger_hpc import trace as traces
    from tapfinger_hpc.sim import dump as dumps
    from tapfinger_hpc.sim import ended, scenarios
    from tapfinger_hpc.sim.episodes import Episode, play

    means: list[float] = []
    kept: list[Episode] = []
    with _usage_errors():
        classes = _classes(classes_file, knowledge)
        contender = evaluation.Contender(policy, policy, checkpoint, knowledge, single_task, settles, classes)
        _check([(scenario, load)], [contender], table, seed)
    file = _opened(dump, "wb") if dump else None
    for number in range(seed, seed + episodes):
        workload = scenarios.workload(scenario, number, table=table, load=load)
        (episode,) = play([workload], contender.player(workload.scenario, number), classes=classes)
        means.append(episode.mean_jct)
        if trace_file:
            kept.append(episode)
        if file:
            file.write(msgspec.json.encode(dumps.record(episode, policy)) + b"\n")
    if file:
        file.close()
    if trace_file:
        with _usage_errors():
            traces.write(ended.trace(kept), trace_file)
    shown = evaluation.interval(means)
    spread = f", 95 % interval {shown.low:.3f} to {shown.high:.3f}" if episodes > 1 else ""
    unit = "s" if scenario == "cluster" else "slots"
    click.echo(f"{scenario} {policy}: mean completion time {shown.mean:.3f} {unit} of {episodes} episodes{spread}")


@click.command()
@click.option("--scenario", "scenario_names", help="Names, with commas between them.")
@click.option("--policies", required=True, help="Names, with commas between them; `bound` adds the lower bounds.")
@whatif.options
@click.option("--seeds", type=click.IntRange(min=1), default=200, show_default=True, help="How many workloads.")
@click.option("--seed0", type=click.IntRange(min=0), default=0, show_default=True, help="The first seed.")
@click.option("--reference", help="Policy that the others are compared with in the table.  [default: the first]")
@click.option("--load", "load_text", help="Loads instead of the scenario's own: 0.8, or 0.5,0.9, or 0.3:1.1:0.1.")
@click.option("--bound", "with_bound", is_flag=True, help="Lower bounds too: tasks alone, and a linear programme.")
@click.option("--bound-seeds", type=click.IntRange(min=1), help="Bound only the first so many workloads.")
@click.option("--json", "json_file", type=_FILE, help="File for everything that was found.")
@click.option("--plots", type=_FOLDER, help="Folder for figures, as SVG and PNG.")
@click.option("--curve", "curves", multiple=True, help="NAME=metrics.jsonl: a learning curve to draw; repeatable.")
@click.option("--table", type=_FILE, help="Measurements of the authors' test-bed, for the scenarios that replay them.")
@click.option("--knowledge", type=click.Choice(LEVELS), help="What the policies know of a task's speed.")
@_CLASSES
@click.option("--checkpoint", "checkpoints", multiple=True, help="NAME=FOLDER: weights under a name; repeatable.")
@click.option("--single-task", "singles", multiple=True, help="NAME=FOLDER: as --checkpoint, one task at a time.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes that play.")
@_SETTLES
@click.pass_context
def evaluate(
    context: click.Context,
    scenario_names: str,
    policies: str,
    seeds: int,
    seed0: int,
    reference: str | None,
    load_text: str | None,
    with_bound: bool,
    bound_seeds: int | None,
    json_file: Path | None,
    plots: Path | None,
    curves: Sequence[str],
    table: Path | None,
    knowledge: str | None,
    classes_file: Path | None,
    checkpoints: Sequence[str],
    singles: Sequence[str],
    workers: int,
    settles: bool,
    trace_file: Path,
    **replayed: Any,
) -> None:
    """Compare policies on the same workloads, or on the jobs of a trace.

    With --scenario every policy plays every seed; differences are paired by seed and have 95 % intervals. With --trace
    and --cluster your own past jobs are replayed, and it is told what would have changed.
    """
    replays = whatif.asked(context)
    evaluation = _load_evaluation()
    names = _names(policies, "--policies")
    if replays:
        _replay(trace_file, names, checkpoints, json_file, plots, {**replayed, "classes_file": classes_file})
        return
    with_bound = with_bound or "bound" in names
    with _usage_errors():
        classes = _classes(classes_file, knowledge)
        contenders = _contenders(
            [name for name in names if name != "bound"], checkpoints, singles, knowledge, settles, classes
        )
        chosen = reference or contenders[0].name
        if chosen not in [contender.name for contender in contenders]:
            raise ConfigError(f"reference {chosen!r} is not among the policies {policies!r}")
        wanted = evaluation.loads(load_text) if load_text else (None,)
        fields = [(scenario, load) for scenario in _names(scenario_names, "--scenario") for load in wanted]
        _check(fields, contenders, table, seed0)
        learning = [_curve(text) for text in curves]
        if plots is not None:
            _load_plots()
    if plots is not None:
        _make_folder(plots)
    if json_file is not None:
        _opened(json_file, "ab").close()  # what cannot be written is said before the playing, which may take long
    console = Console(stderr=True)
    bounded = min(bound_seeds or seeds, seeds) if with_bound else 0
    work = _Work(evaluation, fields, contenders, table, tuple(range(seed0, seed0 + seeds)), bounded)
    try:
        report = evaluation.Report(__version__, chosen, work.contests(console, workers))
    except KeyboardInterrupt:
        console.print("Stopped; nothing was written.")
        sys.exit(130)
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    # In a file there is no width to keep to; a table that is broken there cannot be read.
    show(Console(width=None if sys.stdout.isatty() else WIDTH), report)
    if plots is not None:
        for path in _load_plots().draw(report, plots, learning):
            console.print(f"drawn: {path}", highlight=False)


def _replay(
    trace_file: Path,
    names: Sequence[str],
    checkpoints: Sequence[str],
    json_file: Path | None,
    plots: Path | None,
    replayed: dict[str, Any],
) -> None:
    draw = None
    if plots is not None:
        _load_plots()  # says what is missing
        from tapfinger_hpc.whatif import figures

        draw = partial(figures.draw, folder=plots)
    with _usage_errors():
        folders = _folders(checkpoints)
        if json_file is not None:
            _opened(json_file, "ab").close()
        if plots is not None:
            _make_folder(plots)
        whatif.evaluate(trace_file, replayed.pop("cluster"), names, folders, json_file, draw, **replayed)


def show(console: Console, report: "evaluation.Report") -> None:
    """The figures as tables, one for each contest."""
    for contest in report.contests:
        console.print(_table(contest, report.reference))
        console.print(f"With every task alone on the cluster the mean were {contest.alone}.", highlight=False)
        if contest.bound is not None:
            _show_bound(console, contest.bound)


class _Work:
    """Everything that is to be played, and what came of it."""

    def __init__(self, evaluation, fields, contenders, table: Path | None, seeds: tuple[int, ...], bounded: int):
        self._evaluation, self._fields, self._contenders = evaluation, fields, contenders
        self._table, self._seeds, self._bounded = table, seeds, bounded

    def contests(self, console: Console, workers: int) -> "tuple[evaluation.Contest, ...]":
        """Plays all; the order in which workers finish does not matter."""
        runs: dict[tuple[int, str, int], list[evaluation.Run]] = {}
        bounds: dict[tuple[int, int], Bound] = {}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as shown:
            bar = shown.add_task("playing", total=len(self._fields) * (len(self._contenders) + 1))
            calls = list(self._calls(runs, bounds))
            shown.update(bar, total=len(calls))
            for keep, outcome in _carried_out(calls, workers):
                keep(outcome)
                shown.advance(bar)
        return tuple(self._contest(number, runs, bounds) for number in range(len(self._fields)))

    def _calls(self, runs, bounds):
        """(what to do with the outcome, function, its arguments) of every piece of work."""
        for number, (scenario, load) in enumerate(self._fields):
            for seed in self._seeds[: self._bounded]:
                arguments = (scenario, load, self._table, seed)
                yield _kept(bounds, (number, seed)), self._evaluation.bound_task, arguments
            for contender in self._contenders:
                for first in range(0, len(self._seeds), SEEDS_OF_A_TASK):
                    seeds = self._seeds[first : first + SEEDS_OF_A_TASK]
                    task = self._evaluation.PlayTask(scenario, load, self._table, seeds, contender)
                    yield _kept(runs, (number, contender.name, first)), self._evaluation.play_task, (task,)

    def _contest(self, number: int, runs, bounds) -> "evaluation.Contest":
        return self._evaluation.contest(
            self._fields[number][0],
            {
                contender.name: [
                    run
                    for first in range(0, len(self._seeds), SEEDS_OF_A_TASK)
                    for run in runs[number, contender.name, first]
                ]
                for contender in self._contenders
            },
            [bounds[number, seed] for seed in self._seeds[: self._bounded]],
            first_seed=self._seeds[0],
        )


def _kept(outcomes: dict, key: object) -> Callable:
    return lambda outcome: outcomes.__setitem__(key, outcome)


def _carried_out(calls: Sequence[tuple[Callable, Callable, tuple]], workers: int):
    """(what to do with it, outcome) of every call, as they come."""
    if workers == 1:
        for keep, function, arguments in calls:
            yield keep, function(*arguments)
        return
    # Not forked: a fork of a process with threads of numba or torch may hang.
    with ProcessPoolExecutor(workers, get_context("spawn"), _leave_interrupts) as pool:
        kept: dict[Future, Callable] = {}
        for keep, function, arguments in calls:
            kept[pool.submit(function, *arguments)] = keep
        try:
            for future in as_completed(kept):
                yield kept[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _leave_interrupts() -> None:
    """Ctrl-C goes to every process of a terminal; the one that leads says what becomes of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _contenders(
    names: Sequence[str],
    checkpoints: Sequence[str],
    singles: Sequence[str],
    knowledge: str | None,
    settles: bool,
    classes: tuple[JobClass, ...],
):
    """The policies of the command line; one that has weights of its own may have any name."""
    from tapfinger_hpc.evaluate import Contender
    from tapfinger_hpc.sim import players

    folders = _folders((*checkpoints, *singles))
    one_by_one = {text.partition("=")[0] for text in singles}
    names = [*names, *(name for name in folders if name not in names)]
    if not names:
        raise ConfigError("no policy to play: give at least one name with --policies")
    return [
        Contender(
            name=name,
            policy="tapfinger" if name in folders and name not in players.NAMES else name,
            checkpoint=folders.get(name),
            knowledge=knowledge,
            single_task=name in one_by_one,
            settles=settles,
            classes=classes,
        )
        for name in names
    ]


def _folders(checkpoints: Sequence[str]) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for text in checkpoints:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise ConfigError(f"checkpoint {text!r}: expected NAME=FOLDER, such as mine=runs/hetero")
        if name in folders:
            raise ConfigError(f"checkpoint {text!r}: the name {name!r} has weights already; choose another")
        folders[name] = Path(folder)
    return folders


def _check(fields, contenders, table: Path | None, seed: int) -> None:
    """Says before anything is played what cannot be."""
    from tapfinger_hpc.sim import experience, scenarios

    for scenario, load in fields:
        workload = scenarios.workload(scenario, seed, table=table, load=load)
        for contender in contenders:
            player = replace(contender, settles=False).player(workload.scenario, seed)
            if contender.classes:
                experience.beliefs([workload], player.knowledge, classes=contender.classes)


def _classes(file: Path | None, knowledge: str | None) -> tuple[JobClass, ...]:
    if file is None:
        return ()
    if knowledge != CURVES:
        raise ConfigError("--classes is what --knowledge curves is told: give both")
    if not (classes := read_classes(file)):
        raise ConfigError(f"job classes {str(file)!r}: there are none in it; learn some with `tapfinger trace fit`")
    return classes


def _curve(text: str):
    plots = _load_plots()
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise ConfigError(f"curve {text!r}: expected NAME=FILE, such as hetero-6=runs/hetero/metrics.jsonl")
    return plots.read_curve(name, Path(file))


def _names(text: str, option: str) -> list[str]:
    found = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not found:
        raise click.UsageError(f"{option} {text!r}: expected at least one name")
    return found


class _usage_errors:
    """What is wrong with names and files of the command line is told as a usage error."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, (ConfigError, ScenarioError, CheckpointError)):
            raise click.UsageError(str(error)) from error


def _load_evaluation():
    try:
        import numba  # noqa: F401

        from tapfinger_hpc import evaluate
    except ImportError as error:
        raise ConfigError(
            f"the simulator needs {error.name}, which is not installed: pip install 'tapfinger-hpc[evaluate]'"
        ) from error
    return evaluate


def _load_plots():
    try:
        from tapfinger_hpc import plots
    except ImportError as error:
        raise ConfigError(
            f"figures need {error.name}, which is not installed: pip install 'tapfinger-hpc[evaluate]'"
        ) from error
    return plots


def _opened(path: Path, mode: str) -> IO[bytes]:
    _make_folder(path.parent)
    try:
        return cast(IO[bytes], path.open(mode))
    except OSError as error:
        raise ConfigError(f"writing {str(path)!r}: {error.strerror}; choose another file") from error


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"making the folder {str(path)!r}: {error.strerror}; choose another") from error


def _table(contest: "evaluation.Contest", reference: str) -> Table:
    title = f"{contest.scenario}, load {contest.load:.2f}, {contest.seeds} workloads from seed {contest.first_seed} on"
    table = Table(
        title=f"{title}; times in slots",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for heading in ("policy", "knows"):
        table.add_column(heading, no_wrap=True)
    numbers = ("mean ± 95 %", f"against {reference} ± 95 %", "median", "p95", "p99", "waiting")
    for heading in (*numbers, "GPU efficiency", "GPU use", "decisions/s"):
        table.add_column(heading, justify="right", no_wrap=not heading.startswith("GPU"))
    for row in contest.policies:
        table.add_row(
            row.policy,
            row.knowledge or "-",
            f"{row.mean_jct.mean:.3f} ± {row.mean_jct.half:.3f}",
            _against(contest, row.policy, reference),
            f"{row.median_jct:g}",
            f"{row.p95_jct:g}",
            f"{row.p99_jct:g}",
            f"{row.waiting.mean:.3f}",
            f"{row.gpu_efficiency:.1%}",
            f"{row.gpu_use:.1%}",
            f"{row.decisions_per_s:,.0f}",
        )
    return table


def _against(contest: "evaluation.Contest", policy: str, reference: str) -> str:
    if policy == reference:
        return "-"
    found = contest.against(policy, reference)
    return f"{found.mean:+.2%} ± {found.half:.2%}"


def _show_bound(console: Console, bound: "evaluation.BoundFigures") -> None:
    console.print(
        f"Lower bound, {bound.seeds} workloads: linear programme {bound.programme}, every task alone {bound.alone} "
        f"(solved to {bound.greatest_gap:.2%} or better)",
        highlight=False,
    )
    above = ", ".join(f"{policy} {share:+.2%}" for policy, share in bound.above.items())
    console.print(f"Above the programme on these: {above or 'none that it binds'}", highlight=False)
