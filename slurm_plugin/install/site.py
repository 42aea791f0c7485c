"""What an installation has to know of a site, asked of Slurm and of this machine. Changes nothing."""

import grp
import pwd
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from slurm_plugin import parse_nodes
from slurm_plugin.commands import Runner
from slurm_plugin.hookconf import HookPartition
from slurm_plugin.install import hook
from slurm_plugin.install.units import ENABLED
from slurm_plugin.slurm_conf import settings_in
from tapfinger_hpc.config import Config
from tapfinger_hpc.errors import SlurmError
from tapfinger_hpc.state import Node, Partition

SERVICE_USER = "tapfinger"
DEFAULT_CONF = "/etc/slurm/slurm.conf"
_SYSTEM_IDS = range(999, 99, -1)
"""Where Debian and Red Hat look for the number of a system user, in this order."""


class Site(msgspec.Struct, frozen=True):
    """A controller as it is before anything is changed."""

    slurm_conf: str = DEFAULT_CONF
    slurm_version: str = ""
    """"" where nobody was asked."""
    cluster: str = ""
    slurm_user: str = "slurm"
    slurm_group: str = "slurm"
    accounting: bool = True
    """With slurmdbd, and so with operators; without it only SlurmUser and root may change jobs."""
    controllers: tuple[str, ...] = ()
    """Machines on which slurmctld may run."""
    host: str = ""
    """This machine."""
    submit_plugins: tuple[str, ...] = ()
    scheduler_parameters: tuple[str, ...] = ()
    stand_in: Mapping[str, str] = {}
    """The file of each setting of slurm.conf, by key in small letters: itself, or one that it includes."""
    partitions: tuple[HookPartition, ...] = ()
    job_submit: str | None = None
    """Text of the job_submit.lua that is there."""
    modules_folder: bool = False
    service_uid: int | None = None
    """Of the user tapfinger; None where there is none."""
    free_id: int = _SYSTEM_IDS[0]
    """A number that neither a user nor a group has."""
    admin_level: str | None = None
    """Of the user tapfinger in slurmdbd; None where it does not know the user."""
    elsewhere: bool = False
    """Another machine's files, of which nothing can be asked and where nothing can be run."""
    systemd: bool = False
    """Whether systemd runs this machine."""
    enabled: bool = False
    """Whether our units start with the machine."""

    @property
    def slurm_folder(self) -> str:
        return str(Path(self.slurm_conf).parent)

    def file_of(self, key: str) -> str:
        """Where this setting stands, or is to stand."""
        return self.stand_in.get(key.lower(), self.slurm_conf)

    @property
    def agent_user(self) -> str:
        """Who runs agent and server."""
        return SERVICE_USER if self.accounting else self.slurm_user

    @property
    def agent_group(self) -> str:
        return SERVICE_USER if self.accounting else self.slurm_group

    @property
    def agent_uid(self) -> int:
        """For the hook, which holds this user to jobs that it leased; 0 where it is a user that may do more."""
        if not self.accounting or self.elsewhere:
            return 0
        return self.free_id if self.service_uid is None else self.service_uid


def survey(run: Runner, config: Config) -> Site:
    """The site as Slurm and this machine tell.

    Raises:
        SlurmError: slurmctld cannot be asked.
    """
    settings = _settings(run)
    slurm_user = settings.get("SlurmUser", "root").partition("(")[0]
    slurm_conf = Path(settings.get("SLURM_CONF", DEFAULT_CONF))
    accounting = settings.get("AccountingStorageType", "").endswith("slurmdbd")
    script = slurm_conf.parent / hook.SCRIPT
    return Site(
        slurm_conf=str(slurm_conf),
        slurm_version=settings.get("SLURM_VERSION", ""),
        cluster=settings.get("ClusterName", ""),
        slurm_user=slurm_user,
        slurm_group=_group_of(slurm_user),
        accounting=accounting,
        controllers=tuple(
            value.partition("(")[0].partition(".")[0]
            for key, value in settings.items()
            if key.startswith("SlurmctldHost[")
        ),
        host=socket.gethostname().partition(".")[0],
        submit_plugins=_listed(settings.get("JobSubmitPlugins", "")),
        scheduler_parameters=_listed(settings.get("SchedulerParameters", "")),
        stand_in={key: setting.file for key, setting in settings_in(slurm_conf).items()},
        partitions=_partitions(run, config),
        job_submit=script.read_text(encoding="utf-8", errors="surrogateescape") if script.exists() else None,
        modules_folder=(slurm_conf.parent / hook.MODULES_FOLDER).is_dir(),
        service_uid=_uid_of(SERVICE_USER),
        free_id=_free_id(),
        admin_level=_admin_level(run) if accounting else None,
        systemd=Path("/run/systemd/system").is_dir(),
        enabled=_enabled(run),
    )


