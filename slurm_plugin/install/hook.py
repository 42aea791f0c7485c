"""The files of the submit hook: one way to lay them out, for a site and for the sandbox.

The module and its site file lie beside slurm.conf, where Slurm looks for job_submit.lua. Who calls the module is the
site's affair: our own job_submit.lua where there is none, a module of a lua_job_submit_d folder, or one line in the
site's own script, which nobody but the site writes.
"""

from pathlib import Path

from slurm_plugin.install.steps import File

LUA = Path(__file__).parents[1] / "lua"
SCRIPT = "job_submit.lua"
MODULE = "tapfinger.lua"
SITE_FILE = "tapfinger_conf.lua"
MODULES_FOLDER = "lua_job_submit_d"
"""Of NVIDIA's slurm-lua-jobsubmit-framework: each of its *.lua is required and asked in the order of their names."""
MODULES_CALLER = "zz_tapfinger.lua"
"""Last, so that the site's own rules have shaped the job before."""


def module_files(folder: str, site_text: str) -> tuple[File, ...]:
    """The module and its site file, for this folder of slurm.conf."""
    return File(f"{folder}/{SITE_FILE}", site_text), File(f"{folder}/{MODULE}", _lua(MODULE))


def script(folder: str) -> File:
    """The job_submit.lua of a site that has none; written anew with what it reads, so that Slurm reads that too."""
    return File(f"{folder}/{SCRIPT}", _lua(SCRIPT), follows=(f"{folder}/{SITE_FILE}", f"{folder}/{MODULE}"))


def modules_caller(folder: str) -> File:
    """The module that lua_job_submit_d asks."""
    return File(f"{folder}/{MODULES_FOLDER}/{MODULES_CALLER}", _lua("lua_job_submit_d.lua"))


def line_for(folder: str) -> str:
    """The one line for the end of a site's own job_submit.lua; where the module is missing or broken, jobs pass."""
    return f'pcall(function() dofile("{folder}/{MODULE}").join() end)'


def read_again(script_path: str) -> str:
    """The command after which slurmctld reads this job_submit.lua again, and the module with it.

    Slurm does at the next submission whose script has a later time of change than the one it has loaded, in whole
    seconds (slurm_lua_loadscript): a plain touch in the second of the last loading would count for nothing, for ever.
    """
    return f"sleep 1; touch {script_path}"


def _lua(name: str) -> str:
    return (LUA / name).read_text(encoding="utf-8")
