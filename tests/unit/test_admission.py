"""Admission as a table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overnight.dispatch.admission import Decision, Load, View, decide

QUIET = View(slots=2, used=0, pressure="ok", watchdog_required=True, servers={}, max_servers=1)


@pytest.mark.parametrize(
    ("view", "threads", "decision"),
    [
        (QUIET, 1, Decision("admit")),
        (replace(QUIET, used=1), 1, Decision("admit")),
        (replace(QUIET, used=2), 1, Decision("wait", "slots")),
        (replace(QUIET, used=1), 2, Decision("wait", "slots")),
        (QUIET, 8, Decision("admit")),  # larger than the machine: alone rather than never
        (replace(QUIET, pressure=None), 1, Decision("wait", "watchdog_silent")),
        (replace(QUIET, pressure=None, watchdog_required=False), 1, Decision("admit")),
        (replace(QUIET, pressure="hold"), 1, Decision("wait", "pressure_hold")),
        (replace(QUIET, pressure="kill", watchdog_required=False), 1, Decision("wait", "pressure_kill")),
        (replace(QUIET, delay_left_s=0.5), 1, Decision("wait", "delay")),
        (replace(QUIET, servers={"mine": Load(1)}, used=1), 1, Decision("admit")),
        (replace(QUIET, servers={"other": Load(1)}, used=1), 1, Decision("wait", "warm_servers")),
        (replace(QUIET, servers={"other": Load(0)}), 1, Decision("let_go", "model_change", "other")),
        (replace(QUIET, servers={"mine": Load(0, leaving=True)}), 1, Decision("wait", "warm_server_leaving")),
        (replace(QUIET, servers={"other": Load(0, leaving=True)}), 1, Decision("wait", "warm_server_leaving")),
        (replace(QUIET, servers={"other": Load(1)}, used=1, max_servers=2), 1, Decision("admit")),
    ],
)
def test_decide(view: View, threads: int, decision: Decision) -> None:
    assert decide(view, warm_key="mine", threads=threads) == decision
