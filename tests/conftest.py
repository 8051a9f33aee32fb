"""Shared fixtures, and the rule that nothing that can be tested here is skipped in CI."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from helpers.arena import Arena
from helpers.home import Home
from helpers.memory_cgroup import MemoryCgroup, Unavailable
from overnight.paths import Paths

REPOSITORY = Path(__file__).resolve().parents[1]
UPSTREAM = REPOSITORY.parent / "shared/data/upstream"
_NO_UPSTREAM = f"the older harness's conversations are not in {UPSTREAM}"
_skipped: list[str] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need root say so by their marker; elsewhere they are skipped with that reason."""
    for item in items:
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root: it mounts a small file system or makes a cgroup"))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # What is no part of the repository cannot be asked of every machine that tests it.
    if report.skipped and _NO_UPSTREAM not in str(report.longrepr):
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


@pytest.fixture(scope="session")
def upstream() -> Path:
    """The folder of the older harness's conversations and of what its analysis found in them (reference.json)."""
    if not (UPSTREAM / "reference.json").is_file():
        pytest.skip(_NO_UPSTREAM)
    return UPSTREAM


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For whoever runs a model in the very process of the tests: others fork from it, and a child waits for ever for
    OpenMP's threads, which no fork brings along."""
    import torch

    before, torch_threads = os.environ.get("TOKENIZERS_PARALLELISM"), torch.get_num_threads()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(torch_threads)
    if before is None:
        del os.environ["TOKENIZERS_PARALLELISM"]
    else:
        os.environ["TOKENIZERS_PARALLELISM"] = before


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A home of its own, with nothing left running afterwards."""
    found = Home(tmp_path / "h")
    yield found
    found.end()


@pytest.fixture
def cgroup() -> Iterator[MemoryCgroup]:
    """A memory cgroup of our own with a limit of 256 MiB, below the one that we are in."""
    with ExitStack() as stack:
        try:
            made = stack.enter_context(MemoryCgroup.made(256 * 2**20))
        except Unavailable as reason:
            pytest.skip(str(reason))
        yield made


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Callable[[int], Arena]]:
    """Makes arenas: `arena(limit_bytes)`. Nothing is left in them afterwards."""
    with ExitStack() as stack:

        def make(limit_bytes: int) -> Arena:
            home = tmp_path / f"arena-{limit_bytes}-{len(list(tmp_path.iterdir()))}"
            try:
                return stack.enter_context(Arena.made(limit_bytes, home))
            except Unavailable as reason:
                pytest.skip(str(reason))

        yield make


@pytest.fixture(scope="session")
def repository_paths() -> Paths:
    """The checkout's own home: only its model store is used, so that nothing is converted twice."""
    return Paths.of(REPOSITORY).ensure()
