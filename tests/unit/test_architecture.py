"""The rules of the house, checked: who may import what, who may signal, where no package may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from overnight.cli.main import main

HEAVY = {"torch", "transformers", "sklearn", "numpy", "starlette", "mlflow", "safetensors", "gguf", "tokenizers"}


def modules(repository: Path, package: str) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((repository / package).rglob("*.py")):
        yield path, ast.parse(path.read_text(), str(path))


def imported(tree: ast.AST) -> set[str]:
    """Top-level names of all that is imported anywhere in a file."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_no_package_in_the_two_roots(repository: Path) -> None:
    for root in ("daemon", "watchdog"):
        assert not (repository / root / "__init__.py").exists()


def test_the_two_packages_know_nothing_of_each_other(repository: Path) -> None:
    seen = 0
    for path, tree in modules(repository, "daemon/overnight"):
        assert "overnight_watchdog" not in imported(tree), path
        seen += 1
    for path, tree in modules(repository, "watchdog/overnight_watchdog"):
        assert "overnight" not in imported(tree), path
        assert not imported(tree) & (HEAVY | {"structlog", "pydantic", "yaml", "supervisor"}), path
        seen += 1
    assert seen > 30


@pytest.mark.parametrize("folder", ["dispatch", "queue", "cli", "doctor", "grid", "cells"])
def test_light_folders_name_no_heavy_package(repository: Path, folder: str) -> None:
    for path, tree in modules(repository, f"daemon/overnight/{folder}"):
        assert not imported(tree) & HEAVY, path


def test_the_dispatcher_knows_nothing_of_analysis() -> None:
    """It is a step behind the run, in a process of its own."""
    look = "[name for name in sys.modules if name.startswith(('overnight.analysis', 'overnight.report'))]"
    program = f"import sys, overnight.dispatch.dispatcher; print({look})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["overnight.dispatch.dispatcher", "overnight.cli.main", "overnight.warm.server"])
def test_importing_it_loads_nothing_heavy(module: str) -> None:
    program = f"import sys, {module}; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_daemon_needs_no_yaml_and_no_web(repository: Path) -> None:
    """What only commands need must not make the dispatcher larger."""
    program = "import sys, overnight.dispatch.dispatcher; print(sorted({'yaml', 'xmlrpc', 'http'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_only_one_file_of_the_daemon_signals(repository: Path) -> None:
    signalling = {"kill", "killpg", "pidfd_send_signal", "tgkill", "send_signal", "terminate"}
    found = set()
    for path, tree in modules(repository, "daemon/overnight"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in signalling:
                receiver = ast.unparse(node.func.value)
                if receiver in ("os", "signal") or node.func.attr in ("send_signal", "terminate"):
                    found.add(path.relative_to(repository / "daemon/overnight").as_posix())
    assert found == {"dispatch/signals.py", "cells/command_tree.py"}  # the latter: its own cell's tree alone


def test_only_the_watchdogs_act_file_may_signal(repository: Path) -> None:
    for path, tree in modules(repository, "watchdog/overnight_watchdog"):
        if path.name == "act.py":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("kill", "killpg", "pidfd_send_signal", "send_signal", "terminate"), path


def test_only_daemon_and_commands_open_the_queue(repository: Path) -> None:
    """No database is open across a fork: warm servers and cells never import the queue."""
    for folder in ("warm", "cells", "engines"):
        for path, tree in modules(repository, f"daemon/overnight/{folder}"):
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and node.module:
                    assert not node.module.startswith("overnight.queue"), path
            assert "sqlite3" not in imported(tree), path


def test_durable_writes_go_through_one_layer(repository: Path) -> None:
    for path, tree in modules(repository, "daemon/overnight"):
        if path.name in ("durable.py",) or "engines" in path.parts:
            continue  # the model store syncs what it converts; it is not a record of work
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in ("fsync", "fdatasync"):
                assert ast.unparse(node.value) != "os", path


def test_files_stay_short(repository: Path) -> None:
    """One noun a file: beyond 400 lines it is more than one."""
    for root in ("daemon", "watchdog"):
        for path, _ in modules(repository, root):
            assert len(path.read_text().splitlines()) <= 400, path


def test_a_command_imports_no_other(repository: Path) -> None:
    """`overnight status` must not pay for what reads grid files: commands are asked often, by people and by scripts."""
    program = """
import sys
from overnight.cli.main import main
try:
    main(["status", "--help"])
except SystemExit:
    pass
print(sorted({"yaml", "overnight.cli.submit", "overnight.grid.loader", "overnight.cli.doctor"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_word_that_is_a_commands_name_is_not_taken_for_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home may be called `status`, and a cell too."""
    monkeypatch.chdir(tmp_path)
    assert main(["--home", "status", "cells"]) == 0
    assert (tmp_path / "status" / "var").is_dir()
