"""The systemd units: server, agent, and two timers. Pure: values in, text out.

Nothing of ours may trouble the controller: all run as an ordinary user that can write to three folders of ours and
nowhere else, gain no privileges, and give way to slurmctld for processor time and memory. They write to journald.
"""

from collections.abc import Iterable, Mapping

from slurm_plugin.install.paths import Paths
from tapfinger_hpc.config import Config

ENABLED = ("tapfinger-serve.service", "tapfinger-agent.service", "tapfinger-janitor.timer", "tapfinger-learn.timer")
"""What starts with the machine."""

_HARDENED = """\
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
CapabilityBoundingSet=
LockPersonality=yes
RemoveIPC=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
"""
_GIVES_WAY = """\
Nice=5
CPUWeight=50
OOMScoreAdjust=500
"""
_NO_NEW_CODE = "MemoryDenyWriteExecute=yes\n"
"""Not for the server: it compiles its policies."""
_ALONE_TOLD = "KillMode=mixed\n"
"""SIGTERM goes to the agent and not to the scontrol that it waits for: half an update would be left."""
_THIS_MACHINE_ALONE = "IPAddressDeny=any\nIPAddressAllow=localhost\n"


def units(paths: Paths, config: Config, *, user: str, group: str, program: str) -> Mapping[str, str]:
    """Name and text of every unit."""

    def service(command: str, *, kind: str, more: str) -> str:
        writable = " ".join(f"-{folder}" for folder in paths.writable)
        # ProtectKernelTunables and ProtectControlGroups make systemd mount /run anew, where ProtectSystem=strict does
        # not hold.
        read_only = "" if "/run" in paths.writable else "ReadOnlyPaths=/run\n"
        return (
            f"\n[Service]\nType={kind}\nUser={user}\nGroup={group}\n"
            f"ExecStart={program} {command} --config {paths.config}\n"
            f"ReadWritePaths={writable}\n{read_only}{_GIVES_WAY}{_HARDENED}{more}"
        )

    return {
        "tapfinger-serve.service": (
            _unit("TapFinger policy server")
            + service("serve", kind="exec", more=_THIS_MACHINE_ALONE + _restarted(5))
            + _WITH_THE_MACHINE
        ),
        "tapfinger-agent.service": (
            _unit(
                "TapFinger agent",
                "Wants=tapfinger-serve.service",
                "After=tapfinger-serve.service munge.service slurmctld.service",
            )
            + service("agent", kind="exec", more=_NO_NEW_CODE + _ALONE_TOLD + _restarted(5))
            + _WITH_THE_MACHINE
        ),
        "tapfinger-janitor.service": _unit(
            "TapFinger janitor: frees jobs that a dead agent left pinned", f"ConditionPathExists={config.agent.journal}"
        )
        + service("janitor", kind="oneshot", more=_NO_NEW_CODE),
        "tapfinger-janitor.timer": _unit("TapFinger janitor, every minute")
        + "\n[Timer]\nOnCalendar=minutely\n\n[Install]\nWantedBy=timers.target\n",
        "tapfinger-learn.service": _unit(
            "TapFinger: job classes learn from jobs that have ended", f"ConditionPathExists={config.agent.journal}"
        )
        + service("learn", kind="oneshot", more=_NO_NEW_CODE),
        "tapfinger-learn.timer": _unit("TapFinger: job classes learn, every hour")
        + "\n[Timer]\nOnCalendar=hourly\nRandomizedDelaySec=10min\n\n[Install]\nWantedBy=timers.target\n",
    }


def tmpfiles(folders: Iterable[str], *, user: str, slurm_group: str) -> str:
    """Makes the folders for sockets and the sign of life when the machine starts; they must be ours alone, as owner and
    mode are set whatever is there.

    Their group goes to what is made in them, so that the hook, which runs as SlurmUser, reaches the agent's socket.
    """
    return "".join(f"d {folder} {RUN_MODE:04o} {user} {slurm_group} -\n" for folder in folders)


RUN_MODE = 0o2755

_WITH_THE_MACHINE = "\n[Install]\nWantedBy=multi-user.target\n"


def _unit(description: str, *more: str) -> str:
    return "\n".join(
        ("# Written by tapfinger install; your own settings go into a drop-in (systemctl edit).", "[Unit]",
         f"Description={description}", "Documentation=man:tapfinger(1)", *more, "")
    )  # fmt: skip


def _restarted(after_s: int) -> str:
    return f"Restart=on-failure\nRestartSec={after_s}s\n"
