"""What the doctor asks of the submit hook: who owns job_submit.lua, whether what is loaded is what should be. Pure.

Nearly all that goes wrong here does so in silence: jobs pass as if there were no hook.
"""

import re
from pathlib import Path

from slurm_plugin.doctor.check import Check, fail, needed_to_enforce, ok, skip, warn
from slurm_plugin.doctor.facts import Facts, Hook, file_of, logged_s, settings_of
from slurm_plugin.doctor.places import READ, WRITE, owner, slow_disk
from slurm_plugin.install import hook as hook_files
from slurm_plugin.install.site import hook_partitions
from slurm_plugin.slurm_conf import asks_lua
from tapfinger_hpc.config import Config
from tapfinger_hpc.state import ClusterState

INSTALL = "tapfinger install"
KNOWN_LUA = ("5.1", "5.2", "5.3", "5.4")
_PARTITION = re.compile(
    r'\["((?:[^"\\]|\\.)*)"\] = \{ cpus = (\d+), gpus = (\d+), mem_mb = (\d+), managed = (true|false)'
)


def plugin(facts: Facts) -> Check:
    """Whether slurmctld asks a Lua script at all."""
    name = "lua plugin"
    settings = settings_of(facts.asked_config.text)
    if not settings:
        return skip(name, facts.asked_config.why)
    plugins = [word for word in settings.get("JobSubmitPlugins", "").split(",") if word]
    if not asks_lua(plugins):
        return needed_to_enforce(
            facts.config,
            name,
            f"JobSubmitPlugins={','.join(plugins) or 'none'}: slurmctld asks no Lua script",
            f"put job_submit.lua in place, then in {file_of(facts, 'JobSubmitPlugins')} "
            f"set JobSubmitPlugins={','.join([*plugins, 'lua'])}; then restart slurmctld",
        )
    if not facts.lua_version:
        return skip(name, "which Lua slurmctld has cannot be seen from here", "run tapfinger doctor as root")
    if facts.lua_version not in KNOWN_LUA:
        return warn(name, f"Lua {facts.lua_version}: the hook is written for 5.1 to 5.4", "please report it")
    seen = "loaded by slurmctld" if facts.lua_from == "slurmctld" else "what the plugin was built for"
    return ok(name, f"JobSubmitPlugins={','.join(plugins)}; Lua {facts.lua_version}, {seen}")


def script(facts: Facts) -> Check:
    """Who owns job_submit.lua, and whether it calls ours."""
    name = "job_submit.lua"
    hook = facts.hook
    if hook is None:
        return skip(name, facts.asked_config.why)
    path = hook.script.path
    if hook.script.entry is None:
        return needed_to_enforce(facts.config, name, f"{path}: {hook.script.why}", _install_script(facts, hook))
    if facts.slurm_user and (why := hook.script.why_not(facts.slurm_user, READ)):
        return fail(name, f"{why}: slurmctld would not start again", f"chmod 0644 {path}")
    if hook.script.entry.mode & 0o022 or hook.script.entry.uid not in (0, _uid(facts)):
        who = f"mode {hook.script.entry.mode:04o}, of {owner(hook.script.entry)}"
        return fail(name, f"{path} ({who}) can be changed by others", f"chown root:root {path}; chmod 0644 {path}")
    if hook.script_text == hook.shipped_script:
        return ok(name, f"{path} is TapFinger's own")
    add = f"add at its end: {hook_files.line_for(str(Path(hook.module.path).parent))}"
    calls = "\n".join(line for line in hook.script_text.splitlines() if not line.lstrip().startswith("--"))
    if hook.modules_caller and hook_files.MODULES_FOLDER in calls:
        return ok(name, f"{path} is the site's own; {hook.modules_caller} calls TapFinger")
    if "tapfinger" not in calls:
        said = f"{path} is the site's own, and does not call TapFinger"
        return needed_to_enforce(facts.config, name, said, add)
    if not re.search(r"\bjoin\b|\bmodify\b", calls):
        return warn(
            name,
            f"{path} is the site's own; it asks TapFinger at submissions, but not at updates: users can end leases",
            add,
        )
    return ok(name, f"{path} is the site's own, and calls TapFinger")


