"""What `tapfinger install` puts in place, under a living systemd: a controller as a site has it, from the bundle to
observing, enforcing, restarts in the middle, a reboot, and off again.

The tests are one story and stand in its order; each leaves the controller as the next one expects it.
"""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import bundles
import pytest
from booted import GPUS, CannotBoot, Machine, why_not

from slurm_plugin import versions
from slurm_plugin.sandbox.userland import Userland

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1500)]

SERVICES = ("tapfinger-serve", "tapfinger-agent")
TIMERS = ("tapfinger-janitor", "tapfinger-learn")

SITE = r"""
useradd --create-home --shell /bin/bash alice
mkdir -p /var/spool/slurmctld /var/log/slurm
chown slurm: /var/spool/slurmctld /var/log/slurm
cat >/etc/slurm/slurm.conf <<END
ClusterName=lab
SlurmctldHost=ctl
SlurmUser=slurm
AuthType=auth/munge
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd.%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.%n.pid
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.%n.log
# The nodes are made up, on the machine that has the controller.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_comment
NodeName=n[1-2] NodeHostname=ctl NodeAddr=127.0.0.1 Port=[7001-7002] CPUs=8 RealMemory=8000 Gres=gpu:@GPUS@
PartitionName=gpu Nodes=ALL Default=YES MaxTime=60 DefaultTime=10 DefMemPerCPU=500
Include tuning.conf
END
echo MinJobAge=300 >/etc/slurm/tuning.conf
echo 'NodeName=n[1-2] Name=gpu File=/dev/fakegpu[1-@GPUS@]' >/etc/slurm/gres.conf
cat >/etc/slurm/slurmdbd.conf <<END
AuthType=auth/munge
DbdHost=localhost
SlurmUser=slurm
LogFile=/var/log/slurm/slurmdbd.log
PidFile=/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageUser=slurm
StoragePass=secret
StorageLoc=slurm_acct_db
END
chown slurm: /etc/slurm/slurmdbd.conf
chmod 600 /etc/slurm/slurmdbd.conf
mysql -e "create database slurm_acct_db; create user slurm@localhost identified by 'secret';
    grant all on slurm_acct_db.* to slurm@localhost"
cat >/etc/systemd/system/slurmd@.service <<END
[Unit]
After=munge.service slurmctld.service
[Service]
ExecStart=/usr/sbin/slurmd -D -s -N %i
KillMode=process
Delegate=yes
[Install]
WantedBy=multi-user.target
END
systemctl --quiet enable slurmd@n1 slurmd@n2
systemctl start slurmdbd
timeout 60 sh -c 'until sacctmgr --noheader show cluster >/dev/null 2>&1; do sleep 0.2; done'
sacctmgr --immediate --quiet add cluster lab
sacctmgr --immediate --quiet add account users
sacctmgr --immediate --quiet add user alice account=users
systemctl start slurmctld slurmd@n1 slurmd@n2
""".replace("@GPUS@", str(GPUS))

EVERY_FILE = r"""
import hashlib, os, stat
OTHERS = ("/home/alice", "/tmp", "/var/tmp", "/var/log", "/var/spool",
          "/var/lib/munge", "/var/lib/mysql", "/var/lib/systemd")
for folder, folders, names in os.walk("/"):
    folders[:] = [one for one in folders if not (path := os.path.join(folder, one)).startswith(OTHERS)
                  and os.lstat(path).st_dev == os.lstat("/").st_dev]
    for name in folders + names:
        path = os.path.join(folder, name)
        status = os.lstat(path)
        content = open(path, "rb").read() if stat.S_ISREG(status.st_mode) else b""
        print(path, oct(status.st_mode), status.st_uid, status.st_gid, hashlib.sha256(content).hexdigest())
"""
OF_USERADD = {
    "/etc/.pwd.lock",
    *(f"/etc/{name}-" for name in ("passwd", "shadow", "group", "gshadow", "subuid", "subgid")),
}
"""What useradd and userdel keep for themselves."""


