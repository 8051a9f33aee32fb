"""Kills with a real model: the cells end with the SHA-256 of an undisturbed run."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import ClassVar

import yaml

from campaigns.base import Campaign, Finding, Round, Violation
from campaigns.report import REPOSITORY
from helpers.home import Home
from overnight import procfs
from overnight.cli.submit import ensure_model
from overnight.dispatch.signals import Handle
from overnight.errors import UserError
from overnight.paths import Paths

MODEL = "smollm2-135m-instruct"
ROUNDS, KILLS = 5, 10
VICTIMS = {"cell": 6, "warm": 2, "daemon": 2}
_WITHIN_S = 120.0


class RealKills(Campaign):
    name: ClassVar[str] = "real_kills"
    tries: ClassVar[str] = f"SIGKILL over cells, warm servers and the daemon while {MODEL} talks"
    proves: ClassVar[tuple[str, ...]] = ("1", "2")
    instead: ClassVar[str] = "tests/integration/test_real_model.py::test_kills_change_nothing_and_weights_are_shared"

    def __init__(self) -> None:
        self._whole: dict[tuple[int, int], dict[str, str]] = {}

    def missing(self) -> str | None:
        try:
            ensure_model(Paths.of(REPOSITORY).ensure(), MODEL, "float32")
        except (UserError, ImportError) as error:
            return f"needs the model {MODEL}: {error}"
        return None

    def rounds(self, seed: int, *, quick: bool) -> Sequence[Round]:
        if quick:
            # One model load for all of it: the undisturbed cells come first, in the same warm server.
            arguments = {
                "seed": seed,
                "victims": ["cell"] * 2,
                "turns": 4,
                "token_limit": 6,
                "beside": True,
                "pause_s": 0.5,
            }
            return [Round("two kills", arguments)]
        found = []
        for number in range(1, ROUNDS + 1):
            victims = Random(f"{seed}:{number}").choices([*VICTIMS], [*VICTIMS.values()], k=KILLS)
            how = {"turns": 8, "token_limit": 24, "beside": False, "pause_s": 4.0}
            found.append(Round(f"ten kills {number}", {"seed": seed, "victims": victims, **how}))
        return found

    def run(self, one: Round, folder: Path) -> Finding:
        turns, token_limit = one.arguments["turns"], one.arguments["token_limit"]
        rng, finding = Random(f"{one.arguments['seed']}:{one.key}"), Finding()
        if (shape := (turns, token_limit)) not in self._whole and not one.arguments["beside"]:
            self._whole[shape] = _undisturbed(folder / "whole", *shape)
        home = _home(folder / "h")
        try:
            home.start()
            if shape not in self._whole:
                self._whole[shape] = _whole(home, *shape)
            grids: list[str] = []
            for victim in one.arguments["victims"]:
                pause_s = rng.uniform(0.0, one.arguments["pause_s"])
                while not _kill(home, victim, pause_s, rng, finding):
                    grids.append(f"real{len(grids)}")
                    home("submit", str(_grid(home, grids[-1], turns, token_limit)))
            _wait_done(home)
            verified = home("verify", code=None).stdout
            finding.expect("0 with a problem" in verified, f"verify: {verified.strip()}")
            for grid in grids:
                hashes = _hashes(home, grid)
                for key, wanted in self._whole[shape].items():
                    told = f"{grid}/{key}: its SHA-256 is {hashes.get(key)}, undisturbed it is {wanted}"
                    finding.expect(hashes.get(key) == wanted, told)
            for cell in home.cells():
                good = (str(cell["status"]), cell["tries_used"], cell["turns"]) == ("done", 0, turns)
                told = f"{cell['key']}: {cell['status']}, {cell['tries_used']} tries used, {cell['turns']} turns"
                finding.expect(good, f"{told}: {cell['reason']}")
            finding.count("cells", len(home.cells()))
            home.stop()
        finally:
            home.end()
        return finding


def _home(folder: Path) -> Home:
    """A home that uses the checkout's model store."""
    home = Home(folder)
    home.paths.models.rmdir()
    home.paths.models.symlink_to(Paths.of(REPOSITORY).models)
    return home


def _grid(home: Home, name: str, turns: int, token_limit: int) -> Path:
    sampling = {"temperature": 1.0, "top_p": 0.98}
    grid = {
        "name": name,
        "seed": 11,
        "models": [{"name": "135m", "engine": "transformers", "source": MODEL, "sampling": sampling}],
        "scaffolds": [1, 2],
        "limits": {"max_iterations": turns, "target_output_tokens": None, "token_limit": token_limit},
    }
    path = home.paths.home / f"{name}.yaml"
    path.write_text(yaml.safe_dump(grid))
    return path


def _undisturbed(folder: Path, turns: int, token_limit: int) -> dict[str, str]:
    home = _home(folder)
    try:
        home.start()
        found = _whole(home, turns, token_limit)
        home.stop()
        return found
    finally:
        home.end()


def _whole(home: Home, turns: int, token_limit: int) -> dict[str, str]:
    """The hashes of the same cells, undisturbed: a grid's name is no part of what its cells depend on."""
    home("submit", str(_grid(home, "whole", turns, token_limit)))
    _wait_done(home)
    return _hashes(home, "whole")


def _hashes(home: Home, grid: str) -> dict[str, str]:
    """Cell key -> SHA-256."""
    found = home.paths.grid_results(grid).glob("*/transcript.jsonl")
    return {path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def _kill(home: Home, role: str, pause_s: float, rng: Random, finding: Finding) -> bool:
    """At a random moment of its work: loading and replaying happen between two kills as well. False when there is no
    work left."""
    until_s, which = time.monotonic() + _WITHIN_S, rng.random()
    while not _alive(home, role):
        if not _open(home):
            return False
        _expect_time(home, until_s, f"no {role} appeared")
    time.sleep(pause_s)
    if not _open(home):
        return False
    resumed, alive = _starts(home), _alive(home, role)
    at_s = time.monotonic()
    if role == "daemon":
        home.kill()
        home.start()
    elif not alive or (handle := Handle.open(*alive[int(which * len(alive))])) is None:
        return _kill(home, role, pause_s, rng, finding)  # it has ended meanwhile, another one begins
    else:
        handle.kill()
        handle.close()
    finding.count("kills")
    finding.count(f"of {role}")
    while _starts(home) == resumed and _open(home):
        _expect_time(home, until_s, f"nothing runs after a {role} was killed")
    if _starts(home) > resumed:
        finding.took(f"recovery of a {role}", time.monotonic() - at_s)
    return True


def _open(home: Home) -> bool:
    return bool({"pending", "running"} & home.statuses().keys())


def _alive(home: Home, role: str) -> list[tuple[int, int]]:
    """(pid, start time) of the registered processes of a role that live."""
    found = [(entry["pid"], entry["start_ticks"]) for entry in home.registrations(role)]
    return [each for each in found if procfs.alive(*each)]


def _starts(home: Home) -> int:
    """How often a cell has begun or gone on so far, its finished turns replayed."""
    return len(home.log("cell_begun")) + len(home.log("cell_resumed"))


def _wait_done(home: Home) -> None:
    until_s = time.monotonic() + 3 * _WITHIN_S
    while _open(home):
        _expect_time(home, until_s, "stuck")


def _expect_time(home: Home, until_s: float, what: str) -> None:
    if time.monotonic() > until_s:
        open_cells = [(cell["key"], str(cell["status"]), cell["turns"]) for cell in home.cells()]
        raise Violation(f"{what}: {open_cells}; log: {home.log()[-6:]}")
    time.sleep(0.05)
