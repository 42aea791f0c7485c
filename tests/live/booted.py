"""A Debian with Slurm in which systemd is process 1, for what only a living systemd shows. No container program needed.

The machine is an overlay of a release's folder, with namespaces of its own for processes, mounts, network, names and
cgroups. All that is written is in memory. Whatever ends the tests, it ends too: what keeps it lives as long as a pipe,
kills the machine's cgroup as a whole, and its mounts were never seen outside.
"""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from slurm_plugin.sandbox import releases
from slurm_plugin.sandbox.userland import SEARCH_PATH, Userland
from tapfinger_hpc.errors import SandboxError

PACKAGES = ("systemd", "systemd-sysv", "dbus")
GPUS = 2
BOOT_S = 90.0
STOP_S = 100.0
"""systemd kills what does not stop within 90 s."""

KEEPER = r"""
# Whoever reads may be gone.
trap "" PIPE
mount -t tmpfs -o mode=755 tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root" "$1/cgroup"
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount -t cgroup2 cgroup2 "$1/cgroup"
ours=$1/cgroup/$3
root=$1/root
shift 3
mount -t proc proc "$root/proc"
cp /etc/resolv.conf "$root/etc/resolv.conf"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
chroot "$root" apt-get --quiet -o Acquire::Check-Valid-Until=false update >&2
chroot "$root" apt-get --quiet --yes --no-install-recommends install "$@" >&2
chroot "$root" apt-get clean
# Newer ones look for a controller for ever where there is no slurm.conf.
chroot "$root" systemctl --quiet disable slurmd
umount "$root/proc"
rm -r "$root"/var/lib/apt/lists/*
# There is no network any more.
ln -s /dev/null "$root/etc/systemd/system/apt-daily.timer"
ln -s /dev/null "$root/etc/systemd/system/apt-daily-upgrade.timer"
echo ctl >"$root/etc/hostname"
echo "127.0.0.1 localhost ctl" >"$root/etc/hosts"
mkdir "$ours"
echo ready
cat >/dev/null || true
echo 1 >"$ours/cgroup.kill"
while grep -q "populated 1" "$ours/cgroup.events"; do sleep 0.1; done
find "$ours" -depth -type d -exec rmdir {} \;
"""
"""Folder, Debian, name of the cgroup, packages: in a namespace of mounts."""

ENTER = r"""
echo $$ >"$1/cgroup/$2/cgroup.procs"
exec unshare --cgroup --mount --pid --fork --kill-child --uts --ipc --net /bin/sh -ec "$3" sh "$1/root" "$4"
"""

FIRST = r"""
mount -t proc proc "$1/proc"
# Settings of the kernel are the host's: systemd leaves alone what it cannot write.
mount --bind "$1/proc/sys" "$1/proc/sys"
mount -o remount,bind,ro "$1/proc/sys"
mount -t sysfs -o ro sysfs "$1/sys"
mount -t cgroup2 cgroup2 "$1/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$1/dev"
mount -t tmpfs -o mode=755 tmpfs "$1/run"
mkdir "$1/dev/shm" "$1/dev/pts"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$1/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$1/dev/shm"
node() { mknod -m 666 "$root/dev/$1" c "$2" "$3"; }
root=$1
node null 1 3; node zero 1 5; node full 1 7; node random 1 8; node urandom 1 9; node tty 5 0
for gpu in $(seq "$2"); do node "fakegpu$gpu" 1 3; done
ln -s pts/ptmx "$1/dev/ptmx"
ln -s /proc/self/fd "$1/dev/fd"
ip link set lo up
# With 127.0.0.1 alone the C library believes that there is no IPv4, and slurmdbd cannot listen.
ip addr add 10.255.255.1/32 dev lo
hostname ctl
cd "$1"
mkdir -p .outside
pivot_root . .outside
exec env -i container=tapfinger PATH=/usr/sbin:/usr/bin:/sbin:/bin /bin/sh -ec '
    umount --lazy /.outside
    rmdir /.outside
    exec setpriv --bounding-set -sys_module,-sys_time /lib/systemd/systemd --show-status=no
' </dev/null
"""
"""Root and number of GPUs: what a machine has before its first process."""


class CannotBoot(Exception):
    """There is no such machine here, for reasons that are not ours."""