class Controller:
    """A machine with Slurm, on which TapFinger is installed as docs/installing.md says."""

    def __init__(self, machine: Machine, bundle: Path) -> None:
        self.machine = machine
        self.sh = machine.sh
        self.until = machine.until
        cgroups = versions.of(versions.read(machine.sh("slurmctld -V"))).cgroups_off
        machine.sh(f"echo CgroupPlugin={cgroups} >/etc/slurm/cgroup.conf\n{SITE}")
        self.nodes_are_idle()
        self.before = self.files()
        machine.sh("mkdir /root/bundle; tar -C /root/bundle -xz", stdin=bundle)
        machine.sh("/root/bundle/*/install.sh; rm -r /root/bundle")
        self.said = machine.sh("tapfinger install")
        self.at_once = self.doctor()
        self.until("test -S /run/tapfinger/server.sock", 900)

    def nodes_are_idle(self) -> None:
        self.until('test "$(sinfo --noheader --Node --format=%T | sort -u)" = idle')

    def files(self) -> set[str]:
        return set(self.sh(f"python3 -B - <<'END'\n{EVERY_FILE}\nEND").splitlines())

    def doctor(self) -> dict[str, dict[str, str]]:
        return {one["name"]: one for one in json.loads(self.sh("tapfinger doctor --json || true"))["checks"]}

    def ailments(self) -> dict[str, str]:
        """All that the doctor does not find well."""
        return {name: f"{one['status']}: {one['said']}" for name, one in self.doctor().items() if one["status"] != "ok"}

    def submit(self, *options: str, script: str = "sleep 600") -> int:
        """As a user does."""
        words = " ".join(f"'{option}'" for option in options)
        return int(self.sh(f"cd /home/alice; runuser -u alice -- sbatch --parsable {words} --wrap '{script}'"))

    def job(self, job: int) -> dict[str, str]:
        text = self.sh(f"scontrol --oneliner show job {job}")
        return dict(word.partition("=")[::2] for word in text.split())

    def reaches(self, job: int, state: str) -> None:
        self.until(f"scontrol --oneliner show job {job} | grep -q 'JobState={state} '")

    def decided(self, job: int) -> str:
        """The id of the latest decision about this job, once there is one."""
        self.until(f"tapfinger explain --json {job} | grep -q '\"decision_id\"'")
        return re.findall(r'"decision_id": ?"(\w+)"', self.sh(f"tapfinger explain --json {job}"))[-1]

    def journal(self, unit: str) -> str:
        return self.sh(f"journalctl --no-pager --output=cat --unit={unit}")

    def logs(self, unit: str, words: str) -> str:
        """The last line of this service with these words, once there is one."""
        found = f"journalctl --no-pager --output=cat --unit={unit} | grep --fixed-strings '{words}'"
        self.until(found)
        return self.sh(found).splitlines()[-1]

    def pid(self, unit: str) -> int:
        return int(self.sh(f"systemctl show --property=MainPID --value {unit}"))

    def clear(self) -> None:
        self.sh("scancel --user=alice")
        self.until('test -z "$(squeue --noheader)"')
        self.nodes_are_idle()