def module(facts: Facts) -> Check:
    """Whether tapfinger.lua is there, of this release, and loaded."""
    name = "hook"
    hook = facts.hook
    if hook is None:
        return skip(name, facts.asked_config.why)
    path = hook.module.path
    read_again = hook_files.read_again(hook.script.path)
    renew = f"cp {hook_files.LUA / hook_files.MODULE} {path}; chmod 0644 {path}; {read_again}"
    if hook.module.entry is None:
        return needed_to_enforce(facts.config, name, f"{path}: {hook.module.why}: all jobs pass untouched", renew)
    for place in (hook.module, hook.site):
        if facts.slurm_user and (why := place.why_not(facts.slurm_user, READ)) and place.entry is not None:
            return needed_to_enforce(facts.config, name, f"{why}: all jobs pass untouched", f"chmod 0644 {place.path}")
    if hook.site.entry is None:
        said = f"{hook.site.path}: {hook.site.why}: all jobs pass untouched"
        return needed_to_enforce(facts.config, name, said, INSTALL)
    if hook.module_text != hook.shipped_module:
        return needed_to_enforce(facts.config, name, f"{path} is not the one of tapfinger {facts.version}", renew)
    if why := _complaint(facts, hook):
        return needed_to_enforce(facts.config, name, f"slurmctld said: {why}", read_again)
    if _not_loaded(facts, hook):
        said = f"tapfinger.lua or its site file changed after {hook.script.path}: slurmctld still has the old one"
        return needed_to_enforce(facts.config, name, said, read_again)
    return ok(name, f"{path} is that of tapfinger {facts.version}")


def site(facts: Facts) -> Check:
    """Whether what the hook was told of the site is still so."""
    name = "hook's site file"
    hook, agent = facts.hook, facts.config.agent
    if hook is None or hook.site.entry is None:
        return skip(name, "there is none" if hook else facts.asked_config.why)
    told = {key: _value(hook.site_text, key) for key in ("hook_file", "wake_socket", "agent_uid")}
    if told["hook_file"] != agent.hook_file:
        return needed_to_enforce(
            facts.config,
            name,
            f"the hook looks at {told['hook_file']!r}, the agent writes {agent.hook_file!r}: no job is ever leased",
            f"{INSTALL}, or set agent.hook_file",
        )
    partitions = {found[0]: found for found in _PARTITION.findall(hook.site_text)}
    managed = {known for known, *_, is_managed in partitions.values() if is_managed == "true"}
    wrong = sorted(managed ^ (set(facts.config.partitions) & set(partitions)))
    if wrong:
        said = f"partition {', '.join(wrong)} is managed for one of hook and configuration, not for the other"
        return needed_to_enforce(facts.config, name, said, INSTALL)
    changed = _changed_partitions(facts.state, facts.config, partitions) if facts.state else []
    if changed:
        return warn(name, f"it does not know {', '.join(changed)} as Slurm has them: jobs are left to Slurm", INSTALL)
    if told["wake_socket"] != agent.wake_socket:
        said = f"the hook wakes {told['wake_socket']!r}, the agent listens at {agent.wake_socket!r}"
        return warn(name, said, f"{INSTALL}, or set agent.wake_socket")
    if told["agent_uid"] not in ("0", str(facts.agent_user.uid)):
        said = f"it takes user {told['agent_uid']} for the agent, which is {facts.agent_user.name}"
        return warn(name, said, INSTALL)
    return ok(name, f"{len(partitions)} partitions, as Slurm has them")


