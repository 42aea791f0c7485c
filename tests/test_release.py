"""What `make dist` makes: a man page of every command, completions, and an offline bundle that comes and goes whole."""

import gzip
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete

from release import build, deb, manpage
from tapfinger_hpc import __version__, cli

EPOCH_S = 1_795_000_000
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def options_of(context: click.Context) -> list[str]:
    command = context.command
    if isinstance(command, click.Group):
        inner = [(name, command.get_command(context, name)) for name in command.list_commands(context)]
        return [
            option
            for name, child in inner
            for option in options_of(click.Context(child, info_name=name, parent=context))
        ]
    names = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
    return [f"{context.command_path} [OPTIONS]", *names]


@pytest.mark.slow
def test_the_man_page_has_every_command_and_every_option():
    page = manpage.render(cli.tapfinger, "1.2.3", EPOCH_S).replace("\\-", "-")
    assert page.startswith('.TH TAPFINGER 1 "2026-11-18" "TapFinger-HPC 1.2.3"')
    wanted = options_of(click.Context(cli.tapfinger, info_name="tapfinger"))
    assert len(wanted) > 100
    assert [words for words in wanted if words not in page] == []


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("man"), reason="man is not here")
def test_man_has_nothing_to_say_against_the_page(tmp_path):
    page = tmp_path / "tapfinger.1"
    page.write_text(manpage.render(cli.tapfinger, "1.2.3", EPOCH_S))
    environment = {**os.environ, "MANWIDTH": "100", "LC_ALL": "C.UTF-8"}
    shown = subprocess.run(["man", "--warnings", "-l", page], capture_output=True, text=True, env=environment)
    assert (shown.returncode, shown.stderr) == (0, "")


def test_names_of_commands_are_completed_without_importing_them():
    code = (
        "import sys\nfrom click.shell_completion import BashComplete\nfrom tapfinger_hpc.cli import tapfinger\n"
        "found = BashComplete(tapfinger, {}, 'tapfinger', 'X').get_completions([], 's')\n"
        "print(*(item.value for item in found))\n"
        "print(*(name for name in sys.modules if name.startswith(('tapfinger_hpc.', 'slurm_plugin'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, imported = done.stdout.splitlines()
    assert names.split() == [name for name in sorted(cli.COMMANDS) if name.startswith("s")]
    assert set(imported.split()) == {"tapfinger_hpc.cli", "tapfinger_hpc.errors"}


def test_options_of_a_command_are_completed():
    found = BashComplete(cli.tapfinger, {}, "tapfinger", "X").get_completions(["install"], "--d")
    assert [item.value for item in found] == ["--dry-run"]


# The bundle itself.


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """Our wheel, and wheels of all that the agent needs; without the server's, to be quick."""
    scratch = tmp_path_factory.mktemp("dist")
    os.environ.setdefault("SOURCE_DATE_EPOCH", str(EPOCH_S))
    try:
        ours = build.wheel(scratch)
        return ours, build.wheelhouse(scratch / HERE, str(ours), HERE)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no package index here: {error}")


@pytest.fixture(scope="module")
def unpacked(made, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    path = build.bundle(folder, {HERE: made[1]}, build.pages(EPOCH_S), EPOCH_S)
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"tapfinger-hpc-{__version__}"


def offline(script: Path, prefix: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs install.sh where there is no network."""
    shared = prefix.parent / "shared"
    alone = ["unshare", "--net"] if os.geteuid() == 0 and shutil.which("unshare") else []
    environment = {"PATH": os.environ["PATH"], "PREFIX": str(prefix), "SHARED": str(shared), "PYTHON": sys.executable}
    return subprocess.run([*alone, script, *arguments], capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_the_bundle_installs_without_network_and_goes_without_a_trace(unpacked, tmp_path):
    (tmp_path / "shared/bin").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    done = offline(unpacked / "install.sh", tmp_path / "opt")
    assert done.returncode == 0, done.stderr
    said = subprocess.run([tmp_path / "shared/bin/tapfinger", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout == f"tapfinger, version {__version__}\n"
    assert "TAPFINGER" in (tmp_path / "shared/share/man/man1/tapfinger.1").read_text()
    again = offline(unpacked / "install.sh", tmp_path / "opt")
    assert again.returncode == 0, again.stderr
    gone = offline(tmp_path / "opt/install.sh", tmp_path / "opt", "--remove")
    assert gone.returncode == 0, gone.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_a_wheel_that_was_changed_is_not_installed(unpacked, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(unpacked, copy)
    with next(copy.glob("wheels/click-*.whl")).open("ab") as file:
        file.write(b"x")
    (tmp_path / "shared/bin").mkdir(parents=True)
    done = offline(copy / "install.sh", tmp_path / "opt")
    assert done.returncode != 0
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in done.stderr
    assert not (tmp_path / "shared/bin/tapfinger").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["opt/mine", "shared/bin/tapfinger"])
def test_what_is_there_already_is_not_replaced(unpacked, tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("not ours\n")
    done = offline(unpacked / "install.sh", tmp_path / "opt")
    assert done.returncode == 1
    assert "is there, and not by this script" in done.stderr
    assert offline(unpacked / "install.sh", tmp_path / "opt", "--remove").returncode == 1
    assert (tmp_path / name).read_text() == "not ours\n"


@pytest.mark.slow
def test_the_same_sources_give_the_same_wheel_and_bundle(made, tmp_path):
    ours, house = made
    assert build.wheel(tmp_path).read_bytes() == ours.read_bytes()
    texts = build.pages(EPOCH_S)
    one = build.bundle(tmp_path, {HERE: house}, texts, EPOCH_S).read_bytes()
    assert build.bundle(tmp_path, {HERE: house}, texts, EPOCH_S).read_bytes() == one


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb is not here")
def test_the_same_wheels_give_the_same_deb_and_lintian_accepts_it(made, tmp_path, monkeypatch):
    for name in ("DEBFULLNAME", "DEBEMAIL"):
        monkeypatch.delenv(name, raising=False)
    texts = build.pages(EPOCH_S)
    one, other = (deb.build(tmp_path / name, HERE, made[1], texts, EPOCH_S) for name in ("a", "b"))
    assert one.read_bytes() == other.read_bytes()
    fields = subprocess.run(["dpkg-deb", "--field", one, "Maintainer"], capture_output=True, text=True, check=True)
    log = subprocess.run(["git", "-C", build.ROOT, "log", "-1", "--format=%an <%ae>"], capture_output=True, text=True)
    assert fields.stdout == log.stdout
    subprocess.run(["dpkg-deb", "--extract", one, tmp_path / "tree"], check=True)
    page = (tmp_path / "tree/usr/share/man/man1/tapfinger.1.gz").read_bytes()
    assert gzip.decompress(page).decode() == texts[build.MANPAGE]
    assert (tmp_path / "tree/usr/bin/tapfinger").resolve() == tmp_path / "tree/usr/lib/tapfinger/bin/tapfinger"
    if not shutil.which("lintian"):
        pytest.skip("lintian is not here")
    found = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error,warning", one], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout
