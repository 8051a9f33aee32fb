"""var/run/pressure.json as the daemon, the screens and the watchdog's own tools read it; and the watchdog's answer to
`--once --json`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from typing import Any

from fuzz import documents
from fuzz.sealing import same, sealed
from fuzz.target import Case, Target, check_harmless, check_line, expect
from helpers.verdict_ring import heartbeat
from overnight.cli import doctor, status, text
from overnight.dispatch import pressure
from overnight.doctor import home_checks, memory_checks, watchdog_view
from overnight.doctor.facts import Running, Settings
from overnight_watchdog import journal

TOKENS = (b'"checksum":"', b'"level":"kill"', b'"monotonic_s":', b'"boot_id":', b'"frozen":', b" " * 64)


class Pressure(Target):
    """The daemon's reader, and what screens make of it."""

    name = "pressure.json (daemon)"
    tokens = TOKENS

    def seeds(self) -> Sequence[bytes]:
        low = {
            "level": "evict",
            "slope_bytes_per_s": 54_840_524,
            "exhaustion_s": 3.25,
            "frozen": 2,
            "hold_bytes": 2**29,
        }
        return [heartbeat(os.getpid()), heartbeat(os.getpid(), **low, foreseen=True), heartbeat(os.getpid(), age_s=9.0)]

    def documents(self) -> Sequence[Any]:
        return [json.loads(seed) for seed in self.seeds()]

    def render(self, document: Any) -> bytes:
        return sealed(document, journal.PRESSURE_BYTES)

    def __init__(self, folder: Any) -> None:
        super().__init__(folder)
        self._path = folder / "pressure.json"
        self._known = [json.loads(seed) for seed in self.seeds()]

    def _same(self, data: bytes) -> bool:
        """Is it one of the seeds but for the moment at which it was made?"""
        try:
            moment = json.loads(data).get("monotonic_s")
        except (ValueError, RecursionError, AttributeError):
            return False
        return same(data, *({**known, "monotonic_s": moment} for known in self._known))

    def read(self, case: Case) -> str:
        self._path.write_bytes(case.data)
        last, now = pressure.last(self._path), pressure.read(self._path)
        if last is None:
            return "nothing"
        expect(case.crafted or self._same(case.data), "a damaged heartbeat was believed")
        expect(now is None or now.age_s <= pressure.STALE_S, "a stale one was believed")
        expect(last.age_s > -1.0, "one of the future was believed")
        for figure in (last.limit_bytes, last.headroom_bytes, last.frozen, last.hold_bytes, last.pid, last.start_ticks):
            expect(figure is None or 0 <= figure < 2**63, f"no figure that can be: {figure}")
        shown = {
            "frozen": last.frozen,
            "slope_bytes_per_s": last.slope_bytes_per_s,
            "exhaustion_s": last.exhaustion_s,
        }
        check_line(f"{text.size(last.headroom_bytes)} {text.size(last.limit_bytes)} {status._trend(shown)}.")
        check_line(last.level)
        rows = home_checks.running_checks(Running("running", None, last), watchdog_view.View())
        check_harmless("\n".join(doctor.lines(rows, 80)))
        return "stale" if now is None else "fresh"


class OwnPressure(Pressure):
    """The watchdog's own reader."""

    name = "pressure.json (watchdog)"
    clear = (ValueError,)

    def read(self, case: Case) -> str:
        self._path.write_bytes(case.data)
        try:
            journal.read_pressure(self._path)
        except ValueError:
            return "refused"
        expect(case.crafted or self._same(case.data), "a damaged heartbeat was believed")
        return "taken"


class Answer(Target):
    """`overnight-watchdog --once --json` as `doctor` reads it."""

    name = "the watchdog's answer (doctor)"
    tokens = (b'"bounds":', b'"abilities":', b'"limit_bytes":', b'"source":')

    def _one(self) -> dict[str, Any]:
        bound = {
            "source": "cgroup:/sys/fs/cgroup/x",
            "limit_bytes": 2**31,
            "headroom_bytes": 2**30,
            "usage_bytes": 2**30,
        }
        able = {"ok": True, "detail": "as root"}
        names = ("psi", "memory_cgroup", "oom_score_adj", "mlock", "pidfd", "process_mrelease", "inotify")
        return {
            "v": 1,
            "level": "ok",
            "limit_bytes": 2**31,
            "limit_source": "budget",
            "headroom_bytes": 2**30,
            "usage_bytes": 2**30,
            "machine_bytes": 2**34,
            "monotonic_s": time.monotonic(),
            "bounds": [bound, {**bound, "source": "machine"}],
            "abilities": dict.fromkeys(names, able),
        }

    def seeds(self) -> Sequence[bytes]:
        return [documents.dump(self._one()).encode()]

    def documents(self) -> Sequence[Any]:
        return [self._one()]

    def read(self, case: Case) -> str:
        view = watchdog_view.understand(case.data.decode(errors="replace"))
        if view.complaint:
            return check_line(view.complaint)
        bounds = view.bounds()
        expect(all(isinstance(limit, int) for _, limit in bounds), "a limit that is no number")
        rows = list(memory_checks.memory_checks(view, memory_checks.Psi.UNKNOWN, self.folder))
        rows += home_checks.running_checks(Running("running", None, None), view)
        rows.append(home_checks.budget_check(Settings(2**30), view))
        check_harmless("\n".join(doctor.lines(rows, 80)))
        return f"{min(3, len(bounds))} bounds"