@pytest.fixture(scope="module")
def site(release: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    debian = Userland(release or "bookworm")
    if reason := why_not(debian):
        pytest.skip(reason)
    with Machine(debian, tmp_path_factory.mktemp("machine")) as machine:
        folder = tmp_path_factory.mktemp("bundle")
        bundle, _ = bundles.make(folder, debian)
        try:
            machine.boot()
        except CannotBoot as error:
            pytest.skip(str(error))
        installed = Controller(machine, bundle)
        shutil.rmtree(folder)
        yield installed


@pytest.fixture
def busy(site: Controller) -> Iterator[list[int]]:
    """Jobs of others that leave no node free; afterwards there are none at all."""
    jobs = [site.submit("--exclusive") for _ in range(2)]
    for job in jobs:
        site.reaches(job, "RUNNING")
    yield jobs
    site.clear()


@pytest.fixture(scope="module")
def enforcing(site: Controller) -> Controller:
    """Switched on as the documentation says."""
    site.sh(
        "printf '%s\n' JobSubmitPlugins=lua SchedulerParameters=batch_sched_delay=0,sched_interval=5 "
        ">/etc/slurm/tuning.conf"
    )
    site.sh("systemctl restart slurmctld")
    site.sh("""sed -i 's/^#mode = "observe"/mode = "enforce"/' /etc/tapfinger/tapfinger.toml""")
    site.sh("systemctl restart tapfinger-agent")
    site.until("grep -q ^enforce /run/tapfinger/hook")
    site.nodes_are_idle()
    return site


def test_installing_starts_all_that_belongs_to_it(site: Controller) -> None:
    for unit in (*(f"{name}.service" for name in SERVICES), *(f"{name}.timer" for name in TIMERS)):
        assert site.sh(f"systemctl is-active {unit}; systemctl is-enabled {unit}").split() == ["active", "enabled"], (
            unit
        )
    at_once = {name: one["fix"] for name, one in site.at_once.items() if one["status"] == "fail"}
    assert at_once.keys() == {"server", "server socket", "dry decision"}
    assert at_once["server"].startswith("wait: it compiles"), at_once
    assert site.ailments().keys() == {"scheduler", "lua plugin"}


@pytest.mark.parametrize("unit", SERVICES)
def test_a_service_may_do_nothing_that_it_need_not(site: Controller, unit: str) -> None:
    pid = site.pid(unit)
    status = dict(re.findall(r"^(\w+):\s+(\S+)", site.sh(f"cat /proc/{pid}/status"), re.MULTILINE))
    assert status["Uid"] == site.sh("id --user tapfinger").strip()
    assert (status["NoNewPrivs"], status["Seccomp"], int(status["CapBnd"], 16)) == ("1", "2", 0)
    inside = f"nsenter --target={pid} --mount"
    for folder in ("/etc", "/usr", "/var/lib", "/var/log", "/run", "/etc/tapfinger"):
        said = site.machine.run(f"{inside} touch {folder}/x").stderr
        assert "Read-only file system" in said, folder
    for folder in ("/run/tapfinger", "/var/lib/tapfinger", "/var/cache/tapfinger"):
        site.sh(f"{inside} touch {folder}/x; rm {folder}/x")
    assert site.sh(f"touch /tmp/of-others; {inside} ls -A /tmp /home /root") == "/home:\n\n/root:\n\n/tmp:\n"


def test_systemd_finds_little_that_could_be_taken_from_them(site: Controller) -> None:
    for unit in (*SERVICES, *TIMERS):
        site.sh(f"systemd-analyze security --offline=false --threshold=20 {unit}.service")


def test_the_server_kept_what_it_compiled_where_it_may_write(site: Controller) -> None:
    said = site.journal("tapfinger-serve")
    assert "event=compiling policy=tapfinger" in said
    assert "compiles-anew" not in said
    assert int(site.sh("find /var/cache/tapfinger -name '*.nbc' -user tapfinger | wc -l")) > 50


def test_watching_decides_and_says_so_in_the_log_of_the_machine(site: Controller, busy: list[int]) -> None:
    job = site.submit("--gres=gpu:1", "--cpus-per-task=2", "--comment=tapfinger gpus=1-2")
    site.logs("tapfinger-agent", f"event=decided job={job} decision={site.decided(job)} mode=observe")
    assert site.job(job)["JobState"] == "PENDING"
    assert "AdminComment" not in site.job(job)


def test_the_timers_have_run_their_services(site: Controller) -> None:
    site.until('test "$(systemctl show --property=ExecMainExitTimestampMonotonic --value tapfinger-janitor)" != 0', 90)
    site.sh("systemctl start tapfinger-learn")
    for unit in TIMERS:
        shown = site.sh(f"systemctl show --property=Result,ExecMainStatus {unit}.service")
        assert sorted(shown.split()) == ["ExecMainStatus=0", "Result=success"]


def test_switched_on_all_is_well(enforcing: Controller) -> None:
    assert enforcing.ailments() == {}


def test_a_job_goes_the_whole_way(enforcing: Controller) -> None:
    job = enforcing.submit("--gres=gpu:1", "--cpus-per-task=2", "--comment=tapfinger gpus=1-2", script="true")
    enforcing.reaches(job, "COMPLETED")
    shown = enforcing.job(job)
    ticket = re.search(r"ticket=(\S+)", enforcing.sh(f"scontrol --oneliner show job {job}"))
    assert ticket, shown
    enforcing.until(f"grep 'event=leased ticket={ticket[1]}' /var/log/slurm/slurmctld.log")
    placed = enforcing.logs("tapfinger-agent", f"event=placed job={job} ticket={ticket[1]} ")
    decision = re.search(r"decision=\w+", placed)
    assert decision, placed
    enforcing.logs("tapfinger-serve", f"event=placement {decision[0]} job={job} ")


@pytest.mark.parametrize("unit", SERVICES)
def test_what_is_stopped_is_named_and_the_fix_starts_it(enforcing: Controller, unit: str) -> None:
    name = unit.removeprefix("tapfinger-").replace("serve", "server")
    enforcing.sh(f"systemctl stop {unit}")
    enforcing.until("! grep -q ^enforce /run/tapfinger/hook")
    check = enforcing.doctor()[name]
    assert check["status"] == "fail", check
    enforcing.sh(check["fix"].partition(" (or")[0])
    enforcing.until("grep -q ^enforce /run/tapfinger/hook && test -S /run/tapfinger/server.sock")
    assert enforcing.ailments() == {}


@pytest.mark.parametrize(
    "interruption",
    [
        "systemctl restart slurmctld",
        *(f"systemctl restart {unit}" for unit in SERVICES),
        # systemd starts them again.
        *(f"systemctl kill --signal=KILL {unit}" for unit in SERVICES),
    ],
)
def test_an_end_in_the_middle_loses_nothing(enforcing: Controller, busy: list[int], interruption: str) -> None:
    job = enforcing.submit("--gres=gpu:1", "--comment=tapfinger gpus=1-2", script="true")
    enforcing.decided(job)
    enforcing.sh(interruption)
    enforcing.until(f"scontrol ping | grep -q UP && systemctl is-active {' '.join(SERVICES)}")
    enforcing.sh(f"scancel {busy[0]}")
    enforcing.reaches(job, "COMPLETED")
    enforcing.logs("tapfinger-agent", f"event=placed job={job} ")


def test_it_is_there_again_after_a_reboot(enforcing: Controller, busy: list[int]) -> None:
    compiled = "find /var/cache/tapfinger -name '*.nbi' -printf '%p %T@\n' | sort"
    before = enforcing.sh(compiled)
    job = enforcing.submit("--gres=gpu:1", "--comment=tapfinger gpus=1-2", script="true")
    enforcing.decided(job)
    # Processes of jobs would hold the machine up for 90 s.
    enforcing.sh(f"scontrol update nodename=n[1-2] state=drain reason=reboot; scancel {busy[0]} {busy[1]}")
    enforcing.until('test -z "$(squeue --noheader --states=running,completing)"')
    enforcing.machine.switch_off()
    enforcing.machine.boot()
    enforcing.until("grep -q ^enforce /run/tapfinger/hook && test -S /run/tapfinger/server.sock")
    assert "tapfinger" not in enforcing.sh("systemctl list-units --failed --plain --no-legend")
    enforcing.sh("scontrol update nodename=n[1-2] state=resume")
    enforcing.reaches(job, "COMPLETED")
    assert enforcing.sh(compiled) == before
    assert enforcing.ailments() == {}


def test_taken_off_it_leaves_everything_as_it_was(enforcing: Controller) -> None:
    refused = enforcing.machine.run("tapfinger uninstall")
    assert refused.returncode == 1
    assert "/etc/slurm/tuning.conf has lua in JobSubmitPlugins" in refused.stderr
    enforcing.sh("echo MinJobAge=300 >/etc/slurm/tuning.conf; systemctl restart slurmctld")
    enforcing.sh("tapfinger uninstall; /opt/tapfinger/install.sh --remove")
    left = {line.split()[0] for line in enforcing.files() ^ enforcing.before}
    assert left - OF_USERADD == set()
    assert "tapfinger" not in enforcing.sh("ls -A /run; systemctl list-units --all --plain --no-legend")
    assert "tapfinger" not in enforcing.sh("sacctmgr --noheader --parsable2 show user; getent passwd; ps -e -o args")
