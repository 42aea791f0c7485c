"""The doctor on a real slurmctld: a healthy site is well, and each fault is found, named, and mended by its fix."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from agents import PRIMED, command, hook_mode, in_charge, process, soon, toml_for, touch_later

from slurm_plugin.sandbox import Sandbox
from slurm_plugin.sandbox.conf import SCHEDULER_PARAMETERS
from tapfinger_hpc.policies import constants
from tapfinger_hpc.policies.compiled.price import Prices

pytestmark = pytest.mark.slurm

SERVE = ("--policy", "fifo")


class Site:
    """A sandbox with agent and server, and what the doctor says of it."""

    def __init__(self, box: Sandbox, folder: Path) -> None:
        self.box = box
        self.toml = toml_for(box, folder)
        # No fallback that would have to be compiled.
        self.toml.write_text(self.toml.read_text().replace("[server]", '[server]\nfallback = "min"'))
        self.socket = folder / "server.sock"

    def doctor(self) -> tuple[int, dict[str, dict[str, str]]]:
        said = command(self.box, "doctor", "--json", "--config", str(self.toml))
        assert said.returncode in (0, 3), said.stderr
        return said.returncode, {check["name"]: check for check in json.loads(said.stdout)["checks"]}

    def finds(self, name: str, said: str) -> str:
        """The doctor fails this check and says so; its fix."""
        status, checks = self.doctor()
        assert (status, checks[name]["status"]) == (3, "fail"), checks[name]
        assert said in checks[name]["said"]
        return checks[name]["fix"]

    def is_well(self) -> None:
        status, checks = self.doctor()
        assert (status, {name: check for name, check in checks.items() if check["status"] != "ok"}) == (0, {})

    def shell(self, fix: str) -> None:
        """Does what a fix says where it is a command."""
        subprocess.run(fix, shell=True, check=True, env=self.box.env, timeout=60)

    def conf(self, setting: str) -> None:
        """Puts a line at the end of slurm.conf, where it counts, and has it read."""
        path = self.box.slurm_conf
        path.write_text(path.read_text() + setting + "\n")
        self.reconfigure(setting)

    def reconfigure(self, setting: str) -> None:
        """Has slurm.conf read, and waits until this counts: newer ones start slurmctld anew for it."""
        self.box.run("scontrol", "reconfigure")
        key, _, value = setting.partition("=")
        shown = re.compile(rf"^{key}\s*= {re.escape(value)}$", re.MULTILINE)
        self.box.wait_for(
            lambda: shown.search(self.box.run("scontrol", "show", "config", check=False).stdout), what=setting
        )

    def serve(self, log: Path):
        return process(self.box, "serve", "--config", str(self.toml), *SERVE, log=log)


@pytest.fixture
def site(cluster: Sandbox, tmp_path: Path) -> Iterator[Site]:
    """All runs, and all is well."""
    kept = {path: path.read_bytes() for path in cluster.layout.etc.iterdir()}
    here = Site(cluster, tmp_path)
    with (
        here.serve(tmp_path / "serve.log") as serve,
        process(cluster, "agent", "--config", str(here.toml), log=tmp_path / "agent.log") as agent,
    ):
        in_charge(cluster, serve, agent)
        here.is_well()
        try:
            yield here
        finally:
            for path, text in kept.items():
                if not path.exists() or path.read_bytes() != text:
                    path.write_bytes(text)
    here.reconfigure(f"SchedulerParameters={SCHEDULER_PARAMETERS}")


def test_scheduling_parameters_that_let_leases_overshoot_are_found(site: Site) -> None:
    site.conf("SchedulerParameters=defer,bf_interval=10")
    fix = site.finds("scheduler", "sched_interval is 60 s")
    wanted = re.search(r"SchedulerParameters=[^;]+", fix)
    assert wanted is not None
    assert "bf_interval=10" in wanted[0]
    site.conf(wanted[0])
    site.is_well()


def test_a_socket_that_everybody_may_use_is_found(site: Site) -> None:
    site.socket.chmod(0o666)
    site.shell(site.finds("server socket", "mode 0666"))
    site.is_well()


def test_a_sign_of_life_that_slurmctld_cannot_read_is_found(site: Site) -> None:
    folder = site.box.layout.tapfinger
    before = folder.stat().st_mode
    folder.chmod(0o700)
    try:
        site.shell(site.finds("sign of life", "closed to slurm"))
        assert site.doctor()[1]["sign of life"]["status"] == "ok"
    finally:
        folder.chmod(before)


def test_what_is_left_of_a_longer_number_in_slurmctlds_pid_file_is_no_fault(site: Site) -> None:
    with (site.box.layout.run / "slurmctld.pid").open("a") as file:
        file.write("5\n")
    site.is_well()


def test_a_hook_that_is_gone_is_found(site: Site) -> None:
    etc = site.box.layout.etc
    (etc / "tapfinger.lua").unlink()
    touch_later(etc / "job_submit.lua")
    passed = site.box.submit("true", f"--comment={PRIMED}")
    assert "lease" not in site.box.job(passed).get("AdminComment", "")
    site.shell(site.finds("hook", "all jobs pass untouched"))
    leased = site.box.submit("true", f"--comment={PRIMED}")
    assert "lease" in site.box.job(leased)["AdminComment"]
    site.is_well()


def test_a_hook_that_slurmctld_has_not_loaded_yet_is_found(site: Site) -> None:
    (site.box.layout.etc / "tapfinger_conf.lua").touch()
    site.shell(site.finds("hook", "slurmctld still has the old one"))
    site.is_well()


def test_a_script_of_the_sites_own_that_does_not_call_the_hook_is_found(site: Site) -> None:
    script = site.box.layout.etc / "job_submit.lua"
    script.write_text(
        "function slurm_job_submit() return slurm.SUCCESS end\nfunction slurm_job_modify() return 0 end\n"
    )
    line = site.finds("job_submit.lua", "does not call TapFinger").removeprefix("add at its end: ")
    script.write_text(script.read_text() + line + "\n")
    site.is_well()
    leased = site.box.submit("true", f"--comment={PRIMED}")
    assert "lease" in site.box.job(leased)["AdminComment"]


def test_a_script_that_slurmctld_cannot_read_is_found_in_its_log(site: Site) -> None:
    script = site.box.layout.etc / "job_submit.lua"
    whole = script.read_bytes()
    script.write_bytes(b"-- tapfinger modify\nfunction slurm_job_submit( return\n")
    site.box.submit("true")
    site.finds("hook", "expected near 'return', using previous script")
    script.write_bytes(whole)
    site.is_well()


def test_a_server_that_is_down_is_found_and_its_agent_said_to_be_degraded(cluster: Sandbox, tmp_path: Path) -> None:
    site = Site(cluster, tmp_path)
    with process(cluster, "agent", "--config", str(site.toml), log=tmp_path / "agent.log") as agent:
        soon(lambda: hook_mode(cluster) == "degraded", "the agent to miss its server", timeout_s=60)
        assert "tapfinger serve" in site.finds("server", "No such file")
        assert "tapfinger serve" in site.finds("server socket", "No such file")
        site.finds("agent", "degraded")
        site.finds("dry decision", "the server does not answer")
        with site.serve(tmp_path / "serve.log") as serve:
            in_charge(cluster, serve, agent)
            site.is_well()


def test_constants_that_cannot_be_used_or_that_the_server_does_not_have_are_found(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "constants.json"
    path.write_text("{}")
    site.toml.write_text(site.toml.read_text().replace("[server]", f'[server]\nconstants = "{path}"'))
    site.finds("constants", "the server does not start with them")
    constants.write(path, Prices(), {})
    check = site.doctor()[1]["constants"]
    assert (check["status"], check["said"]) == ("warn", f"the server has those that ship, configured: {path}")


def test_an_agent_that_is_no_operator_is_found(cluster: Sandbox, tmp_path: Path) -> None:
    site = Site(cluster, tmp_path)
    said = command(cluster, "agent", "--once", "--config", str(site.toml))
    assert said.returncode == 0, said.stderr
    subprocess.run(["chown", "nobody", tmp_path / "journal.sqlite"], check=True)
    fix = site.finds("rights", "nobody (the journal is its) is no operator")
    try:
        site.shell(fix)
        assert site.doctor()[1]["rights"]["said"] == "the agent's user nobody (the journal is its) is Operator"
        cluster.run("sacctmgr", "-i", "modify", "user", "where", "name=nobody", "set", "adminlevel=none")
        site.shell(site.finds("rights", "no operator"))
        assert site.doctor()[1]["rights"]["status"] == "ok"
    finally:
        cluster.run("sacctmgr", "-i", "delete", "user", "nobody")


def test_the_dry_decision_changes_nothing(site: Site) -> None:
    job_id = site.box.submit("sleep 60", f"--comment={PRIMED}", "--hold")
    before = _of_users(site.box.job(job_id))
    said = site.doctor()[1]["dry decision"]["said"]
    assert re.fullmatch(r"fifo: a made-up job \(none of ours waits\), 1 placed, 0 refused, \d+ ms, .*", said)
    assert _of_users(site.box.job(job_id)) == before


def _of_users(job: dict[str, str]) -> list[str]:
    """What of a job is asked for, rather than what Slurm notes while time passes."""
    fields = ("ReqNodeList", "NumCPUs", "TRES", "Priority", "StartTime", "EligibleTime", "Comment", "AdminComment")
    return [job.get(field, "") for field in fields]


def test_without_slurmctld_it_says_so_once_and_does_not_wait_for_each_check(cluster: Sandbox, tmp_path: Path) -> None:
    site = Site(cluster, tmp_path)
    cluster.stop_slurmctld()
    try:
        fix = site.finds("slurm", "slurmctld does not answer")
        _, checks = site.doctor()
    finally:
        cluster.start_slurmctld()
    assert "systemctl start slurmctld" in fix
    assert {checks[name]["status"] for name in ("scheduler", "rights", "job_submit.lua", "clock")} == {"skip"}


def test_the_text_has_a_line_for_each_check_and_each_fix(cluster: Sandbox, tmp_path: Path) -> None:
    site = Site(cluster, tmp_path)
    _, checks = site.doctor()
    said = command(cluster, "doctor", "--config", str(site.toml))
    lines = said.stdout.splitlines()
    fixes = [check["fix"] for check in checks.values() if check["fix"]]
    assert len(lines) == len(checks) + len(fixes) + 1
    assert [line for line in lines if "fix: " in line] == [f"      fix: {fix}" for fix in fixes]
    assert (
        msgspec.json.decode(command(cluster, "doctor", "--json", "--config", str(site.toml)).stdout)["healthy"] is False
    )
