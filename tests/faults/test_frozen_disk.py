"""A disk that stands still: its file system is frozen, as for a snapshot, while memory runs out."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from helpers.arena import LEAK, MIB, Arena, Workload
from helpers.memory_cgroup import Unavailable
from helpers.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.alone]
TOOLS = ("mkfs.ext4", "fsfreeze", "mount", "umount")


@pytest.fixture
def freezable(tmp_path: Path) -> Iterator[Path]:
    """A mounted ext4 of 32 MiB, thawed and gone afterwards."""
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        pytest.skip(f"without {', '.join(missing)} no file system can be frozen here")
    image, point = tmp_path / "disk.img", tmp_path / "disk"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(32 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    mounted = subprocess.run(
        ["mount", "-o", "loop", str(image), str(point)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"this root may not mount: {mounted.stderr.strip()}")
    try:
        yield point
    finally:
        subprocess.run(["fsfreeze", "-u", str(point)], capture_output=True, check=False)
        subprocess.run(["umount", "-l", str(point)], check=True)


def test_a_disk_that_stands_still_does_not_keep_it_from_acting(freezable: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        try:
            arena = stack.enter_context(Arena.made(256 * MIB, freezable / "h"))
        except Unavailable as reason:
            pytest.skip(str(reason))
        log = tmp_path / "leak.log"  # the leak's own log is on another disk
        command = [sys.executable, "-S", "-E", str(LEAK), "--log", str(log), "--prefill", str(120 * MIB), "ramp", "40"]
        leak = Workload(arena.cgroup.join(*command), log, tmp_path)
        try:
            arena.register(leak.started, freezes=False)
            arena.watch()
            subprocess.run(["fsfreeze", "-f", str(freezable)], check=True)
            leak.go()
            until(lambda: not leak.alive(), 30, "the end of the leak")
            assert arena.cgroup.oom_kills() == 0
            assert arena.watchdog is not None and arena.watchdog.poll() is None
        finally:
            subprocess.run(["fsfreeze", "-u", str(freezable)], check=False)
            leak.end()
        until(lambda: arena.events("victim_gone"), 10, "what it did, once it could be written")
        assert [record["step"] for record in arena.verdicts(leak)][:1] == ["evict"]
        (line,) = arena.events("evicted")
        assert (line["pid"], line["trigger"]) == (leak.started, "headroom")
