"""The documentation is held to the code: every command and key stands in it, every link leads somewhere."""

import html
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from policy_server import openapi
from release import manpage
from tapfinger_hpc import cli, config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
MANUAL = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_stands_in_the_manual(name):
    assert f"`tapfinger {name}" in MANUAL or f"\ntapfinger {name} " in MANUAL


@pytest.mark.parametrize(
    ("section", "key"),
    [
        (kind.__name__, field.name)
        for kind in (
            config.ServerConfig,
            config.AgentConfig,
            config.SlurmConfig,
            config.LogConfig,
            config.PartitionConfig,
        )
        for field in msgspec.structs.fields(kind)
    ],
)
def test_every_configuration_key_stands_in_a_table_of_the_manual(section, key):
    assert re.search(rf"^\|[^|]*`{key}`", MANUAL, re.MULTILINE), f"{section}.{key} is in no table"


@pytest.mark.parametrize(
    ("kind", "key"),
    [(config.AgentConfig, "lease_s"), (config.AgentConfig, "max_hold_s"), (config.SlurmConfig, "timeout_s")],
)
def test_the_defaults_in_the_manual_are_those_of_the_code(kind, key):
    default = next(field.default for field in msgspec.structs.fields(kind) if field.name == key)
    assert f"| `{key}` | `{default}` |" in MANUAL


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_module_that_the_architecture_names_exists():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = re.search(r"## Rooms\n```\n(.*?)```", text, re.DOTALL)[1]
    room = ""
    for line in rooms.splitlines():
        if not line.startswith(" "):
            room = line.split("/")[0]
        left = line.strip().split("  ")[0] if line.startswith(" ") else ""
        for name in re.findall(r"[\w/]+\.py|[\w/]+/", left):
            assert (ROOT / room / name).exists(), f"{room}/{name}"


def built(source: Path, output: Path) -> subprocess.CompletedProcess:
    """As `make docs` does."""
    sphinx = (sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", ROOT / "docs", source, output)
    return subprocess.run(sphinx, capture_output=True, text=True, check=False, cwd=ROOT)


def words_of(page: Path) -> str:
    return html.unescape(re.sub("<[^>]+>", "", page.read_text(encoding="utf-8")))


@pytest.mark.slow
def test_the_pages_build_and_hold_every_command_option_key_and_route(tmp_path):
    done = built(ROOT / "docs", tmp_path)
    assert done.returncode == 0, done.stderr
    commands = words_of(tmp_path / "commands.html")
    for context in manpage.walk(cli.tapfinger, "tapfinger"):
        assert f"{context.command_path} " in commands
        for parameter in context.command.params:
            assert parameter.param_type_name == "argument" or set(parameter.opts) <= set(re.split(r"[\s,]+", commands))
    configuration = words_of(tmp_path / "configuration.html")
    for section in msgspec.structs.fields(config.Config):
        assert f"[{section.name}" in configuration
        kind = config.PartitionConfig if section.name == "partitions" else section.type
        assert all(f"{field.name} = " in configuration for field in msgspec.structs.fields(kind))
    routes = words_of(tmp_path / "routes.html")
    for path, operations in openapi.document()["paths"].items():
        assert all(f"{method.upper()} {path}" in routes for method in operations)


@pytest.mark.slow
def test_a_link_that_leads_nowhere_fails_the_build(tmp_path):
    text = "# A page\n[page](nowhere.md), [place](other.md#nowhere), [itself](#nothing)\n\n```{toctree}\nother\n```\n"
    (tmp_path / "index.md").write_text(text, encoding="utf-8")
    (tmp_path / "other.md").write_text("# Another\n", encoding="utf-8")
    done = built(tmp_path, tmp_path / "build")
    assert done.returncode != 0
    assert all(name in done.stderr for name in ("nowhere.md", "'nowhere'", "'nothing'")), done.stderr
