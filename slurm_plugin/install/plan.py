"""What an installation changes, and what it leaves to the site. Pure: the site and what lies there in, a plan out."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace

from slurm_plugin import hookconf
from slurm_plugin.install import hook, units
from slurm_plugin.install.paths import CLASSES, Paths
from slurm_plugin.install.site import DEFAULT_CONF, SERVICE_USER, Site
from slurm_plugin.install.steps import Command, File, Folder, MadeFile, MadeFolder, Record, Step, ancestors, digest
from slurm_plugin.slurm_conf import asks_lua
from tapfinger_hpc import config_text
from tapfinger_hpc.config import Config

WANTED_PARAMETERS = {"batch_sched_delay": "0", "sched_interval": "5"}
"""Of SchedulerParameters: without the first a placed job starts after 3 s rather than 0.5 s, without the second a lease
that ran out is noticed up to a minute late."""


class Seen(msgspec.Struct, frozen=True):
    """What lies at a path."""

    kind: Literal["folder", "file", "other"]
    mode: int = 0
    owner: str | None = None
    """None where owners do not count: without root, and for another machine's files."""
    group: str | None = None
    digest: str = ""
    """Of a file."""


class Left(msgspec.Struct, frozen=True):
    """Something that stays as it is."""

    path: str
    why: str


class Plan(msgspec.Struct, frozen=True):
    """What is going to be done, in this order, and what is not."""

    steps: tuple[Step, ...]
    left: tuple[Left, ...] = ()
    conflicts: tuple[Left, ...] = ()
    """Files of others where ours should be; with any of them nothing is done."""

    def writes(self, paths: Iterable[str]) -> bool:
        """Whether one of these files is among what is to be written."""
        return not {step.path for step in self.steps if isinstance(step, File)}.isdisjoint(paths)


def first_config(site: Site) -> Config:
    """The configuration of a site that has none: the defaults, and what cannot be a default."""
    config = Config()
    slurm = config.slurm if site.slurm_conf == DEFAULT_CONF else replace(config.slurm, conf=site.slurm_conf)
    return replace(
        config,
        agent=replace(config.agent, classes_file=CLASSES),
        slurm=slurm,
    )


def wanted(
    site: Site, config: Config, paths: Paths, program: str, record: Record, taken: Collection[str] = ()
) -> tuple[Step, ...]:
    """Everything that is to be there in the end, in the order in which it is made.

    Args:
        site: the controller.
        config: that of agent and server.
        paths: what follows from it.
        program: the command tapfinger, with its folder.
        record: what earlier installations made.
        taken: folders of the configuration that are there and not ours.
    """
    texts = units.units(paths, config, user=site.agent_user, group=site.agent_group, program=program)
    fleeting = [folder for folder in paths.run if folder not in taken]
    unit_files = [File(f"{paths.units}/{name}", text) for name, text in texts.items()]
    return (
        *_accounts(site),
        *_own_folders(site, paths),
        File(paths.config, config_text.render(config), sites_to_edit=True),
        *_classes(site, config),
        *_hook(site, config, record),
        *_forgetting(site, unit_files),
        File(paths.tmpfiles, units.tmpfiles(fleeting, user=site.agent_user, slurm_group=site.slurm_group)),
        *unit_files,
        *_services(site, unit_files),
    )


def make(steps: Iterable[Step], seen: Mapping[str, Seen | None], record: Record) -> Plan:
    """What of it has to be done.

    Args:
        steps: all that is wanted.
        seen: what lies at each of their paths and at the folders above, None where nothing does.
        record: what earlier installations made.
    """
    planning = _Planning(seen, record)
    for step in steps:
        planning.take(step)
    return Plan(tuple(planning.steps), tuple(planning.left), tuple(planning.conflicts))


def by_hand(site: Site, plan: Plan, record: Record, program: str, config_file: str) -> tuple[str, ...]:
    """What the site has to do itself. In observe mode nothing of it is needed but what starts agent and server."""
    return (
        *_elsewhere(site),
        *_line_to_add(site, plan, record),
        *_slurm_conf_lines(site),
        *_starting(site, plan, program, config_file),
    )


# What is wanted.


