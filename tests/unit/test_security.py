"""Nothing that is read from disk or from the network is executed, and the service has no right that it can spare."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from overnight.grid import yaml_source
from overnight.queue.store import Queue

ROOTS = ("daemon/overnight", "watchdog/overnight_watchdog")

UNPICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
"""Modules that make code of data; whoever wants one has to say here why."""

RUNNING = {"eval", "exec", "compile", "__import__", "breakpoint", "input"}
"""Built-in functions that do."""

SHELLS = {
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "commands.getoutput"),
    *("pty.spawn", "tempfile.mktemp", "code.interact", "yaml.load", "yaml.load_all", "yaml.full_load"),
    *("yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load_all", "numpy.load", "np.load"),
    *("pandas.read_pickle", "torch.hub.load", "runpy.run_path", "runpy.run_module", "xml.sax.parse"),
}

SHELL_OF_A_CELL = "/bin/sh"
"""`shell: true` of a command cell is the one shell: cells/command_start.py executes it for a line of the user's."""


def files(repository: Path) -> Iterator[tuple[str, ast.Module]]:
    for root in ROOTS:
        for path in sorted((repository / root).rglob("*.py")):
            yield f"{path.relative_to(repository)}", ast.parse(path.read_text(), str(path))


def calls(tree: ast.Module) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def keywords(call: ast.Call) -> dict[str, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg}


def faults(tree: ast.Module) -> Iterator[str]:
    """What of this file could make code of data."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"import {alias.name}" for alias in node.names if alias.name.split(".")[0] in UNPICKLING)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNPICKLING:
            yield f"from {node.module}"
    for call in calls(tree):
        name, given = ast.unparse(call.func), keywords(call)
        if name in RUNNING or name.removeprefix("builtins.") in RUNNING or name in SHELLS:
            yield f"{name}()"
        if name.endswith("torch.load") and given.get("weights_only") != "True":
            yield f"{name}() without weights_only=True"
        for option in ("shell", "trust_remote_code", "allow_pickle"):
            if given.get(option, "False") != "False":
                yield f"{name}({option}=...)"
        if name == "yaml.Loader" or any(value in ("yaml.Loader", "yaml.UnsafeLoader") for value in given.values()):
            yield f"{name}() with a loader that makes objects"
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for base in map(ast.unparse, node.bases):
                if "Loader" in base and base not in ("yaml.SafeLoader",) and base.startswith("yaml."):
                    yield f"class {node.name}({base})"


def test_no_file_makes_code_of_data(repository: Path) -> None:
    seen, found = 0, []
    for name, tree in files(repository):
        seen += 1
        found += [f"{name}: {fault}" for fault in faults(tree)]
    assert seen > 100
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        *("import pickle", "from marshal import loads", "import joblib.numpy_pickle", "eval(x)", "exec('y')"),
        *("builtins.eval(x)", "os.system(x)", "subprocess.run(x, shell=True)", "subprocess.Popen(x, shell=flag)"),
        *("yaml.load(x)", "yaml.load(x, Loader=yaml.SafeLoader)", "f(Loader=yaml.UnsafeLoader)", "torch.load(p)"),
        *("torch.load(p, weights_only=False)", "AutoModel.from_pretrained(p, trust_remote_code=True)"),
        *("np.load(p)", "f(allow_pickle=True)", "tempfile.mktemp()", "class L(yaml.Loader): pass"),
        "f(trust_remote_code=config.trust)",
    ],
)
def test_the_check_sees_it(code: str) -> None:
    assert list(faults(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        *(
            "model.eval()",
            "re.compile(x)",
            "os.execvpe(a, b, c)",
            "subprocess.run(x)",
            "subprocess.run(x, shell=False)",
        ),
        *("torch.load(p, weights_only=True)", "f(trust_remote_code=False)", "class L(yaml.SafeLoader): pass"),
    ],
)
def test_the_check_leaves_others_alone(code: str) -> None:
    assert list(faults(ast.parse(code))) == []


def test_one_shell_of_a_command_and_no_other(repository: Path) -> None:
    found = set()
    for name, tree in files(repository):
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node.value in (SHELL_OF_A_CELL, "sh", "bash", "/bin/bash"):
                found.add(name)
    assert found == {"daemon/overnight/cells/command_start.py"}


def test_models_are_loaded_without_their_code(repository: Path) -> None:
    """transformers runs a repository's Python only when it is told to; GGUF and safetensors hold none."""
    loading = {}
    for name, tree in files(repository):
        for call in calls(tree):
            if ast.unparse(call.func).endswith(".from_pretrained"):
                loading[f"{name}:{call.lineno}"] = keywords(call).get("trust_remote_code", "False")
    assert loading
    assert set(loading.values()) == {"False"}


