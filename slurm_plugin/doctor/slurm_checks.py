"""What the doctor asks of Slurm itself: versions, scheduling parameters, GRES, accounting, rights, the clock. Pure."""

import re

from slurm_plugin import versions
from slurm_plugin.doctor.check import Check, fail, needed_to_enforce, ok, skip, warn
from slurm_plugin.doctor.facts import Facts, file_of, logged_s, settings_of

LONGEST_SCHED_INTERVAL_S = 10
_DEFAULT_SCHED_INTERVAL_S = 60
_DEFAULT_BATCH_SCHED_DELAY_S = 3
_SKEW_WARN_S = 5.0
_SKEW_FAIL_S = 12.0
"""The hook takes a sign of life for dead that is 15 s old."""
LEAST_MIN_JOB_AGE_S = 60
LONG_SUBMISSION_US = 100_000
_LOUD = ("verbose", "debug", "debug2", "debug3", "debug4", "debug5")


def slurm(facts: Facts) -> Check:
    """Release, and whether slurmctld answers."""
    name = "slurm"
    if facts.commands_version.why:
        return fail(name, facts.commands_version.why, "install slurm-client, or set slurm.bin_dir to its folder")
    if facts.asked_config.why:
        return fail(
            name,
            f"slurmctld does not answer: {facts.asked_config.why}",
            "systemctl start slurmctld munge; set slurm.conf where SLURM_CONF is not the default",
        )
    text = settings_of(facts.asked_config.text).get("SLURM_VERSION", "")
    release = versions.read(text)
    if release == versions.UNKNOWN:
        return warn(name, f"its version {text!r} is not understood", "scontrol show config | grep SLURM_VERSION")
    if release < versions.OLDEST:
        return fail(name, f"Slurm {text}, older than 22.05", "upgrade Slurm: squeue lacks columns that are read")
    commands = versions.read(facts.commands_version.text)
    if commands != release:
        return warn(
            name,
            f"slurmctld is {text}, the commands here are {facts.commands_version.text.strip()}",
            "set slurm.bin_dir to the commands of the same release",
        )
    if release not in versions.TRIED:
        known = ", ".join(f"{year}.{month:02}" for year, month in versions.TRIED)
        return warn(
            name, f"Slurm {text}: not tried, {known} are", "stay in mode observe until `tapfinger explain` fits"
        )
    return ok(name, f"Slurm {text} answers")


def controllers(facts: Facts) -> Check:
    """Whether slurmctld runs here, and whether others would take over without the hook."""
    name = "controller"
    if facts.pinged.why:
        return skip(name, facts.pinged.why)
    found = re.findall(r"Slurmctld\((\w+)\) at (\S+) is (\w+)", facts.pinged.text)
    backups = [host for role, host, _ in found if role != "primary"]
    down = [host for _, host, state in found if state != "UP"]
    if down:
        return warn(name, f"slurmctld on {', '.join(down)} is down", "systemctl start slurmctld, there")
    if not facts.on_controller:
        return skip(
            name,
            "no slurmctld runs on this machine, or it is another user's: hook, log and Lua are looked at here anyway",
            "run tapfinger doctor as root on the controller",
        )
    if backups:
        return warn(
            name,
            f"{', '.join(backups)} would take over: hook, agent and server must be there as well",
            "run tapfinger doctor there too",
        )
    return ok(name, "slurmctld runs here")


def clock(facts: Facts) -> Check:
    """Whether slurmctld and this machine agree on the time: the hook judges the agent by it."""
    name = "clock"
    said = re.match(r"Configuration data as of (\d+)$", facts.asked_config.text.partition("\n")[0])
    if said is None:
        return skip(name, facts.asked_config.why or "slurmctld does not tell its time")
    first, last = facts.asked_s
    there_s = int(said[1])
    # Slurm's time is cut to whole seconds.
    off_s = max(0.0, first - 1 - there_s, there_s - last)
    text = f"slurmctld's clock is {off_s:.0f} s off this one"
    if off_s >= _SKEW_FAIL_S:
        return fail(name, f"{text}: the hook takes the agent for dead", "timedatectl set-ntp true, on both machines")
    if off_s >= _SKEW_WARN_S:
        return warn(name, text, "timedatectl set-ntp true, on both machines")
    return ok(name, "slurmctld's and this machine's agree")


