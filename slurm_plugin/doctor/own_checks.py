"""What the doctor asks of our own parts, from the configuration to a decision on the live state. Pure."""

from slurm_plugin.doctor.check import Check, fail, needed_to_enforce, ok, skip, warn
from slurm_plugin.doctor.facts import Facts
from slurm_plugin.doctor.places import WRITE, owner, slow_disk
from slurm_plugin.jobs import NOT_MARKED
from tapfinger_hpc.decision import TOP_PRIORITY

LEAST_FREE_MB = 50.0
LOW_FREE_MB = 500.0
_OTHERS = 0o007
_START_SERVER = "systemctl start tapfinger-serve (or: tapfinger serve)"
_RESTART_SERVER = "systemctl restart tapfinger-serve (or: end and start tapfinger serve)"
_WAIT = "wait: it compiles its policies at its first start, a minute of one core; journalctl -u tapfinger-serve"
_START_AGENT = "systemctl start tapfinger-agent (or: tapfinger agent)"
_RESTART_AGENT = "systemctl restart tapfinger-agent (or: end tapfinger agent with SIGTERM, and start it again)"


def configuration(facts: Facts) -> Check:
    """Which file counts, and whether it speaks of partitions that there are."""
    name = "configuration"
    path = facts.config_file.path
    if facts.config_file.entry is None and not facts.config_named:
        return ok(name, f"there is no {path}: the defaults, mode {facts.config.agent.mode}")
    if facts.state is not None:
        known = [partition.name for partition in facts.state.partitions]
        unknown = sorted(set(facts.config.partitions) - set(known))
        if unknown:
            said = f"{path}: Slurm has no partition {', '.join(unknown)}"
            return fail(name, said, f"in {path} use one of: {', '.join(known)}")
    return ok(name, f"{path}, mode {facts.config.agent.mode}")


def agent(facts: Facts) -> Check:
    """Whether an agent lives, in the mode that is configured, with the configuration as it is now."""
    name = "agent"
    sign = facts.sign
    if sign is None:
        return needed_to_enforce(facts.config, name, "no sign of life", _START_AGENT)
    age_s = facts.now_s - sign.at_s
    if not sign.fresh(facts.now_s):
        return needed_to_enforce(facts.config, name, f"dead: its last sign of life is {age_s:.0f} s old", _START_AGENT)
    if facts.disabled:
        path = facts.config.agent.disable_file
        return warn(name, f"alive, but {path} is there: nothing is changed", f"rm {path}")
    if sign.mode == "degraded":
        return needed_to_enforce(
            facts.config, name, "alive, but degraded: nothing is leased", "tapfinger status says what fails"
        )
    entry, started_s = facts.config_file.entry, facts.agent_started_s
    if entry is not None and started_s is not None and entry.changed_s > started_s + 1:
        return warn(name, f"{entry.path} changed after the agent had started", _RESTART_AGENT)
    if sign.mode != facts.config.agent.mode:
        said = f"alive in mode {sign.mode}, where {facts.config.agent.mode} is configured"
        return warn(name, said, _RESTART_AGENT)
    return ok(name, f"alive, mode {sign.mode}")


def server_socket(facts: Facts) -> Check:
    """Whether the server's socket is there, open to the agent and closed to everybody else."""
    name = "server socket"
    path = facts.config.server.socket
    if not path:
        return ok(name, f"none configured: {facts.config.server.tcp} with a token")
    place = facts.server_socket
    if place.entry is None:
        if facts.server_starts:
            return fail(name, f"{path} is not there yet: the server starts", _WAIT)
        return fail(name, f"{path}: {place.why}", _START_SERVER)
    if place.entry.kind != "socket":
        return fail(name, f"{path} is a {place.entry.kind}", f"rm {path}, then {_START_SERVER}")
    if place.entry.mode & _OTHERS:
        said = f"{path} has mode {place.entry.mode:04o}: every user may ask, and hold the server up"
        return fail(name, said, f"chmod 0660 {path}")
    if why := place.why_not(facts.agent_user, WRITE):
        group = owner(place.entry).partition(":")[2]
        mode_closed = not place.entry.mode & 0o020 and place.entry.gid in facts.agent_user.groups
        fix = f"usermod -aG {group} {facts.agent_user.name}, and restart the agent"
        return fail(name, why, f"chmod 0660 {path}" if mode_closed else fix)
    return ok(name, f"{path}, mode {place.entry.mode:04o} of {owner(place.entry)}")


def server(facts: Facts) -> Check:
    """Whether the server answers, and is of this release."""
    name = "server"
    if facts.server is None:
        fix = _WAIT if facts.server_starts else _START_SERVER
        if " 401 " in facts.server_why:
            fix = f"give agent and server the same token: {facts.config.server.token_file}"
        elif "Permission denied" in facts.server_why:
            fix = "run tapfinger doctor as root, or in the group of the server"
        return fail(name, facts.server_why, fix)
    if facts.server.version != facts.version:
        said = f"it is tapfinger {facts.server.version}, this is {facts.version}"
        return warn(name, said, _RESTART_SERVER)
    return ok(name, f"answers since {facts.server.uptime_s:.0f} s, {facts.server.decisions_served} decisions")


