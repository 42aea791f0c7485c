"""The configuration files of a sandbox. Pure: values in, text out; files.py writes them.

Each line that is not obvious was measured or cost somebody time; the reason stands beside it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from slurm_plugin import versions
from slurm_plugin.sandbox.layout import Layout
from slurm_plugin.sandbox.register import PortBlock
from slurm_plugin.sandbox.spec import SandboxSpec

SCHEDULER_PARAMETERS = "batch_sched_delay=0,sched_interval=5,bf_interval=10"
"""The same with and without our hook, so that a comparison is fair: an updated job starts in 0.5 s rather than 2.9 s,
and a lease that ran out is noticed after 5 s rather than 60 s."""


class Host(NamedTuple):
    """This machine as Slurm is told of it."""

    name: str
    """Without domain."""
    is_loopback: bool
    """Whether the name means 127.0.0.1. Only then can Slurm, which looks the name up, listen on that address alone."""


def slurm_conf(spec: SandboxSpec, layout: Layout, ports: PortBlock, *, cluster: str, host: Host) -> str:
    """slurm.conf with nodes and partitions."""
    lines = [
        f"ClusterName={cluster}",
        f"SlurmctldHost={host.name}(127.0.0.1)",
        f"SlurmctldPort={ports.slurmctld}",
        "SlurmUser=slurm",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        "CredType=cred/munge",
        f"AuthInfo=socket={layout.munge_socket}",
        f"StateSaveLocation={layout.state}",
        f"SlurmdSpoolDir={layout.spool}/%n",
        f"SlurmctldPidFile={layout.run}/slurmctld.pid",
        f"SlurmdPidFile={layout.run}/slurmd.%n.pid",
        f"SlurmctldLogFile={layout.log}/slurmctld.log",
        f"SlurmdLogFile={layout.log}/slurmd.%n.log",
        "SlurmctldDebug=info",
        "SlurmdDebug=info",
        # No cgroups: a container or an ordinary host need not delegate any to us.
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/none",
        "MpiDefault=none",
        "MailProg=/bin/true",
        # A node claims more CPUs and memory than the machine has.
        "SlurmdParameters=config_overrides",
        # A node that was down comes back by itself, also after slurmctld was killed.
        "ReturnToService=2",
        "SchedulerType=sched/backfill",
        f"SchedulerParameters={SCHEDULER_PARAMETERS}",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        "SlurmctldTimeout=60",
        "SlurmdTimeout=120",
        "InactiveLimit=0",
        "KillWait=5",
        "MaxJobCount=20000",
        "FirstJobId=1",  # files.raise_first_job_id raises it
        "TreeWidth=65533",
        # Otherwise Slurm listens on every address of the machine. With 127.0.1.1, which an ordinary Debian gives its
        # own name, srun would listen there and be called at 127.0.0.1.
        *(("CommunicationParameters=NoCtldInAddrAny,NoInAddrAny",) if host.is_loopback else ()),
        *_gres_lines(spec),
        *_accounting_lines(spec, layout, ports),
        *_hook_lines(spec, layout),
        *_node_lines(spec, ports, host),
        *_partition_lines(spec),
        *spec.extra_conf,
    ]
    return "\n".join(lines) + "\n"


def gres_conf(spec: SandboxSpec, layout: Layout) -> str:
    """Fake GPUs. They must be device nodes: with plain files CUDA_VISIBLE_DEVICES is absent."""
    if not spec.gpus:
        return "AutoDetect=off\n"
    return f"AutoDetect=off\nNodeName={_bracket('n', 1, spec.nodes)} Name=gpu File={gpu_device(layout, spec)}\n"


def cgroup_conf(version: versions.Version) -> str:
    """No cgroups."""
    return f"CgroupPlugin={versions.of(version).cgroups_off}\n"


def gpu_device(layout: Layout, spec: SandboxSpec) -> str:
    """The GPU devices as a host-list expression; all nodes share them, as they are only numbers to Slurm."""
    return _bracket(f"{layout.devices}/fakegpu", 0, spec.gpus - 1)


def slurmdbd_conf(layout: Layout, ports: PortBlock) -> str:
    """slurmdbd.conf. MariaDB is reached through its socket (MYSQL_UNIX_PORT): no password, no TCP port."""
    return "\n".join(
        (
            "AuthType=auth/munge",
            f"AuthInfo=socket={layout.munge_socket}",
            "DbdHost=localhost",
            "DbdAddr=127.0.0.1",
            f"DbdPort={ports.slurmdbd}",
            "SlurmUser=slurm",
            "DebugLevel=info",
            f"LogFile={layout.log}/slurmdbd.log",
            f"PidFile={layout.run}/slurmdbd.pid",
            "StorageType=accounting_storage/mysql",
            "StorageHost=localhost",
            "StorageUser=slurm",
            "StorageLoc=slurm_acct_db",
            "",
        )
    )


def wake_script(layout: Layout) -> str:
    """The job-end event: one datagram to the agent, never waiting for it.

    Perl, because perl-base is on every Debian and starts in 7 ms where python3 -S takes 14 (50 runs each); socat is
    faster still but may be missing. Where nobody listens the send fails at once and is not an error.
    """
    return f"""#!/usr/bin/perl