def unasked(root: Path) -> Site:
    """A site that cannot be asked, for files under another root: only what lies there is known."""
    folder = root / Path(DEFAULT_CONF).parent.relative_to("/")
    script = folder / hook.SCRIPT
    return Site(
        job_submit=script.read_text(encoding="utf-8", errors="surrogateescape") if script.exists() else None,
        modules_folder=(folder / hook.MODULES_FOLDER).is_dir(),
        elsewhere=True,
    )


def hook_partitions(
    nodes: Iterable[Node], partitions: Iterable[Partition], config: Config
) -> tuple[HookPartition, ...]:
    """What the hook is told: the largest amounts that one node of each partition has."""
    capacities = {node.name: node.capacity for node in nodes}
    return tuple(
        HookPartition(
            partition.name,
            cpus=max(capacities[name].cpus for name in partition.nodes),
            gpus=max(capacities[name].gpus for name in partition.nodes),
            mem_mb=max(capacities[name].mem_mb for name in partition.nodes),
            managed=config.partitions.get(partition.name),
        )
        for partition in partitions
        if partition.nodes
    )


def _partitions(run: Runner, config: Config) -> tuple[HookPartition, ...]:
    nodes = parse_nodes.nodes(_text(run, "scontrol", "--oneliner", "--detail", "show", "node"))
    partitions = parse_nodes.partitions(
        _text(run, "scontrol", "--all", "--oneliner", "show", "partition"), [node.name for node in nodes]
    )
    return hook_partitions(nodes, partitions, config)


def _settings(run: Runner) -> Mapping[str, str]:
    try:
        text = _text(run, "scontrol", "show", "config")
    except SlurmError as error:
        raise SlurmError(
            f"asking slurmctld what site this is: {error}; run this on the controller, or give --root"
        ) from error
    pairs = (line.partition("=") for line in text.splitlines())
    return {key.strip(): value.strip() for key, separator, value in pairs if separator}


def _text(run: Runner, *argv: str) -> str:
    return run(argv).checked().decode("utf-8", "replace")


def _listed(value: str) -> tuple[str, ...]:
    return () if value in ("", "(null)") else tuple(value.split(","))


def _admin_level(run: Runner) -> str | None:
    """As slurmdbd has it; None where it does not know the user."""
    text = _text(run, "sacctmgr", "--noheader", "--parsable2", "show", "user", SERVICE_USER, "format=user,adminlevel")
    return text.strip().split("|")[-1] if text.strip() else None


def _enabled(run: Runner) -> bool:
    if not Path("/run/systemd/system").is_dir():
        return False
    return run(("systemctl", "is-enabled", *ENABLED)).rc == 0


def _uid_of(user: str) -> int | None:
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return None


def _group_of(user: str) -> str:
    try:
        return grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name
    except KeyError:
        raise SlurmError(
            f"SlurmUser {user!r} of this cluster is not a user of this machine with a group; run this on the controller"
        ) from None


def _free_id() -> int:
    taken = {user.pw_uid for user in pwd.getpwall()} | {group.gr_gid for group in grp.getgrall()}
    return next(number for number in _SYSTEM_IDS if number not in taken)