def wake(facts: Facts) -> Check:
    """Whether a submission brings the agent's look at once."""
    name = "wake-up"
    path = facts.config.agent.wake_socket
    if not path:
        return ok(name, f"none configured: the agent looks every {facts.config.agent.interval_s:g} s")
    if facts.hook and facts.hook.module.entry and facts.lua_version and not facts.lua_sockets:
        return warn(
            name,
            f"slurmctld's Lua has no socket library: the agent looks every {facts.config.agent.interval_s:g} s",
            f"apt-get install lua-socket (for Lua {facts.lua_version}); then restart slurmctld",
        )
    if facts.wake_socket.entry is None:
        return skip(name, f"{path}: {facts.wake_socket.why}", "start tapfinger agent")
    if facts.slurm_user and (why := facts.wake_socket.why_not(facts.slurm_user, WRITE)):
        group = owner(facts.wake_socket.entry).partition(":")[2]
        fix = f"usermod -aG {group} {facts.slurm_user.name}; then restart slurmctld"
        return warn(name, f"{why}: submissions do not wake the agent", fix)
    return ok(name, f"{path} is open to slurmctld")


def hook_file(facts: Facts) -> Check:
    """Whether slurmctld can read the agent's sign of life, and without waiting."""
    name = "sign of life"
    path = facts.config.agent.hook_file
    if not path:
        return needed_to_enforce(facts.config, name, "agent.hook_file is empty: nothing is leased", "set it")
    if kind := slow_disk(path, facts.mounts):
        said = f"{path} is on {kind}: slurmctld stands still while it reads it"
        return fail(name, said, "set agent.hook_file to a file on tmpfs, such as /run/tapfinger/hook")
    if facts.hook_file.entry is None:
        return skip(name, f"{path}: {facts.hook_file.why}", "start tapfinger agent")
    if facts.slurm_user and (why := facts.hook_file.why_not(facts.slurm_user, READ)):
        closed = next((one.path for one in facts.hook_file.folders if one.mode & 0o111 != 0o111), path)
        fix = f"chmod a+x {closed}" if closed != path else f"chmod 0644 {path}"
        return needed_to_enforce(facts.config, name, f"{why}: nothing is ever leased", fix)
    return ok(name, f"{path} can be read by slurmctld")


ALL = (plugin, script, module, site, wake, hook_file)


def _install_script(facts: Facts, hook: Hook) -> str:
    plugins = settings_of(facts.asked_config.text).get("JobSubmitPlugins", "")
    if asks_lua(plugins.split(",")) and hook.module.entry is not None:
        # It is asked for and not there: slurmctld goes on with what it has loaded, and would not start again.
        return f"cp {hook_files.LUA / hook_files.SCRIPT} {hook.script.path}; chmod 0644 {hook.script.path}"
    return INSTALL


def _uid(facts: Facts) -> int:
    return facts.slurm_user.uid if facts.slurm_user else 0


def _complaint(facts: Facts, hook: Hook) -> str:
    """The latest that slurmctld logged of a hook that cannot be used, unless files have changed since."""
    since_s = max(one.entry.changed_s for one in (hook.script, hook.module, hook.site) if one.entry)
    for line in reversed(facts.log.text.splitlines()):
        found = re.match(r"\[(\S+?)\] error: (job_submit/lua: .*|lua: tapfinger: .*)", line)
        if found is None:
            continue
        return found[2] if logged_s(found[1], 0.0) >= since_s else ""
    return ""


def _not_loaded(facts: Facts, hook: Hook) -> bool:
    """Slurm loads the scripts again when the time of change of job_submit.lua is another, and when it starts."""
    booted = settings_of(facts.asked_config.text).get("BOOT_TIME", "")
    loaded_s = max(hook.script.entry.changed_s if hook.script.entry else 0.0, float(booted) if booted.isdigit() else 0)
    return any(one.entry is not None and one.entry.changed_s > loaded_s for one in (hook.module, hook.site))


def _value(text: str, key: str) -> str:
    found = re.search(rf'^\s*{key} = (?:"((?:[^"\\]|\\.)*)"|(\d+)),?$', text, re.MULTILINE)
    return (found[1] if found[1] is not None else found[2]) if found else ""


def _changed_partitions(state: ClusterState, config: Config, told: dict[str, tuple[str, ...]]) -> list[str]:
    """Partitions that are new, or whose largest node has other amounts than the hook was told."""
    return [
        one.name
        for one in hook_partitions(state.nodes, state.partitions, config)
        if one.name not in told or tuple(map(int, told[one.name][1:4])) != (one.cpus, one.gpus, one.mem_mb)
    ]
