"""The directions of the architecture: who may import whom, and what stays out of memory."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TORCH = {"torch", "torch_geometric", "torch_scatter", "torch_sparse"}
TORCH_ROOMS = ("tapfinger_hpc/nets/encoder", "tapfinger_hpc/nets/policy_network", "tapfinger_hpc/training/")
HEAVY = ("torch", "torch_geometric", "numpy", "scipy", "numba", "pandas", "flask", "waitress", "rich")


def sources(room: str) -> list[Path]:
    found = sorted((ROOT / room).rglob("*.py"))
    assert found, f"no source in {room}"
    return found


def imported(path: Path) -> set[str]:
    """Every module that the file imports anywhere, also inside functions; relative imports are within its room."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return names


def importers(room: str, forbidden: set[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(room)
        for name in sorted(imported(path))
        if name.split(".")[0] in forbidden
    ]


def modules(room: str, without: tuple[str, ...] = ()) -> list[str]:
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in sources(room)]
    return [name for name in names if not name.startswith(without)]


def loaded_after(code: str, *arguments: str) -> set[str]:
    """Top-level modules in memory after this code ran in a fresh interpreter."""
    show = "import sys; print('\\n' + ' '.join({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{show}", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


def loaded_by(names: list[str]) -> set[str]:
    return loaded_after("import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)", *names)


def test_the_thinking_imports_none_of_the_other_rooms() -> None:
    assert importers("tapfinger_hpc", {"slurm_plugin", "policy_server", "trace_tools"}) == []


def test_the_policy_server_never_imports_slurm() -> None:
    assert importers("policy_server", {"slurm_plugin", "trace_tools", "pyslurm", "subprocess"}) == []


def test_trace_tools_import_neither_server_nor_plugin() -> None:
    assert importers("trace_tools", {"slurm_plugin", "policy_server"}) == []


def test_only_training_and_the_network_that_is_trained_import_torch() -> None:
    rooms = [importers(room, TORCH) for room in ("tapfinger_hpc", "slurm_plugin", "policy_server", "trace_tools")]
    assert [line for room in rooms for line in room if not line.startswith(TORCH_ROOMS)] == []


def test_the_seam_needs_msgspec_and_the_standard_library_alone() -> None:
    names = ["state", "decision", "fit", "reserve", "speed", "units", "wire", "config", "cluster", "trace", "errors"]
    assert loaded_by([f"tapfinger_hpc.{name}" for name in names]).isdisjoint(HEAVY)


def test_agent_janitor_and_sandbox_load_neither_numpy_torch_nor_flask() -> None:
    names = modules("slurm_plugin", without=("slurm_plugin.demo", "slurm_plugin.bench"))
    assert loaded_by(names).isdisjoint({"numpy", "scipy", "numba", "flask", "waitress", *TORCH})


def test_trace_tools_load_neither_torch_numba_nor_flask() -> None:
    assert loaded_by(modules("trace_tools")).isdisjoint({"numba", "flask", "waitress", *TORCH})


def test_trained_networks_decide_without_torch() -> None:
    names = ["checkpoint", "policies.decoding", "policies.learned", "policies.learned_player", "policies.bench"]
    loaded = loaded_by([f"tapfinger_hpc.{name}" for name in names])
    assert loaded.isdisjoint(TORCH)


def test_the_policy_server_loads_no_torch() -> None:
    assert loaded_by([*modules("policy_server"), "tapfinger_hpc.policies.learned"]).isdisjoint(TORCH)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_the_command_answers_help_without_loading_anything_heavy(arguments: list[str]) -> None:
    code = "import sys\nfrom tapfinger_hpc.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass"
    assert loaded_after(code, *arguments).isdisjoint({*HEAVY, "sqlite3", "msgspec"})