def scheduler(facts: Facts) -> Check:
    """Whether placed jobs start at once, and leases end when they should."""
    name = "scheduler"
    settings = settings_of(facts.asked_config.text)
    if not settings:
        return skip(name, facts.asked_config.why)
    words = [word for word in settings.get("SchedulerParameters", "").split(",") if word]
    values = dict(word.partition("=")[::2] for word in words)
    wrong = []
    interval_s = _number(values.get("sched_interval"), _DEFAULT_SCHED_INTERVAL_S)
    late = interval_s < 0 or interval_s > LONGEST_SCHED_INTERVAL_S
    if late:
        wrong.append(
            "sched_interval=-1 never looks again: a lease that ran out may not be noticed"
            if interval_s < 0
            else f"sched_interval is {interval_s} s: so late a lease that ran out may be noticed"
        )
    if _number(values.get("batch_sched_delay"), _DEFAULT_BATCH_SCHED_DELAY_S) > 0:
        wrong.append("batch_sched_delay is not 0: a placed job starts after 3 s, not 0.5 s")
    if "defer" in values:
        wrong.append("defer is set: a placed job starts after 6 s, or later")
    if not wrong:
        return ok(name, f"sched_interval={interval_s}, batch_sched_delay=0")
    kept = [word for word in words if word.partition("=")[0] not in ("sched_interval", "batch_sched_delay", "defer")]
    right = ",".join(["batch_sched_delay=0", "sched_interval=5" if late else f"sched_interval={interval_s}", *kept])
    fix = f"in {file_of(facts, 'SchedulerParameters')} set SchedulerParameters={right}; then: scontrol reconfigure"
    if late:
        return needed_to_enforce(facts.config, name, "; ".join(wrong), fix)
    return warn(name, "; ".join(wrong), fix)


def selection(facts: Facts) -> Check:
    """Whether Slurm hands out CPUs, memory and GPUs one by one."""
    name = "resources"
    settings = settings_of(facts.asked_config.text)
    if not settings:
        return skip(name, facts.asked_config.why)
    kind = settings.get("SelectType", "")
    if not kind.endswith("cons_tres"):
        return needed_to_enforce(
            facts.config,
            name,
            f"SelectType={kind}: amounts cannot be set job by job",
            f"in {file_of(facts, 'SelectType')} set SelectType=select/cons_tres; then restart slurmctld and slurmd",
        )
    if facts.state is not None and any(node.capacity.gpus for node in facts.state.nodes):
        counted = settings.get("AccountingStorageTRES", "")
        with_database = "slurmdbd" in settings.get("AccountingStorageType", "")
        if with_database and "gres/gpu" not in counted.split(","):
            return warn(
                name,
                "AccountingStorageTRES lacks gres/gpu: accounting shows no GPUs, and traces learn nothing of them",
                f"in {file_of(facts, 'AccountingStorageTRES')} set "
                f"AccountingStorageTRES={','.join(_own_tres(counted))}; then restart slurmctld",
            )
    memory = settings.get("SelectTypeParameters", "").upper()
    if "MEMORY" not in memory:
        return ok(name, f"{kind}; memory is not handed out ({memory or 'no SelectTypeParameters'})")
    return ok(name, f"{kind} with {memory}")


def accounting(facts: Facts) -> Check:
    """Whether ended jobs can be learned from."""
    name = "accounting"
    settings = settings_of(facts.asked_config.text)
    if not settings:
        return skip(name, facts.asked_config.why)
    age_s = _number(settings.get("MinJobAge", "").split(" ")[0], 300)
    if age_s < LEAST_MIN_JOB_AGE_S:
        return warn(
            name,
            f"MinJobAge is {age_s} s: Slurm forgets ended jobs before the agent has asked how they ended",
            f"in {file_of(facts, 'MinJobAge')} set MinJobAge=300; then: scontrol reconfigure",
        )
    if "slurmdbd" not in settings.get("AccountingStorageType", ""):
        return ok(name, "no slurmdbd: classes are learned from what the agent sees end, not from sacct")
    flags = settings.get("AccountingStoreFlags", "")
    if "job_comment" not in flags:
        both = ",".join(filter(None, (flags, "job_comment")))
        return warn(
            name,
            "AccountingStoreFlags lacks job_comment: what jobs declare is not in accounting",
            f"in {file_of(facts, 'AccountingStoreFlags')} set AccountingStoreFlags={both}; then: scontrol reconfigure",
        )
    return ok(name, "slurmdbd, with the comments of jobs")


