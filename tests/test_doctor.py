"""The doctor's checks on what was gathered on a healthy sandbox: each fault is named, with what to do.

data/doctor-*.json.gz are ``facts.gather`` of sandboxes with agent and server, but for the text of the Lua scripts.
"""

import gzip
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from slurm_plugin.doctor import judge
from slurm_plugin.doctor.check import Check
from slurm_plugin.doctor.facts import DryRun, Facts, Said, controller, module_path
from slurm_plugin.doctor.places import READ, WRITE, Entry, Place, User, look, slow_disk
from slurm_plugin.hookfile import SignOfLife
from tapfinger_hpc.config import Config, PartitionConfig
from tapfinger_hpc.decision import TOP_PRIORITY
from tapfinger_hpc.state import PendingJob, Resources

RELEASES = ("22.05", "24.11", "26.05")


def recorded(release: str) -> Facts:
    path = Path(__file__).parent / "data" / f"doctor-{release}.json.gz"
    return msgspec.json.decode(gzip.decompress(path.read_bytes()), type=Facts)


WELL = recorded("22.05")
NOW_S = WELL.now_s
ETC = "/tmp/labD/etc"
TAPFINGER = User("tapfinger", 990, (990,))
Change = Callable[[Facts], Facts]


def setting(key: str, value: str) -> Change:
    """slurm.conf says otherwise."""

    def change(facts: Facts) -> Facts:
        text = facts.asked_config.text
        assert re.search(rf"^{key}\s+= ", text, re.MULTILINE)
        return replace(facts, asked_config=Said(re.sub(rf"(?m)^({key}\s+= ).*$", rf"\g<1>{value}", text)))

    return change


def fact(**fields: object) -> Change:
    return lambda facts: replace(facts, **fields)


def part(name: str, **fields: object) -> Change:
    """Something inside of a fact is otherwise."""
    return lambda facts: replace(facts, **{name: replace(getattr(facts, name), **fields)})


def configured(section: str, **fields: object) -> Change:
    return lambda facts: part("config", **{section: replace(getattr(facts.config, section), **fields)})(facts)


def entry(name: str, **fields: object) -> Change:
    """The file, folder or socket of a fact has another mode, owner or time."""
    return lambda facts: part(name, entry=replace(getattr(facts, name).entry, **fields))(facts)


def file(name: str, **fields: object) -> Change:
    """One of the hook's files is otherwise."""
    return lambda facts: part("hook", **{name: replace(getattr(facts.hook, name), **fields)})(facts)


def all_of(*changes: Change) -> Change:
    def change(facts: Facts) -> Facts:
        for one in changes:
            facts = one(facts)
        return facts

    return change


