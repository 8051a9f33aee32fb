"""How good are claims? What was foretold, and what was learned, against what cells truly took.

    python bench/claims.py [--real] [--runs 3]

Each kind of cell is run as a grid on a fresh home, one cell after another, and then as a second grid of the same kind.
The first claim of the first grid is the analytic prediction (engines), or the configured prior (commands, of which
nothing can be foretold); that of the second grid is learned. The true peak is told by a process that knows nothing of
Overnight: every millisecond it reads memory.stat of the cells' cgroups (anonymous + shmem) and the kernel memory
charged to them. Ratios are claim / true peak: below 1 the claim was too small, and the cell met its cap or was given
more while it ran; `over` counts the attempts that ended so.

scripted     the engine without a model: with a cache of 64 MiB, and one that keeps 4 MiB more at each of 12 turns
command      curves of bench/curves.py: the same curve again, and `~` ones whose peaks differ by up to 25 % between
             seeds, other ones in the second grid
model        SmolLM2-135M as in grids/minimal.yaml (--real; some minutes)

Needs memory cgroups (root). Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from homes import Home

from helpers.memory_cgroup import MemoryCgroup, Unavailable
from helpers.waiting import until
from overnight.dispatch import budget_cgroup
from overnight.paths import Paths

MIB = 2**20
SETTINGS = '[daemon]\nslots = 1\n[memory]\nbudget = "6GiB"\n'
CURVES = [sys.executable, "-I", "-S", str(Path(__file__).with_name("curves.py"))]
SCALE = 0.4
WINDOW_S = 0.02
DEADLINE_S = 1800.0
WITHIN = 0.15

SCRIPTED: dict[str, dict[str, Any]] = {
    "scripted, 64 MiB cache": {"cache_bytes": 64 * MIB, "delay_s": 0.1, "reply_tokens": 20},
    "scripted, grows by 48 MiB": {"grow_bytes": 4 * MIB, "delay_s": 0.1, "reply_tokens": 20},
}
LIMITS = {"max_iterations": 12, "target_output_tokens": None, "token_limit": 64, "shift_hours": 10, "timeout": "10m"}


@dataclass(frozen=True)
class Subject:
    """One kind of cell: how its first (0) and its second (1) grid are submitted."""

    title: str
    file: dict[str, Any] | None = None
    command: tuple[str, str] = ("", "")
    """The curve, and its seeds in both grids as `1..3;4..6`, or one number for the same curve again."""
    claims: list[dict[str, Any]] = field(default_factory=list)

    def submit(self, home: Home, runs: int, turn: int, scratch: Path) -> str:
        """Put it into the queue; returns the grid's name."""
        name = f"{''.join(char if char.isalnum() else '-' for char in self.title)}-{turn}"
        if self.file is not None:
            file = scratch / f"{name}.yaml"
            file.write_text(yaml.safe_dump(self.file | {"name": name, "seed": 7 + turn, "runs": runs}))
            home("submit", str(file))
            return name
        kind, seeds = self.command
        seed = "{seed}" if ";" in seeds else seeds
        text = " ".join((*map(shlex.quote, CURVES), kind, seed, str(SCALE), shlex.quote(str(scratch))))
        repeat = ["--axis", f"seed={seeds.split(';')[turn]}"] if ";" in seeds else ["--runs", str(runs)]
        home("submit", "--command", text, *repeat, "--name", name, "--cwd", str(scratch))
        return name


def subjects(real: bool, runs: int) -> list[Subject]:
    engine = {"name": "s", "engine": "scripted"}
    found = [
        Subject(title, {"models": [engine | {"options": options}], "scaffolds": [1], "limits": LIMITS})
        for title, options in SCRIPTED.items()
    ]
    found += [Subject(f"command, {kind}", command=(kind, "1")) for kind in ("flat", "small", "ramp", "spike", "teeth")]
    others = f"1..{runs};{runs + 1}..{2 * runs}"
    found += [Subject(f"command, ~{kind}", command=(kind, others)) for kind in ("flat", "ramp", "stairs")]
    if real:
        minimal = yaml.safe_load((Path(__file__).parents[1] / "grids" / "minimal.yaml").read_text())
        minimal["scaffolds"] = minimal["scaffolds"][:1]
        found.append(Subject("model, 135m", minimal))
    return found


def measure(home: Home, subject: Subject, runs: int, turn: int, scratch: Path) -> dict[str, Any]:
    """Run one grid; claims and peaks in bytes."""
    with sampling(home.paths) as sampled:
        name = subject.submit(home, runs, turn, scratch)
        home.wait(name, DEADLINE_S)
        attempts = home.attempts(name)
    completed = [row for row in attempts if row["outcome"] == "completed"]
    if not completed:
        raise SystemExit(f"{name}: no cell completed: {home.outcomes(name)}")
    true = [sampled.highest(row["claimed_at"], row["ended_at"]) for row in completed]
    return {
        "source": attempts[0]["claim_source"],
        "claim": first_claim(home, attempts[0]),
        "true": max(true),
        "true_mean": statistics.mean(true),
        "own": max(row["peak_bytes"] or 0 for row in completed),
        "over": sum(row["outcome"] in ("over_cap", "oom_killed") for row in attempts),
        "evicted": sum(row["outcome"] == "evicted" for row in attempts),
        "completed": len(completed),
        "samples_per_s": round(sampled.rate),
    }


def first_claim(home: Home, attempt: dict[str, Any]) -> int:
    """What it began with: the queue holds what it had in the end, and the log each time that it was given more."""
    for line in (home.paths.log / "daemon.jsonl").read_text().splitlines():
        event = json.loads(line)
        names = (event.get("cell"), event.get("attempt"), event.get("grid"))
        if event["event"] == "claim_extended" and names == (attempt["key"], attempt["number"], attempt["grid"]):
            return int(event["before_bytes"])
    return int(attempt["claim_bytes"])


