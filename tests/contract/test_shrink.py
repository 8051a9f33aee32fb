"""SIGUSR1, engine by engine: memory comes back, and not one byte of the transcript changes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers import tiny_models
from helpers.specs import scripted_spec, warm_of
from overnight import memory
from overnight.cells import idle_loop
from overnight.cells.shrinking import Shrinker
from overnight.engines import model_store
from overnight.engines.base import Engine, Session
from overnight.engines.registry import make
from overnight.engines.scripted import ScriptedSession

Cell = tuple[Engine, dict[str, Any]]
TURNS = 4


@pytest.fixture(scope="module", params=["scripted", "transformers"])
def cell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cell:
    """A loaded engine and the specification of a cell that has something to give back."""
    if request.param == "scripted":
        spec = scripted_spec(turns=TURNS, cache_bytes=64 << 20, delay_s=0.2)
        return make(warm_of(spec), ""), spec
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("shrink")
    # 16 KiB of cache a token, and replies that do not end by themselves: what is cropped after a turn is worth having.
    shape = {"num_hidden_layers": 8, "num_key_value_heads": 4, "head_dim": 64, "hidden_size": 256}
    source = tiny_models.make(root / "model", "smollm2", **shape)
    model_store.add(root / "store", str(source), dtype="float32")
    spec = scripted_spec(turns=TURNS, token_limit=200)
    spec |= tiny_models.spec() | {"engine": "transformers"}
    warm = {"engine": "transformers", "source": str(source), "dtype": "float32", "device": "cpu", "options": {}}
    engine = make(warm, str(root / "store"))
    engine.load()
    return engine, spec


def nothing(_event: str, **_fields: Any) -> None: ...


@contextmanager
def signalled(every_s: float) -> Iterator[None]:
    """SIGUSR1 to ourselves again and again, at whatever moment that falls."""

    def again(_number: int, _frame: Any) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGALRM, again), signal.getsignal(signal.SIGUSR1)
    signal.setitimer(signal.ITIMER_REAL, every_s, every_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before[0])
        signal.signal(signal.SIGUSR1, before[1])


def run(cell: Cell, folder: Path, shrinker: Shrinker | None = None, report: Callable[..., None] = nothing) -> bytes:
    engine, spec = cell
    idle_loop.run(engine, spec, folder, report=report, shrinker=shrinker)
    return (folder / "transcript.jsonl").read_bytes()


def test_signals_at_any_moment_change_no_byte(cell: Cell, tmp_path: Path) -> None:
    undisturbed = run(cell, tmp_path / "quiet")
    seen: list[str] = []
    shrinker = Shrinker()
    shrinker.install()
    with signalled(0.05):
        assert run(cell, tmp_path / "asked", shrinker, lambda event, **_: seen.append(event)) == undisturbed
    first_turn = seen.index("turn")
    if cell[0].name == "scripted":
        assert "shrunk" in seen[:first_turn], "while the first turn is generated"
        assert seen.count("shrunk") > TURNS
    else:  # asked in every turn, it gives back at the turn's end
        assert "shrunk" not in seen[:first_turn]
        assert seen.count("shrunk") == TURNS


def spare_bytes(session: Any) -> int:
    """What a session holds and does not need before its next turn: a cache, room for tokens to come."""
    if isinstance(session, ScriptedSession):
        return 0 if session._cache is None else len(session._cache)
    spare = 0
    for layer in session._runner._cache.layers:
        for held in (layer.keys, layer.values):
            spare += held.untyped_storage().nbytes() - held[:, :, : layer._length].numel() * held.element_size()
    return spare


def test_asked_while_it_generates_it_has_given_back_by_the_turns_end(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One real signal, at the first safe point inside `generate`: told once, and the spare room is really gone."""
    undisturbed = run(cell, tmp_path / "quiet")
    engine, seen, spare = cell[0], [], []
    sessions: list[Session] = []
    shrinker = Shrinker()
    before = signal.getsignal(signal.SIGUSR1)

    def opened(*args: Any, **options: Any) -> Session:
        sessions.append(type(engine).open(engine, *args, **options))
        return sessions[0]

    def report(event: str, **_fields: Any) -> None:
        if event == "first_prefill":
            usual = sessions[0].safe_point

            def asked() -> None:
                sessions[0].safe_point = usual
                os.kill(os.getpid(), signal.SIGUSR1)
                usual()

            sessions[0].safe_point = asked
        if event in ("turn", "shrunk"):
            seen.append(event)
            spare.append(spare_bytes(sessions[0]))

    monkeypatch.setattr(engine, "open", opened)
    try:
        shrinker.install()
        assert run(cell, tmp_path / "asked", shrinker, report) == undisturbed
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen.count("shrunk") == 1
    assert seen.index("shrunk") < 2, "at the end of the turn in which it was asked"
    assert spare[seen.index("shrunk")] == 0
    if engine.name == "transformers":
        assert spare[0] > 1 << 20, "what was to be given back"


class Cut(Exception):
    """Stands for a kill."""


def test_a_replay_is_a_safe_point_too(cell: Cell, tmp_path: Path) -> None:
    undisturbed = run(cell, tmp_path / "quiet")

    def cut(event: str, **fields: Any) -> None:
        if event == "turn" and fields["turn"] == TURNS - 1:
            raise Cut

    with pytest.raises(Cut):
        run(cell, tmp_path / "broken", report=cut)
    shrinker, seen = Shrinker(), []

    def report(event: str, **_fields: Any) -> None:
        seen.append(event)
        shrinker.wanted = event in ("replaying", "turn")

    assert run(cell, tmp_path / "broken", shrinker, report) == undisturbed
    assert seen[:2] == ["replaying", "shrunk"]


def test_between_turns_real_bytes_come_back(cell: Cell, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Measured in a process of its own, as a cell is one: RssAnon before and after."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            shrinker, freed = Shrinker(), []

            def report(event: str, **fields: Any) -> None:
                if event == "shrunk":
                    freed.append(fields["before_bytes"] - fields["after_bytes"])
                shrinker.wanted = event == "turn"

            run(cell, tmp_path / "child", shrinker, report)
            os.write(write, json.dumps(freed).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        freed = json.loads(pipe.read())
    os.waitpid(child, 0)
    with capsys.disabled():
        shown = ", ".join(f"{count / 2**20:.1f}" for count in freed)
        print(f"\n{cell[0].name}: {TURNS} shrinks between turns gave back {shown} MiB")
    assert len(freed) == TURNS
    least = 63 << 20 if cell[0].name == "scripted" else 2 << 20
    assert min(freed) >= least


def test_without_a_signal_nothing_is_collected(cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> None:
        raise AssertionError("nobody asked")

    monkeypatch.setattr(memory, "give_back", never)
    run(cell, tmp_path, Shrinker())
