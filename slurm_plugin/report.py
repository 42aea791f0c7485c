"""What ``tapfinger status`` and ``tapfinger explain`` say. Reads only; works with agent, server and slurmctld dead."""

import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from slurm_plugin import hookfile, jobs
from slurm_plugin.client import PolicyClient
from slurm_plugin.cluster import SlurmCluster
from slurm_plugin.journal import Intent, JobHistory, Journal, JournalError, Note, Told
from slurm_plugin.parse import JobRecord
from tapfinger_hpc import units
from tapfinger_hpc.config import Config
from tapfinger_hpc.errors import ServerError, SlurmError, UnitError
from tapfinger_hpc.state import ClusterState
from tapfinger_hpc.wire import Health

_STATE_WORDS = {
    "PD": "waits", "R": "runs", "CG": "is ending", "CF": "is starting", "CD": "has ended", "F": "has failed",
    "CA": "was cancelled", "TO": "ran into its time limit", "NF": "ended with its node", "S": "is suspended",
    "OOM": "ran out of memory", "PR": "was preempted", "DL": "missed its deadline", "BF": "could not be started",
}  # fmt: skip


class AgentStatus(msgspec.Struct, frozen=True):
    """What is known of the agent."""

    alive: bool
    mode: str = ""
    sign_age_s: float | None = None
    lease_s: int | None = None
    disabled: bool = False
    """The disable file is there."""


class QueueStatus(msgspec.Struct, frozen=True):
    """The cluster as the agent would see it."""

    ours_waiting: int
    ours_running: int
    others_waiting: int
    others_running: int
    gpus: int
    gpus_free: int
    cpus: int
    cpus_free: int
    nodes: int
    nodes_available: int


class Status(msgspec.Struct, frozen=True):
    """All that ``tapfinger status`` shows. Where a part does not answer, its ``_why`` says so."""

    agent: AgentStatus
    server: Health | None
    server_why: str
    queue: QueueStatus | None
    queue_why: str
    placements: dict[str, int]
    """How many are in each state."""
    placed_now: tuple[Intent, ...]
    """In Slurm's hands, not seen running yet."""
    notes: tuple[Note, ...]
    """The latest about the agent."""
    journal_why: str = ""


class Explanation(msgspec.Struct, frozen=True):
    """All that ``tapfinger explain`` knows of one job."""

    job_id: str
    known: bool
    summary: tuple[str, ...]
    """In plain words, most important first."""
    told: tuple[Told, ...] = ()
    placements: tuple[Intent, ...] = ()
    notes: tuple[Note, ...] = ()


def status(config: Config) -> Status:
    """What agent, server and queue are doing now."""
    server, server_why = _server(config)
    queue, queue_why = _queue(config)
    placements: dict[str, int] = {}
    placed_now: list[Intent] = []
    notes: list[Note] = []
    journal_why = ""
    try:
        with Journal.reading(Path(config.agent.journal)) as journal:
            placements, placed_now, notes = journal.counts(), journal.open_intents(), journal.agent_notes()
    except JournalError as error:
        journal_why = str(error)
    return Status(
        agent=_agent(config),
        server=server,
        server_why=server_why,
        queue=queue,
        queue_why=queue_why,
        placements=placements,
        placed_now=tuple(placed_now),
        notes=tuple(notes),
        journal_why=journal_why,
    )


