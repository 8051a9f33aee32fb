"""Run in a pid namespace of its own: every pid of a dead daemon's registrations is given to an innocent process, which
must outlive the watchdog, the next daemon and `down`. Prints what came of it as JSON.

    unshare --pid --fork --mount-proc python -m helpers.pid_reuse HOME SEED
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from helpers import undisturbed
from helpers.home import Home
from helpers.waiting import until
from overnight import procfs
from overnight.dispatch.registry import Registration, Registry

_NEXT = Path("/proc/sys/kernel/ns_last_pid")
_TRIES = 200
Innocent = subprocess.Popen[bytes]


def main() -> None:
    folder, seed = Path(sys.argv[1]), int(sys.argv[2])
    dice, home = random.Random(seed), Home(folder, slots=3)
    violations: list[str] = []
    counts: dict[str, int] = {}
    innocents: dict[int, tuple[str, Innocent]] = {}

    def expect_alive(after: str) -> None:
        for pid, (role, process) in innocents.items():
            if process.poll() is not None:
                violations.append(f"the process that has the pid {pid} of a dead {role} was killed: {after}")
        counts[f"innocent processes that outlived {after}"] = len(innocents) - len(violations)

    try:
        home.submit(scaffolds=[1, 2, 3], limits={"max_iterations": 60}, options={"delay_s": 0.03})
        whole = undisturbed.transcripts(home)
        daemon = home.start()
        until(lambda: len(home.registrations("cell")) == 3, what="three cells run")
        time.sleep(dice.uniform(0, 0.5))
        dead = [*home.registrations("cell"), *home.registrations("warm"), *home.registrations("daemon")]
        daemon.kill()
        daemon.wait()
        for entry in dead:
            until(lambda entry=entry: _gone(entry["pid"]), 10, "they are gone")
        for entry in dead:
            innocents[entry["pid"]] = (entry["role"], take_pid(entry["pid"]))
        counts["pids used again"] = len(innocents)
        expect_alive("its birth")
        violations.extend(press(home))
        expect_alive("a watchdog that takes out whom it can")
        home.start()
        home.wait_done()
        expect_alive("the next daemon")
        if home.transcripts() != whole:
            violations.append("other bytes than undisturbed")
        home.paths.supervisor_pid.write_text(str(dice.choice(list(innocents))))
        home.stop()
        said = home("down").stdout
        if "not running" not in said:
            violations.append(f"down, without a supervisord: {said}")
        expect_alive("down")
    finally:
        for _, process in innocents.values():
            process.kill()
        home.paths.supervisor_pid.unlink(missing_ok=True)
        home.end()
    print(json.dumps({"violations": violations, "counts": counts}))


def _gone(pid: int) -> bool:
    """We are the init process here: whoever lost its parent is ours to be waited for."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass
    return not Path(f"/proc/{pid}").exists()


def take_pid(pid: int) -> Innocent:
    """Start a process that has this pid."""
    for _ in range(_TRIES):
        _NEXT.write_text(str(pid - 1))
        process = subprocess.Popen(["sleep", "600"])
        if process.pid == pid:
            return process
        process.kill()
        process.wait()
    raise RuntimeError(f"nobody got the pid {pid}")


def press(home: Home) -> list[str]:
    """A watchdog with a budget that is long spent; somebody who is registered as he should be shows that it acts."""
    victim = subprocess.Popen([sys.executable, "-c", "import time; x = b'x' * 2**25; time.sleep(600)"])
    until(lambda: (procfs.start_ticks(victim.pid) or 0) > 0)
    entry: dict[str, Any] = {"pid": victim.pid, "start_ticks": procfs.start_ticks(victim.pid), "pgid": os.getpgrp()}
    Registry(home.paths.registry).put(Registration(**entry, role="cell", cell="night/victim", by="a test"))
    home.paths.supervisor_pid.write_text(str(os.getpid()))  # the root of what the budget is for
    command = [sys.executable, "-m", "overnight_watchdog", "--home", str(home.paths.home), "--budget", "1MiB"]
    watchdog = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        victim.wait(20)
    except subprocess.TimeoutExpired:
        return ["the watchdog took nobody out: it proves nothing that the others live"]
    else:
        return []
    finally:
        victim.kill()
        watchdog.terminate()
        watchdog.wait(20)
        home.paths.supervisor_pid.unlink()


if __name__ == "__main__":
    main()
