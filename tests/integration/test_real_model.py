"""The real SmolLM2-135M-Instruct under the real daemon: sharing, exact resume, and kills."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from helpers.home import Home
from helpers.waiting import until
from overnight.cli.submit import ensure_model
from overnight.paths import Paths

pytestmark = pytest.mark.real_model

MODEL = "smollm2-135m-instruct"


@pytest.fixture(scope="session")
def store(repository_paths: Paths) -> Path:
    """The checkout's model store, with the real model in it."""
    ensure_model(repository_paths, MODEL, "float32")
    return repository_paths.models


@pytest.fixture
def make_home(tmp_path: Path, store: Path) -> Iterator[Any]:
    homes: list[Home] = []

    def make(name: str) -> Home:
        home = Home(tmp_path / name)
        home.paths.models.rmdir()
        home.paths.models.symlink_to(store)
        homes.append(home)
        return home

    yield make
    for home in homes:
        home.end()


def grid(home: Home, *, turns: int, token_limit: int, scaffolds: list[int]) -> str:
    path = home.paths.home / "real.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "name": "real",
                "seed": 11,
                "models": [
                    {
                        "name": "135m",
                        "engine": "transformers",
                        "source": MODEL,
                        "sampling": {"temperature": 1.0, "top_p": 0.98},
                    }
                ],
                "scaffolds": scaffolds,
                "limits": {"max_iterations": turns, "target_output_tokens": None, "token_limit": token_limit},
            }
        )
    )
    return str(path)


def undisturbed(home: Home, **options: Any) -> dict[str, bytes]:
    home("submit", grid(home, **options))
    home.start()
    home.wait_done(300)
    home.stop()
    return home.transcripts()


def turns_on_disk(home: Home) -> int:
    return sum(data.count(b"\n") - 1 for data in home.transcripts().values())


def hashes(transcripts: dict[str, bytes]) -> dict[str, str]:
    return {key: hashlib.sha256(data).hexdigest() for key, data in transcripts.items()}


def test_kills_change_nothing_and_weights_are_shared(make_home: Any) -> None:
    options = {"turns": 4, "token_limit": 16, "scaffolds": [1, 2]}
    whole = undisturbed(make_home("whole"), **options)
    home = make_home("broken")
    home("submit", grid(home, **options))
    home.start()

    # Sharing: what a cell holds alone is a fraction of the weights, which the warm server holds in anonymous memory.
    cells = until(lambda: found if len(found := home.registered("cell")) == 2 else None, 60)
    until(lambda: turns_on_disk(home) >= 1, 60)
    (warm,) = home.registered("warm")
    weights = 135_000_000 * 4
    smaps = Path(f"/proc/{warm.pid}/smaps_rollup").read_text()
    anonymous = int(next(line for line in smaps.splitlines() if line.startswith("Anonymous:")).split()[1]) * 1024
    assert anonymous > 0.9 * weights
    assert ".safetensors" not in Path(f"/proc/{warm.pid}/maps").read_text()
    for cell in cells:
        try:
            assert psutil.Process(cell.pid).memory_full_info().uss < 0.5 * weights
        except psutil.NoSuchProcess:
            continue

    home.registered("cell")[0].kill()
    until(lambda: turns_on_disk(home) >= 3, 60)
    home.registered("warm")[0].kill()
    home.wait_done(200)
    assert hashes(home.transcripts()) == hashes(whole)
    assert "0 with a problem" in home("verify").stdout
    replies = [json.loads(line)["reply"] for data in whole.values() for line in data.splitlines()[1:]]
    assert len(replies) == 8
    assert sum(len(reply.split()) > 3 for reply in replies) >= 6, replies  # sentences, not noise
