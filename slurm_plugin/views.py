"""What commands found, for a terminal (rich)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from slurm_plugin.report import Status, local

if TYPE_CHECKING:
    from slurm_plugin.doctor import Diagnosis
    from slurm_plugin.profile import Step
    from slurm_plugin.worth import Worth
    from slurm_plugin.worth.sums import Sum


def show_status(found: Status) -> None:
    """Prints what agent, server and queue are doing."""
    console = Console(highlight=False)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("agent", _agent(found))
    table.add_row("server", _server(found))
    table.add_row("queue", _queue(found))
    table.add_row("placements", ", ".join(f"{count} {state}" for state, count in found.placements.items()) or "none")
    for intent in found.placed_now:
        table.add_row(
            "", f"job {intent.job_id} on {intent.update.node} since {local(intent.changed_s)}, not started yet"
        )
    if found.journal_why:
        table.add_row("journal", found.journal_why)
    console.print(table)
    for note in found.notes[-6:]:
        console.print(f"{local(note.at_s)}  {note.kind}: {note.text}", style="dim", soft_wrap=True)


def show_diagnosis(found: "Diagnosis") -> None:
    """Prints one line for each check, and below it what to do where something is wrong."""
    console = Console(highlight=False, soft_wrap=True, markup=False)
    colours = {"ok": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}
    for check in found.checks:
        word = "FAIL" if check.status == "fail" else check.status
        console.print(Text.assemble((f"{word:<4}", colours[check.status]), f"  {check.name:<16}  {check.said}"))
        if check.fix:
            console.print(f"      fix: {check.fix}")
    count = {status: sum(check.status == status for check in found.checks) for status in colours}
    console.print(", ".join(f"{number} {status}" for status, number in count.items() if number))


def show_worth(found: "Worth") -> None:
    """Prints what TapFinger was worth, what lost, and what the figures cannot say."""
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(f"{local(found.since_s)} to {local(found.until_s)}: {found.ended} jobs of ours ended")
    for one in filter(None, (found.watched, found.enforced)):
        console.print(*_worth_lines(one), sep="\n")
    if not (found.watched or found.enforced):
        console.print("Nothing was decided for any of them.")
    for why, count in sorted(found.left_out.items()):
        console.print(f"  {count} not in the figures: {why}")
    for text in found.unfinished:
        console.print(f"  did not finish: job {text}")
    for note in found.notes:
        console.print(note, style="dim")


def _worth_lines(one: "Sum") -> Iterator[str]:
    would = "would have " if one.way == "watched" else ""
    placed = "that would have been placed" if would else "placed"
    yield f"{one.way}: {one.jobs} jobs, {one.placed} {placed}, {one.changed} on other amounts than stock Slurm's"
    if one.waiting_unknown:
        yield f"  {one.waiting_unknown} more, of which stock Slurm's waiting is not known"
    if not one.jobs:
        return
    # The one that is measured stands first.
    stock = f"stock Slurm {one.stock_mean_s:.0f} s"
    ours = f"TapFinger {one.tapfinger_mean_s:.0f} s"
    yield f"  from submission to the end, mean: {', '.join((stock, ours) if would else (ours, stock))}"
    yield f"  {would}saved {one.completion}"
    yield f"  of that {one.waiting_saved_s:.0f} s by waiting less, {one.running_saved_s:.0f} s by running faster"
    yield f"  GPU hours: stock Slurm {one.stock_gpu_hours:.1f}, TapFinger {one.tapfinger_gpu_hours:.1f}"
    if one.contested:
        yield (
            f"  {one.contested} decisions were for room that an earlier one had taken; "
            f"without them it were {one.completion_uncontested}"
        )
    if one.from_prior:
        yield f"  {one.from_prior} jobs are of classes of which nothing is known: tapfinger learn"
    yield f"  {one.lost} jobs {would or 'have '}lost" + (":" if one.lost else "")
    for loser in one.losers:
        lost = f"{loser.lost_s:.0f} s more than {loser.stock_s:.0f} s"
        yield f"    job {loser.job_id} of {loser.user}: {lost}; {loser.why}"


def show_curve(step: "Step") -> None:
    """Prints what one run of a profile took, and the curve as it is believed now."""
    console = Console(highlight=False)
    had = step.job.granted
    console.print(
        f"run {step.run}: job {step.job.job_id} on {had.cpus} CPUs, {had.gpus} GPUs: {step.job.state} "
        f"after {step.job.elapsed_s:g} s; the curve is unsure by {step.doubt:.0%}"
    )
    gpus = sorted({point.amounts.gpus for point in step.curve})
    table = Table("CPUs", *(f"{count} GPUs" for count in gpus))
    for cpus in sorted({point.amounts.cpus for point in step.curve}):
        row = [point for point in step.curve if point.amounts.cpus == cpus]
        row.sort(key=lambda point: point.amounts.gpus)
        table.add_row(str(cpus), *(f"{point.seconds:.4g} s ± {point.doubt:.0%}" for point in row))
    console.print(table)


def _agent(found: Status) -> str:
    agent = found.agent
    if agent.sign_age_s is None:
        return "not running: no sign of life"
    if not agent.alive:
        return f"dead: last sign of life {agent.sign_age_s:.0f} s ago (mode {agent.mode})"
    disabled = "; the disable file is there" if agent.disabled else ""
    return f"alive, mode {agent.mode}, lease {agent.lease_s} s{disabled}"


def _server(found: Status) -> str:
    if found.server is None:
        return f"silent: {found.server_why}"
    fallback = f" in place of {found.server.configured_policy}" if found.server.policy.fallback_why else ""
    return (
        f"{found.server.status}: policy {found.server.policy.name}{fallback}, {found.server.decisions_served} answers"
    )


def _queue(found: Status) -> str:
    queue = found.queue
    if queue is None:
        return f"unknown: {found.queue_why}"
    return (
        f"{queue.ours_waiting} of ours wait, {queue.ours_running} run; {queue.others_waiting} others wait, "
        f"{queue.others_running} run; free {queue.gpus_free} of {queue.gpus} GPUs, {queue.cpus_free} of {queue.cpus} "
        f"CPUs; {queue.nodes_available} of {queue.nodes} nodes available"
    )
