"""Others at the same home, pids that mean somebody else by now, an emptied var/run/, and a clock that jumps."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

from campaigns.base import Campaign, Finding, Round
from helpers import undisturbed
from helpers.home import Home
from helpers.shifted_clock import ShiftedClock
from helpers.waiting import until
from overnight import durable, procfs
from overnight.dispatch.registry import Registration

HOUR_S, YEAR_S = 3600.0, 365 * 86400.0
BEFORE_1980 = 5 * YEAR_S
_BACK: dict[str, tuple[float | None, bool]] = {
    "an hour": (HOUR_S, False),
    "a year": (YEAR_S, False),
    "an hour, across a restart": (HOUR_S, True),
    "to 1975, across a restart": (None, True),
}
"""By how much, None = to 1975; while the daemon is down?"""
_FILES = (
    *("daemon.lock", "watchdog.lock", "daemon.json", "daemon.beat", "pressure.json", "verdicts.ring"),
    *("supervisor.sock", "supervisord.pid", "cells"),
)


class Strangers(Campaign):
    name: ClassVar[str] = "strangers"
    tries: ClassVar[str] = (
        "two daemons at once, stale locks, pid files and registrations that name innocent processes, pids used again, "
        "var/run/ or a file of it deleted, the wall clock set an hour, a year and to 1975 and back"
    )
    proves: ClassVar[tuple[str, ...]] = ("8", "9", "2")

    def rounds(self, seed: int, *, quick: bool) -> Sequence[Round]:
        parts = [
            *(Round(f"pairs of daemons {number}", {"what": "pairs", "pairs": 10}) for number in (1, 2)),
            Round("pairs of watchdogs", {"what": "watchdogs", "pairs": 10}),
            *(Round(f"pids used again {number}", {"what": "pids"}) for number in (1, 2, 3)),
            Round("stale files", {"what": "stale"}),
            Round("var/run deleted", {"what": "emptied", "names": ["var/run"] * 5}),
            Round("files of var/run deleted", {"what": "emptied", "names": [*_FILES]}),
            *(Round(f"clock jumps {number}", {"what": "jumps", "jumps": 8}) for number in (1, 2)),
            *(Round(f"clock set back while cells wait: {name}", {"what": "waits", "how": name}) for name in _BACK),
        ]
        if quick:
            few: dict[str, dict[str, Any]] = {
                "pairs of daemons": {"what": "pairs", "pairs": 1},
                "clock set back while cells wait": {"what": "waits", "how": "an hour"},
            }
            parts = [Round(key, arguments) for key, arguments in few.items()]
        return [Round(part.key, {**part.arguments, "seed": f"{seed}:{part.key}"}) for part in parts]

    def run(self, one: Round, folder: Path) -> Finding:
        dice = random.Random(one.arguments["seed"])
        match one.arguments["what"]:
            case "pairs":
                return _pairs(folder, dice, one.arguments["pairs"])
            case "watchdogs":
                return _watchdogs(folder, one.arguments["pairs"])
            case "pids":
                return _pids_again(folder, dice)
            case "stale":
                return _stale(folder)
            case "emptied":
                return _emptied(folder, dice, one.arguments["names"])
            case "jumps":
                return _jumps(folder, dice, one.arguments["jumps"])
            case _:
                return _waits(folder, *_BACK[one.arguments["how"]])


# -- two of a kind --------------------------------------------------------------------------------------------


def _pairs(folder: Path, dice: random.Random, pairs: int) -> Finding:
    """Exactly one of two daemons works, the other one says why it does not; one that is killed is no hindrance."""
    found, home = Finding(), Home(folder / "h")
    command = [sys.executable, "-m", "overnight", "--home", str(home.paths.home), "daemon"]
    try:
        home.submit(limits={"max_iterations": 40}, options={"delay_s": 0.02})
        whole = undisturbed.transcripts(home)
        for _ in range(pairs):
            both = []
            for _ in range(2):
                both.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
                time.sleep(dice.choice([0.0, 0.0, dice.uniform(0, 0.3)]))
            until(lambda both=both: any(each.poll() is not None for each in both), 20, "one of them gives way")
            found.expect(sum(each.poll() is None for each in both) == 1, "both of two daemons ended")
            for each in both:
                if (code := each.poll()) is None:
                    until(lambda pid=each.pid: _daemon_pid(home) == pid, 20, "the other one works")
                    each.kill()  # the next pair comes at once
                _, said = each.communicate()
                one_line = len(said.strip().splitlines()) == 1 and "another daemon runs on" in said
                found.expect(code is None or (code == 2 and one_line), f"a second daemon: {code}, {said!r}")
            found.count("pairs of daemons")
        home.start()
        home.wait_done()
        found.expect(home.transcripts() == whole, "other bytes than undisturbed")
        found.expect({cell["tries_used"] for cell in home.cells()} == {0}, "a try was used up")
    finally:
        home.end()
    return found


def _daemon_pid(home: Home) -> int | None:
    try:
        return int(json.loads(home.paths.daemon_state.read_bytes())["pid"])
    except (OSError, ValueError):
        return None


def _watchdogs(folder: Path, pairs: int) -> Finding:
    found, home = Finding(), Home(folder / "h")
    command = [sys.executable, "-m", "overnight_watchdog", "--home", str(home.paths.home)]
    try:
        for _ in range(pairs):
            both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
            until(lambda both=both: any(each.poll() is not None for each in both), 20, "one of them gives way")
            found.expect(sum(each.poll() is None for each in both) == 1, "both of two watchdogs ended")
            for each in both:
                if (code := each.poll()) is None:
                    each.kill()
                _, said = each.communicate()
                one_line = len(said.strip().splitlines()) == 1 and "one watchdog a home" in said
                found.expect(code is None or (code == 2 and one_line), f"a second watchdog: {code}, {said!r}")
            found.count("pairs of watchdogs")
    finally:
        home.end()
    return found


# -- pids of others -------------------------------------------------------------------------------------------


def _pids_again(folder: Path, dice: random.Random) -> Finding:
    """In a pid namespace of its own, where every pid can be had: see `helpers.pid_reuse`."""
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode
    ):
        return Finding(counts={"rounds skipped: no pid namespace can be made here": 1})
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [*unshare, sys.executable, "-m", "helpers.pid_reuse", str(folder / "h"), str(dice.randrange(2**31))],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode != 0:
        return Finding(violations=[f"pid_reuse ended with {done.returncode}: {done.stderr[-2000:]}"])
    told = json.loads(done.stdout)
    return Finding(counts=told["counts"], violations=told["violations"])


def _stale(folder: Path) -> Finding:
    """Locks, pid files and registrations of before name innocent processes, who are left alone."""
    found, home = Finding(), Home(folder / "h", watchdog=True)
    innocents = [subprocess.Popen(["sleep", "600"], start_new_session=True) for _ in range(4)]

    def expect_alive(after: str) -> None:
        gone = [each.pid for each in innocents if each.poll() is not None]
        found.expect(not gone, f"{after}: the innocent processes {gone} were ended")
        found.count("times that innocent processes outlived something")

    try:
        home.submit(limits={"max_iterations": 150})
        whole = undisturbed.transcripts(home)
        _name(home, innocents)
        said = home("down").stdout
        found.expect("not running" in said, f"down, without a supervisord: {said!r}")
        expect_alive("down")
        _name(home, innocents)
        home("up")
        expect_alive("up")
        until(lambda: home.statuses().get("running") == 2)
        # supervisord's pid file is overwritten while it runs; the daemon that it starts again looks into it.
        home.paths.supervisor_pid.write_text(str(innocents[0].pid))
        daemon = _daemon_pid(home)
        assert daemon is not None
        os.kill(daemon, 9)
        until(
            lambda: _daemon_pid(home) not in (None, daemon), 30, "the daemon is back, whatever stands in the pid file"
        )
        expect_alive("a daemon's restart")
        began_s = time.monotonic()
        done = home("down", code=None, timeout=100)
        found.took("down with a wrong pid file", time.monotonic() - began_s)
        found.expect(done.returncode == 0, f"down with a wrong pid file: {done}")
        expect_alive("down with a wrong pid file")
        home("up")
        home.wait_done()
        expect_alive("all")
        found.expect(home.transcripts() == whole, "other bytes than undisturbed")
    finally:
        home.paths.supervisor_pid.unlink(missing_ok=True)
        home.end()
        for each in innocents:
            each.kill()
            each.wait()
    return found


def _name(home: Home, innocents: Sequence[subprocess.Popen[bytes]]) -> None:
    """Leave everything as a machine that was switched off would: with the pids of others."""
    for each, role in zip(innocents, ("cell", "warm", "daemon", "command"), strict=True):
        ticks = (procfs.start_ticks(each.pid) or 0) - 1
        entry = Registration(each.pid, ticks, each.pid, role)
        data = durable.canonical({"v": 1, "boot_id": procfs.boot_id(), **vars(entry)}).encode()
        (home.paths.registry / f"{each.pid}.json").write_bytes(data)
    holder = {"v": 1, "boot_id": procfs.boot_id(), "pid": innocents[2].pid, "start_ticks": 1, "since": "then"}
    for path in (home.paths.lock, home.paths.watchdog_lock, home.paths.daemon_state):
        path.write_text(json.dumps(holder))
    home.paths.supervisor_pid.write_text(str(innocents[3].pid))


# -- var/run --------------------------------------------------------------------------------------------------


def _emptied(folder: Path, dice: random.Random, names: Sequence[str]) -> Finding:
    """Delete var/run/, or a file of it, at random moments: it recovers by itself, or after `overnight up`."""
    found, home = Finding(), Home(folder / "h", watchdog=True)
    dice.shuffle(order := list(names))
    try:
        home.submit(scaffolds=[1, 2], limits={"max_iterations": 1000}, options={"delay_s": 0.05})
        home("up")
        for name in order:
            until(lambda: home.statuses().get("running") == 2, 40, f"cells run, before {name} is deleted")
            time.sleep(dice.uniform(0, 1.5))
            before = _turns(home)
            _delete(home, name)
            time.sleep(dice.uniform(0, 1.0))
            began_s = time.monotonic()
            found.count(f"times that {name} was deleted")
            if not _goes_on(home, before, dice.choice([0.0, 8.0])):
                home("up")
                found.count("times that it took `overnight up`")
                until(lambda before=before: _turns(home) > before, 30, f"it goes on without {name}")
            found.took("from deleted to going on", time.monotonic() - began_s)
            found.expect(_of(home, "supervisord") == 1, f"{name} deleted: {_of(home, 'supervisord')} supervisords")
        home("up")  # a socket that is gone is missed by nobody but us
        home("down")
        found.expect(_of(home, "overnight") == 0, f"down left {_of(home, 'overnight')} processes")
        _expect_prefixes(found, home)
    finally:
        home.end()
    return found


def _delete(home: Home, name: str) -> None:
    if name == "var/run":
        # At one stroke: the heartbeats are made anew while their folder is being emptied.
        shutil.rmtree(home.paths.run.rename(home.paths.var / "gone"))
    elif name == "cells":
        shutil.rmtree(home.paths.registry.rename(home.paths.var / "gone"))
    else:
        (home.paths.run / name).unlink(missing_ok=True)


def _turns(home: Home) -> int:
    return sum(data.count(b"\n") for data in home.transcripts().values())


def _goes_on(home: Home, before: int, patience_s: float) -> bool:
    """Do cells make turns within that time, and does supervisord answer?"""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if home.paths.supervisor_socket.exists() and _turns(home) > before + 10 and home.registered("cell"):
            return True
        time.sleep(0.1)
    return False


def _of(home: Home, word: str) -> int:
    """How many processes of this home have this word in their command line."""
    count = 0
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes().decode(errors="replace") if entry.name.isdigit() else ""
        except OSError:
            continue
        count += str(home.paths.home) in line and word in line
    return count


def _expect_prefixes(found: Finding, home: Home) -> None:
    whole = undisturbed.transcripts(home)
    for key, data in home.transcripts().items():
        found.expect(data.endswith(b"\n") and whole[key].startswith(data), f"{key}: other bytes than undisturbed")
    told = home("verify", code=None).stdout
    found.expect("0 with a problem" in told, f"verify: {told}")
    found.expect({cell["tries_used"] for cell in home.cells()} == {0}, "a try was used up")


# -- the clock ------------------------------------------------------------------------------------------------


def _jumps(folder: Path, dice: random.Random, jumps: int) -> Finding:
    """The whole stack while its wall clock jumps: no result, no verdict and no heartbeat follows it."""
    found = Finding()
    with ExitStack() as stack:
        clock = stack.enter_context(ShiftedClock(folder))
        home = Home(folder / "h", watchdog=True)
        stack.callback(home.end)
        home.submit(scaffolds=[1, 2, 3], limits={"max_iterations": 40 * jumps}, options={"delay_s": 0.03})
        whole = undisturbed.transcripts(home)
        home("up")
        until(lambda: home.statuses().get("running") == 2)
        daemon = _daemon_pid(home)
        for number in range(jumps):
            time.sleep(dice.uniform(0.2, 1.0))
            how = dice.choice(["1 hour", "a year", "to 1975"] if number else ["1 hour"])
            if how == "to 1975":
                clock.jump_to(BEFORE_1980)
            else:
                clock.jump((HOUR_S if how == "1 hour" else YEAR_S) * (1 if number % 2 else -1))
            found.count(f"jumps of the clock: {how}")
            if number == jumps // 2:
                home("down")
                clock.jump(dice.choice([-1, 1]) * HOUR_S)
                found.count("jumps of the clock: across a restart")
                home("up")
                until(lambda before=daemon: _daemon_pid(home) not in (None, before))
                daemon = _daemon_pid(home)
            ready_s = home.json("status")["next_ready_s"]
            found.expect(not ready_s, f"after a jump of {how}: a cell waits for {ready_s} s")
        home.wait_done()
        found.expect(home.transcripts() == whole, "other bytes than undisturbed")
        found.expect(_daemon_pid(home) == daemon, "the daemon was restarted")
        cells = [(cell["tries_used"], cell["reason_code"]) for cell in home.cells()]
        found.expect(set(cells) == {(0, "")}, f"verdicts: {cells}")
        told = [line["event"] for line in _lines(home)]
        wrong = {"watchdog_silent", "watchdog_restarted", "daemon_silent", "daemon_restarted", "cells_thawed"} & {*told}
        found.expect(not wrong, f"the logs tell of {sorted(wrong)}")
        home("down")
    return found


def _lines(home: Home) -> list[dict[str, Any]]:
    return [json.loads(line) for path in home.paths.log.glob("*.jsonl") for line in path.read_text().splitlines()]


def _waits(folder: Path, back_s: float | None, restart: bool) -> Finding:
    """Cells that failed wait some seconds for their next try; then the clock is set back: they do not wait for it."""
    found = Finding()
    with ExitStack() as stack:
        clock = stack.enter_context(ShiftedClock(folder))
        home = Home(folder / "h")
        stack.callback(home.end)
        config = home.paths.config
        config.write_text(config.read_text().replace("retry_delay_s = 0.2", "retry_delay_s = 3"))
        home.submit(options={"fail_at_turn": 3, "delay_s": 0.0}, tries=2)
        home.start()
        until(lambda: all(cell["not_before"] > 0 for cell in home.cells()), 20, "both wait")
        if restart:
            home.stop()
        if back_s is None:
            clock.jump_to(BEFORE_1980)
        else:
            clock.jump(-back_s)
        began_s = time.monotonic()
        if restart:
            home.start()
        until(lambda: home.statuses() == {"failed": 2}, 30, "both try again")
        found.took("from set back to the last try's end", time.monotonic() - began_s)
        found.count("cells that waited while the clock was set back", 2)
        tries = [cell["tries_used"] for cell in home.cells()]
        found.expect(tries == [2, 2], f"tries: {tries}")
    return found