def explain(config: Config, job_id: str) -> Explanation:
    """What was decided for a job, when and why, and what came of it; or why it is left to Slurm."""
    cluster = SlurmCluster.from_config(config)
    try:
        records, slurm_why = cluster.find(job_id), ""
    except SlurmError as error:
        records, slurm_why = [], str(error)
    exact = [one for one in records if one.job_id == job_id]
    record = next(iter(exact or records), None)
    if record is not None and not exact and len(records) == 1:
        job_id = record.job_id
    history, journal_why = _history(config, job_id)
    # A number is used again after a crash: only the latest submission is meant.
    latest_s = record.submit_s if record else _latest_submission(history)
    told, intents, notes = _of_submission(history, latest_s, record)
    summary = [
        *_now(job_id, record, slurm_why),
        *_why_left(cluster, record, notes),
        *_decisions(told, intents),
        *_submission(record, intents),
    ]
    known = record is not None or bool(told or intents or notes)
    if record is not None and (record.together or record.job_id != job_id):
        summary.append(f"It is an array: ask for one of its tasks, such as {record.array_id}_{_some_task(record)}.")
    if not known:
        summary.append(f"Nothing is known of job {job_id}: neither Slurm nor the agent's journal has it (any more).")
    if not (told or intents) and known:
        summary.append(f"No decision is recorded for it{': ' + journal_why if journal_why else ''}.")
    if (agent := _agent(config)) and not agent.alive:
        summary.append("No agent is alive now: jobs run as Slurm decides, with what they ask for.")
    elif agent.mode != "enforce":
        summary.append(f"The agent is in mode {agent.mode}: it changes no job now.")
    return Explanation(job_id, known, tuple(summary), tuple(told), tuple(intents), tuple(notes))


def _some_task(record: JobRecord) -> str:
    return record.array_tasks.strip("[]").replace("-", ",").replace("%", ",").split(",")[0]


def local(at_s: float) -> str:
    """A time as people read it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s))


def _agent(config: Config) -> AgentStatus:
    disabled = bool(config.agent.disable_file) and Path(config.agent.disable_file).exists()
    sign = hookfile.read(Path(config.agent.hook_file))
    if sign is None:
        return AgentStatus(alive=False, disabled=disabled)
    now_s = time.time()
    return AgentStatus(sign.fresh(now_s), sign.mode, now_s - sign.at_s, sign.lease_s, disabled)


def _server(config: Config) -> tuple[Health | None, str]:
    try:
        return PolicyClient.from_config(config).health(), ""
    except ServerError as error:
        return None, str(error)


def _queue(config: Config) -> tuple[QueueStatus | None, str]:
    try:
        return _counted(SlurmCluster.from_config(config).observe()), ""
    except SlurmError as error:
        return None, str(error)


def _counted(state: ClusterState) -> QueueStatus:
    ours = sum(job.managed for job in state.pending)
    running = sum(job.managed for job in state.running)
    return QueueStatus(
        ours_waiting=ours,
        ours_running=running,
        others_waiting=len(state.pending) - ours,
        others_running=len(state.running) - running,
        gpus=sum(node.capacity.gpus for node in state.nodes),
        gpus_free=sum(node.free.gpus for node in state.nodes if node.available),
        cpus=sum(node.capacity.cpus for node in state.nodes),
        cpus_free=sum(node.free.cpus for node in state.nodes if node.available),
        nodes=len(state.nodes),
        nodes_available=sum(node.available for node in state.nodes),
    )


def _history(config: Config, job_id: str) -> tuple[JobHistory, str]:
    try:
        with Journal.reading(Path(config.agent.journal)) as journal:
            return journal.history(job_id), ""
    except JournalError as error:
        return JobHistory((), (), ()), str(error)


def _latest_submission(history: JobHistory) -> int:
    times = [one.decision.submit_time_s for one in history.told]
    times += [intent.submit_time_s for intent in history.intents] + [note.submit_time_s for note in history.notes]
    return max(times, default=0)


def _of_submission(
    history: JobHistory, submit_s: int, record: JobRecord | None
) -> tuple[list[Told], list[Intent], list[Note]]:
    """What belongs to the submission meant. A requeue gives a job another submit time, but not another ticket."""
    lease = jobs.lease_of(record.admin_comment) if record else None
    times = {submit_s}
    if lease:
        times |= {intent.submit_time_s for intent in history.intents if intent.ticket == lease.ticket}
    return (
        [one for one in history.told if one.decision.submit_time_s in times],
        [intent for intent in history.intents if intent.submit_time_s in times],
        [note for note in history.notes if note.submit_time_s in times],
    )


def _now(job_id: str, record: JobRecord | None, slurm_why: str) -> Iterable[str]:
    if slurm_why:
        yield f"Slurm does not answer: {slurm_why}"
        return
    if record is None:
        yield f"Slurm does not know job {job_id} (any more)."
        return
    doing = _STATE_WORDS.get(record.state, f"is in state {record.state}")
    if record.state != "PD":
        place = f" on {','.join(record.nodes)}" if record.nodes else ""
        yield f"Job {job_id} of {record.user} {doing}{place}, with {record.amounts}."
        return
    reason = "" if record.reason == "None" else f" (Slurm says: {record.reason})"
    yield f"Job {job_id} of {record.user} {doing}{reason}; it asks for {record.amounts}."
    leased = jobs.lease_of(record.admin_comment) is not None
    if leased and record.eligible_s is not None and record.eligible_s > time.time():
        yield f"Its lease runs until {local(record.eligible_s)}: renewed while the agent looks for a place."


def _submission(record: JobRecord | None, intents: list[Intent]) -> Iterable[str]:
    """The hook's name for the submission, which slurmctld's log has as well."""
    lease = jobs.lease_of(record.admin_comment) if record else None
    ticket = lease.ticket if lease else next((intent.ticket for intent in intents if intent.ticket), "")
    if ticket:
        yield f"Its submission is ticket {ticket} in slurmctld's log and those of agent and server."


def _why_left(cluster: SlurmCluster, record: JobRecord | None, notes: list[Note]) -> Iterable[str]:
    """Why the job is Slurm's, from the job itself where Slurm has it, else from the journal."""
    if record is not None:
        try:
            mark = units.parse_mark(record.comment)
        except UnitError as error:
            yield f"It is left to Slurm as it is: {error}."
            return
        left = jobs.why_left(record.admin_comment)
        if left:
            yield f"It is left to Slurm as it is: {left}."
            return
        if mark is None and not any(name in cluster.managed_partitions for name in record.partitions):
            yield 'It is left to Slurm as it is: it does not ask for tapfinger (--comment "tapfinger ...").'
            return
        if jobs.lease_of(record.admin_comment) is None:
            yield "It is left to Slurm as it is: no agent was in charge when it was submitted, so it has no lease."
            return
    begins = {"left": "It was left to Slurm", "given up": "It was given to Slurm", "freed": "It was freed"}
    latest = {note.kind: note.text for note in notes if note.kind in begins}
    for kind, text in latest.items():
        yield f"{begins[kind]}: {text}."


