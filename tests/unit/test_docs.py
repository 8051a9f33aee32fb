"""The documentation is true: every command, option, setting and event is in it, and its example is a grid."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from overnight.cli.main import COMMANDS, parser
from overnight.config import Config
from overnight.errors import GridError
from overnight.grid.expand import expand
from overnight.grid.loader import parse_grid


def subparsers(top: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


@pytest.fixture
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text()


@pytest.fixture
def operations(repository: Path) -> str:
    return (repository / "docs" / "operations.md").read_text()


def test_every_command_is_in_the_readme(readme: str) -> None:
    commands = subparsers(parser())
    assert len(commands) == len(COMMANDS)
    for name in commands:
        assert re.search(rf"overnight {name}\b", readme), name


def test_every_option_is_documented(readme: str, operations: str) -> None:
    for name, command in subparsers(parser()).items():
        for action in command._actions:
            for option in action.option_strings:
                if option.startswith("--") and option != "--help":
                    assert option in readme + operations, f"{name} {option}"


def test_every_setting_is_documented(repository: Path, operations: str) -> None:
    shipped = (repository / "etc" / "overnight.toml").read_text()
    for section, field in Config.model_fields.items():
        assert f"[{section}]" in shipped
        for key in field.annotation.model_fields:  # type: ignore[union-attr]
            assert re.search(rf"^#? ?{key} = ", shipped, re.MULTILINE), f"{section}.{key}"
            assert f"`{section}.{key}`" in operations, f"{section}.{key}"


def logged(repository: Path) -> Iterator[str]:
    """Names of events that the daemon logs: first arguments of log.info("...") and the like."""
    for path in (repository / "daemon" / "overnight").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and node.args):
                continue
            called = ast.unparse(node.func)
            if not re.search(r"(^|\.)_?log\.(debug|info|warning|error|critical)$|^write$", called):
                continue
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value
            elif isinstance(first, ast.JoinedStr):
                yield "cell_begun"
                yield "cell_resumed"


def test_every_log_event_is_documented(repository: Path, operations: str) -> None:
    events = set(logged(repository))
    assert {"daemon_started", "cell_ended", "cell_resumed", "warm_loaded"} <= events
    for event in sorted(events):
        assert f"`{event}`" in operations, event


def told(repository: Path) -> Iterator[str]:
    """Names of events that the watchdog logs: texts that its writers are given beside the severity, and the values of
    tables and variables that are called after events."""
    writers = {"write", "line", "action", "seldom", "tell", "_tell"}
    for path in (repository / "watchdog" / "overnight_watchdog").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            values: list[ast.expr] = []
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in writers:
                values = node.args
            elif isinstance(node, ast.Assign) and "event" in ast.unparse(node.targets[0]).lower():
                table = node.value
                values = table.values if isinstance(table, ast.Dict) else getattr(table, "elts", [table])
            texts = {each.value for each in values if isinstance(each, ast.Constant) and isinstance(each.value, str)}
            yield from texts - {"info", "warning", "error"}


def test_every_watchdog_event_is_documented(repository: Path, operations: str) -> None:
    events = set(told(repository))
    assert {
        *("watchdog_started", "pressure_changed", "pressure_sampled", "sampling_failed", "watchdog_stopped"),
        *("shrink_asked", "frozen", "thawed", "evicted", "killed", "victim_gone", "victim_stays", "no_victim"),
        *("thrashing", "daemon_restarted", "action_skipped", "action_planned"),
    } <= events
    table = operations[operations.index("`var/log/watchdog.jsonl`:") :]
    for event in sorted(events):
        assert f"`{event}`" in table, event


def test_readme_shows_the_two_commands(readme: str) -> None:
    assert "make demo" in readme
    assert "make test" in readme


def test_links_between_documents_lead_somewhere(repository: Path) -> None:
    for page in [repository / "README.md", *sorted((repository / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_grid_in_the_readme_is_one(readme: str) -> None:
    """The example parses, and its misspelling is answered with the very line that the page shows."""
    (example,) = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    assert sum(1 for _ in expand(parse_grid(example, "my-night.yaml"))) == 18
    with pytest.raises(GridError) as error:
        parse_grid(example.replace("temperature: 0.8", "temprature: 0.8"), "my-night.yaml")
    assert f"overnight: {error.value}" in readme