class Machine:
    """One that is on, or off, and keeps its disk meanwhile. ``with`` it, and it is gone afterwards."""

    def __init__(self, debian: Userland, folder: Path) -> None:
        """Starts to fetch what it needs; ``boot`` waits for that."""
        self._folder = folder
        self._cgroup = f"tapfinger-test-{os.getpid()}-{folder.name}"
        self._log = (folder / "keeper.log").open("w+")
        self._console = (folder / "console.log").open("w+")
        self._on: subprocess.Popen[bytes] | None = None
        disk = folder / "disk"
        disk.mkdir()
        self._keeper = subprocess.Popen(
            ["unshare", "--mount", "/bin/sh", "-ec", KEEPER, "sh",
             disk, debian.folder, self._cgroup, *PACKAGES],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, *_: object) -> None:
        self._keeper.communicate()
        if self._on:
            self._on.wait()
        for log in (self._log, self._console):
            log.close()

    def boot(self) -> None:
        """Switches it on, and waits until all is started.

        Raises:
            CannotBoot: systemd does not come up here.
        """
        assert self._keeper.stdout
        if self._on is None and self._keeper.stdout.readline() != b"ready\n":
            raise CannotBoot(f"a Debian with systemd cannot be made here: {self._last_words(self._log)}")
        self._on = subprocess.Popen(
            ["nsenter", f"--target={self._keeper.pid}", "--mount", "/bin/sh", "-ec", ENTER, "sh",
             self._folder / "disk", self._cgroup, FIRST, str(GPUS)],
            stdin=subprocess.DEVNULL, stdout=self._console, stderr=subprocess.STDOUT,
        )  # fmt: skip
        deadline = time.monotonic() + BOOT_S
        while self._state() not in ("running", "degraded"):
            if self._on.poll() is not None or time.monotonic() > deadline:
                raise CannotBoot(f"systemd as process 1 does not come up here: {self._last_words(self._console)}")
            time.sleep(0.2)

    def switch_off(self) -> None:
        """As `poweroff` does: everything is stopped in its order first."""
        assert self._on
        self.sh("systemctl poweroff", check=False)
        self._on.wait(STOP_S)

    def sh(self, script: str, *, check: bool = True, stdin: Path | None = None, timeout_s: float = 240.0) -> str:
        """What the script, run as root, prints."""
        done = self.run(script, stdin=stdin, timeout_s=timeout_s)
        assert not check or done.returncode == 0, f"{script}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def run(
        self, script: str, *, stdin: Path | None = None, timeout_s: float = 240.0
    ) -> subprocess.CompletedProcess[str]:
        """Runs it as root, and says how it ended."""
        with (stdin or Path("/dev/null")).open("rb") as source:
            return subprocess.run(
                ["nsenter", f"--target={self._first()}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup",
                 "env", "-i", f"PATH={SEARCH_PATH}", "HOME=/root", "LC_ALL=C", "bash", "-euc", script],
                stdin=source, capture_output=True, text=True, timeout=timeout_s,
            )  # fmt: skip

    def until(self, condition: str, timeout_s: float = 120.0) -> None:
        """Waits for a command to succeed."""
        deadline = time.monotonic() + timeout_s
        while (last := self.run(condition)).returncode:
            assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {condition}\n{last.stdout}{last.stderr}"
            time.sleep(0.3)

    def _first(self) -> int:
        """Its process 1, by the number that it has outside."""
        assert self._on
        children = Path(f"/proc/{self._on.pid}/task/{self._on.pid}/children").read_text().split()
        return int(children[0])

    def _state(self) -> str:
        try:
            return self.run("systemctl is-system-running || true").stdout.strip()
        except (OSError, IndexError):
            return ""

    @staticmethod
    def _last_words(log) -> str:
        log.flush()
        log.seek(0)
        return " / ".join(log.read().splitlines()[-3:])


def why_not(debian: Userland) -> str:
    """Why there can be none here; "" where it can be tried."""
    kernel = os.uname().release
    if tuple(int(number) for number in re.findall(r"\d+", kernel)[:2]) < (5, 14):
        return f"systemd as process 1 needs Linux 5.14 (cgroup.kill), here is {kernel}"
    for program in ("unshare", "nsenter", "ip"):
        if os.geteuid() != 0 or not shutil.which(program, path=SEARCH_PATH):
            return f"systemd as process 1 needs root and {program}"
    try:
        releases.install(debian)
    except SandboxError as error:
        return str(error)
    return ""
