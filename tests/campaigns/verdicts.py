"""Real OOM kills and plain SIGKILLs, mixed, in slots that are used again: each is named for what it was."""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from campaigns.base import Campaign, Finding, Round
from helpers.memory_cgroup import MemoryCgroup, Unavailable
from helpers.wards import AROUND_BYTES, CAP_BYTES, MIB, Named, Ward, grow, held, hold, wards


class Verdicts(Campaign):
    name = "verdicts"
    tries = "a cell that dies of its cap, of a cgroup above it, or of kill -9, at rest and at the brink"
    proves = ("10",)
    alone = True

    def missing(self) -> str | None:
        if os.geteuid() != 0:
            return "needs root: it makes memory cgroups"
        try:
            with MemoryCgroup.made(AROUND_BYTES):
                return None
        except Unavailable as reason:
            return str(reason)

    def rounds(self, seed: int, *, quick: bool) -> Sequence[Round]:
        return [Round(f"ten deaths, {number}", {"seed": seed + number}) for number in range(1 if quick else 10)]

    def run(self, one: Round, folder: Path) -> Finding:
        """Five OOM kills and five plain ones, shuffled."""
        finding = Finding()
        with wards() as pair:
            deaths = _deaths(pair, folder)
            random.Random(one.arguments["seed"]).shuffle(deaths)
            for what, expected, die in deaths:
                named = die()
                finding.count("deaths named rightly", named == expected)
                finding.count("OOM kills", expected[0] != "lost")
                finding.count("kills", expected[0] == "lost")
                finding.expect(named == expected, f"{what}: expected {expected}, named {named}")
        return finding


def _deaths(pair: tuple[Ward, Ward], folder: Path) -> list[tuple[str, Named, Callable[[], Named]]]:
    """(what it is, what it has to be called, how to die)."""
    large, small = pair
    file = folder / "file"

    def write_files() -> None:
        """More than the cap: page cache meets it too, and is thrown out."""
        with file.open("wb", buffering=0) as out:
            for _ in range(2 * CAP_BYTES // MIB):
                out.write(b"x" * MIB)

    def files_then_grow() -> None:
        write_files()
        grow()

    def meets_its_cap_with_files() -> None:
        write_files()
        hold(4)

    def in_one_piece() -> None:
        held.append(mmap.mmap(-1, 4 * CAP_BYTES))
        held[-1].write(b"x" * 4 * CAP_BYTES)

    def give_back() -> None:
        hold(CAP_BYTES // MIB - 2)
        held.clear()

    cap, above = ("over_cap", "cgroup_cap", "certain"), ("oom_killed", "kernel_oom", "certain")
    lost = ("lost", "killed", "certain")
    return [
        ("its cap", cap, lambda: large.dies(grow)),
        ("its cap, after files", cap, lambda: large.dies(files_then_grow)),
        ("the cgroup above, capped", above, lambda: small.dies(grow, 10 * AROUND_BYTES)),
        ("the cgroup above, uncapped", above, lambda: small.dies(grow, None)),
        ("its cap, in one piece", cap, lambda: large.dies(in_one_piece)),
        ("kill -9 at rest", lost, lambda: large.dies(lambda: None, kill=True)),
        ("kill -9 near its cap", lost, lambda: large.dies(lambda: hold(CAP_BYTES // MIB - 2), kill=True)),
        ("kill -9 after its files met the cap", lost, lambda: large.dies(meets_its_cap_with_files, kill=True)),
        ("kill -9 without a cap", lost, lambda: small.dies(lambda: hold(8), None, kill=True)),
        ("kill -9 after it gave much back", lost, lambda: large.dies(give_back, kill=True)),
    ]