def _accounts(site: Site) -> Iterator[Command]:
    if not site.accounting:
        return
    if site.service_uid is None:
        number = () if site.elsewhere else ("--uid", str(site.free_id))
        yield Command(
            f"add the system user {SERVICE_USER}",
            ("useradd", "--system", *number, "--user-group", "--no-create-home", "--home-dir", "/var/lib/tapfinger",
             "--shell", "/usr/sbin/nologin", SERVICE_USER),
            ("userdel", SERVICE_USER),
        )  # fmt: skip
    role = f"make {SERVICE_USER} an operator in slurmdbd"
    sacctmgr = ("sacctmgr", "--immediate")
    if site.admin_level is None:
        # An account is needed; root is always there, and nobody's jobs are charged to it.
        where = () if site.elsewhere else (f"cluster={site.cluster}",)
        yield Command(
            role,
            (*sacctmgr, "add", "user", SERVICE_USER, "account=root", *where, "adminlevel=operator"),
            (*sacctmgr, "delete", "user", SERVICE_USER),
        )
    elif site.admin_level.lower() == "none":
        change = (*sacctmgr, "modify", "user", "where", f"name={SERVICE_USER}", "set")
        yield Command(role, (*change, "adminlevel=operator"), (*change, "adminlevel=none"))


def _own_folders(site: Site, paths: Paths) -> Iterator[Folder]:
    user, group = site.agent_user, site.agent_group
    yield Folder(str(ancestors(paths.config)[-1]), ours_alone=True)
    for folder in paths.state:
        # Readable, as the reason of a decision is for those whose job it is about.
        yield Folder(folder, 0o755, user, group, ours_alone=True)
    for folder in paths.cache:
        yield Folder(folder, 0o700, user, group, ours_alone=True)
    for folder in paths.run:
        yield Folder(folder, units.RUN_MODE, user, site.slurm_group, ours_alone=True)


def _classes(site: Site, config: Config) -> Iterator[File]:
    """None are known at first; a missing file would be an error in the agent's log."""
    if config.agent.classes_file:
        yield File(config.agent.classes_file, "[]\n", 0o644, site.agent_user, site.agent_group, sites_to_edit=True)


def _hook(site: Site, config: Config, record: Record) -> Iterator[File]:
    folder = site.slurm_folder
    site_file = hookconf.render(
        site.partitions,
        hook_file=config.agent.hook_file,
        wake_socket=config.agent.wake_socket,
        agent_uid=site.agent_uid,
        gres_separator="",
    )
    yield from hook.module_files(folder, site_file)
    if not _own_script(site, record):
        yield hook.script(folder)
    elif _has_modules(site):
        yield hook.modules_caller(folder)


def _forgetting(site: Site, unit_files: Sequence[File]) -> Iterator[Command]:
    """Stands before the units, so that it is undone after they are gone."""
    if site.systemd:
        yield Command("systemd reads its units", (), ("systemctl", "daemon-reload"), _paths(unit_files))


def _services(site: Site, unit_files: Sequence[File]) -> Iterator[Command]:
    if not site.systemd:
        return
    yield Command("systemd reads its units", ("systemctl", "daemon-reload"), follows=_paths(unit_files))
    if not site.enabled:
        yield Command(
            "start server, agent and timers, now and with the machine",
            ("systemctl", "enable", "--now", *units.ENABLED),
            ("systemctl", "disable", "--now", *units.ENABLED),
        )


def _own_script(site: Site, record: Record) -> bool:
    """Whether the site has a job_submit.lua of its own."""
    ours = record.made(f"{site.slurm_folder}/{hook.SCRIPT}")
    return site.job_submit is not None and ours is None


def _has_modules(site: Site) -> bool:
    return site.modules_folder and hook.MODULES_FOLDER in (site.job_submit or "")


def _paths(files: Iterable[File]) -> tuple[str, ...]:
    return tuple(file.path for file in files)


# What of it has to be done.


