"""``tapfinger bench live``: the figures of the live system, measured on throw-away clusters.

Speed is measured here only; no test asserts a time.
"""

import contextlib
import functools
import os
import platform
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec
from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

from slurm_plugin.client import PolicyClient
from slurm_plugin.cluster import SlurmCluster
from slurm_plugin.demo import cli as demo_cli
from slurm_plugin.demo import run as demo_run
from slurm_plugin.journal import Journal
from slurm_plugin.sandbox.sandbox import Sandbox
from tapfinger_hpc import config, workload
from tapfinger_hpc.decision import guard_all
from tapfinger_hpc.errors import SandboxError
from tapfinger_hpc.state import ClusterState, Resources
from tapfinger_hpc.stats import Reduction, percentile, reduction, summarise

PENDING = 50
"""Jobs that wait while decisions are timed."""


class Spread(msgspec.Struct, frozen=True):
    """A measured quantity over several runs."""

    runs: int
    median: float
    p95: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(len(values), statistics.median(values), percentile(values, 95), max(values))


class DemoSeed(msgspec.Struct, frozen=True):
    """One run of the demo."""

    seed: int
    stock_mean_s: float
    tapfinger_mean_s: float
    reduction: float


class LiveFigures(msgspec.Struct, frozen=True):
    """What `tapfinger bench live --json` writes."""

    machine: str
    policy: str
    sbatch_stock_ms: Spread
    sbatch_hook_ms: Spread
    """The same submissions on a cluster with the hook and an enforcing agent: every job is leased."""
    sbatch_ratio: float
    """Median with the hook / median without."""
    decide_ms: Spread
    """From the agent's side: state out, decisions back, over the unix socket. 6 nodes that are full but for one job
    that has just ended, and 50 pending jobs: what the agent asks most when so many wait."""
    decide_empty_ms: Spread
    """The same with 50 pending jobs on 6 empty nodes: the most that one answer can hold."""
    decision_to_running_ms: Spread
    """From the answer with the placement to the first line of the job's script, guard, journal and update included."""
    agent_rss_mb: float
    server_rss_mb: float
    agent_cpu_share_idle: float
    """CPU seconds of the agent per second of an empty queue."""
    demo: tuple[DemoSeed, ...] = ()
    demo_reduction: Reduction | None = None
    """Over the seeds: reduction of the mean completion time."""


@click.command()
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here.")
@click.option("--policy", default="tapfinger", show_default=True, help="What the policy server decides with.")
@click.option("--submissions", default=200, show_default=True, type=click.IntRange(min=10))
@click.option(
    "--demo-seeds", default=3, show_default=True, type=click.IntRange(min=0), help="Runs of the demo; 0: none."
)
@click.option("--demo-jobs", default=48, show_default=True, type=click.IntRange(min=2))
def live(json_file: Path | None, policy: str, submissions: int, demo_seeds: int, demo_jobs: int) -> None:
    """Measure hook, agent, server and demo on real throw-away Slurm clusters (root, some fifteen minutes)."""
    console = Console()
    with contextlib.ExitStack() as stack:
        stock = stack.enter_context(Sandbox.up(replace(demo_run.CLUSTER, hook=False)))
        box = stack.enter_context(Sandbox.up(demo_run.CLUSTER))
        processes = stack.enter_context(demo_run.tapfinger_running(box, policy))
        console.print("agent at rest ...")
        idle_share = _cpu_share(processes["agent"].pid, seconds=20.0)
        console.print(f"sbatch, {submissions} on each cluster in turn ...")
        stock_ms, hook_ms = _submissions(stock, box, submissions)
        console.print("decisions, 50 pending jobs ...")
        empty = _empty_cluster(box)
        decide_empty_ms = _decisions(box, empty, rounds=200)
        decide_ms = _decisions(box, _full_cluster(box, empty), rounds=200)
        console.print("from decision to running script ...")
        start_ms = _starts(box, jobs=30)
        agent_mb, server_mb = (_rss_mb(processes[name].pid) for name in ("agent", "serve"))
    seeds = tuple(_demo_seed(console, seed, demo_jobs, policy) for seed in range(demo_seeds))
    figures = LiveFigures(
        machine=f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
        policy=policy,
        sbatch_stock_ms=Spread.of(stock_ms),
        sbatch_hook_ms=Spread.of(hook_ms),
        sbatch_ratio=statistics.median(hook_ms) / statistics.median(stock_ms),
        decide_ms=Spread.of(decide_ms),
        decide_empty_ms=Spread.of(decide_empty_ms),
        decision_to_running_ms=Spread.of(start_ms),
        agent_rss_mb=agent_mb,
        server_rss_mb=server_mb,
        agent_cpu_share_idle=idle_share,
        demo=seeds,
        demo_reduction=_over_seeds(seeds),
    )
    console.print(_table(figures))
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n")