def rights(facts: Facts) -> Check:
    """Whether the agent's user may see and change the jobs of all."""
    name = "rights"
    settings = settings_of(facts.asked_config.text)
    if not settings:
        return skip(name, facts.asked_config.why)
    agent = facts.agent_user
    who = f"the agent's user {agent.name} ({facts.agent_user_from})"
    if agent.uid == 0 or agent == facts.slurm_user:
        return ok(name, f"{who} may do everything")
    if "slurmdbd" not in settings.get("AccountingStorageType", ""):
        slurm_user = facts.slurm_user.name if facts.slurm_user else "SlurmUser"
        return needed_to_enforce(
            facts.config,
            name,
            f"{who} is no SlurmUser, and without slurmdbd there are no operators",
            f"run the agent as {slurm_user}",
        )
    if facts.admin_level.why:
        return skip(name, f"slurmdbd does not tell: {facts.admin_level.why}", "systemctl status slurmdbd")
    rows = [line.split("|") for line in facts.admin_level.text.splitlines() if "|" in line]
    level = next((row[1] for row in rows if row[0] == agent.name), None)
    if level in ("Operator", "Administrator"):
        return ok(name, f"{who} is {level}")
    if level is None:
        fix = f"sacctmgr -i add user {agent.name} account=root adminlevel=operator"
    else:
        fix = f"sacctmgr -i modify user where name={agent.name} set adminlevel=operator"
    hidden = [word for word in settings.get("PrivateData", "").split(",") if word in ("jobs", "nodes", "users")]
    if hidden:
        # Whatever the mode: it decides on a queue in which the jobs of others do not exist.
        return fail(name, f"{who} is no operator, and PrivateData={','.join(hidden)} hides others' from it", fix)
    return needed_to_enforce(facts.config, name, f"{who} is no operator of slurmdbd: its updates are refused", fix)


def submission(facts: Facts) -> Check:
    """How long submissions hold slurmctld up, as far as it says so."""
    name = "submission"
    settings = settings_of(facts.asked_config.text)
    if not settings:
        return skip(name, facts.asked_config.why)
    slow = [time_us for line in facts.log.text.splitlines() if (time_us := _slow_submission_us(line, facts.now_s))]
    fix = "look for what the site's job_submit.lua does (network, commands); TapFinger's part waits for nothing"
    if slow:
        return warn(
            name,
            f"slurmctld's log has {len(slow)} slow job_submit warnings of the last day, up to {max(slow) / 1e6:.1f} s",
            fix,
        )
    found = re.search(r"REQUEST_SUBMIT_BATCH_JOB\s*\(\s*\d+\)\s*count:(\d+)\s*ave_time:(\d+)", facts.diagnosis.text)
    mean = f"{found[1]} submissions took {int(found[2]) / 1000:.1f} ms in the mean" if found else "no submission yet"
    if found and int(found[2]) > LONG_SUBMISSION_US:
        return warn(name, f"{mean} (sdiag): slurmctld stands still meanwhile", f"{fix}; then: sdiag --reset")
    level = settings.get("SlurmctldDebug", "")
    if facts.log.why:
        return ok(name, f"{mean} (sdiag); the log is not read: {facts.log.why}")
    if level not in _LOUD:
        return ok(name, f"{mean} (sdiag); slow ones are logged from SlurmctldDebug=verbose on, it is {level}")
    return ok(name, f"{mean}, none was slow")


ALL = (slurm, controllers, clock, scheduler, selection, accounting, rights, submission)


def _slow_submission_us(line: str, now_s: float) -> int | None:
    """How long a job_submit plugin took, where slurmctld warns of it in this line; None of one that is old."""
    found = re.match(
        r"\[(\S+?)\] (?:\w+: )?Warning: Note very large processing time from job_submit\w*: (?:usec=)?(\d+)", line
    )
    if found is None or logged_s(found[1], now_s) < now_s - 86400:
        return None
    return int(found[2])


def _number(text: str | None, default: int) -> int:
    try:
        return int(text) if text else default
    except ValueError:
        return default


_ALWAYS_COUNTED = {"cpu", "mem", "energy", "node", "billing", "fs/disk", "vmem", "pages"}


def _own_tres(counted: str) -> list[str]:
    """What slurm.conf is to say: the site's own ones with GPUs; Slurm adds the others by itself."""
    return [*(word for word in counted.split(",") if word and word not in _ALWAYS_COUNTED), "gres/gpu"]
