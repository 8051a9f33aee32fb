"""Shared fixtures, and the rule that nothing that can be tested here is skipped in CI."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.home import Home
from overnight.paths import Paths

REPOSITORY = Path(__file__).resolve().parents[1]
_skipped: list[str] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need root say so by their marker; elsewhere they are skipped with that reason."""
    for item in items:
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root: it mounts a small file system or makes a cgroup"))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped:
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI a skipped test is a failure: a check that silently did not run proves nothing."""
    if os.environ.get("OVERNIGHT_NO_SKIP") and _skipped and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if os.environ.get("OVERNIGHT_NO_SKIP") and _skipped:
        terminalreporter.write_line(f"skipped although OVERNIGHT_NO_SKIP is set: {', '.join(_skipped)}", red=True)


@pytest.fixture
def repository() -> Path:
    return REPOSITORY


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A home of its own, with nothing left running afterwards."""
    found = Home(tmp_path / "h")
    yield found
    found.end()


@pytest.fixture(scope="session")
def repository_paths() -> Paths:
    """The checkout's own home: only its model store is used, so that nothing is converted twice."""
    return Paths.of(REPOSITORY).ensure()
