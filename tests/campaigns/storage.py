"""A disk that goes bad as a whole under the real daemon, and comes back: it costs time only."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

from campaigns.base import Campaign, Finding, Round, Violation
from helpers import undisturbed
from helpers.home import Home
from helpers.small_disk import CannotMount, SmallDisk
from helpers.waiting import until
from overnight.cells import transcript

_EXT4 = ("mkfs.ext4", "e2fsck", "losetup")
_TURNS = 40


class Storage(Campaign):
    name: ClassVar[str] = "storage"
    tries: ClassVar[str] = (
        "`var/` or `var/results` on a disk of its own (tmpfs, ext4) that fills up, runs out of names, is read-only or "
        "given up by the kernel while cells run, or before the daemon starts; then it is mended"
    )
    proves: ClassVar[tuple[str, ...]] = ("5", "1", "2")

    def missing(self) -> str | None:
        return None if os.geteuid() == 0 else "needs root: it mounts small file systems"

    def rounds(self, seed: int, *, quick: bool) -> Sequence[Round]:
        del seed  # the disk decides when it is full
        if quick:
            return [Round("full: results on tmpfs", {"how": "full", "where": "results", "on": "tmpfs"})]
        return [
            *(
                Round(f"{how}: {where} on {on}", {"how": how, "where": where, "on": on})
                for how, where, on in (
                    ("full", "results", "tmpfs"),
                    ("full", "var", "tmpfs"),
                    ("full", "results", "ext4"),
                    ("full", "var", "ext4"),
                    ("no names left", "results", "tmpfs"),
                    ("no names left", "var", "tmpfs"),
                    ("full again and again", "var", "tmpfs"),
                    ("given up", "results", "ext4"),
                    ("given up", "var", "ext4"),
                    ("full at the start", "var", "tmpfs"),
                    ("full at the start", "var", "ext4"),
                    ("read-only at the start", "results", "tmpfs"),
                    ("read-only at the start", "var", "tmpfs"),
                    ("read-only at the start", "var", "ext4"),
                )
            ),
        ]

    def run(self, one: Round, folder: Path) -> Finding:
        how, where, on = (one.arguments[name] for name in ("how", "where", "on"))
        if on == "ext4" and (lacking := [tool for tool in _EXT4 if shutil.which(tool) is None]):
            return Finding(counts={f"rounds skipped: no {lacking[0]}": 1})
        with ExitStack() as stack:
            point = folder / "h" / "var" / ("results" if where == "results" else "")
            image = folder / "disk.img" if on == "ext4" else None
            inodes = (200 if where == "var" else 12) if how == "no names left" else 0
            try:
                disk = stack.enter_context(SmallDisk(point, image, size=(16 if image else 12) * 2**20, inodes=inodes))
                return _Rounds(disk, Home(folder / "h"), where).run(how, stack)
            except CannotMount as why:
                return Finding(counts={f"rounds skipped: {why}": 1})


class _Rounds:
    """One disk, one home on it."""

    def __init__(self, disk: SmallDisk, home: Home, where: str) -> None:
        self.disk, self.home, self.where = disk, home, where
        self.found = Finding()
        self.whole: dict[str, bytes] = {}

    def run(self, how: str, stack: ExitStack) -> Finding:
        stack.callback(self.home.end)
        options = {"delay_s": 0.03, "reply_tokens": 29}
        self.home.submit(limits={"max_iterations": _TURNS}, options=options)
        self.whole = undisturbed.transcripts(self.home)
        match how:
            case "full":
                self._bad_while_cells_run(self.disk.fill)
            case "no names left":
                self._bad_while_cells_run(self.disk.fill_names, stops=False)
            case "full again and again":
                self._again_and_again()
            case "given up":
                self._given_up()
            case "full at the start":
                self._bad_at_the_start(self.disk.fill, self.disk.empty)
            case _:
                self._read_only_at_the_start()
        self.found.count("rounds that ended with the same bytes", not self.found.violations)
        return self.found

    # -- while cells run --------------------------------------------------------------------------------------

    def _bad_while_cells_run(self, spoil: Any, *, stops: bool = True) -> None:
        daemon = self._running()
        spoil()
        if stops:
            until(lambda: not self.home.registered("cell"), what="every cell has stopped")
            self._interrupted_cleanly()
        else:
            until(lambda: self._told() or not self.home.registered("cell"), 30, "somebody notices")
        self.found.expect(daemon.poll() is None, "the daemon did not outlive it")
        if self.where == "results":  # the queue has room: it knows why
            until(lambda: "no_space" in {cell["reason_code"] for cell in self.home.cells()}, what="the queue knows why")
        began_s = time.monotonic()
        self.disk.empty()
        self._done(began_s)
        self.found.expect(daemon.poll() is None, "the daemon did not outlive it")

    def _again_and_again(self) -> None:
        daemon = self._running()
        for _ in range(4):
            before = sum(map(len, self.home.transcripts().values()))
            self.disk.fill()
            until(lambda: not self.home.registered("cell"), what="every cell has stopped")
            self._interrupted_cleanly()
            self.disk.empty()
            until(lambda before=before: sum(map(len, self.home.transcripts().values())) > before, 30, "it goes on")
            self.found.count("times that the disk was full")
        self._done(time.monotonic())
        self.found.expect(daemon.poll() is None, "the daemon did not outlive it")

    def _given_up(self) -> None:
        """The disk is read-only until it was unmounted, checked and mounted again: nothing may hold it then."""
        daemon = self._running()
        self.disk.give_up()
        until(lambda: not self.home.registered("cell"), what="every cell has stopped")
        self._interrupted_cleanly()
        self.found.expect(daemon.poll() is None, "the daemon did not outlive it")
        self.found.expect(self.home.stop() == 0, "the daemon does not stop in good order on a read-only disk")
        self.disk.repair()
        began_s = time.monotonic()
        self.home.start()
        self._done(began_s)

    def _running(self) -> Any:
        daemon = self.home.start()
        until(
            lambda: (
                len(self.home.transcripts()) == 2
                and all(data.count(b"\n") > 4 for data in self.home.transcripts().values())
            ),
            what="both cells are under way",
        )
        return daemon

    # -- before anything runs ---------------------------------------------------------------------------------

    def _bad_at_the_start(self, spoil: Any, mend: Any) -> None:
        spoil()
        daemon = self.home.start()
        try:
            code = daemon.wait(3)  # it neither dies nor is restarted for ever
            self.found.violations.append(f"the daemon does not wait: it ended with {code}")
        except subprocess.TimeoutExpired:
            self.found.count("daemons that waited for room")
        began_s = time.monotonic()
        mend()
        self._done(began_s)

    def _read_only_at_the_start(self) -> None:
        self.disk.read_only(on=True)
        if self.where == "results":
            daemon = self.home.start()
            until(
                lambda: "disk_error" in {cell["reason_code"] for cell in self.home.cells()}, 20, "the queue knows why"
            )
            self.found.expect(daemon.poll() is None, "the daemon did not outlive it")
            began_s = time.monotonic()
            self.disk.read_only(on=False)
            self._done(began_s)
            return
        for command in ("daemon", "up", "submit", "retry", "status"):
            args = {"submit": [str(self.home.paths.home / "night.yaml")], "retry": ["--grid", "night"]}
            done = self.home(command, *args.get(command, []), code=None, timeout=60)
            lines = done.stderr.strip().splitlines()
            said = f"overnight {command} on a read-only disk: {done.returncode}, {done.stderr!r}"
            self.found.expect(done.returncode == 2 and len(lines) == 1, said)
            self.found.count("commands that said so in one line")
        began_s = time.monotonic()
        self.disk.read_only(on=False)
        self.home.start()
        self._done(began_s)

    # -- what must be -----------------------------------------------------------------------------------------

    def _told(self) -> bool:
        return any(line["event"] in ("queue_unavailable", "cell_ended") for line in self.home.log())

    def _interrupted_cleanly(self) -> None:
        for key, data in self.home.transcripts().items():
            seen = transcript.check(self.home.paths.transcript("night", key))
            torn = seen.fault is not None
            self.found.expect(not torn, f"{key}: {seen.fault} of {len(data)} bytes")
            self.found.expect(self.whole[key].startswith(data), f"{key}: other bytes than undisturbed")
            self.found.count("cells interrupted")

    def _done(self, mended_s: float) -> None:
        self.home.wait_done(90)
        self.found.took("from mended to done", time.monotonic() - mended_s)
        if self.home.transcripts() != self.whole:
            raise Violation("it ended with other bytes than undisturbed")
        cells = self.home.cells()
        self.found.expect({cell["tries_used"] for cell in cells} == {0}, "a try was used up")
        told = self.home("verify", code=None).stdout
        self.found.expect("0 with a problem" in told, f"verify: {told}")
