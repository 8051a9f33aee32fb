"""What the watchdog sees -> rows: the limit, what is left of it, and what the kernel lets us do. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from overnight import figures
from overnight.doctor.row import Row, Status
from overnight.doctor.watchdog_view import View

UNSAID = "this watchdog does not say"


class Psi(StrEnum):
    """Pressure stall information, as far as the kernel's configuration tells why it is not there."""

    BUILT_IN = "built in"
    ABSENT = "not built in"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class _Ability:
    """One of the watchdog's abilities: what it means to have it, and what is done without it."""

    name: str
    check: str
    have: str
    without: str
    needed: bool = False


_SERVICE = "or as a service: etc/overnight.service"
_ABILITIES = (
    _Ability(
        "budget_cgroup",
        "cgroup rights",
        "a memory cgroup of our own may be made",
        "A memory.budget is then counted process by process, which does as well. To get it: a cgroup that is "
        f"delegated to you (systemd: Delegate=memory), root, {_SERVICE}.",
    ),
    _Ability(
        "cgroup_counters",
        "cgroup counters",
        "the cgroup's own counters are used",
        "The machine's figures and those of the processes are used instead; only limits of cgroups that cannot "
        "be seen from here would be missed.",
    ),
    _Ability("psi", "PSI", "the kernel tells how long work waits for memory", ""),
    _Ability(
        "psi_trigger",
        "PSI triggers",
        "the kernel wakes the watchdog when memory stalls",
        "It looks by the clock alone, often enough when little is left. Triggers need a kernel with PSI and write "
        "access to /proc/pressure/memory (root, or Linux 6.4 and later).",
    ),
    _Ability(
        "mlock",
        "mlock",
        "the watchdog cannot be paged out",
        "Under pressure its own pages may have to be read again, which makes it slower just then. Allow it: "
        f"`ulimit -l unlimited` (LimitMEMLOCK=infinity), root, {_SERVICE}.",
    ),
    _Ability(
        "oom_score_adj",
        "oom_score_adj",
        "the watchdog may protect itself from the kernel's OOM killer",
        "Cells still raise their own score, so the kernel would take one of them first. To lower the watchdog's: "
        f"CAP_SYS_RESOURCE (a container may withhold it from root), {_SERVICE} (OOMScoreAdjust).",
    ),
    _Ability(
        "pidfd",
        "pidfd",
        "signals reach exactly the process that was meant",
        "Nothing can be signalled without it: Linux 5.3 or later is needed, and a container that allows pidfd_open.",
        needed=True,
    ),
    _Ability(
        "process_mrelease",
        "process_mrelease",
        "a killed process gives its memory back at once",
        "Memory of a killed process comes back when it has ended, a little later. Linux 5.15 or later has it.",
    ),
)

_PSI_ADVICE = {
    Psi.BUILT_IN: "The kernel has it, but switched off (or a container hides it): boot with the parameter psi=1.",
    Psi.ABSENT: "This kernel is built without it (CONFIG_PSI).",
    Psi.UNKNOWN: "A kernel that has it switched off gives it with the boot parameter psi=1; a container may hide it.",
}
_PSI_WITHOUT = "Until then thrashing is told by major page faults alone."

_LEVELS = {
    "ok": (Status.OK, ""),
    "hold": (Status.LACKS, "New cells wait until more is free. Those that run go on."),
    "shrink": (Status.LACKS, "New cells wait, and cells are asked to give back what they can. Make room."),
    "freeze": (Status.LACKS, "New cells wait, and growing ones are paused. Make room: what else is running here?"),
    "evict": (Status.BAD, "Cells would be taken out at once. Make room first: what else is running here?"),
    "kill": (Status.BAD, "Cells would be killed at once. Make room first: what else is running here?"),
}


def memory_checks(view: View, psi: Psi, home: Path) -> Iterator[Row]:
    """Every row that the watchdog's answer gives; a single bad one when it gave none."""
    if view.complaint:
        yield Row(
            "memory limit",
            Status.BAD,
            f"the watchdog does not answer: {view.complaint}",
            "Nobody guards the memory like this, and no more about it is known here. Mend what it says, then try: "
            f"overnight-watchdog --home {shlex.quote(str(home))} --once",
        )
        return
    yield _limit(view)
    yield _headroom(view)
    yield _swap(view)
    for ability in _ABILITIES:
        yield _ability(view, ability, psi)


def source(words: str) -> str:
    """`machine`, `budget` or `cgroup:FOLDER`, for people."""
    if words.startswith("cgroup:"):
        return f"the cgroup {words.removeprefix('cgroup:')}"
    return {"machine": "this machine", "budget": "memory.budget in etc/overnight.toml"}.get(words, words)


def _limit(view: View) -> Row:
    limit, words = view.whole("limit_bytes"), view.text("limit_source")
    if limit is None:
        return Row("memory limit", Status.LACKS, UNSAID)
    advice = ""
    if words is not None and words.startswith("cgroup:"):
        advice = "It comes from the container, the service or the session; all cells together get no more."
    return Row(
        "memory limit", Status.OK, f"{figures.size(limit)}, set by {source(words or 'what it does not say')}", advice
    )


def _headroom(view: View) -> Row:
    room, limit, level = view.whole("headroom_bytes"), view.whole("limit_bytes"), view.text("level")
    if room is None or level is None:
        return Row("headroom", Status.LACKS, UNSAID)
    share = f" ({100 * room / limit:.0f} %)" if limit is not None and limit > 0 else ""
    where = view.text("headroom_source")
    # A bound above the smallest one may be the fuller one: a parent cgroup that others fill.
    tighter = f", under {source(where)}" if where is not None and where != view.text("limit_source") else ""
    status, advice = _LEVELS.get(level, (Status.LACKS, "This level is not known here: is the watchdog a newer one?"))
    return Row("headroom", status, f"{figures.size(room)} free{share}{tighter}; pressure {level}", advice)


def _swap(view: View) -> Row:
    """Neither way is a lack: it only tells how running out of memory would look."""
    total = view.whole("swap_bytes")
    if total is None:
        return Row("swap", Status.LACKS, UNSAID)
    if total <= 0:
        return Row("swap", Status.OK, "none: memory runs out sooner, but nothing thrashes")
    return Row(
        "swap",
        Status.OK,
        f"{figures.size(total)}: memory runs out later, but what is swapped out is slow",
        "The watchdog takes memory that thrashes for memory that is gone. Cells that are steadily slow are a reason "
        "for fewer slots or a smaller model.",
    )


def _ability(view: View, ability: _Ability, psi: Psi) -> Row:
    found = view.ability(ability.name)
    if found is None:
        return Row(ability.check, Status.LACKS, UNSAID)
    ok, detail = found
    if ok:
        return Row(ability.check, Status.OK, ability.have)
    advice = f"{_PSI_ADVICE[psi]} {_PSI_WITHOUT}" if ability.name == "psi" else ability.without
    return Row(ability.check, Status.BAD if ability.needed else Status.LACKS, detail or "no", advice)
