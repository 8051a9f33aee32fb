"""The cells of a soak: a batch is of a few grids, and what each cell of it has to become is known."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

MIB = 2**20
HUNGRY = "scripted-hungry"
"""The source, and so the name, of the model whose warm server is killed once a batch."""

WAYS = {
    "fails": "exit 3",
    "returns": "test -e $OVERNIGHT_CHECKPOINT_DIR/m || {{ : > $OVERNIGHT_CHECKPOINT_DIR/m; exit 75; }}",
    "crashes": "kill -SEGV $$",
    # More than its first cap: the kernel kills it, and it comes back with a larger claim; or its cap is extended.
    "fills": "head -c 96M /dev/zero | tail -n 1 > /dev/null",
    "leaves": "sleep 60 & exit 0",
}
"""What a cell of a shell does, by the value of its axis. What it becomes: `BECOMES`."""
BECOMES = {
    "fails": "failed",
    "returns": "done",
    "crashes": "failed",
    "fills": "done",
    "leaves": "done",
}
_SCRIPT = "case {way} in\n" + "".join(f"{way}) {line} ;;\n" for way, line in WAYS.items()) + "esac"
SLEEPERS, EACH = 6, 2


@dataclass(frozen=True)
class Batch:
    """files: grids to submit, in this order. sleepers: the grid whose cells are cancelled while they run. becomes:
    cells by status when all is over."""

    files: tuple[Path, ...]
    sleepers: str
    becomes: Counter[str]

    @property
    def cells(self) -> int:
        return self.becomes.total()


def batch(folder: Path, number: int, cells: int, *, hungry: bool) -> Batch:
    """One of `cells` cells: four fifths idle loops of one and of two turns, commands, and all the bad ends. Each value
    of a command's axis is a new one, so that each command is a kind of its own. hungry: with cells that want all
    memory there is, for which every other warm server has to go."""
    stamp, wanting = f"{number:04d}", 2 * hungry
    bad = SLEEPERS + EACH * (len(WAYS) + 1) + wanting
    loops = (cells - bad) * 4 // 5 // 2
    commands = cells - bad - 2 * loops
    grids: list[dict[str, Any]] = [
        _commands(f"sleeps{stamp}", ["sleep", "60"], {"n": _range(number, SLEEPERS)}, grace="1s", tries=1),
        _commands(f"ends{stamp}", [_SCRIPT], {"way": list(WAYS), "n": _range(number, EACH)}, shell=True, tries=2),
        _commands(f"hangs{stamp}", ["sleep", "60"], {"n": _range(number, EACH)}, timeout="1s", tries=1),
        _loops(f"one{stamp}", loops, "scripted", 1, {}),
        _commands(f"true{stamp}", ["/bin/true"], {"n": _range(number, commands)}),
        _loops(f"two{stamp}", loops, "scripted", 2, {}),
    ]
    if hungry:
        grids.insert(3, _loops(f"hungry{stamp}", wanting, HUNGRY, 2, {"fail_at_turn": 1, "fail_kind": "memory"}))
    becomes = Counter({"cancelled": SLEEPERS, "failed": EACH, "done": 2 * loops + commands})
    for becoming in BECOMES.values():
        becomes[becoming] += EACH
    if hungry:
        becomes["quarantined"] += wanting
    files = []
    for grid in grids:
        files.append(folder / f"{grid['name']}.yaml")
        files[-1].write_text(yaml.safe_dump(grid, sort_keys=False))
    return Batch(tuple(files), f"sleeps{stamp}", becomes)


def _range(number: int, count: int) -> list[int]:
    return list(range(number * 10_000, number * 10_000 + count))


def _commands(name: str, command: list[str], axes: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"name": name, "kind": "command", "command": command, "axes": axes, "memory": "8MiB", **fields}


def _loops(name: str, runs: int, source: str, turns: int, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "seed": 7,
        "runs": runs,
        "scaffolds": [1],
        "models": [
            {"name": "script", "engine": "scripted", "source": source, "options": {"reply_tokens": 8, **options}}
        ],
        "limits": {"max_iterations": turns, "target_output_tokens": None, "token_limit": 16},
    }
