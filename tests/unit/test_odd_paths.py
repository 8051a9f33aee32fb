"""Folders may be called nearly anything: what is no letter to Python, and bytes that are no text at all."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.damaged_files import said
from overnight import checked
from overnight.dispatch import predict
from overnight.engines import model_convert, model_store
from overnight.errors import ModelError
from overnight.paths import Paths
from overnight.repair import check_store

ODD = {
    "ideographic space": "夜\u3000m",
    "no-break space": "my\u00a0model",
    "joiners": "می\u200cm\u200d",
    "no UTF-8": os.fsdecode(b"caf\xe9"),
    "two lines": "two\nlines",
    "long": "/".join(["x" * 200] * 8),
}
SERVER = {"engine": "transformers", "dtype": "float32"}


def write_folder(folder: Path) -> Path:
    """A model of 12 parameters."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    header = json.dumps({"a": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(48))
    return folder


@pytest.fixture(params=ODD.values(), ids=ODD)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model folder of such a name, with a file of such a name in it."""
    folder = write_folder(tmp_path / request.param)
    (folder / f"{Path(request.param).name}.jinja").touch()
    return folder


@pytest.fixture(autouse=True)
def _copy_in_place_of_converting(monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(source: Path, target: Path, dtype: str, *, what: str) -> dict[str, str]:
        shutil.copytree(source, target, dirs_exist_ok=True)
        return {"torch": "0"}

    monkeypatch.setattr(model_convert, "convert", convert)


def test_a_model_is_added_found_again_and_shown(tmp_path: Path, source: Path) -> None:
    paths = Paths.of(tmp_path / "h").ensure()
    manifest = model_store.add(paths.models, str(source), name="m")
    assert manifest.source == str(source)
    assert model_store.list_models(paths.models) == [manifest]
    assert model_store.locate(paths.models, str(source), "float32") == manifest
    assert list(check_store.check(paths.models)) == []
    assert json.loads((manifest.folder / "model.json").read_text())["source"] == str(source)
    (manifest.folder / "config.json").touch()
    assert model_store.locate(paths.models, "m", "float32") is not None, "its new times could be written"
    code, shown, complaint = said("--home", str(paths.home), "models", "list", "--json")
    assert (code, complaint) == (0, "")
    assert json.loads(shown)[0]["source"] == str(source)


def test_its_memory_is_predicted(tmp_path: Path, source: Path) -> None:
    store = tmp_path / "store"
    manifest = model_store.add(store, str(source))
    (source / "model.safetensors").unlink()  # or its header would tell the same
    found = predict.server_bytes({**SERVER, "source": str(source)}, store)
    assert found == predict.TORCH_SERVER_BYTES + manifest.bytes


def test_every_message_can_be_printed(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    model_store.add(store, str(source), name="m")
    os.utime(source / "config.json", ns=(1, 1))
    assert model_store.main(["add", str(store), str(source), "--name", "m"]) == 2
    complaint = capsys.readouterr().err
    assert "has changed since it was added" in complaint
    assert complaint.count("\n") == 1
    complaint.encode()
    assert model_store.main(["add", str(store), str(source), "--name", "other"]) == 0
    shown = capsys.readouterr().out
    assert shown.isascii() and shown.count("\n") == 1
    assert json.loads(shown)["source"] == str(source)


def test_the_table_can_be_printed_wherever(tmp_path: Path, source: Path) -> None:
    paths = Paths.of(tmp_path / "h").ensure()
    model_store.add(paths.models, str(source), name="m")
    for encoding in ("utf-8", "ascii"):
        done = subprocess.run(
            [sys.executable, "-m", "overnight", "--home", str(paths.home), "models", "list"],
            capture_output=True,
            check=False,
            env={**os.environ, "PYTHONIOENCODING": encoding},
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.decode(encoding).count("\n") == 2


def test_what_an_adding_process_says_need_be_no_text(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (tmp_path / "python").write_text("#!/bin/sh\nprintf 'caf\\351\\n' >&2\nexit 2\n")
    (tmp_path / "python").chmod(0o700)
    with pytest.raises(ModelError, match=r"caf\\xe9"):
        model_store.ensure(tmp_path / "store", str(source), "float32")
    code, shown, complaint = said("--home", str(tmp_path / "h"), "models", "add", str(source))
    assert (code, shown) == (2, "")
    assert "caf\\xe9" in complaint


@pytest.mark.parametrize("value", [None, 7, b"x", "a\0b", "x" * 4097, "\ud800", "\udc7f"], ids=ascii)
def test_what_can_be_no_path(value: Any) -> None:
    with pytest.raises(ValueError):
        checked.path(value)


def test_a_file_that_no_disk_can_hold_is_damage(tmp_path: Path) -> None:
    manifest = model_store.add(tmp_path / "store", str(write_folder(tmp_path / "m")))
    path = manifest.folder / model_store.MANIFEST
    path.write_text(path.read_text().replace('"config.json"', '"\\ud800"'))
    with pytest.raises(ModelError, match="is damaged"):
        model_store.locate(tmp_path / "store", "m", "float32")