def checkpoint(facts: Facts) -> Check:
    """Whether the configured policy decides, with weights that fit this release."""
    name = "checkpoint"
    policy = facts.policy
    if policy is None:
        return skip(name, "the server does not answer")
    if policy.fallback_why:
        where = facts.config.server.checkpoint or "the checkpoint of the package"
        return fail(
            name,
            f"policy {policy.fallback} stands in: {policy.fallback_why}",
            f'mend {where}, then restart the server; or set server.policy = "{policy.fallback}"',
        )
    if policy.schema_version is None:
        return ok(name, f"policy {policy.name} needs none")
    return ok(name, f"policy {policy.name}, weights {policy.checkpoint[:12]}, schema {policy.schema_version}")


def constants(facts: Facts) -> Check:
    """Whether the price heuristic's constants of this site can be used, and the server has them."""
    name = "constants"
    path = facts.config.server.constants
    if facts.constants_why:
        return fail(name, f"the server does not start with them: {facts.constants_why}", "mend server.constants")
    if facts.policy is not None and facts.policy.constants_file != path:
        has, wanted = (one or "those that ship" for one in (facts.policy.constants_file, path))
        said = f"the server has {has}, configured: {wanted}"
        return warn(name, said, _RESTART_SERVER)
    return ok(name, path or "those that ship")


def journal(facts: Facts) -> Check:
    """Whether the journal can be read, written by the agent, and lies where SQLite may lie."""
    name = "journal"
    found = facts.journal
    path = found.place.path
    if kind := slow_disk(path, facts.mounts):
        said = f"{path} is on {kind}, where SQLite's locks do not hold"
        return fail(name, said, "set agent.journal to a file on a local disk")
    if found.place.entry is None:
        return skip(name, f"{path}: {found.place.why}", _START_AGENT)
    if found.why:
        return fail(name, found.why, f"mv {path} {path}.old, then {_START_AGENT}")
    if found.damage:
        return fail(name, f"{path} is damaged: {found.damage}", _RESTART_AGENT)
    if why := found.place.why_not(facts.agent_user, WRITE):
        said = f"{why}: nothing is placed"
        return needed_to_enforce(facts.config, name, said, f"chown {facts.agent_user.name} {path}*")
    if found.aside:
        said = f"a damaged one was set aside: {', '.join(found.aside)}"
        return warn(name, said, f"look at the disk; then rm {' '.join(found.aside)}")
    return ok(name, path)


def disk(facts: Facts) -> Check:
    """Whether the journal's disk has room: without an intent on disk nothing is placed."""
    name = "disk"
    free_mb, free_files = facts.journal.free_mb, facts.journal.free_files
    folder = facts.journal.place.path.rpartition("/")[0]
    fix = f"make room on the file system of {folder}"
    if free_mb is None:
        return skip(name, f"{folder} is not there yet", _START_AGENT)
    said = f"{free_mb:,.0f} MB free in {folder}"
    if free_mb < LEAST_FREE_MB or free_files == 0:
        return needed_to_enforce(facts.config, name, f"{said}, {free_files} files: nothing can be placed", fix)
    if free_mb < LOW_FREE_MB:
        return warn(name, said, fix)
    return ok(name, said)


def pinned(facts: Facts) -> Check:
    """Whether jobs are tied to a node by an agent that is gone: for them there is no lease that would free them."""
    name = "pinned jobs"
    if facts.state is None:
        return skip(name, facts.state_why)
    if facts.sign is not None and facts.sign.fresh(facts.now_s) and facts.sign.mode in ("enforce", "degraded"):
        return ok(name, "an agent looks after them")
    tied = [job.job_id for job in facts.state.pending if job.ticket and job.priority == TOP_PRIORITY]
    if tied:
        return fail(name, f"{', '.join(tied[:5])}: placed by an agent that is gone", "tapfinger janitor")
    return ok(name, "none")


def decision(facts: Facts) -> Check:
    """A decision on the state as it is now, which nobody carries out."""
    name = "dry decision"
    dry = facts.dry
    if dry.why:
        return fail(name, dry.why, "the checks above say what to do")
    limit_s = facts.config.server.timeout_s
    about = "a made-up job (none of ours waits)" if dry.made_up else f"{dry.waiting} of ours that wait"
    said = f"{dry.policy}: {about}, {dry.placed} placed, {dry.refused} refused, {dry.elapsed_s * 1000:.0f} ms"
    if dry.elapsed_s > limit_s / 2:
        fix = f"set server.timeout_s to {max(1.0, 4 * dry.elapsed_s):.0f}, or let fewer jobs wait"
        return warn(name, f"{said}, of {limit_s:g} s that the agent waits", fix)
    if dry.refused and not dry.placed:
        return warn(name, f"{said}: the guard lets nothing through", "tapfinger explain JOBID, of one that waits")
    return ok(name, f"{said}, {_others(facts)}")


BEFORE = (configuration,)
AFTER = (agent, server_socket, server, checkpoint, constants, journal, disk, pinned, decision)


def _others(facts: Facts) -> str:
    """What is seen of the jobs that are not ours."""
    if facts.state is None:
        return ""
    left = [job for job in facts.state.pending if not job.managed and not job.why.startswith(NOT_MARKED)]
    others = sum(not job.managed for job in facts.state.pending) - len(left)
    return f"{len(left)} that ask for us are left to Slurm, {others} do not ask"