def logged(line: str, ago_s: float = 10.0) -> Change:
    """slurmctld has logged this."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S.071", time.localtime(NOW_S - ago_s))
    return fact(log=Said(f"[{stamp}] {line}"))


def waits(**fields: object) -> Change:
    amounts = Resources(1, 1, 100)
    job = PendingJob("7", int(NOW_S), ("pa",), amounts, amounts, amounts, **fields)
    return part("state", pending=(job,))


def found(facts: Facts, name: str) -> Check:
    return next(check for check in judge(facts).checks if check.name == name)


NO_OPERATOR = all_of(fact(agent_user=TAPFINGER, admin_level=Said("tapfinger|None\n")))
NO_SUCH_FILE = {"entry": None, "why": "No such file or directory"}
SLOW = "Warning: Note very large processing time from job_submit_plugin_submit: usec=4004055 began=05:58:33.438"
BROKEN = "error: job_submit/lua: /etc/job_submit.lua: unexpected symbol, using previous script"
SIGN = WELL.sign
assert SIGN is not None

FAULTS: dict[str, tuple[str, str, str, str, Change]] = {
    # what is wrong: the check, how it ends, what it says, what is to be done
    "old Slurm": ("slurm", "fail", "older than 22.05", "upgrade", all_of(
        setting("SLURM_VERSION", "21.08.8"), fact(commands_version=Said("slurm 21.08.8")))),
    "a release that nobody tried": ("slurm", "warn", "23.02.1: not tried", "observe", all_of(
        setting("SLURM_VERSION", "23.02.1"), fact(commands_version=Said("slurm 23.02.1")))),
    "commands of another release": ("slurm", "warn", "24.11.5, the commands here are", "slurm.bin_dir",
        setting("SLURM_VERSION", "24.11.5")),
    "no commands": ("slurm", "fail", "scontrol was not found", "slurm-client",
        fact(commands_version=Said(why="scontrol was not found"))),
    "slurmctld is down": ("slurm", "fail", "does not answer: no", "systemctl start slurmctld",
        fact(asked_config=Said(why="no answer"))),
    "a backup controller": ("controller", "warn", "beta would take over", "there too",
        fact(pinged=Said("Slurmctld(primary) at vm is UP\nSlurmctld(backup) at beta is UP\n"))),
    "a controller that is down": ("controller", "warn", "beta is down", "systemctl",
        fact(pinged=Said("Slurmctld(primary) at vm is UP\nSlurmctld(backup1) at beta is DOWN\n"))),
    "not the controller": ("controller", "skip", "no slurmctld runs", "on the controller", fact(on_controller=False)),
    "clocks apart": ("clock", "fail", " s off", "set-ntp",
        fact(asked_s=(WELL.asked_s[0] + 30, WELL.asked_s[1] + 30))),
    "clocks a little apart": ("clock", "warn", " s off", "set-ntp",
        fact(asked_s=(WELL.asked_s[0] - 8, WELL.asked_s[1] - 8))),
    "default scheduling": ("scheduler", "fail", "60 s: so late", "=batch_sched_delay=0,sched_interval=5;",
        setting("SchedulerParameters", "(null)")),
    "no full pass": ("scheduler", "fail", "never looks again", "sched_interval=5,bf_interval=30;",
        setting("SchedulerParameters", "bf_interval=30,sched_interval=-1")),
    "batches delayed": ("scheduler", "warn", "after 3 s", "batch_sched_delay=0,sched_interval=2,bf_max_job_test=5;",
        setting("SchedulerParameters", "sched_interval=2,bf_max_job_test=5,batch_sched_delay=3")),
    "deferred": ("scheduler", "warn", "defer", "batch_sched_delay=0,sched_interval=5; then",
        setting("SchedulerParameters", "defer,sched_interval=5,batch_sched_delay=0")),
    "whole nodes": ("resources", "fail", "select/linear", "select/cons_tres", setting("SelectType", "select/linear")),
    "GPUs not accounted": ("resources", "warn", "lacks gres/gpu", "AccountingStorageTRES=gres/craynetwork,gres/gpu;",
        setting("AccountingStorageTRES", "cpu,mem,energy,node,billing,fs/disk,vmem,pages,gres/craynetwork")),
    "jobs soon forgotten": ("accounting", "warn", "MinJobAge is 2 s", "MinJobAge=300", setting("MinJobAge", "2 sec")),
    "comments not kept": ("accounting", "warn", "lacks job_comment", "AccountingStoreFlags=job_script,job_comment",
        setting("AccountingStoreFlags", "job_script")),
    "not an operator": ("rights", "fail", "tapfinger (it runs) is no operator", "modify user where name=tapfinger",
        NO_OPERATOR),
    "unknown to slurmdbd": ("rights", "fail", "no operator", "add user tapfinger account=root adminlevel=operator",
        all_of(NO_OPERATOR, fact(admin_level=Said("")))),
    "sees no jobs of others": ("rights", "fail", "PrivateData=jobs hides", "sacctmgr", all_of(
        NO_OPERATOR, setting("PrivateData", "cloud,jobs"), configured("agent", mode="observe"))),
    "no slurmdbd and no SlurmUser": ("rights", "fail", "no SlurmUser", "run the agent as slurm", all_of(
        fact(agent_user=TAPFINGER), setting("AccountingStorageType", "accounting_storage/none"))),
    "slow submissions in the log": ("submission", "warn", "1 slow job_submit warnings of the last day, up to 4.0 s",
        "job_submit.lua", logged(SLOW)),
    "slow submissions by sdiag": ("submission", "warn", "took 2290.4 ms", "sdiag --reset", fact(
        diagnosis=Said("\tREQUEST_SUBMIT_BATCH_JOB                ( 4003) count:7 ave_time:2290447 total_time:1"))),
    "no Lua plugin": ("lua plugin", "fail", "JobSubmitPlugins=throttle", "JobSubmitPlugins=throttle,lua;",
        setting("JobSubmitPlugins", "throttle")),
    "Lua of tomorrow": ("lua plugin", "warn", "Lua 5.5", "report", fact(lua_version="5.5")),
    "no script": ("job_submit.lua", "fail", "No such file", f"job_submit.lua {ETC}/job_submit.lua",
        file("script", **NO_SUCH_FILE)),
    "a script that others may change": ("job_submit.lua", "fail", "mode 0666", f"chmod 0644 {ETC}/job_submit.lua",
        file("script", entry=replace(WELL.hook.script.entry, mode=0o666))),
    "a script that slurmctld cannot read": ("job_submit.lua", "fail", "would not start again", "chmod 0644",
        file("script", entry=replace(WELL.hook.script.entry, mode=0o600))),
    "a script of the site's own": ("job_submit.lua", "fail", "does not call", "add at its end: pcall(",
        part("hook", script_text="-- no tapfinger\nfunction slurm_job_submit() end\n")),
    "a script that asks at submissions alone": ("job_submit.lua", "warn", "but not at updates", ".join()",
        part("hook", script_text="pcall(tapfinger.submit, job_desc)\n")),
    "no module": ("hook", "fail", "all jobs pass untouched", f"tapfinger.lua {ETC}/tapfinger.lua",
        file("module", **NO_SUCH_FILE)),
    "no site file": ("hook", "fail", "tapfinger_conf.lua: No such file", "install", file("site", **NO_SUCH_FILE)),
    "a site file that slurmctld cannot read": ("hook", "fail", "slurm cannot read", f"chmod 0644 {ETC}/tapfinger_conf",
        file("site", entry=replace(WELL.hook.site.entry, mode=0o600))),
    "a module of another release": ("hook", "fail", "is not the one of", "cp ", part("hook", module_text="old")),
    "a script with an error": ("hook", "fail", "unexpected symbol", "touch", logged(BROKEN, ago_s=-10)),
    "a module not loaded yet": ("hook", "fail", "still has the old one", f"sleep 1; touch {ETC}/job_submit.lua",
        file("module", entry=replace(WELL.hook.module.entry, changed_s=NOW_S))),
    "a sign of life elsewhere": ("hook's site file", "fail", "no job is ever leased", "agent.hook_file",
        configured("agent", hook_file="/run/elsewhere")),
    "a managed partition that the hook does not know": ("hook's site file", "fail", "pa is managed for one", "install",
        part("config", partitions={"pa": PartitionConfig(gpus="1-4")})),
    "a new partition": ("hook's site file", "warn", "does not know pb", "install",
        lambda facts: part("hook", site_text=facts.hook.site_text.replace('"pb"', '"px"'))(facts)),
    "larger nodes": ("hook's site file", "warn", "does not know pa, pb, pc", "install",
        lambda facts: part("hook", site_text=facts.hook.site_text.replace("gpus = 4", "gpus = 2"))(facts)),
    "wakes elsewhere": ("hook's site file", "warn", "the hook wakes", "agent.wake_socket",
        configured("agent", wake_socket="/run/elsewhere")),
    "another agent": ("hook's site file", "warn", "takes user 1234 for the agent", "install",
        lambda facts: part("hook", site_text=facts.hook.site_text.replace("uid = 0", "uid = 1234"))(facts)),
    "no socket library": ("wake-up", "warn", "no socket library", "lua-socket", fact(lua_sockets=False)),
    "a wake-up socket that is closed": ("wake-up", "warn", "slurm cannot write", "usermod -aG root slurm",
        entry("wake_socket", mode=0o660, uid=0, gid=0)),
    "a sign of life on NFS": ("sign of life", "fail", "on nfs4: slurmctld stands still", "tmpfs",
        fact(mounts=(("/", "ext4"), ("/tmp", "nfs4")))),
    "a closed folder": ("sign of life", "fail", "closed to slurm", "chmod a+x /tmp/closed", part("hook_file", folders=(
        Entry("/", "folder", 0o755, 0, 0), Entry("/tmp/closed", "folder", 0o700, 0, 0)))),
    "no agent": ("agent", "fail", "no sign of life", "tapfinger agent", fact(sign=None)),
    "a dead agent": ("agent", "fail", "60 s old", "tapfinger agent",
        fact(sign=replace(SIGN, at_s=int(NOW_S) - 60))),
    "a degraded agent": ("agent", "fail", "degraded", "tapfinger status", fact(sign=replace(SIGN, mode="degraded"))),
    "an agent in another mode": ("agent", "warn", "mode observe, where enforce", "restart",
        fact(sign=replace(SIGN, mode="observe"))),
    "an agent that is disabled": ("agent", "warn", "nothing is changed", "rm /tmp/labD/tapfinger/disabled",
        fact(disabled=True)),
    "an agent of before the change": ("agent", "warn", "changed after the agent had started", "restart",
        fact(agent_started_s=1.0)),
    "no server": ("server", "fail", "FileNotFoundError", "tapfinger serve",
        fact(server=None, policy=None, server_why="FileNotFoundError")),
    "a server that starts": ("server", "fail", "FileNotFoundError", "wait: it compiles",
        fact(server=None, policy=None, server_why="FileNotFoundError", server_starts=True)),
    "a socket that is yet to come": ("server socket", "fail", "not there yet", "wait: it compiles",
        all_of(part("server_socket", **NO_SUCH_FILE), fact(server_starts=True))),
    "a wrong token": ("server", "fail", "401 Unauthorized", "the same token",
        fact(server=None, policy=None, server_why="asking it: 401 Unauthorized")),
    "a server of another release": ("server", "warn", "it is tapfinger 0.0.1", "restart",
        part("server", version="0.0.1")),
    "no server socket": ("server socket", "fail", "No such file", "tapfinger serve",
        part("server_socket", **NO_SUCH_FILE)),
    "an open server socket": ("server socket", "fail", "mode 0666", "chmod 0660", entry("server_socket", mode=0o666)),
    "a server socket closed to the agent": ("server socket", "fail", "tapfinger cannot write", "usermod -aG root",
        all_of(fact(agent_user=TAPFINGER), entry("server_socket", gid=0))),
    "constants that cannot be used": ("constants", "fail", "does not start with them: torn", "server.constants",
        fact(constants_why="torn")),
    "constants that the server does not have yet": ("constants", "warn", "has those that ship, configured: /etc/c.json",
        "restart tapfinger-serve", configured("server", constants="/etc/c.json")),
    "a torn checkpoint": ("checkpoint", "fail", "price stands in: torn", "mend /opt/w", all_of(
        part("policy", fallback="price", fallback_why="torn"), configured("server", checkpoint="/opt/w"))),
    "a journal that cannot be read": ("journal", "fail", "has schema 9", "mv ", part("journal", why="it has schema 9")),
    "a damaged journal": ("journal", "fail", "damaged: row 7", "start", part("journal", damage="row 7")),
    "a journal that was set aside": ("journal", "warn", "set aside: /j.broken", "rm /j.broken",
        part("journal", aside=("/j.broken",))),
    "a journal of another user": ("journal", "fail", "tapfinger cannot write", "chown tapfinger",
        fact(agent_user=TAPFINGER)),
    "a journal on a network": ("journal", "fail", "locks", "local disk", fact(mounts=(("/tmp/labD", "nfs"),))),
    "a full disk": ("disk", "fail", "nothing can be placed", "make room", part("journal", free_mb=10.0)),
    "no inodes": ("disk", "fail", "0 files", "make room", part("journal", free_files=0)),
    "a disk that fills": ("disk", "warn", "400 MB", "make room", part("journal", free_mb=400.0)),
    "pinned jobs": ("pinned jobs", "fail", "7: placed by an agent", "tapfinger janitor", all_of(
        waits(ticket="t", priority=TOP_PRIORITY), fact(sign=None))),
    "no decision": ("dry decision", "fail", "503 busy", "above", fact(dry=DryRun(why="503 busy"))),
    "a slow decision": ("dry decision", "warn", "1500 ms, of 2 s", "server.timeout_s to 6",
        part("dry", elapsed_s=1.5)),
    "a policy of which all is refused": ("dry decision", "warn", "lets nothing through", "explain",
        part("dry", placed=0, refused=3)),
    "a partition that is none": ("configuration", "fail", "no partition gpu", "pa, pb, pc",
        part("config", partitions={"gpu": PartitionConfig()})),
}  # fmt: skip


@pytest.mark.parametrize("release", RELEASES)
def test_all_is_well_where_all_is_well(release: str) -> None:
    diagnosis = judge(recorded(release))
    assert diagnosis.healthy
    assert {check.name: check for check in diagnosis.checks if check.status != "ok"} == {}
    assert not any(check.fix for check in diagnosis.checks)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named_with_what_to_do(fault: str) -> None:
    name, status, said, fix, change = FAULTS[fault]
    facts = change(WELL)
    check = found(facts, name)
    assert check.status == status, check
    assert said in check.said
    assert fix in check.fix
    assert judge(facts).healthy == all(check.status != "fail" for check in judge(facts).checks)
    assert "\n" not in check.said + check.fix


@pytest.mark.parametrize("release", RELEASES)
def test_each_release_shows_its_settings_alike(release: str) -> None:
    for fault in (
        "default scheduling",
        "GPUs not accounted",
        "no Lua plugin",
        "slow submissions by sdiag",
        "clocks apart",
    ):
        name, status, said, _, change = FAULTS[fault]
        facts = recorded(release)
        if fault == "clocks apart":
            first_s, last_s = facts.asked_s
            change = fact(asked_s=(first_s + 30, last_s + 30))
        check = found(change(facts), name)
        assert (check.status, said in check.said) == (status, True), check


def test_what_is_needed_to_enforce_is_no_failure_while_the_agent_only_watches() -> None:
    del (faults := dict(FAULTS))["an agent in another mode"]
    for name, status, _, fix, change in faults.values():
        check = found(all_of(configured("agent", mode="observe"), change)(WELL), name)
        assert check.status in (status, "warn")
        assert fix in check.fix
    only_watched = all_of(configured("agent", mode="observe"), fact(sign=None, hook=None))(WELL)
    assert (found(only_watched, "agent").status, judge(only_watched).healthy) == ("warn", True)


def test_what_a_site_may_have_otherwise_is_no_fault() -> None:
    for change in (
        logged(SLOW, ago_s=2 * 86400),
        logged(BROKEN, ago_s=3600),
        part("hook", script_text="x()\npcall(function() dofile('/etc/slurm/tapfinger.lua').join() end)\n"),
        part("hook", script_text="require 'lua_job_submit_d'\n", modules_caller="/etc/lua_job_submit_d/zz.lua"),
        all_of(setting("AccountingStorageType", "accounting_storage/none"), setting("AccountingStorageTRES", "cpu")),
        all_of(
            NO_OPERATOR,
            fact(admin_level=Said("tapfinger|Operator\n")),
            entry("server_socket", uid=990),
            part("journal", place=Place("/j", replace(WELL.journal.place.entry, uid=990))),
        ),
        part("config", server=replace(WELL.config.server, socket="", tcp="127.0.0.1:1")),
        configured("agent", wake_socket=WELL.config.agent.wake_socket),
        fact(sign=SignOfLife("enforce", int(NOW_S) - 5, 60)),
    ):  # fmt: skip
        assert judge(change(WELL)).healthy, [check for check in judge(change(WELL)).checks if check.status == "fail"]


def test_with_slurmctld_down_the_other_checks_of_slurm_are_passed_over() -> None:
    down = Said(why="no answer")
    facts = replace(
        WELL, asked_config=down, pinged=down, diagnosis=down, admin_level=down, hook=None, state=None, state_why="down",
        dry=DryRun(why="down"), slurm_user=None,
    )  # fmt: skip
    statuses = {check.name: check.status for check in judge(facts).checks}
    assert [name for name, status in statuses.items() if status == "fail"] == ["slurm", "dry decision"]
    assert [name for name, status in statuses.items() if status == "skip"] == [
        "controller", "clock", "scheduler", "resources", "accounting", "rights", "submission", "lua plugin",
        "job_submit.lua", "hook", "hook's site file", "pinned jobs",
    ]  # fmt: skip


def test_without_a_configuration_file_the_defaults_are_named() -> None:
    facts = replace(WELL, config=Config(), config_named=False, config_file=Place("/etc/tapfinger/tapfinger.toml"))
    assert found(facts, "configuration").said == "there is no /etc/tapfinger/tapfinger.toml: the defaults, mode observe"


def test_the_troubleshooting_page_has_every_check_with_its_fix() -> None:
    page = (Path(__file__).parents[1] / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert [check.name for check in judge(WELL).checks if f"| `{check.name}` |" not in page] == []


def test_slurmctld_is_known_by_its_pid_file_or_by_how_systemd_starts_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "slurmctld.pid"
    for pid, words in (
        ("7", "slurmd --systemd"),
        ("8", "/usr/sbin/slurmctld -D"),
        ("9", "/usr/sbin/slurmctld --systemd"),
    ):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "cmdline").write_text("\0".join([*words.split(), ""]))
        (tmp_path / pid / "comm").write_text(Path(words.split()[0]).name + "\n")
    assert controller(str(pid_file), tmp_path) == 9
    pid_file.write_text("8\n")
    assert controller(str(pid_file), tmp_path) == 8
    pid_file.write_text("7\n")
    assert controller(str(pid_file), tmp_path) == 9
    assert controller("", tmp_path) is None


def test_what_stands_in_an_included_file_is_to_be_changed_there() -> None:
    facts = all_of(
        setting("SchedulerParameters", "(null)"),
        setting("JobSubmitPlugins", "(null)"),
        fact(stand_in={"schedulerparameters": "/c/tuning.conf"}),
    )(WELL)
    assert found(facts, "scheduler").fix.startswith("in /c/tuning.conf set SchedulerParameters=")
    assert f"in {ETC}/slurm.conf set JobSubmitPlugins=lua" in found(facts, "lua plugin").fix
    assert found(setting("JobSubmitPlugins", "job_submit/lua")(WELL), "lua plugin").status == "ok"


def test_the_module_is_where_the_sites_script_says() -> None:
    assert module_path('local t = dofile("/usr/share/tf/tapfinger.lua")', "/etc/slurm") == "/usr/share/tf/tapfinger.lua"
    assert module_path("dofile(here .. 'tapfinger.lua')", "/etc/slurm") == "/etc/slurm/tapfinger.lua"


def test_who_may_reach_a_file_follows_from_modes_and_owners(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir(mode=0o750)
    (folder / "file").write_text("")
    (folder / "file").chmod(0o640)
    place = look(str(folder / "file"))
    place = replace(place, folders=tuple(one for one in place.folders if one.path == str(folder)))
    mine = User("me", os.geteuid(), (os.getegid(),))
    assert place.why_not(User("root", 0), WRITE) == ""
    if os.geteuid():
        assert place.why_not(mine, WRITE) == ""
    friend, stranger = User("friend", 54321, (os.getegid(),)), User("stranger", 54322, (54322,))
    assert place.why_not(friend, READ) == ""
    assert "friend cannot write" in place.why_not(friend, WRITE)
    assert f"{folder} (mode 0750" in place.why_not(stranger, READ)
    assert look(str(folder / "none")).why_not(User("root", 0), READ).endswith("No such file or directory")


def test_the_file_system_is_that_of_the_nearest_mount() -> None:
    mounted = (("/", "ext4"), ("/var", "nfs4"), ("/var/lib", "xfs"), ("/srv", "fuse.sshfs"))
    assert [slow_disk(path, mounted) for path in ("/etc/a", "/var/a", "/var/lib/a", "/variety", "/srv/b")] == [
        "", "nfs4", "", "", "fuse.sshfs",
    ]  # fmt: skip
