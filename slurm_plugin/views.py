"""What commands found, for a terminal (rich)."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from slurm_plugin.report import Status, local

if TYPE_CHECKING:
    from slurm_plugin.doctor import Diagnosis
    from slurm_plugin.profile import Step


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