use strict;
use Socket;
my $wake;
socket($wake, PF_UNIX, SOCK_DGRAM, 0)
  and send($wake, "job-end $ENV{{JOBID}}", MSG_DONTWAIT, sockaddr_un('{layout.wake_socket}'));
exit 0;
"""


def tapfinger_toml(spec: SandboxSpec, layout: Layout) -> str:
    """The configuration of agent and server, with every path inside the folder."""
    values: Mapping[str, Mapping[str, object]] = {
        "server": {"socket": layout.server_socket},
        "agent": {
            "mode": "enforce",
            "lease_s": spec.lease_s,
            "journal": layout.tapfinger / "journal.sqlite",
            "disable_file": layout.tapfinger / "disabled",
            "hook_file": layout.hook_file,
            "wake_socket": layout.wake_socket,
            "classes_file": layout.classes_file,
        },
        "slurm": {"conf": layout.slurm_conf, **({"bin_dir": layout.commands} if spec.release else {})},
    }
    text = "# Written by `tapfinger sandbox up`.\n"
    for section, entries in values.items():
        text += f"[{section}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in entries.items()) + "\n"
    return text + spec.extra_toml


def _toml(value: object) -> str:
    if isinstance(value, int):
        return str(value)
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _gres_lines(spec: SandboxSpec) -> Sequence[str]:
    return ("GresTypes=gpu",) if spec.gpus else ()


def _accounting_lines(spec: SandboxSpec, layout: Layout, ports: PortBlock) -> Sequence[str]:
    if not spec.accounting:
        return ("AccountingStorageType=accounting_storage/none",)
    lines = [
        "AccountingStorageType=accounting_storage/slurmdbd",
        "AccountingStorageHost=127.0.0.1",
        f"AccountingStoragePort={ports.slurmdbd}",
        # This, not AuthInfo, is the munge socket used towards slurmdbd; without it slurmctld ends with "no TRES".
        f"AccountingStoragePass={layout.munge_socket}",
        "AccountingStoreFlags=job_comment",
    ]
    if spec.gpus:  # fatal where there is no such GRES or no accounting
        lines.append("AccountingStorageTRES=gres/gpu")
    return lines


def _hook_lines(spec: SandboxSpec, layout: Layout) -> Sequence[str]:
    if not spec.hook:
        return ()
    return ("JobSubmitPlugins=lua", "JobCompType=jobcomp/script", f"JobCompLoc={layout.wake_script}")


def _node_lines(spec: SandboxSpec, ports: PortBlock, host: Host) -> Sequence[str]:
    gres = f" Gres=gpu:{spec.gpus}" if spec.gpus else ""
    last = ports.slurmd + spec.nodes - 1
    return (
        f"NodeName=DEFAULT CPUs={spec.cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={spec.cpus} ThreadsPerCore=1 "
        f"RealMemory={spec.memory_mb}{gres} State=UNKNOWN",
        # NodeHostname is not allowed on the DEFAULT line.
        f"NodeName={_bracket('n', 1, spec.nodes)} NodeHostname={host.name} NodeAddr=127.0.0.1 "
        f"Port={_bracket('', ports.slurmd, last)}",
    )


def _partition_lines(spec: SandboxSpec) -> Sequence[str]:
    lines = [
        f"PartitionName=DEFAULT MaxTime={spec.max_minutes} DefaultTime={spec.default_minutes} "
        # So that every job has an amount of memory, as where memory is a consumable resource.
        f"DefMemPerCPU={max(1, min(1000, spec.memory_mb // spec.cpus))} State=UP"
    ]
    for index, (name, nodes) in enumerate(spec.partition_nodes().items()):
        first, last = int(nodes[0][1:]), int(nodes[-1][1:])
        default = " Default=YES" if index == 0 else ""
        lines.append(f"PartitionName={name} Nodes={_bracket('n', first, last)}{default}")
    return lines


def _bracket(prefix: str, first: int, last: int) -> str:
    """A host-list expression; Slurm wants the brackets also where there is one port."""
    return f"{prefix}[{first}-{last}]" if last > first else f"{prefix}{first}"
