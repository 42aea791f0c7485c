"""What an installation puts in place, asked by a real slurmctld: our own script, one line in a site's, and modules."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from agents import USER
from msgspec.structs import replace

from slurm_plugin.commands import SlurmCommands
from slurm_plugin.install import carry, hook, plan, site
from slurm_plugin.install.paths import Paths
from slurm_plugin.install.steps import Command, Record
from slurm_plugin.sandbox import Sandbox
from tapfinger_hpc import config
from tapfinger_hpc.config import Config

pytestmark = pytest.mark.slurm

SITES_OWN = """
function slurm_job_submit(job_desc, part_list, submit_uid)
  if job_desc.name == "unwanted" then return slurm.ERROR end
  return slurm.SUCCESS
end
function slurm_job_modify(job_desc, job_rec, part_list, modify_uid) return slurm.SUCCESS end
"""
AS_A_FRAMEWORK = """
package.path = package.path .. ";{folder}/lua_job_submit_d/?.lua"
function slurm_job_submit(...) return require("zz_tapfinger").slurm_job_submit(...) end
function slurm_job_modify(...) return require("zz_tapfinger").slurm_job_modify(...) end
return slurm.SUCCESS
"""


def put(script: Path, text: str) -> None:
    """Later than any other: slurmctld reads a script again when its time of change, in whole seconds, is later."""
    time.sleep(1.1)
    script.write_text(text)


def files_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(path): (path.read_bytes(), path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def bare(cluster: Sandbox) -> Iterator[Sandbox]:
    """A cluster whose slurm.conf asks for a job_submit.lua and that has none; afterwards it has its own again."""
    etc = cluster.layout.etc
    ours = {path: path.read_text() for path in etc.glob("*.lua")}
    for path in ours:
        path.unlink()
    yield cluster
    for path in etc.rglob("*.lua"):
        path.unlink()
    shutil.rmtree(etc / hook.MODULES_FOLDER, ignore_errors=True)
    script = ours.pop(etc / hook.SCRIPT)
    for path, text in ours.items():
        path.write_text(text)
    put(etc / hook.SCRIPT, script)


@pytest.fixture
def folder(cluster: Sandbox) -> Iterator[Path]:
    """Where the installation goes: slurmctld, which is not root, must get through to the sign of life."""
    made = cluster.directory / "installed"
    made.mkdir(mode=0o755)
    yield made
    shutil.rmtree(made)


class Installation:
    """One that goes into a folder of its own, but for the hook."""

    def __init__(self, cluster: Sandbox, folder: Path) -> None:
        chosen = {
            "agent": {
                "journal": f"{folder}/state/journal.sqlite",
                "classes_file": f"{folder}/state/classes.json",
                "disable_file": f"{folder}/run/disabled",
                "hook_file": f"{folder}/run/hook",
                "wake_socket": f"{folder}/run/wake.sock",
            },
            "server": {"socket": f"{folder}/run/server.sock", "compiled": f"{folder}/cache"},
        }
        self.config = replace(msgspec.convert(chosen, Config), slurm=config.load(cluster.tapfinger_toml).slurm)
        self.run = SlurmCommands.from_config(self.config.slurm)
        self.paths = replace(
            Paths.of(self.config, f"{folder}/etc/tapfinger.toml"),
            units=f"{folder}/units",
            tmpfiles=f"{folder}/tmpfiles.conf",
            record=f"{folder}/record/record.json",
        )
        self.tree = carry.Tree()
        # As SlurmUser, so that no user is added to this machine.
        self.site = replace(site.survey(self.run, self.config), accounting=False, systemd=False)

    def do(self) -> plan.Plan:
        steps = plan.wanted(self.site, self.config, self.paths, "/usr/bin/tapfinger", Record())
        assert not [step for step in steps if isinstance(step, Command)]
        planned = plan.make(steps, self.tree.look(steps), Record())
        assert planned.conflicts == ()
        time.sleep(1.1)
        carry.carry_out(planned.steps, self.tree, carry.Ledger(self.tree, self.paths.record), self.run)
        return planned

    def undo(self) -> None:
        assert carry.take_back(self.tree, carry.Ledger(self.tree, self.paths.record), self.run) == ()


def submitted(cluster: Sandbox, installation: Installation, name: str = "x") -> dict[str, str]:
    """A job while an agent seems to be in charge."""
    Path(installation.config.agent.hook_file).write_text(f"enforce {int(time.time())} 60\n")
    job = cluster.submit("true", "--comment=tapfinger", f"--job-name={name}", as_user=USER)
    return cluster.job(job)


def test_the_site_is_what_slurm_says_it_is(cluster: Sandbox) -> None:
    found = site.survey(SlurmCommands.from_config(config.load(cluster.tapfinger_toml).slurm), Config())
    assert (found.cluster, found.slurm_user, found.slurm_conf) == (cluster.cluster, "slurm", str(cluster.slurm_conf))
    assert found.accounting == cluster.spec.accounting
    assert found.submit_plugins == ("lua",)
    assert [one.name for one in found.partitions] == list(cluster.spec.partition_nodes())
    assert {(one.cpus, one.gpus, one.mem_mb) for one in found.partitions} == {
        (cluster.spec.cpus, cluster.spec.gpus, cluster.spec.memory_mb)
    }
    assert found.job_submit == (cluster.layout.etc / hook.SCRIPT).read_text()


def test_the_installed_hook_takes_a_job_and_leaves_no_trace(bare: Sandbox, folder: Path) -> None:
    before = files_of(bare.layout.etc)
    installation = Installation(bare, folder)
    installation.do()
    job = submitted(bare, installation)
    assert job["JobState"] == "PENDING"
    assert "tapfinger lease=60" in job["AdminComment"]
    installation.undo()
    assert files_of(bare.layout.etc) == before
    assert list(folder.iterdir()) == []


def test_one_line_in_a_sites_own_script_takes_jobs_that_the_site_lets_pass(bare: Sandbox, folder: Path) -> None:
    script = bare.layout.etc / hook.SCRIPT
    put(script, SITES_OWN + "return slurm.SUCCESS\n")
    installation = Installation(bare, folder)
    planned = installation.do()
    said = "\n".join(plan.by_hand(installation.site, planned, Record(), "/p", "/c"))
    line = hook.line_for(str(bare.layout.etc))
    assert line in said
    put(script, f"{SITES_OWN}{line}\nreturn slurm.SUCCESS\n")
    assert "tapfinger lease=60" in submitted(bare, installation)["AdminComment"]
    refused = bare.run("sbatch", "--comment=tapfinger", "--job-name=unwanted", "--wrap=true", check=False)
    assert refused.returncode != 0
    installation.undo()
    assert script.read_text().startswith(SITES_OWN)


def test_without_the_files_the_line_lets_jobs_pass(bare: Sandbox) -> None:
    line = hook.line_for(str(bare.layout.etc))
    put(bare.layout.etc / hook.SCRIPT, f"{SITES_OWN}{line}\nreturn slurm.SUCCESS\n")
    job = bare.submit("true", "--comment=tapfinger", as_user=USER)
    bare.wait_state(job, "COMPLETED")


def test_a_folder_of_modules_takes_jobs_too(bare: Sandbox, folder: Path) -> None:
    etc = bare.layout.etc
    (etc / hook.MODULES_FOLDER).mkdir()
    put(etc / hook.SCRIPT, AS_A_FRAMEWORK.format(folder=etc))
    installation = Installation(bare, folder)
    installation.do()
    assert "tapfinger lease=60" in submitted(bare, installation)["AdminComment"]
    installation.undo()
    assert list((etc / hook.MODULES_FOLDER).iterdir()) == []
