"""From the offline bundle to the first decision, and back: a Debian with nothing but Slurm, no network, and the
commands of docs/installing.md as they stand there.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import bundles
import pytest

from slurm_plugin.sandbox import releases
from slurm_plugin.sandbox.userland import Userland
from tapfinger_hpc.errors import SandboxError

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1500)]

DEBIAN = Userland("bookworm")
DOCUMENT = Path(__file__).parents[2] / "docs" / "installing.md"

OUTSIDE = r"""
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" "$1/root"
cp -R "$3" "$1/root/harness"
mount -t proc proc "$1/root/proc"
mount -t tmpfs tmpfs "$1/root/dev"
mount -t tmpfs tmpfs "$1/root/run"
mount -t tmpfs tmpfs "$1/root/srv"
mkdir -m 1777 "$1/root/dev/shm"
mknod -m 666 "$1/root/dev/null" c 1 3
mknod -m 666 "$1/root/dev/zero" c 1 5
mknod -m 666 "$1/root/dev/random" c 1 8
mknod -m 666 "$1/root/dev/urandom" c 1 9
ip link set lo up
# With 127.0.0.1 alone the C library believes that there is no IPv4, and slurmdbd cannot listen.
ip addr add 10.255.255.1/32 dev lo
env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C \
    chroot "$1/root" bash -eu /harness/inside.sh
umount -R "$1/root/harness" 2>/dev/null || true
cp -R "$1/root/harness/out" "$3/"
rm -rf "$1/root/harness"
"$4" -c "$5" "$1/upper" "$2" >"$3/out/left"
"""
"""Folder, Debian, harness, a Python and the script that compares: in a namespace of mounts, processes and network."""

INSIDE = r"""
cd /harness
echo "127.0.0.1 localhost $(hostname)" >/etc/hosts
python() { PYTHONPATH=/harness/lib PYTHONDONTWRITEBYTECODE=1 python3 "$@"; }
python -m tapfinger_hpc.cli sandbox up --stock --dir /srv/lab
export SLURM_CONF=/srv/lab/etc/slurm.conf
# No node is free, so that there is something to decide about.
for partition in pa pb pc; do
    (cd /srv/lab/jobs && sbatch --partition=$partition --nodes=2 --exclusive --time=1440 --wrap 'sleep 3000')
done
job=$(cd /srv/lab/jobs && sbatch --parsable --gres=gpu:1 -c2 --comment 'tapfinger gpus=1-2' --wrap true)
began=$(date +%s)
@COMMANDS@
disown -a
until tapfinger explain --json "$job" >out/explained 2>&1 && grep -q decision_id out/explained; do sleep 0.5; done
decided=$(date +%s)
cputime() { python3 -c 'import os, sys; f = open(f"/proc/{sys.argv[1]}/stat").read().split()
print((int(f[13]) + int(f[14])) / os.sysconf("SC_CLK_TCK"))' "$1"; }
echo "$((decided - began)) s" >out/took
for pid in $(pgrep -f '[t]apfinger (serve|agent)'); do echo "$(cputime "$pid") s of $pid" >>out/took; done
scontrol show job "$job" >out/job
tapfinger status --json >out/status
tapfinger doctor >out/doctor 2>&1 || true
sacctmgr --noheader --parsable2 show user format=user,adminlevel >out/users
pkill -u tapfinger
while pgrep -u tapfinger >/dev/null; do sleep 0.1; done
tapfinger uninstall
/opt/tapfinger/install.sh --remove
sacctmgr --noheader --parsable2 show user format=user,adminlevel >out/users-after
python -m tapfinger_hpc.cli sandbox down --dir /srv/lab
ls -A /run >out/run
"""

COMPARE = """
import os, stat, sys
upper, lower = sys.argv[1:]
def content(path):
    status = os.lstat(path)
    kind = stat.S_IFMT(status.st_mode)
    data = open(path, "rb").read() if stat.S_ISREG(status.st_mode) else b""
    return kind, status.st_mode, status.st_uid, status.st_gid, data
for folder, folders, names in os.walk(upper):
    for name in folders + names:
        path = os.path.join(folder, name)
        there = lower + path.removeprefix(upper)
        if not os.path.lexists(there) or content(path) != content(there):
            print(path.removeprefix(upper))
"""

OF_USERADD = {"/etc/.pwd.lock", *(f"/etc/{name}-" for name in ("passwd", "shadow", "group", "gshadow"))}
"""What useradd and userdel keep for themselves."""
OF_THE_TEST = {"/etc/hosts"}


def documented() -> list[str]:
    """The commands of the first section of docs/installing.md, those for a machine without systemd included."""
    section = re.search(r"^## From the bundle$(.*?)^## ", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    assert section
    blocks = re.findall(r"^```\n(.*?)^```", section[1], re.DOTALL | re.MULTILINE)
    return [line for block in blocks[:2] for line in block.splitlines() if line]


@pytest.fixture(scope="module")
def debian(release: str) -> Path:
    if release not in ("", DEBIAN.release):
        pytest.skip(f"it is tried on Debian {DEBIAN.release}")
    for program in ("unshare", "ip", "chroot"):
        if os.geteuid() != 0 or not shutil.which(program):
            pytest.skip(f"needs root and {program}")
    try:
        releases.install(DEBIAN)
    except SandboxError as error:
        pytest.skip(str(error))
    return DEBIAN.folder


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle; and what starts the cluster, which is no part of what is tried."""
    folder = tmp_path_factory.mktemp("harness")
    _, house = bundles.make(folder, DEBIAN)
    for name in ("tapfinger_hpc", "click", "msgspec", "rich", "markdown_it", "mdurl", "pygments"):
        with zipfile.ZipFile(next(house.glob(f"{name}*.whl"))) as wheel:
            wheel.extractall(folder / "lib")
    shutil.rmtree(house)
    (folder / "out").mkdir()
    (folder / "inside.sh").write_text(INSIDE.replace("@COMMANDS@", "\n".join(documented())))
    return folder


def test_the_documented_way_is_five_commands_at_most() -> None:
    assert 3 <= len(documented()) <= 5


def test_from_the_bundle_to_the_first_decision_and_back(
    debian: Path, harness: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child",
         "sh", "-eu", "-c", OUTSIDE, "sh", tmp_path, debian, harness, sys.executable, COMPARE],
        capture_output=True, text=True, timeout=1400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    out = {path.name: path.read_text() for path in (harness / "out").iterdir()}
    with capsys.disabled():
        print(f"\nfrom the bundle to the first decision: {' / '.join(out['took'].splitlines())}")
    assert "JobState=PENDING" in out["job"]
    assert '"mode":"observe"' in out["explained"].replace(" ", "")
    assert "tapfinger|Operator" in out["users"]
    assert [line for line in out["doctor"].splitlines() if line.startswith("fail")] == []
    assert "agent             alive, mode observe" in out["doctor"]
    assert "tapfinger" not in out["users-after"]
    assert "tapfinger" not in out["run"]
    assert set(out["left"].split()) - OF_USERADD - OF_THE_TEST == set()
