"""The model store with real conversions: folders, GGUF files and a hub, in processes that are killed and that race."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from helpers import fake_hub, tiny_models
from overnight.engines import model_sizes, model_store
from overnight.engines.registry import make
from overnight.errors import ModelError

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("gguf")

SAMPLE = "10 hours and 0 minutes to go\n<|im_start|>user\nÜnïcode ✓<|im_end|>"


def adding(store: Path, source: str, *more: str, **environment: str) -> subprocess.Popen[str]:
    daemon = Path(__file__).resolve().parents[2] / "daemon"
    return subprocess.Popen(
        [sys.executable, "-m", "overnight.engines.model_store", "add", str(store), source, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(daemon), **environment},
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_folder_is_kept_in_the_wanted_dtype(tmp_path: Path, dtype: str) -> None:
    source = tiny_models.make(tmp_path / "Tiny Model", "smollm2")
    manifest = model_store.add(tmp_path / "store", str(source), dtype=dtype)
    assert manifest.folder == tmp_path / "store" / f"Tiny-Model--{dtype}"
    weights = model_sizes.safetensors_shapes(manifest.folder / "model.safetensors")
    expected = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[dtype]
    assert {tensor["dtype"] for tensor in weights.values()} == {expected}
    size = model_sizes.ITEM_BYTES[dtype]
    assert manifest.params * size == model_store.predict_bytes(str(source), dtype)
    assert 0 < manifest.bytes - manifest.params * size < 10_000
    before, after = (transformers.AutoTokenizer.from_pretrained(str(folder)) for folder in (source, manifest.folder))
    assert before.encode(SAMPLE) == after.encode(SAMPLE)
    assert before.chat_template == after.chat_template


def test_a_folder_whose_name_is_no_utf8_gives_the_same_model(tmp_path: Path) -> None:
    plain = tiny_models.make(tmp_path / "tiny", "smollm2")
    odd = shutil.copytree(plain, tmp_path / os.fsdecode(b"caf\xe9"))
    manifest = model_store.ensure(tmp_path / "store", str(odd), "float32")
    assert manifest.source == str(odd)
    assert manifest.fingerprint == model_store.add(tmp_path / "again", str(plain)).fingerprint


def test_adding_the_same_again_gives_the_same_fingerprint(tmp_path: Path) -> None:
    source = tiny_models.make(tmp_path / "tiny", "smollm2")
    other = tiny_models.make(tmp_path / "elsewhere" / "tiny", "smollm2")
    first = model_store.add(tmp_path / "store", str(source))
    assert model_store.add(tmp_path / "store", str(source)) == first
    assert model_store.add(tmp_path / "again", str(other)).fingerprint == first.fingerprint
    changed = tiny_models.make(tmp_path / "changed" / "tiny", "smollm2", seed=1)
    assert model_store.add(tmp_path / "changed-store", str(changed)).fingerprint != first.fingerprint


def test_a_gguf_file_is_converted_and_runs(tmp_path: Path) -> None:
    source = tiny_models.make_gguf(tmp_path / "tiny-q8.gguf")
    predicted = model_store.predict_bytes(str(source), "float32")
    manifest = model_store.add(tmp_path / "store", str(source))
    assert manifest.folder.name == "tiny-q8--float32"
    assert predicted == manifest.params * 4
    config = json.loads((manifest.folder / "config.json").read_text())
    assert "quantization_config" not in config
    original = transformers.AutoTokenizer.from_pretrained(str(tmp_path), gguf_file=source.name)
    saved = transformers.AutoTokenizer.from_pretrained(str(manifest.folder))
    assert saved.encode(SAMPLE) == original.encode(SAMPLE)
    assert saved.chat_template == original.chat_template
    warm = {"engine": "transformers", "source": str(source), "dtype": "float32", "device": "cpu", "options": {}}
    engine = make(warm, str(tmp_path / "store"))
    engine.load()
    session = engine.open(tiny_models.spec(), threads=1)
    assert session.context_tokens == 512
    session.prepare("hello")
    assert session.generate(token_limit=4, seed=0).reply_ids


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    source = tiny_models.make_gguf(tmp_path / "base.gguf", template=None)
    with pytest.raises(ModelError, match="has no chat template") as refused:
        model_store.add(tmp_path / "store", str(source))
    assert "\n" not in str(refused.value)
    assert visible(tmp_path / "store") == []


def test_an_architecture_that_is_unknown_is_refused(tmp_path: Path) -> None:
    source = tiny_models.make(tmp_path / "tiny", "smollm2")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "model_type": "tomorrow", "architectures": ["Tomorrow"]}))
    with pytest.raises(ModelError, match="cannot be read by transformers") as refused:
        model_store.add(tmp_path / "store", str(source))
    assert "\n" not in str(refused.value)
    assert visible(tmp_path / "store") == []


def visible(store: Path) -> list[str]:
    """What an add left, but for its lock file."""
    return sorted(path.name for path in store.iterdir() if not path.name.endswith(".lock"))


def test_a_killed_add_leaves_a_temporary_folder_that_the_next_one_removes(tmp_path: Path) -> None:
    source = tiny_models.make(tmp_path / "tiny", "smollm2")
    store = tmp_path / "store"
    process = adding(store, str(source))
    deadline = time.monotonic() + 60
    while not list(store.glob(".tiny--float32.tmp-*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
    process.kill()
    process.communicate()
    assert visible(store) == [f".tiny--float32.tmp-{process.pid}"]
    assert model_store.list_models(store) == []
    assert model_store.locate(store, str(source), "float32") is None
    model_store.add(store, str(source))
    assert visible(store) == ["tiny--float32"]


def test_two_adds_at_once_convert_once(tmp_path: Path) -> None:
    source = tiny_models.make(tmp_path / "tiny", "smollm2")
    racing = [adding(tmp_path / "store", str(source)) for _ in range(2)]
    said = [process.communicate() for process in racing]
    assert [process.returncode for process in racing] == [0, 0], said
    first, second = (json.loads(out) for out, _ in said)
    assert first == second, "times of the files and of the manifest included: the second found the first's"
    assert visible(tmp_path / "store") == ["tiny--float32"]


def test_the_command_prints_one_line(tmp_path: Path) -> None:
    source = tiny_models.make(tmp_path / "tiny", "smollm2")
    process = adding(tmp_path / "store", str(source), "--name", "mine", "--parent", str(os.getpid()))
    out, err = process.communicate()
    assert (process.returncode, err, out.count("\n")) == (0, "", 1)
    assert json.loads(out)["name"] == "mine"
    process = adding(tmp_path / "store", str(tmp_path / "nothing"))
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert err == f"{tmp_path / 'nothing'} does not exist\n"


def test_ensure_adds_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_models.make(tmp_path / "tiny", "smollm2")
    monkeypatch.setattr(model_store, "add", lambda *_, **__: pytest.fail("added here"))
    first = model_store.ensure(tmp_path / "store", str(source), "bfloat16")
    assert first.dtype == "bfloat16"
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("added again"))
    assert model_store.ensure(tmp_path / "store", str(source), "bfloat16") == first


def test_ensure_passes_the_one_line_on(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^/nowhere/at/all does not exist$"):
        model_store.ensure(tmp_path / "store", "/nowhere/at/all", "float32")


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Surroundings of a child process that may use a network; proxies would not know the loopback's hub."""
    for name in list(os.environ):
        if name.startswith("HF_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    return {"NO_PROXY": "*", "HF_HUB_DISABLE_XET": "1"}


def test_a_hub_id_is_fetched(tmp_path: Path, online: dict[str, str]) -> None:
    source = tiny_models.make(tmp_path / "files", "smollm2")
    (source / "pytorch_model.bin").write_bytes(b"another framework's copy")
    with fake_hub.serving(source, "some-org/tiny-model") as (endpoint, fetched):
        process = adding(
            tmp_path / "store",
            "some-org/tiny-model",
            **online,
            HF_ENDPOINT=endpoint,
            HF_HOME=str(tmp_path / "cache"),
        )
        out, err = process.communicate()
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out)
    assert (found["name"], found["source"]) == ("some-org_tiny-model", "some-org/tiny-model")
    assert "model.safetensors" in fetched
    assert "pytorch_model.bin" not in fetched
    assert visible(tmp_path / "store") == ["some-org_tiny-model--float32"]
    located = model_store.locate(tmp_path / "store", "some-org/tiny-model", "float32")
    assert located is not None
    assert sorted(located.files) == sorted(path.name for path in located.folder.iterdir() if path.name != "model.json")
    twin = model_store.add(tmp_path / "twin", str(source), name="twin")
    assert twin.fingerprint == located.fingerprint


def test_a_hub_without_the_model_is_one_line(tmp_path: Path, online: dict[str, str]) -> None:
    source = tiny_models.make(tmp_path / "files", "smollm2")
    with fake_hub.serving(source, "some-org/tiny-model") as (endpoint, _):
        process = adding(tmp_path / "store", "some-org/other", **online, HF_ENDPOINT=endpoint)
        _, err = process.communicate()
    assert process.returncode == 2
    assert err == (
        "some-org/other is neither in the store nor a local path, and from the hub: "
        "there is no such model, or it needs a login (`hf auth login`)\n"
    )


@pytest.mark.parametrize("listening", [False, True], ids=["refused", "silent"])
def test_no_network_is_one_line_within_seconds(tmp_path: Path, online: dict[str, str], listening: bool) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listening:
            server.listen()
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        began = time.monotonic()
        process = adding(tmp_path / "store", "some-org/tiny-model", **online, HF_ENDPOINT=endpoint)
        _, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 15
    assert process.returncode == 2
    assert err.startswith(
        "some-org/tiny-model is neither in the store nor a local path, and from the hub: the hub cannot"
    )
    assert err.count("\n") == 1
    assert visible(tmp_path / "store") == []
