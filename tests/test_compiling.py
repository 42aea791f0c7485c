"""What is compiled is kept for exactly the sources that it was compiled from."""

import ast
import os
from pathlib import Path

import numba

from tapfinger_hpc.sim import compiling

DECORATORS = {"compiled", "lean", "woven", "threaded", "_fast"}
NOT_COMPILED_IN = {
    f"tapfinger_hpc.{name}"
    for name in ("errors", "gaussian", "speed", "state", "units", "training.batch", "training.team")
}
"""Modules of which compiled functions use nothing, though their files do."""


def package(folder: Path) -> Path:
    for name in (*compiling.COMPILED_FILES, "sim/core.py", "policies/compiled/price.py", "evaluate.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_an_edit_of_any_source_that_is_compiled_leads_to_another_folder(tmp_path: Path) -> None:
    sources = package(tmp_path / "package")
    met = {compiling.folder(tmp_path, sources)}
    assert compiling.folder(tmp_path, sources) in met
    for name in ("frame.py", "sim/core.py", "policies/compiled/price.py"):
        (sources / name).write_text("changed")
        met.add(compiling.folder(tmp_path, sources))
    (sources / "sim" / "core.py").rename(sources / "sim" / "kernel.py")
    last = compiling.folder(tmp_path, sources)
    assert len(met | {last}) == 5
    (sources / "evaluate.py").write_text("changed")
    assert compiling.folder(tmp_path, sources) == last


def test_folders_of_older_versions_go_but_the_last_few_stay(tmp_path: Path) -> None:
    sources, made = package(tmp_path / "package"), []
    for version in range(5):
        (sources / "frame.py").write_text(f"{version}")
        made.append(compiling.folder(tmp_path / "kept", sources))
        os.utime(made[-1], (version, version))
    assert sorted((tmp_path / "kept").iterdir()) == sorted(made[-compiling.KEPT :])


def test_this_process_keeps_what_it_compiles_under_the_name_of_its_sources() -> None:
    kept = Path(numba.config.CACHE_DIR)
    assert kept.is_dir()
    assert kept == compiling.folder(kept.parent)


def test_every_file_that_is_compiled_or_feeds_one_is_among_the_sources() -> None:
    sources = set(compiling.sources())
    root = compiling.PACKAGE.parent
    found = 0
    for file in compiling.PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text())
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        if not any(
            isinstance(one, ast.Name) and one.id in DECORATORS for each in functions for one in each.decorator_list
        ):
            continue
        found += 1
        assert file in sources, f"{file} is compiled"
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tapfinger_hpc"):
                for name in node.names:
                    module = next(
                        one
                        for one in (
                            root / f"{node.module}.{name.name}".replace(".", "/"),
                            root / node.module.replace(".", "/"),
                        )
                        if one.with_suffix(".py").exists()
                    ).with_suffix(".py")
                    dotted = ".".join(module.relative_to(root).with_suffix("").parts)
                    assert module in sources or dotted in NOT_COMPILED_IN, f"{file} takes something from {dotted}"
    assert found > 20
