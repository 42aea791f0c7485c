"""What `make dist` makes: a wheel, an offline bundle for server and agent, and a .deb of the same.

The bundle has no torch: neither server nor agent imports it, and it would be most of the download. All dates are
SOURCE_DATE_EPOCH (that of the last commit where it is not set), so the same sources give the same files.
"""

import argparse
import gzip
import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from click.shell_completion import get_completion_class

from release import deb, manpage
from tapfinger_hpc import __version__
from tapfinger_hpc.cli import tapfinger

ROOT = Path(__file__).parents[1]
COMPLETIONS = {
    "bash": "share/bash-completion/completions/tapfinger",
    "zsh": "share/zsh/site-functions/_tapfinger",
    "fish": "share/fish/vendor_completions.d/tapfinger.fish",
}
MANPAGE = "share/man/man1/tapfinger.1"


def main() -> None:
    options = _options()
    epoch_s = _epoch_s()
    os.environ["SOURCE_DATE_EPOCH"] = str(epoch_s)
    os.umask(0o022)
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tapfinger-dist-") as folder:
        scratch = Path(folder)
        ours = wheel(scratch)
        texts = pages(epoch_s)
        houses = {version: wheelhouse(scratch / version, f"{ours}[server]", version) for version in options.python}
        made = [ours, bundle(scratch, houses, texts, epoch_s)]
        if shutil.which("dpkg-deb"):
            made += [deb.build(scratch, version, house, texts, epoch_s) for version, house in houses.items()]
        else:
            print("no dpkg-deb here: no .deb was made", file=sys.stderr)
        _deliver(made, options.output)


def _options() -> argparse.Namespace:
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="where to put them")
    parser.add_argument("--python", nargs="+", default=[here], metavar="3.N", help="versions that the bundle is for")
    return parser.parse_args()


def _epoch_s() -> int:
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    return int(_output("git", "-C", str(ROOT), "log", "-1", "--format=%ct"))


def wheel(scratch: Path) -> Path:
    """Built from the files that git knows, in a place of its own: what lies about in the work tree is not shipped."""
    source = scratch / "source"
    for name in _output("git", "-C", str(ROOT), "ls-files", "-z").split("\0"):
        if name and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
            (source / name).chmod(0o644)
    _pip("wheel", "--no-deps", "--wheel-dir", str(scratch), str(source))
    return next(scratch.glob("*.whl"))


def wheelhouse(folder: Path, wanted: str, version: str) -> Path:
    """Wheels of all that this needs under this Python, and of the pip that installs them."""
    _pip(
        "download", "--only-binary=:all:", "--implementation=cp", f"--python-version={version}",
        f"--constraint={ROOT / 'constraints.txt'}", f"--dest={folder}", wanted, "pip",
    )  # fmt: skip
    return folder


def requirements(house: Path) -> str:
    """Every wheel but pip's own, by version and hash."""
    lines = []
    for wheel in sorted(house.glob("*.whl")):
        name, version = wheel.name.split("-")[:2]
        if name != "pip":
            lines.append(f"{name.replace('_', '-')}=={version} --hash=sha256:{_sha256(wheel)}\n")
    return "".join(lines)


def pages(epoch_s: int) -> Mapping[str, str]:
    """The man page and the completions, by their place under a prefix."""
    texts = {MANPAGE: manpage.render(tapfinger, __version__, epoch_s)}
    for shell, place in COMPLETIONS.items():
        kind = get_completion_class(shell)
        assert kind is not None
        texts[place] = kind(tapfinger, {}, "tapfinger", "_TAPFINGER_COMPLETE").source()
    return texts


def bundle(scratch: Path, houses: Mapping[str, Path], texts: Mapping[str, str], epoch_s: int) -> Path:
    """All in one file: wheels with their hashes, the script that installs them, man page and completions."""
    top = f"tapfinger-hpc-{__version__}"
    files = {place: text.encode() for place, text in texts.items()}
    files["install.sh"] = (ROOT / "release" / "install.sh").read_bytes()
    files["installing.md"] = (ROOT / "docs" / "installing.md").read_bytes()
    files["LICENSE"] = (ROOT / "LICENSE").read_bytes()
    for version, house in houses.items():
        files[f"requirements-{version}.txt"] = requirements(house).encode()
        files |= {f"wheels/{wheel.name}": wheel.read_bytes() for wheel in house.glob("*.whl")}
    path = scratch / f"{top}-linux-{platform.machine()}.tar.gz"
    # The wheels are compressed already.
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=epoch_s) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for place, content in sorted(files.items()):
            entry = tarfile.TarInfo(f"{top}/{place}")
            entry.size, entry.mtime = len(content), epoch_s
            entry.mode = 0o755 if place.endswith(".sh") else 0o644
            archive.addfile(entry, io.BytesIO(content))
    return path


def _deliver(made: Iterable[Path], output: Path) -> None:
    sums = []
    for path in made:
        shutil.copy(path, output / path.name)
        sums.append(f"{_sha256(path)}  {path.name}\n")
        print(f"{output / path.name}  {path.stat().st_size / 1e6:.1f} MB")
    (output / "SHA256SUMS").write_text("".join(sums))


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