class _Planning:
    def __init__(self, seen: Mapping[str, Seen | None], record: Record) -> None:
        self.steps: list[Step] = []
        self.left: list[Left] = []
        self.conflicts: list[Left] = []
        self._seen = seen
        self._record = record
        self._coming: set[str] = set()

    def take(self, step: Step) -> None:
        if isinstance(step, Command):
            self._command(step)
        elif isinstance(step, Folder):
            self._folder(step)
        else:
            self._file(step)

    def _command(self, step: Command) -> None:
        # One that is only to be undone stands before what it follows.
        later = not step.do and any(self._seen[path] is None for path in step.follows)
        if not step.follows or later or not self._coming.isdisjoint(step.follows):
            self.steps.append(step)

    def _folder(self, step: Folder) -> None:
        seen = self._seen[step.path]
        if seen is None:
            self._add(step)
        elif seen.kind != "folder":
            self.conflicts.append(Left(step.path, "it is there and no folder"))
        elif _differs(step, seen):
            if isinstance(self._record.made(step.path), MadeFolder):
                self._add(step)
            elif step.ours_alone and seen.owner not in (None, step.owner):
                self.left.append(Left(step.path, f"it was there already and belongs to {seen.owner}, not {step.owner}"))

    def _file(self, step: File) -> None:
        seen, made = self._seen[step.path], self._record.made(step.path)
        ours = isinstance(made, MadeFile)
        if seen is None:
            self._add(step)
        elif seen.kind != "file":
            self.conflicts.append(Left(step.path, "it is there and no file"))
        elif step.sites_to_edit:
            if not ours:
                self.left.append(Left(step.path, "it was there already, and counts"))
        elif seen.digest == digest(step.content):
            followed = not self._coming.isdisjoint(step.follows)
            if ours and (followed or _differs(step, seen)):
                self._add(step)
        elif isinstance(made, MadeFile) and seen.digest in made.digests:
            self._add(step)
        elif ours:
            self.left.append(Left(step.path, "it was changed since; remove it to have it written anew"))
        else:
            self.conflicts.append(Left(step.path, "it is there, and not by tapfinger install"))

    def _add(self, step: Folder | File) -> None:
        for folder in ancestors(step.path):
            if self._seen[folder] is None and folder not in self._coming:
                self._coming.add(folder)
                self.steps.append(Folder(folder))
        if step.path not in self._coming:
            self._coming.add(step.path)
            self.steps.append(step)


def _differs(step: Folder | File, seen: Seen) -> bool:
    return (
        seen.mode != step.mode
        or (seen.owner is not None and seen.owner != step.owner)
        or (seen.group is not None and seen.group != step.group)
    )


# What the site has to do.


def _elsewhere(site: Site) -> Iterator[str]:
    if site.controllers and site.host not in site.controllers:
        yield f"slurmctld runs on {', '.join(site.controllers)}, and this is {site.host}: only there it finds the hook"


def _line_to_add(site: Site, plan: Plan, record: Record) -> Iterator[str]:
    script = f"{site.slurm_folder}/{hook.SCRIPT}"
    if not _own_script(site, record):
        return
    if _has_modules(site) or hook.MODULE in (site.job_submit or ""):
        if plan.writes(_paths(_hook_files(site))):
            yield f"{hook.read_again(script)}\n  (Slurm reads the hook again only when that file's time is a later one)"
        return
    yield (
        f"add one line at the end of {script}, before its last return:\n"
        f"  {hook.line_for(site.slurm_folder)}\n"
        "  (jobs that the site's functions let pass then go on to TapFinger; where its files are gone, jobs pass)"
    )


def _hook_files(site: Site) -> tuple[File, ...]:
    return (*hook.module_files(site.slurm_folder, ""), hook.modules_caller(site.slurm_folder))


def _slurm_conf_lines(site: Site) -> Iterator[str]:
    if site.elsewhere:
        return
    wanted = {}
    if not asks_lua(site.submit_plugins):
        wanted["JobSubmitPlugins"] = ",".join((*site.submit_plugins, "lua"))
    given = dict(parameter.partition("=")[::2] for parameter in site.scheduler_parameters)
    if any(given.get(name) != value for name, value in WANTED_PARAMETERS.items()):
        kept = [one for one in site.scheduler_parameters if one.partition("=")[0] not in WANTED_PARAMETERS]
        parameters = [*kept, *(f"{name}={value}" for name, value in WANTED_PARAMETERS.items())]
        wanted["SchedulerParameters"] = ",".join(parameters)
    for file in dict.fromkeys(map(site.file_of, wanted)):
        lines = [f"  {key}={value}" for key, value in wanted.items() if site.file_of(key) == file]
        yield "\n".join((f"in {file}, before agent.mode becomes enforce, then restart slurmctld:", *lines))


def _starting(site: Site, plan: Plan, program: str, config_file: str) -> Iterator[str]:
    if site.elsewhere:
        return
    if not site.systemd:
        as_user = f"setpriv --reuid={site.agent_user} --regid={site.agent_group} --init-groups"
        yield "systemd does not run here; server and agent are started by hand:\n" + "\n".join(
            f"  {as_user} {program} {command} --config {config_file} &" for command in ("serve", "agent")
        )
    elif site.enabled and plan.steps:
        yield "systemctl restart tapfinger-serve tapfinger-agent"