class Sampled:
    """What the sampling process saw: maxima of windows of 20 ms, (begin, end, bytes)."""

    def __init__(self) -> None:
        self.windows: list[tuple[float, float, int]] = []
        self.rate = 0.0

    def read(self, file: Path) -> None:
        rows = [line.split() for line in file.read_text().splitlines()]
        self.windows = [(float(begin), float(end), int(size)) for begin, end, size, _ in rows]
        seconds = sum(end - begin for begin, end, _ in self.windows)
        self.rate = sum(int(row[3]) for row in rows) / seconds if seconds else 0.0

    def highest(self, begin_s: float, end_s: float) -> int:
        """Windows that began within: one that began before still shows the cell that was in the slot before."""
        return max((size for begin, _, size in self.windows if begin_s <= begin <= end_s), default=0)


@contextmanager
def sampling(paths: Paths) -> Iterator[Sampled]:
    """Sample while the body runs. What was seen can be asked for afterwards."""
    folder = budget_cgroup.place(paths.home)[1]
    with tempfile.TemporaryDirectory(prefix="overnight-bench-", dir="/tmp") as scratch:
        out = Path(scratch) / "peaks"
        sampler = subprocess.Popen([sys.executable, __file__, "--sample", str(folder), str(out)])
        sampled = Sampled()
        try:
            until(out.exists, what="the sampler")
            yield sampled
        finally:
            sampler.terminate()
            sampler.wait()
        sampled.read(out)


def sample_main(folder: str, out: str) -> None:
    """The sampling process: until SIGTERM, each millisecond, all `cell-*` below the folder; it writes as it goes."""
    slots: dict[Path, tuple[int, int]] = {}
    with Path(out).open("w", buffering=1) as file:
        looked = 0.0
        while True:
            begin, most, count = time.time(), 0, 0
            if begin - looked > 0.05:
                looked = begin
                for slot in Path(folder).glob("cell-*"):
                    if slot not in slots:
                        slots[slot] = _open(slot)
            while (now := time.time()) < begin + WINDOW_S:
                for slot, files in list(slots.items()):
                    try:
                        most = max(most, _held(*files))
                    except OSError:  # it was removed
                        for each in files:
                            os.close(each)
                        del slots[slot]
                count += 1
                time.sleep(max(0.0, now + 0.001 - time.time()))
            file.write(f"{begin:.4f} {time.time():.4f} {most} {count}\n")


def _open(slot: Path) -> tuple[int, int]:
    kernel = slot / "memory.kmem.usage_in_bytes"
    stat = os.open(slot / "memory.stat", os.O_RDONLY)
    return stat, os.open(kernel, os.O_RDONLY) if kernel.exists() else os.open(os.devnull, os.O_RDONLY)


def _held(stat: int, kernel: int) -> int:
    fields = dict(line.split() for line in os.pread(stat, 16384, 0).decode().splitlines())
    if "total_rss" in fields:  # v1
        return int(fields["total_rss"]) + int(fields.get("total_shmem", 0)) + int(os.pread(kernel, 32, 0) or 0)
    pinned = int(fields.get("kernel", 0)) - int(fields.get("slab_reclaimable", 0))
    return int(fields["anon"]) + int(fields["shmem"]) + max(0, pinned)


def report(found: dict[str, list[dict[str, Any]]]) -> None:
    heads = ("claim", "true", "/ true", "over", "learned", "true", "/ true", "over", "evicted", "own/true")
    print(f"\nMiB{'':24}{'from':>10}" + "".join(f"{head:>9}" for head in heads))
    near = 0
    for title, (first, second) in found.items():
        learned = second["claim"] / second["true"]
        near += abs(learned - 1) <= WITHIN
        shown = (
            f"{first['claim'] / MIB:.1f}",
            f"{first['true'] / MIB:.1f}",
            f"{first['claim'] / first['true']:.2f}",
            first["over"],
            f"{second['claim'] / MIB:.1f}",
            f"{second['true'] / MIB:.1f}",
            f"{learned:.2f}",
            second["over"],
            first["evicted"] + second["evicted"],
            f"{second['own'] / second['true']:.3f}",
        )
        print(f"{title:27}{first['source']:>10}" + "".join(f"{value!s:>9}" for value in shown))
    rates = [each["samples_per_s"] for pair in found.values() for each in pair]
    print(
        f"{near} of {len(found)} learned claims are within {WITHIN:.0%} of the true peak (the highest of the second"
        f" grid); own/true: what Overnight measured itself; {min(rates)} to {max(rates)} samples a second"
    )
    print(json.dumps({"bench": "claims", "within": near, "kinds": found}))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--real", action="store_true", help="the real model too")
    parser.add_argument("--runs", type=int, default=3, help="cells of each grid")
    args = parser.parse_args()
    try:
        with MemoryCgroup.made(MIB * 64):
            pass
    except Unavailable as reason:
        print(f"bench/claims.py measures nothing here: {reason}")
        print(json.dumps({"bench": "claims", "skipped": str(reason)}))
        return
    found: dict[str, list[dict[str, Any]]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="overnight-bench-", dir="/tmp") as scratch,
        Home.made(SETTINGS, models=Paths.of().models) as home,
    ):
        for subject in subjects(args.real, args.runs):
            found[subject.title] = [measure(home, subject, args.runs, turn, Path(scratch)) for turn in (0, 1)]
            print(f"  {subject.title}: {found[subject.title]}", file=sys.stderr, flush=True)
    report(found)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--sample"]:
        sample_main(*sys.argv[2:])
    else:
        main()
