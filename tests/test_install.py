"""Installing and taking off again, in a file tree of its own: what is written, what is left alone or left behind."""

import itertools
import os
import re
import shutil
import stat
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from slurm_plugin.commands import Answer, CommandError
from slurm_plugin.hookconf import HookPartition
from slurm_plugin.install import carry, cli, hook, plan, site, units
from slurm_plugin.install.paths import Paths
from slurm_plugin.install.site import Site
from slurm_plugin.install.steps import Command, File, Folder, MadeFile, MadeFolder, Ran, Record
from tapfinger_hpc import config, config_text
from tapfinger_hpc.config import Config
from tapfinger_hpc.errors import ConfigError, InstallError

SITES_OWN = (
    "function slurm_job_submit() return slurm.SUCCESS end\nfunction slurm_job_modify() return slurm.SUCCESS end\n"
)
RECORD = Paths.of(Config()).record


def snapshot(folder: Path) -> dict[str, tuple]:
    """Everything that is in a folder: kind, mode, owners, content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_uid, status.st_gid, content)
    return found


@pytest.fixture
def tree() -> Iterator[Path]:
    """A controller's files: Slurm's own, and things of others in folders that we share with them.

    In memory where that can be had: each change reaches the disk before the next, and here there are thousands.
    """
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        root = Path(folder)
        for name in ("etc/slurm", "etc/systemd/system", "var/lib/slurm", "run"):
            (root / name).mkdir(parents=True)
        (root / "etc/slurm/slurm.conf").write_text("ClusterName=lab\n")
        (root / "etc/systemd/system/other.service").write_text("[Unit]\n")
        (root / "etc/systemd/system/other.service").chmod(0o600)
        yield root


def invoke(command, tree: Path, *more: str):
    result = CliRunner().invoke(command, ["--root", str(tree), *more])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def installed(tree: Path) -> str:
    return invoke(cli.install, tree).output


def taken_off(tree: Path) -> str:
    return invoke(cli.uninstall, tree).output


# The whole way.


def test_installing_and_taking_off_leaves_every_byte_mode_and_owner_as_it_was(tree):
    before = snapshot(tree)
    installed(tree)
    assert (tree / "etc/tapfinger/tapfinger.toml").exists()
    assert (tree / "etc/slurm/job_submit.lua").exists()
    taken_off(tree)
    assert snapshot(tree) == before


def test_a_sites_own_script_is_not_touched_and_gets_one_line_shown(tree):
    script = tree / "etc/slurm/job_submit.lua"
    script.write_text(SITES_OWN)
    before = snapshot(tree)
    output = installed(tree)
    assert script.read_text() == SITES_OWN
    assert f"  {hook.line_for('/etc/slurm')}\n" in output
    assert (tree / "etc/slurm/tapfinger.lua").exists()
    taken_off(tree)
    assert snapshot(tree) == before


def test_the_line_is_not_asked_for_again_once_it_is_there(tree):
    (tree / "etc/slurm/job_submit.lua").write_text(SITES_OWN + hook.line_for("/etc/slurm") + "\n")
    assert "add one line" not in installed(tree)


def test_a_folder_of_modules_gets_one_that_calls_ours(tree):
    (tree / "etc/slurm/lua_job_submit_d").mkdir()
    script = tree / "etc/slurm/job_submit.lua"
    script.write_text('modules_dir = "/etc/slurm/lua_job_submit_d"\n' + SITES_OWN)
    before = snapshot(tree)
    assert "add one line" not in installed(tree)
    assert [path.name for path in (tree / "etc/slurm/lua_job_submit_d").iterdir()] == [hook.MODULES_CALLER]
    taken_off(tree)
    assert snapshot(tree) == before


def test_a_dry_run_lists_everything_and_changes_nothing(tree):
    before = snapshot(tree)
    listed = invoke(cli.install, tree, "--dry-run").output
    assert snapshot(tree) == before
    installed(tree)
    new = {f"/{name}" for name in snapshot(tree).keys() - before.keys()} - {RECORD, str(Path(RECORD).parent)}
    assert new == set(re.findall(r"(?:make the folder|write) (\S+)", listed))
    full = snapshot(tree)
    invoke(cli.uninstall, tree, "--dry-run")
    assert snapshot(tree) == full


def test_a_second_installation_finds_nothing_to_do(tree):
    installed(tree)
    full = snapshot(tree)
    assert "nothing: all is there already" in installed(tree)
    assert snapshot(tree) == full


@pytest.mark.parametrize("line", ["JobSubmitPlugins=lua", " jobsubmitplugins = require_timelimit,lua # ours"])
def test_a_script_without_which_slurmctld_would_not_start_again_is_not_taken_away(tree, line):
    conf = tree / "etc/slurm/slurm.conf"
    conf.write_text(f"ClusterName=lab\n{line}\n")
    before = snapshot(tree)
    installed(tree)
    full = snapshot(tree)
    with pytest.raises(InstallError, match=r"slurm.conf has lua in JobSubmitPlugins.*tapfinger uninstall again"):
        taken_off(tree)
    assert snapshot(tree) == full
    conf.write_text("ClusterName=lab\n#JobSubmitPlugins=lua\nJobSubmitPlugins=require_timelimit # no lua\n")
    taken_off(tree)
    conf.write_text(f"ClusterName=lab\n{line}\n")
    assert snapshot(tree) == before


@pytest.mark.parametrize("name", ["plugins.conf", "/etc/slurm/plugins.lab", "more/%c.conf"])
def test_the_script_is_not_taken_away_either_where_an_included_file_asks_for_it(tree, name):
    conf = tree / "etc/slurm/slurm.conf"
    conf.write_text(f"ClusterName=lab\nInclude {name}\n")
    other = tree / "etc/slurm" / name.replace("%c", "lab").removeprefix("/etc/slurm/")
    other.parent.mkdir(exist_ok=True)
    other.write_text("JobSubmitPlugins=require_timelimit,job_submit/lua\n")
    installed(tree)
    full = snapshot(tree)
    with pytest.raises(InstallError, match=f"{other} has lua in JobSubmitPlugins"):
        taken_off(tree)
    assert snapshot(tree) == full
    conf.write_text(conf.read_text() + "JobSubmitPlugins=require_timelimit\n")
    taken_off(tree)
    assert not (tree / "etc/slurm/job_submit.lua").exists()


@pytest.mark.parametrize("command", [cli.install, cli.uninstall])
def test_two_at_once_do_not_happen(tree, command):
    installed(tree)
    full = snapshot(tree)
    with carry.alone(carry.Tree(tree)):
        with pytest.raises(InstallError, match=r"nothing was changed: another .* is at work in"):
            invoke(command, tree)
        invoke(command, tree, "--dry-run")
        assert snapshot(tree) == full
    invoke(command, tree)


def test_a_root_that_is_not_there_is_said(tree):
    with pytest.raises(InstallError, match=r"nowhere: No such file or directory; --root names"):
        installed(tree / "nowhere")


def test_a_site_with_its_own_script_may_keep_lua_in_slurm_conf(tree):
    (tree / "etc/slurm/job_submit.lua").write_text(SITES_OWN)
    (tree / "etc/slurm/slurm.conf").write_text("JobSubmitPlugins=lua\n")
    before = snapshot(tree)
    installed(tree)
    taken_off(tree)
    assert snapshot(tree) == before


def test_taking_off_what_was_never_installed_says_so(tree):
    assert "nothing is installed" in taken_off(tree)


def test_what_the_agent_wrote_meanwhile_goes_with_its_folder(tree):
    before = snapshot(tree)
    installed(tree)
    (tree / "var/lib/tapfinger/journal.sqlite").write_bytes(b"x")
    (tree / "etc/tapfinger/tapfinger.toml").write_text("[agent]\nlease_s = 90\n")
    taken_off(tree)
    assert snapshot(tree) == before


def test_a_script_that_the_site_made_its_own_since_stays(tree):
    installed(tree)
    script = tree / "etc/slurm/job_submit.lua"
    script.write_text(script.read_text() + "-- ours too\n")
    assert "it was changed since" in installed(tree)
    assert "leave /etc/slurm/job_submit.lua: it was changed since" in taken_off(tree)
    assert script.read_text().endswith("-- ours too\n")
    assert not (tree / "etc/slurm/tapfinger.lua").exists()


def test_a_configuration_that_is_there_counts_and_stays(tree):
    toml = tree / "etc/tapfinger/tapfinger.toml"
    toml.parent.mkdir()
    toml.write_text('[agent]\nwake_socket = "/run/tapfinger/other.sock"\n')
    before = snapshot(tree)
    assert f"{config.DEFAULT_PATH}: it was there already" in installed(tree)
    assert "/run/tapfinger/other.sock" in (tree / "etc/slurm/tapfinger_conf.lua").read_text()
    taken_off(tree)
    assert snapshot(tree) == before


def test_a_folder_of_others_is_not_made_anew_at_boot(tree):
    toml = tree / "etc/tapfinger/tapfinger.toml"
    toml.parent.mkdir()
    toml.write_text('[agent]\nhook_file = "/run/slurm/hook"\ndisable_file = "/run/disabled"\n')
    (tree / "run/slurm").mkdir(mode=0o711)
    before = snapshot(tree)
    installed(tree)
    lines = (tree / "etc/tmpfiles.d/tapfinger.conf").read_text().splitlines()
    assert [line.split()[1] for line in lines] == ["/run/tapfinger"]
    assert (tree / "run/slurm").stat().st_mode & 0o777 == 0o711
    # Made by ourselves, it is ours the second time too.
    assert "nothing: all is there already" in installed(tree)
    taken_off(tree)
    assert snapshot(tree) == before


def test_an_update_writes_anew_what_changed_and_the_script_with_it(tree):
    installed(tree)
    module, script = tree / "etc/slurm/tapfinger.lua", tree / "etc/slurm/job_submit.lua"
    newest = module.read_bytes()
    older = b"-- of an older release\n"
    module.write_bytes(older)
    record = tree / RECORD.lstrip("/")
    known = msgspec.json.decode(record.read_bytes(), type=Record)
    entries = [
        MadeFile(entry.path, (plan.digest(older),))
        if getattr(entry, "path", "") == "/etc/slurm/tapfinger.lua"
        else entry
        for entry in known.entries
    ]
    record.write_bytes(msgspec.json.encode(Record(tuple(entries))))
    before = script.stat().st_ino
    output = installed(tree)
    assert "write /etc/slurm/tapfinger.lua" in output
    assert module.read_bytes() == newest
    assert script.stat().st_ino != before
    assert "write /etc/tapfinger" not in output


@pytest.mark.parametrize("name", ["etc/slurm/tapfinger.lua", "etc/systemd/system/tapfinger-agent.service"])
def test_a_file_of_others_in_our_place_stops_everything(tree, name):
    (tree / name).write_text("not ours\n")
    before = snapshot(tree)
    with pytest.raises(InstallError, match=rf"nothing was changed.*\n.*/{name}: it is there"):
        installed(tree)
    assert snapshot(tree) == before


def test_a_broken_configuration_stops_everything(tree):
    toml = tree / "etc/tapfinger/tapfinger.toml"
    toml.parent.mkdir()
    toml.write_text("[agent]\nmodus = 'enforce'\n")
    before = snapshot(tree)
    with pytest.raises(ConfigError, match=r"did you mean agent\.mode"):
        installed(tree)
    assert snapshot(tree) == before


def test_a_record_that_others_may_write_is_not_believed(tree):
    installed(tree)
    (tree / RECORD.lstrip("/")).chmod(0o666)
    with pytest.raises(InstallError, match="cannot be believed"):
        taken_off(tree)


# Cut short.


def all_steps(found: Site) -> tuple:
    return plan.wanted(found, plan.first_config(found), Paths.of(Config()), "/usr/bin/tapfinger", Record())


class Machine:
    """Commands that only remember what they were, but for those that fail."""

    def __init__(self, *failing: str) -> None:
        self.ran: list[tuple[str, ...]] = []
        self._failing = failing

    def __call__(self, argv) -> Answer:
        self.ran.append(tuple(argv))
        return Answer(tuple(argv), int(argv[0] in self._failing), b"", "no" if argv[0] in self._failing else "")


def test_an_installation_that_ended_anywhere_can_be_taken_back(tree):
    before = snapshot(tree)
    here = carry.Tree(tree)
    steps = all_steps(Site(elsewhere=True, systemd=True))
    planned = plan.make(steps, here.look(steps), Record()).steps
    assert len(planned) > 20
    for done in range(len(planned) + 1):
        machine = Machine()
        carry.carry_out(planned[:done], here, carry.Ledger(here, RECORD), machine)
        assert carry.take_back(here, carry.Ledger(here, RECORD), machine) == ()
        assert snapshot(tree) == before, planned[done - 1]


@pytest.mark.parametrize("entry", [MadeFile("/etc/slurm/x.lua", ("00",)), MadeFolder("/etc/x", True)])
def test_what_was_announced_but_never_made_is_no_obstacle(tree, entry):
    before = snapshot(tree)
    here = carry.Tree(tree)
    ledger = carry.Ledger(here, RECORD)
    ledger.begin()
    ledger.note(entry)
    assert carry.take_back(here, carry.Ledger(here, RECORD), Machine()) == ()
    assert snapshot(tree) == before


def test_half_a_file_is_taken_back_too(tree):
    before = snapshot(tree)
    here = carry.Tree(tree)
    ledger = carry.Ledger(here, RECORD)
    ledger.begin()
    ledger.note(MadeFile("/etc/slurm/x.lua", ("00",)))
    (tree / "etc/slurm/.x.lua.tapfinger-install").write_text("ha")
    assert carry.take_back(here, ledger, Machine()) == ()
    assert snapshot(tree) == before


def test_a_file_that_appears_meanwhile_is_not_overwritten_and_not_removed(tree):
    here = carry.Tree(tree)
    file = tree / "etc/slurm/tapfinger.lua"
    file.write_text("not ours\n")
    ledger = carry.Ledger(here, RECORD)
    with pytest.raises(InstallError, match="File exists"):
        carry.carry_out([File("/etc/slurm/tapfinger.lua", "ours\n")], here, ledger, Machine())
    assert carry.take_back(here, ledger, Machine()) == ()
    assert file.read_text() == "not ours\n"


def test_a_command_that_fails_ends_it_with_its_own_words_and_the_way_out(tree):
    here = carry.Tree(tree)
    step = Command("add the system user", ("useradd", "x"), ("userdel", "x"))
    machine = Machine("useradd", "userdel")
    with pytest.raises(InstallError, match=r"useradd x ended with 1: no; .*tapfinger uninstall"):
        carry.carry_out([step], here, carry.Ledger(here, RECORD), machine)
    # Whether there is anything to undo is not known, so that it cannot be undone is no failure.
    assert carry.take_back(here, carry.Ledger(here, RECORD), machine) == ()
    assert machine.ran[-1] == ("userdel", "x")


def test_what_cannot_be_undone_is_named_and_stays_recorded_and_the_rest_is_undone(tree):
    here = carry.Tree(tree)
    steps = [Command("add the system user", ("useradd", "x"), ("userdel", "x")), Folder("/etc/x", ours_alone=True)]
    carry.carry_out(steps, here, carry.Ledger(here, RECORD), Machine())
    failed = carry.take_back(here, carry.Ledger(here, RECORD), Machine("userdel"))
    assert failed == ("running userdel x: userdel x ended with 1: no",)
    assert not (tree / "etc/x").exists()
    left = [entry for entry in carry.Ledger(here, RECORD).record.entries if isinstance(entry, Ran)]
    assert [entry.undo for entry in left] == [("userdel", "x")]
    assert carry.take_back(here, carry.Ledger(here, RECORD), Machine()) == ()
    assert not (tree / RECORD.lstrip("/")).exists()


def test_everything_is_undone_in_the_opposite_order(tree):
    here = carry.Tree(tree)
    steps = all_steps(Site(elsewhere=True, systemd=True))
    planned = plan.make(steps, here.look(steps), Record()).steps
    carry.carry_out(planned, here, carry.Ledger(here, RECORD), Machine())
    machine = Machine()
    carry.take_back(here, carry.Ledger(here, RECORD), machine)
    assert [argv[:2] for argv in machine.ran] == [
        ("systemctl", "disable"),
        ("systemctl", "daemon-reload"),
        ("sacctmgr", "--immediate"),
        ("userdel", "tapfinger"),
    ]


# What a site gets.


def commands_for(found: Site) -> list[tuple[str, ...]]:
    steps = all_steps(found)
    planned = plan.make(steps, dict.fromkeys(carry.Tree().look(steps)), Record())
    return [step.do for step in planned.steps if isinstance(step, Command) and step.do]


def test_with_slurmdbd_a_user_of_our_own_becomes_an_operator():
    added, role, *_ = commands_for(Site(cluster="lab", free_id=977))
    assert added[:4] == ("useradd", "--system", "--uid", "977")
    assert role[2:] == ("add", "user", "tapfinger", "account=root", "cluster=lab", "adminlevel=operator")


def test_a_user_that_is_there_and_an_operator_is_left_as_it_is():
    assert commands_for(Site(service_uid=977, admin_level="Operator")) == []


def test_a_user_of_slurmdbd_without_rights_gets_them_and_loses_them_again():
    steps = all_steps(Site(service_uid=977, admin_level="None"))
    (role,) = (step for step in steps if isinstance(step, Command))
    assert role.do[-1] == "adminlevel=operator"
    assert role.undo[-1] == "adminlevel=none"


def test_without_slurmdbd_all_runs_as_slurmuser_and_the_hook_trusts_it():
    found = Site(accounting=False, slurm_user="slurm", slurm_group="slurm")
    steps = all_steps(found)
    assert not [step for step in steps if isinstance(step, Command)]
    texts = {step.path: step.text for step in steps if isinstance(step, File)}
    assert "User=slurm\nGroup=slurm\n" in texts["/etc/systemd/system/tapfinger-agent.service"]
    assert "agent_uid = 0," in texts["/etc/slurm/tapfinger_conf.lua"]


def test_the_hook_is_told_of_the_largest_node_of_each_partition():
    found = Site(partitions=(HookPartition("gpu", 32, 8, 128000),), free_id=977)
    texts = {step.path: step.text for step in all_steps(found) if isinstance(step, File)}
    assert '["gpu"] = { cpus = 32, gpus = 8, mem_mb = 128000' in texts["/etc/slurm/tapfinger_conf.lua"]
    assert "agent_uid = 977," in texts["/etc/slurm/tapfinger_conf.lua"]


def test_folders_go_where_an_existing_configuration_says():
    chosen = msgspec.convert(
        {"agent": {"journal": "/srv/tf/j.sqlite", "classes_file": "/srv/tf/c.json"}, "server": {"compiled": "/srv/c"}},
        Config,
    )
    paths = Paths.of(chosen)
    assert (paths.state, paths.cache) == (("/srv/tf",), ("/srv/c",))
    service = units.units(paths, chosen, user="u", group="g", program="/p")["tapfinger-serve.service"]
    assert "ReadWritePaths=-/run/tapfinger -/srv/tf -/srv/c\n" in service


def test_a_folder_that_is_to_be_written_is_not_read_only_too():
    chosen = msgspec.convert({"agent": {"hook_file": "/run/hook"}}, Config)
    service = units.units(Paths.of(chosen), chosen, user="u", group="g", program="/p")["tapfinger-agent.service"]
    assert "ReadWritePaths=-/run -/run/tapfinger " in service
    assert "ReadOnlyPaths" not in service


@pytest.mark.parametrize("name", ["serve", "agent", "janitor", "learn"])
def test_every_service_is_hardened_and_gives_way_to_slurmctld(name):
    paths = Paths.of(Config())
    service = units.units(paths, Config(), user="u", group="g", program="/p")[f"tapfinger-{name}.service"].splitlines()
    for line in ("NoNewPrivileges=yes", "ProtectSystem=strict", "PrivateTmp=yes", "CapabilityBoundingSet=", "User=u"):
        assert line in service
    assert f"ExecStart=/p {name} --config /etc/tapfinger/tapfinger.toml" in service
    assert "OOMScoreAdjust=500" in service
    assert "ReadOnlyPaths=/run" in service


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not here")
def test_systemd_reads_every_unit_and_finds_nothing_to_say(tmp_path):
    texts = units.units(Paths.of(Config()), Config(), user="root", group="root", program="/bin/true")
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    command = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / name) for name in texts)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("systemctl"), reason="systemd is not here")
def test_units_that_were_enabled_and_disabled_leave_nothing(tree):
    before = snapshot(tree)
    installed(tree)
    for change in ("enable", "disable"):
        subprocess.run(["systemctl", "--quiet", f"--root={tree}", change, *units.ENABLED], check=True)
    taken_off(tree)
    assert snapshot(tree) == before


def said(found: Site) -> str:
    return "\n".join(plan.by_hand(found, plan.Plan(()), Record(), "/p", "/c"))


def test_what_slurm_conf_lacks_is_shown_with_what_it_has():
    text = said(
        Site(submit_plugins=("require_timelimit",), scheduler_parameters=("bf_interval=10", "sched_interval=60"))
    )
    assert "JobSubmitPlugins=require_timelimit,lua" in text
    assert "SchedulerParameters=bf_interval=10,batch_sched_delay=0,sched_interval=5" in text


def test_what_stands_in_an_included_file_is_asked_for_there():
    found = Site(
        slurm_conf="/c/slurm.conf",
        submit_plugins=("require_timelimit",),
        stand_in={"jobsubmitplugins": "/c/plugins.conf", "clustername": "/c/slurm.conf"},
    )
    assert "in /c/plugins.conf, before agent.mode becomes enforce, then restart slurmctld:\n  JobSub" in said(found)
    assert "in /c/slurm.conf, before agent.mode becomes enforce, then restart slurmctld:\n  Sched" in said(found)


def test_another_machine_than_the_controllers_is_said():
    assert "slurmctld runs on c1, c2, and this is n7" in said(Site(controllers=("c1", "c2"), host="n7"))
    assert "slurmctld runs on" not in said(Site(controllers=("c1", "c2"), host="c2"))


def test_a_slurm_conf_that_has_all_is_not_mentioned():
    found = Site(
        submit_plugins=("lua",), scheduler_parameters=("sched_interval=5", "batch_sched_delay=0"), systemd=True
    )
    assert said(found) == ""


def test_slurm_that_does_not_answer_is_said_with_the_next_step():
    def silent(argv):
        raise CommandError("scontrol show config did not end within 10 s", argv, None, "")

    with pytest.raises(Exception, match="run this on the controller, or give --root"):
        site.survey(silent, Config())


def test_without_root_it_says_what_it_would_need_and_does_nothing(tree, monkeypatch):
    monkeypatch.setattr(site, "survey", lambda run, config: Site(cluster="lab"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(carry.Tree, "at", lambda self, path: tree / path.lstrip("/"))
    before = snapshot(tree)
    result = CliRunner().invoke(cli.install, [])
    assert isinstance(result.exception, InstallError)
    assert "needs root" in str(result.exception)
    assert "add the system user tapfinger" in result.output
    assert snapshot(tree) == before


# The configuration file.


def uncommented(text: str) -> str:
    return re.sub(r"^#(?=\w+ = )", "", text, flags=re.MULTILINE)


def test_the_configuration_file_holds_every_key_commented_out_with_its_default(tmp_path):
    text = config_text.render()
    assert tomllib.loads(text) == {
        section.name: {} for section in msgspec.structs.fields(Config) if section.name != "partitions"
    }
    file = tmp_path / "tapfinger.toml"
    file.write_text(uncommented(text))
    assert config.load(file) == Config()
    assert tomllib.loads(uncommented(text)) == {
        section.name: msgspec.to_builtins(getattr(Config(), section.name))
        for section in msgspec.structs.fields(Config)
        if section.name != "partitions"
    }


def test_every_key_of_the_configuration_file_has_its_reason_above_it():
    lines = config_text.render().splitlines()
    for before, line in itertools.pairwise(lines):
        if re.match(r"#?( ?)\w+ = ", line):
            assert before.startswith("# "), line


def test_what_is_not_a_default_is_set_in_the_file(tmp_path):
    chosen = msgspec.convert(
        {
            "agent": {"classes_file": '/var/lib/a "b"\\c.json', "lease_s": 90},
            "slurm": {"conf": "/x/slurm.conf", "timeout_s": 2.5},
            "partitions": {"gpu": {"gpus": "1-4"}},
        },
        Config,
    )
    file = tmp_path / "tapfinger.toml"
    file.write_text(config_text.render(chosen))
    assert config.load(file) == chosen
