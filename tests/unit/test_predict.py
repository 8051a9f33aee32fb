"""Predictions: arithmetic on the model store's small files, against what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from overnight.dispatch import predict
from overnight.engines import model_sizes
from overnight.engines.model_store import MANIFEST

MIB = 2**20
SMOLLM2 = {
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
}
WARM = {"engine": "transformers", "source": "m", "dtype": "float32", "device": "cpu", "options": {}}


def put(store: Path, name: str, *, dtype: str = "float32", config: Any = SMOLLM2, source: str = "org/m") -> Path:
    folder = store / f"{name}--{dtype}"
    folder.mkdir(parents=True)
    manifest = {"v": 1, "name": name, "source": source, "dtype": dtype, "bytes": 538_090_408}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def spec(turns: int = 100, reply: int = 2000, target: int | None = None, **model: Any) -> dict[str, Any]:
    return {
        "engine": "transformers",
        "model": {"source": "m", "dtype": "float32", "options": {}, **model},
        "system": "x" * 300,
        "limits": {"max_iterations": turns, "token_limit": reply, "target_output_tokens": target},
    }


@pytest.mark.parametrize(
    ("tokens", "measured_mib"), [(512, 83), (1024, 128), (2048, 180), (4096, 307), (8000, 586)], ids=str
)
def test_it_agrees_with_what_was_measured(tmp_path: Path, tokens: int, measured_mib: int) -> None:
    """A real cell of so many tokens, prefilled in the longest pieces, took so much (see the module's docstring)."""
    put(tmp_path, "m", config={**SMOLLM2, "max_position_embeddings": tokens})
    found = predict.cell_bytes(spec(), tmp_path)
    assert found is not None
    assert 0.95 <= found / (measured_mib * MIB) <= 1.2


@pytest.mark.parametrize(
    ("turns", "reply", "target", "tokens", "piece"),
    [
        (10, 50, None, 116 + 500 + 320, 148),
        (10, 50, 200, 116 + 250 + 320, 148),
        (10, 50, 10_000, 116 + 500 + 320, 148),
        (1000, 2000, None, 8192, 512),
        (1, 2000, None, 116 + 2000 + 32, 512),
    ],
)
def test_the_longest_history(turns: int, reply: int, target: int | None, tokens: int, piece: int) -> None:
    assert predict.most_tokens(spec(turns, reply, target), 8192) == (tokens, piece)


def test_longer_limits_need_more_and_smaller_items_less(tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        put(tmp_path, "m", dtype=dtype)
    found = [predict.cell_bytes(spec(turns, 100), tmp_path) or 0 for turns in (1, 2, 5, 20, 50)]
    assert found == sorted(set(found))
    half = predict.cell_bytes(spec(50, 100, dtype="bfloat16"), tmp_path) or 0
    assert 0.5 < half / found[-1] < 0.75


def test_a_server_is_its_weights_and_torch(tmp_path: Path) -> None:
    put(tmp_path, "m")
    assert abs(predict.server_bytes(WARM, tmp_path) - 802 * MIB) < 2 * MIB  # as measured
    assert predict.server_bytes({**WARM, "source": "org/m"}, tmp_path) == predict.server_bytes(WARM, tmp_path)


@pytest.mark.parametrize("warm", [{}, {"engine": "scripted", "source": "scripted", "dtype": "float32"}])
def test_a_server_without_a_model_is_light(tmp_path: Path, warm: dict[str, Any]) -> None:
    assert predict.server_bytes(warm, tmp_path) == predict.LIGHT_SERVER_BYTES


def test_a_model_that_is_not_in_the_store_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(SMOLLM2))
    (source / "pytorch_model.bin").write_bytes(b"x" * 4000)
    warm = {**WARM, "source": str(source), "dtype": "bfloat16"}
    assert predict.server_bytes(warm, tmp_path / "store") == predict.TORCH_SERVER_BYTES + 2000
    assert predict.cell_bytes(spec(source=str(source)), tmp_path / "store") is None
    # A hub id is not asked for, and what cannot be found is no reason to fail: loading it will say.
    monkeypatch.setattr(model_sizes, "folder_params", pytest.fail)
    for nowhere in ("org/model", "no such thing", str(tmp_path / "gone")):
        assert predict.server_bytes({**WARM, "source": nowhere}, tmp_path) == predict.TORCH_SERVER_BYTES


def test_the_model_is_found_once_it_is_added(tmp_path: Path) -> None:
    assert predict.cell_bytes(spec(), tmp_path) is None
    folder = put(tmp_path, "m")
    before = predict.cell_bytes(spec(), tmp_path)
    assert before is not None
    (folder / "config.json").write_text(json.dumps({**SMOLLM2, "num_hidden_layers": 60}))
    (folder / MANIFEST).write_text((folder / MANIFEST).read_text())
    assert (predict.cell_bytes(spec(), tmp_path) or 0) > before


@pytest.mark.parametrize("config", [{}, [], {"hidden_size": 4}, {**SMOLLM2, "num_hidden_layers": None}, "{"], ids=str)
def test_a_config_that_says_too_little_predicts_nothing(tmp_path: Path, config: Any) -> None:
    folder = put(tmp_path, "m", config=config)
    if config == "{":
        (folder / "config.json").write_text("{")
    assert predict.cell_bytes(spec(), tmp_path) is None


def test_configs_of_other_families() -> None:
    gpt2 = predict.shape({"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257})
    assert gpt2 == predict.Shape(12, 12, 12, 64, 768, 3072, 50257, 1024)
    assert gpt2.kv_bytes_per_token(2) == 2 * 12 * 768 * 2
    assert predict.shape({"text_config": SMOLLM2, "vision_config": {}}) == predict.shape(SMOLLM2)


def test_scripted_cells_and_commands(tmp_path: Path) -> None:
    scripted = {**spec(options={"cache_bytes": 5 * MIB}), "engine": "scripted"}
    assert predict.cell_bytes(scripted, tmp_path) == 13 * MIB
    assert predict.cell_bytes({"kind": "command", "command": ["true"]}, tmp_path) is None


def test_the_constants_are_the_engines(repository: Path) -> None:
    engines = repository / "daemon/overnight/engines"
    assert f"\nPIECE_TOKENS = {predict.PIECE_TOKENS}\n" in (engines / "torch_session.py").read_text()
    assert f"\nSTEP_TOKENS = {predict.STEP_TOKENS}\n" in (engines / "kv_cache.py").read_text()
