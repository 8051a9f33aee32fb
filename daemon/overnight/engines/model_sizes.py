"""How large a model is before it is loaded, and how much room there is for it. Standard library only.

Sizes are read from the headers of the files: a few kilobytes of a file of many gigabytes.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from overnight.errors import ModelError

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one parameter, by the names that grids use."""

DISK_SLACK = 1.05
"""Tokenizer, configs and the file system's own blocks come on top of the weights."""

_MAX_HEADER_BYTES = 100 * 1024 * 1024
_GGUF_STRING, _GGUF_ARRAY = 8, 9
_GGUF_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def folder_params(folder: Path) -> int:
    """Parameters of a model folder, from the headers of its weight files. Raises ModelError."""
    files = weight_files(folder)
    if files and files[0].suffix == ".safetensors":
        return sum(_safetensors_params(file) for file in files)
    if files:
        return sum(file.stat().st_size for file in files) // _config_item_bytes(folder)
    raise ModelError(f"{folder} holds no weights (*.safetensors or pytorch_model*.bin)")


def weight_files(folder: Path) -> list[Path]:
    """The weight files that transformers would read: an index's, else the single file, else all of a kind."""
    for stem, kind in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        index = folder / f"{stem}{kind}.index.json"
        if index.is_file():
            names = sorted(set(_read_json(index).get("weight_map", {}).values()))
            files = [folder / str(name) for name in names]
            if missing := [file.name for file in files if not file.is_file()]:
                raise ModelError(f"{folder} is not complete: {missing[0]} is missing")
            return files
        if (single := folder / f"{stem}{kind}").is_file():
            return [single]
        if found := sorted(folder.glob(f"*{kind}")):
            return found
    return []


def safetensors_shapes(file: Path) -> dict[str, Any]:
    """Name -> {dtype, shape, ...} of every tensor of a file. Raises ModelError."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if not 0 < length <= _MAX_HEADER_BYTES:
                raise ValueError("header length")
            header = json.loads(stream.read(length))
        return {name: tensor for name, tensor in header.items() if name != "__metadata__"}
    except (OSError, ValueError, struct.error, AttributeError) as error:
        raise ModelError(f"{file} is not a whole safetensors file ({error})") from None


def _safetensors_params(file: Path) -> int:
    return sum(math.prod(tensor["shape"]) for tensor in safetensors_shapes(file).values())


def _config_item_bytes(folder: Path) -> int:
    config = _read_json(folder / "config.json")
    return ITEM_BYTES.get(str(config.get("dtype") or config.get("torch_dtype") or "float32"), 4)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise ModelError(f"{file} does not hold a JSON object")
    return found


def gguf_params(file: Path) -> int:
    """Parameters of a GGUF file (versions 2 and 3), from its header. Raises ModelError."""
    try:
        with file.open("rb") as stream:
            return sum(math.prod(shape) for shape in _gguf_shapes(stream))
    except (OSError, struct.error, KeyError, ValueError) as error:
        raise ModelError(f"{file} is not a whole GGUF file ({error})") from None


def _gguf_shapes(stream: BinaryIO) -> Iterator[tuple[int, ...]]:
    """Layout: magic, version, counts; key-value pairs; then name, dimensions, type and offset of each tensor."""
    if stream.read(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version, tensors, pairs = _take(stream, "<IQQ")
    if version not in (2, 3):
        raise ValueError(f"version {version}; 2 and 3 are known")
    for _ in range(pairs):
        _skip(stream, _take(stream, "<Q")[0])
        _skip_value(stream, _take(stream, "<I")[0])
    for _ in range(tensors):
        _skip(stream, _take(stream, "<Q")[0])
        (dimensions,) = _take(stream, "<I")
        if dimensions > 8:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        yield _take(stream, f"<{dimensions}Q")
        _skip(stream, 4 + 8)


def _take(stream: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, stream.read(struct.calcsize(layout)))


def _skip(stream: BinaryIO, count: int) -> None:
    stream.seek(count, os.SEEK_CUR)


def _skip_value(stream: BinaryIO, kind: int) -> None:
    if kind == _GGUF_STRING:
        _skip(stream, _take(stream, "<Q")[0])
    elif kind == _GGUF_ARRAY:
        inner, count = _take(stream, "<IQ")
        if inner in _GGUF_BYTES:
            _skip(stream, _GGUF_BYTES[inner] * count)
        else:
            for _ in range(count):
                _skip_value(stream, inner)
    else:
        _skip(stream, _GGUF_BYTES[kind])


def check_room(what: str, *, weights: int, store: Path, limit_bytes: int | None = None, download: int = 0) -> None:
    """Refuse a model that fits neither the memory nor the disk, before anything is written. Raises ModelError.

    weights: bytes of its weights in the wanted dtype. download: bytes that stand beside them while it is added.
    """
    limit = memory_limit_bytes() if limit_bytes is None else limit_bytes
    if weights > limit:
        raise ModelError(
            f"{what} needs {_size(weights)} of memory, the limit is {_size(limit)}: "
            "choose a smaller dtype, a smaller model or a larger machine"
        )
    disk = os.statvfs(store)
    free = disk.f_bavail * disk.f_frsize
    needed = int((weights + download) * DISK_SLACK)
    if needed > free:
        raise ModelError(f"{what} needs {_size(needed)} of disk, {store} has {_size(free)} free: make room first")


def memory_limit_bytes(proc: Path = Path("/proc")) -> int:
    """The smallest of the machine's memory and every cgroup's limit (v1 and v2) from this process's up."""
    meminfo = (proc / "meminfo").read_text().splitlines()
    total = next(int(line.split()[1]) * 1024 for line in meminfo if line.startswith("MemTotal:"))
    return min([total, *_cgroup_limits(proc)])


def _cgroup_limits(proc: Path) -> Iterator[int]:
    try:
        own = [line.split(":", 2) for line in (proc / "self/cgroup").read_text().splitlines()]
        mounts = [line.split() for line in (proc / "self/mountinfo").read_text().splitlines()]
    except OSError:
        return
    unified = next((path for number, _, path in own if number == "0"), None)
    memory = next((path for _, names, path in own if "memory" in names.split(",")), None)
    for fields in mounts:
        kind, options = fields[fields.index("-") + 1], fields[-1].split(",")
        if kind == "cgroup2":
            path, name = unified, "memory.max"
        elif kind == "cgroup" and "memory" in options:
            path, name = memory, "memory.limit_in_bytes"
        else:
            continue
        if path is not None:
            yield from _limits_upward(Path(fields[4]), path.removeprefix(fields[3].rstrip("/")), name)


def _limits_upward(mount: Path, path: str, name: str) -> Iterator[int]:
    at = mount / path.strip("/")
    while True:
        try:
            text = (at / name).read_text().strip()
        except OSError:
            text = "max"  # the root has no such file, and a path of another namespace is not there
        if text.isdigit():
            yield int(text)
        if at in (mount, at.parent):
            return
        at = at.parent


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10_000_000 else f"{count / 1e6:.3f} MB"
