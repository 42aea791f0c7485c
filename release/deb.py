"""The .deb: what the bundle installs, as files that dpkg knows, in /usr.

A virtual environment in /usr/lib/tapfinger, so that nothing in it is seen by other programs and Debian's own Python
packages are not seen by it; made for one minor version of Python, which the package depends on.
"""

import gzip
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

from tapfinger_hpc import __version__

ROOT = Path(__file__).parents[1]
NAME = "tapfinger-hpc"
HOME = "usr/lib/tapfinger"
PLACES = {"share/zsh/site-functions/": "share/zsh/vendor-completions/"}
"""Where Debian wants what other systems have elsewhere."""
_UNUSED = ("bin", "numba/tests", "numba/cuda/tests", "llvmlite/tests")
"""Of the packages: their own tests and commands."""


def build(scratch: Path, version: str, house: Path, pages: Mapping[str, str], epoch_s: int) -> Path:
    """The package for this version of Python, from these wheels alone."""
    tree = scratch / f"deb-{version}"
    _environment(tree, version, house)
    _pages(tree, pages)
    _documents(tree, epoch_s)
    _control(tree, version)
    for path in sorted(tree.rglob("*"), reverse=True):
        os.utime(path, (epoch_s, epoch_s), follow_symlinks=False)
    package = scratch / f"{NAME}_{__version__}+py{version}_{_architecture()}.deb"
    # Threads give other files on other machines.
    command = ["dpkg-deb", "--root-owner-group", "-Zxz", "-z1", "--threads-max=1", "--build", str(tree), str(package)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return package


def _environment(tree: Path, version: str, house: Path) -> None:
    home = tree / HOME
    site = home / "lib" / f"python{version}" / "site-packages"
    wheels = [str(wheel) for wheel in house.glob("*.whl") if not wheel.name.startswith("pip-")]
    subprocess.run(
        [
            sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-index", "--no-deps",
            "--no-compile", "--only-binary=:all:", "--implementation=cp", f"--python-version={version}",
            f"--target={site}", *wheels,
        ],
        check=True,
    )  # fmt: skip
    for name in _UNUSED:
        shutil.rmtree(site / name, ignore_errors=True)
    for path in [*site.glob("*/tests"), *site.glob("numpy/*/tests")]:
        shutil.rmtree(path)
    for name in ("direct_url.json", "RECORD", "REQUESTED"):
        # They tell of the folder in which this was built, and of files that are not there.
        for path in site.glob(f"*.dist-info/{name}"):
            path.unlink()
    for path in site.rglob("*.so*"):
        path.chmod(0o644)
    (home / "bin").mkdir()
    (home / "bin" / "python3").symlink_to(f"../../../bin/python{version}")
    (home / "pyvenv.cfg").write_text(f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {version}\n")
    program = home / "bin" / "tapfinger"
    program.write_text(f"#!/{HOME}/bin/python3 -I\nfrom tapfinger_hpc.cli import main\n\nmain()\n")
    program.chmod(0o755)
    (tree / "usr/bin").mkdir()
    (tree / "usr/bin/tapfinger").symlink_to("../lib/tapfinger/bin/tapfinger")


def _pages(tree: Path, pages: Mapping[str, str]) -> None:
    for place, text in pages.items():
        for other, debians in PLACES.items():
            place = place.replace(other, debians)
        path = tree / "usr" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if "/man/" in place:
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(text.encode(), mtime=0))
        else:
            path.write_text(text)


def _documents(tree: Path, epoch_s: int) -> None:
    documents = tree / "usr/share/doc" / NAME
    documents.mkdir(parents=True)
    shutil.copy(ROOT / "docs" / "installing.md", documents)
    (documents / "copyright").write_text("".join(_copyright(tree)))
    changes = (
        f"{NAME} ({__version__}) unstable; urgency=medium\n\n  * See CHANGELOG.md of the sources.\n\n"
        f" -- {_maintainer()}  {format_datetime(datetime.fromtimestamp(epoch_s, UTC))}\n"
    )
    (documents / "changelog.gz").write_bytes(gzip.compress(changes.encode(), mtime=0))
    overrides = tree / "usr/share/lintian/overrides"
    overrides.mkdir(parents=True)
    shutil.copy(ROOT / "release" / "deb" / "lintian-overrides", overrides / NAME)


def _copyright(tree: Path) -> Iterator[str]:
    """Ours, and for each package that comes along what it says of itself; its licence lies beside it."""
    yield (ROOT / "release" / "deb" / "copyright").read_text()
    for metadata in sorted(tree.glob(f"{HOME}/lib/*/site-packages/*.dist-info/METADATA")):
        fields = dict(line.partition(": ")[::2] for line in metadata.read_text().split("\n\n")[0].splitlines())
        if fields["Name"] != "tapfinger-hpc":
            terms = fields.get("License-Expression") or fields.get("License") or "see the licence files"
            where = f"/{HOME}/lib/{metadata.parts[-4]}/site-packages/{metadata.parent.name}"
            yield f" {fields['Name']} {fields['Version']}: {terms}\n  ({where})\n"


def _control(tree: Path, version: str) -> None:
    control = tree / "DEBIAN"
    control.mkdir()
    size_kb = sum(path.lstat().st_size for path in tree.rglob("*") if path.is_file()) // 1024
    major, minor = version.split(".")
    (control / "control").write_text(
        f"Package: {NAME}\nVersion: {__version__}+py{version}\nArchitecture: {_architecture()}\n"
        f"Maintainer: {_maintainer()}\nInstalled-Size: {size_kb}\n"
        f"Depends: python3 (>= {version}), python3 (<< {major}.{int(minor) + 1}), python{version}, libc6 (>= 2.28), "
        "libgcc-s1, libstdc++6, zlib1g\n"
        "Recommends: slurm-client\nSection: admin\nPriority: optional\n"
        "Description: learned placement and resource amounts for small Slurm clusters\n"
        " Runs beside slurmctld: a submit hook leases the jobs that allow it, an agent\n"
        " carries the queue to a local policy server, and a trained policy chooses for\n"
        " each job the node and how many GPUs, CPUs and how much memory it gets, inside\n"
        " the range that the job declares. It begins by watching only.\n"
        " .\n"
        " This package is the program. What it changes on a controller is listed, done\n"
        " and taken back by tapfinger install and tapfinger uninstall.\n"
    )
    for script in ("postinst", "prerm"):
        shutil.copy(ROOT / "release" / "deb" / script, control)
        (control / script).chmod(0o755)
    files = sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    sums = subprocess.run(
        ["md5sum", *(str(path.relative_to(tree)) for path in files if control not in path.parents)],
        cwd=tree, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (control / "md5sums").write_text(sums.stdout)


def _maintainer() -> str:
    """Who made the last commit, as its time is that of all files, where DEBFULLNAME and DEBEMAIL name nobody."""
    name, address = os.environ.get("DEBFULLNAME"), os.environ.get("DEBEMAIL")
    if name and address:
        return f"{name} <{address}>"
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%an <%ae>"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _architecture() -> str:
    return subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()
