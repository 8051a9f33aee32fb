"""etc/overnight.service agrees with etc/supervisord.conf, and does not take away what the watchdog needs."""

from __future__ import annotations

from configparser import RawConfigParser
from pathlib import Path

import pytest

ETC = Path(__file__).resolve().parents[2] / "etc"


@pytest.fixture
def service() -> dict[str, str]:
    parser = RawConfigParser()
    parser.optionxform = str  # type: ignore[assignment,method-assign] # systemd's keys have capitals
    parser.read(ETC / "overnight.service")
    return dict(parser["Service"])


def test_systemd_waits_longer_than_supervisord_needs(service: dict[str, str]) -> None:
    parser = RawConfigParser()
    parser.read(ETC / "supervisord.conf")
    programs = [parser[name] for name in parser.sections() if name.startswith("program:")]
    assert len(programs) >= 2
    assert int(service["TimeoutStopSec"]) > sum(int(program["stopwaitsecs"]) for program in programs)


def test_it_comes_back_and_one_oom_kill_does_not_end_it(service: dict[str, str]) -> None:
    assert service["ExecStart"].endswith(" up --foreground")
    assert (service["Restart"], service["KillMode"], service["OOMPolicy"]) == ("always", "mixed", "continue")
    assert int(service["OOMScoreAdjust"]) < 0


def test_cgroups_proc_homes_and_accelerators_stay_within_reach(service: dict[str, str]) -> None:
    assert "memory" in service["Delegate"].split()
    hidden = {"ProtectControlGroups", "ProtectProc", "ProcSubset", "ProtectHome", "PrivateDevices"}
    assert hidden & service.keys() == set()
    assert service["ProtectSystem"] != "strict"  # models and results may be anywhere