def _submissions(stock: Sandbox, box: Sandbox, count: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each sbatch, alternating between the clusters so that the machine's mood hits both alike."""
    times: dict[str, list[float]] = {"stock": [], "hook": []}
    command = ["sbatch", "--hold", "--gres=gpu:1", "--comment=tapfinger gpus=1-4 class=bench", "--wrap=true"]
    for _ in range(count):
        for name, cluster in (("stock", stock), ("hook", box)):
            before = time.perf_counter()
            cluster.run(*command)
            times[name].append((time.perf_counter() - before) * 1000)
    for cluster in (stock, box):
        cluster.run("scancel", "--user=root")
        cluster.wait_for(functools.partial(_empty, cluster), what="an empty queue")
    return times["stock"], times["hook"]


def _empty(cluster: Sandbox) -> bool:
    return not cluster.run("squeue", "--noheader").stdout


def _empty_cluster(box: Sandbox) -> ClusterState:
    """The real nodes while nothing runs, and jobs of the demo's kind that have waited for a minute."""
    trace = workload.demo_trace(seed=1, n_jobs=2 * PENDING)
    seen = SlurmCluster.from_config(config.load(box.tapfinger_toml)).observe()
    pending = tuple(replace(item.job, submit_time_s=int(seen.time_s) - 60) for item in trace.jobs)
    return replace(seen, pending=pending[:PENDING], classes=trace.classes)


def _full_cluster(box: Sandbox, empty: ClusterState) -> ClusterState:
    """The same after the server has filled the nodes, as many jobs waiting as before, and one job has just ended."""
    client = PolicyClient.from_config(config.load(box.tapfinger_toml))
    state, number = empty, 0
    while placed := [one for one in client.decide(state).decisions if one.placement is not None]:
        _, _, state = guard_all(placed, state)
        more = tuple(
            replace(job, job_id=f"9{number + index}") for index, job in enumerate(empty.pending[: len(placed)])
        )
        number += len(placed)
        state = replace(state, pending=state.pending + more)
    ended = state.running[0]
    freed = {share.node: share.amounts for share in ended.shares}
    nodes = tuple(replace(node, free=node.free + freed.get(node.name, Resources())) for node in state.nodes)
    return replace(state, nodes=nodes, running=state.running[1:])


def _decisions(box: Sandbox, state: ClusterState, rounds: int) -> list[float]:
    """Milliseconds from a state to its decisions. Each round has another time, so that no answer is an old one."""
    client = PolicyClient.from_config(config.load(box.tapfinger_toml))
    times = []
    for round_number in range(rounds):
        asked = replace(state, time_s=state.time_s + round_number)
        before = time.perf_counter()
        answer = client.decide(asked)
        times.append((time.perf_counter() - before) * 1000)
        if len(answer.decisions) != PENDING:
            raise SandboxError(f"bench: {len(answer.decisions)} decisions for {PENDING} jobs")
    return times


def _starts(box: Sandbox, jobs: int) -> list[float]:
    """Milliseconds from the agent's decision to the first line of the job, one job after another."""
    times = []
    for _ in range(jobs):
        # A random moment, so that slurmctld's one-second rhythm is not met at the same point each time.
        time.sleep(random.random())
        job_id = box.submit(
            "#!/bin/bash\necho $EPOCHREALTIME\n", "--gres=gpu:1", "--time=1", "--comment=tapfinger gpus=1-4 class=bench"
        )
        box.wait_state(job_id, "COMPLETED", timeout_s=120)
        box.wait_for(functools.partial(box.output, job_id), what=f"output of job {job_id}")
        times.append((float(box.output(job_id)) - _decided_s(box, job_id)) * 1000)
    return times


def _decided_s(box: Sandbox, job_id: int) -> float:
    """When the agent had the decision that placed this job."""
    with Journal.reading(Path(config.load(box.tapfinger_toml).agent.journal)) as journal:
        intents = journal.history(str(job_id)).intents
    if not intents:
        raise SandboxError(f"bench: job {job_id} ran without a placement of ours; see `tapfinger explain {job_id}`")
    return intents[-1].decided_s


def _demo_seed(console: Console, seed: int, jobs: int, policy: str) -> DemoSeed:
    console.print(f"demo, seed {seed} ...")
    trace = workload.demo_trace(seed=seed, n_jobs=jobs)
    known = demo_cli.estimated(trace.classes, seed)
    stock, ours = demo_run.on_slurm(trace, known, policy, lambda sides, elapsed_s, hint: None)
    before, after = (summarise(records, demo_run.GPUS).mean_completion_s for records in (stock, ours))
    return DemoSeed(seed, before, after, 1 - after / before)


def _over_seeds(seeds: Sequence[DemoSeed]) -> Reduction | None:
    if not seeds:
        return None
    return reduction([seed.stock_mean_s for seed in seeds], [seed.tapfinger_mean_s for seed in seeds])


def _rss_mb(pid: int) -> float:
    """Resident memory of a process in MB (10^6 bytes)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _cpu_share(pid: int, seconds: float) -> float:
    """CPU seconds of a process and of the commands it ran, per second."""
    before, started = _cpu_s(pid), time.monotonic()
    time.sleep(seconds)
    return (_cpu_s(pid) - before) / (time.monotonic() - started)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    # user and system time, of the process and of its ended children (proc(5), fields 14 to 17)
    return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def _table(figures: LiveFigures) -> Table:
    made = Table(title=figures.machine)
    for column in ("", "runs", "median", "95th percentile"):
        made.add_column(column, justify="left" if not column else "right")
    for title, spread in (
        ("sbatch, stock (ms)", figures.sbatch_stock_ms),
        ("sbatch, with the hook (ms)", figures.sbatch_hook_ms),
        ("state to decisions (ms)", figures.decide_ms),
        ("the same, empty nodes (ms)", figures.decide_empty_ms),
        ("decision to running script (ms)", figures.decision_to_running_ms),
    ):
        made.add_row(title, str(spread.runs), f"{spread.median:.1f}", f"{spread.p95:.1f}")
    made.add_row("sbatch, with the hook / stock", "", f"{figures.sbatch_ratio:.3f}", "")
    made.add_row("agent, resident [MB]", "", f"{figures.agent_rss_mb:.1f}", "")
    made.add_row("server, resident [MB]", "", f"{figures.server_rss_mb:.1f}", "")
    made.add_row("agent, CPU share at rest", "", f"{figures.agent_cpu_share_idle:.2%}", "")
    for seed in figures.demo:
        made.add_row(f"demo, seed {seed.seed}: reduction", "", f"{seed.reduction:.1%}", "")
    if figures.demo_reduction is not None:
        made.add_row("demo: reduction over seeds", str(len(figures.demo)), str(figures.demo_reduction), "")
    return made