def _decisions(told: list[Told], intents: list[Intent]) -> Iterable[str]:
    if told:
        last = told[-1]
        yield _sentence(last)
        others = [str(one.placement or "to wait") for one in last.decision.runners_up]
        if others:
            yield f"Also considered: {'; '.join(others[:3])}."
    for intent in intents[-3:]:
        yield f"Placement of {local(intent.decided_s)} on {intent.update.node}: {_fate(intent)}."


def _sentence(one: Told) -> str:
    who = f"{local(one.at_s)}: policy {one.policy}"
    place = one.decision.placement
    if place is None:
        refused = f" (a placement was refused: {one.refused})" if one.refused else ""
        return f"{who} let it wait: {one.decision.reason}{refused}. {_named(one)}"
    refused = f", but the guard said no: {one.refused}" if one.refused else ""
    placed = "placed" if one.mode == "enforce" else "would place"
    return f"{who} {placed} it on {place}: {one.decision.reason}{refused}. {_named(one)}"


def _named(one: Told) -> str:
    """What to look for in the logs of agent and server."""
    return f"[decision {one.decision_id}]"


def _fate(intent: Intent) -> str:
    words = {
        "written": "on its way to Slurm",
        "open": "Slurm has it, the job has not started yet",
        "started": f"the job started ({max(0.0, intent.changed_s - intent.decided_s):.1f} s after the decision)",
        "gone": "the job ended or was cancelled",
        "lost": "Slurm forgot it in a crash",
        "refused": "Slurm did not take it",
        "restored": "taken back, the job has its own request again",
        "given up": "taken back, the job is Slurm's",
    }[intent.state]
    return f"{words}: {intent.why}" if intent.why and intent.state != "started" else words