def test_a_chat_template_runs_in_a_sandbox(repository: Path) -> None:
    """Templates come with models, and are programs."""
    text = (repository / "daemon/overnight/engines/chat.py").read_text()
    assert "ImmutableSandboxedEnvironment(" in text
    for name, tree in files(repository):
        for call in calls(tree):
            assert ast.unparse(call.func) not in ("jinja2.Environment", "Environment", "jinja2.Template"), name


def test_a_schema_in_a_foreign_queue_is_not_trusted(repository: Path, tmp_path: Path) -> None:
    """A view or a trigger of a file that somebody else made must not reach beyond the database."""
    for name, tree in files(repository):
        if any(ast.unparse(call.func) == "sqlite3.connect" for call in calls(tree)):
            text = (repository / name).read_text()
            opened = text.count("sqlite3.connect(") - text.count('sqlite3.connect(":memory:")')
            assert text.count("PRAGMA trusted_schema = OFF") >= opened, name
    with Queue.open(tmp_path / "queue.db") as queue, queue._db.read() as connection:
        assert connection.execute("PRAGMA trusted_schema").fetchone()[0] == 0


def test_yaml_knows_plain_values_alone() -> None:
    assert issubclass(yaml_source._Loader, yaml_source.yaml.SafeLoader)
    assert not issubclass(yaml_source._Loader, yaml_source.yaml.Loader)


# -- the service --------------------------------------------------------------------------------------------------

HIGHEST_EXPOSURE = 4.0
"""Of systemd-analyze, from 0 (nothing can be reached) to 10. What is left has its reason in etc/overnight.service."""


@pytest.fixture
def service(repository: Path) -> Path:
    return repository / "etc" / "overnight.service"


@pytest.fixture
def analyze() -> str:
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip("no systemd-analyze here")
    return found


def analyzed(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr


def test_the_service_is_little_exposed(analyze: str, service: Path) -> None:
    if "--offline" not in analyzed(analyze, "--help"):
        pytest.skip("this systemd-analyze looks at running services only")
    said = analyzed(analyze, "security", "--offline=true", "--no-pager", str(service))
    exposure = re.search(r"exposure level for overnight\.service: ([0-9.]+)", said)
    assert exposure is not None, said
    assert float(exposure[1]) <= HIGHEST_EXPOSURE


def test_systemd_understands_every_line(analyze: str, service: Path, tmp_path: Path) -> None:
    """But for the program and the account, which are the user's, and what an older systemd does not know."""
    text = service.read_text()
    text = re.sub(r"^ExecStart=.*", "ExecStart=/bin/true", text, flags=re.MULTILINE)
    text = re.sub(r"^User=.*", "User=root", text, flags=re.MULTILINE)
    unit = tmp_path / "overnight.service"
    unit.write_text(text.replace("\nDelegateSubgroup=supervisor", ""))
    assert analyzed(analyze, "verify", str(unit)) == ""
    unit.write_text(text.replace("\nPrivateMounts=", "\nPrivateMountz="))
    assert "PrivateMountz" in analyzed(analyze, "verify", str(unit)), "it would say so"


def test_what_is_left_out_has_a_reason(service: Path) -> None:
    text = service.read_text()
    reasons = text[text.index("# Left out on purpose:") :]
    for setting in (
        *("ProtectControlGroups", "ProtectProc", "ProtectHome", "PrivateTmp", "PrivateDevices", "PrivateUsers"),
        *("MemoryDenyWriteExecute", "PrivateNetwork", "RestrictNamespaces", "SystemCallArchitectures", "RemoveIPC"),
    ):
        assert setting in reasons, setting
        assert f"\n{setting}=" not in text, setting


def test_the_supervisors_socket_and_files_are_the_users(repository: Path) -> None:
    text = (repository / "etc" / "supervisord.conf").read_text()
    assert "\nchmod=0700" in text
    assert "\numask=077" in text
    assert "[inet_http_server]" not in text, "nothing listens on the network"
