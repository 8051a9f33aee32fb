"""How large a model is before it is loaded, and how much room there is for it. Standard library only.

Sizes are read from the headers of the files: a few kilobytes of a file of many gigabytes.
"""

from __future__ import annotations

import errno
import math
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from overnight import cgroup_memory, checked
from overnight.errors import ModelError

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one parameter, by the names that grids use."""

DISK_SLACK = 1.05
"""Tokenizer, configs and the file system's own blocks come on top of the weights."""

_MAX_HEADER_BYTES = 100 * 1024 * 1024
_MOST_PARAMS = 2**60
_MOST_DIMENSIONS = 8
_MOST_ENTRIES = 100_000
"""Tensors of a file, or its settings; the largest models have some thousands."""
_MOST_ITEMS = 2_000_000
"""Of an array, such as a vocabulary: a damaged count must not have us walk through gigabytes."""
_SHOWN = 100
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
            return _indexed(folder, _read_json(index).get("weight_map"))
        if (single := folder / f"{stem}{kind}").is_file():
            return [single]
        if found := sorted(folder.glob(f"*{kind}")):
            return found
    return []


def _indexed(folder: Path, weight_map: Any) -> list[Path]:
    """The files that an index names: no folder or link leads out of its own. Raises ModelError."""
    found = set(weight_map.values()) if _is_map(weight_map) else None
    if not found or any(Path(name).name != name or "\0" in name or len(os.fsencode(name)) > 255 for name in found):
        raise ModelError(f"{folder} is not complete: its index does not say which files hold the weights")
    files = [folder / name for name in sorted(found)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ModelError(f"{folder} is not complete: {missing[0]} is missing")
    return files


def _is_map(value: Any) -> bool:
    """Of text to text that a file can be named by."""
    return isinstance(value, dict) and all(isinstance(each, str) and _named(each) for each in value.values())


def _named(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def safetensors_shapes(file: Path) -> dict[str, Any]:
    """Name -> {dtype, shape, ...} of every tensor of a file. Raises ModelError."""
    try:
        with _open(file) as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if not 0 < length <= min(_MAX_HEADER_BYTES, os.fstat(stream.fileno()).st_size - 8):
                raise ValueError("header length")
            header = checked.json_object(stream.read(length))
        tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
        for name, tensor in tensors.items():
            if not isinstance(tensor, dict) or not isinstance(tensor.get("shape"), list):
                raise ValueError(f"tensor {name[:_SHOWN]} has no shape")  # noqa: TRY004 - it is the file's fault
            _count(tensor["shape"])
    except (OSError, ValueError, struct.error) as error:
        raise ModelError(f"{file} is not a whole safetensors file ({error})") from None
    return tensors


def _safetensors_params(file: Path) -> int:
    return _sum(file, [_count(tensor["shape"]) for tensor in safetensors_shapes(file).values()])


def _count(shape: Sequence[Any]) -> int:
    """Parameters of a tensor. Raises ValueError for what is no shape, or of more of them than any disk holds."""
    if len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"a tensor of {len(shape)} dimensions")
    count = math.prod(checked.whole(size, 0, _MOST_PARAMS) for size in shape)
    return checked.whole(count, 0, _MOST_PARAMS)


def _sum(file: Path, counts: Iterable[int]) -> int:
    if (total := sum(counts)) > _MOST_PARAMS:
        raise ModelError(f"{file} claims {total} parameters, which is not true")
    return total


def _config_item_bytes(folder: Path) -> int:
    config = _read_json(folder / "config.json")
    return ITEM_BYTES.get(str(config.get("dtype") or config.get("torch_dtype") or "float32"), 4)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return checked.json_object(checked.read_small(file, _MAX_HEADER_BYTES))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from None


def gguf_params(file: Path) -> int:
    """Parameters of a GGUF file (versions 2 and 3), from its header. Raises ModelError."""
    try:
        with _open(file) as stream:
            counts = [_count(shape) for shape in _gguf_shapes(stream)]
    except (OSError, struct.error, KeyError, ValueError, OverflowError, RecursionError) as error:
        raise ModelError(f"{file} is not a whole GGUF file ({error})") from None
    return _sum(file, counts)


def _open(file: Path) -> BinaryIO:
    """A pipe would keep us waiting. Raises OSError."""
    if file.exists() and not file.is_file():
        raise OSError(errno.EINVAL, "no regular file", os.fspath(file))
    return file.open("rb")


def _gguf_shapes(stream: BinaryIO) -> Iterator[tuple[int, ...]]:
    """Layout: magic, version, counts; key-value pairs; then name, dimensions, type and offset of each tensor."""
    if stream.read(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version, tensors, pairs = _take(stream, "<IQQ")
    if version not in (2, 3):
        raise ValueError(f"version {version}; 2 and 3 are known")
    if max(tensors, pairs) > _MOST_ENTRIES:
        raise ValueError(f"{tensors} tensors and {pairs} settings")
    for _ in range(pairs):
        _skip(stream, _take(stream, "<Q")[0])
        _skip_value(stream, _take(stream, "<I")[0])
    for _ in range(tensors):
        _skip(stream, _take(stream, "<Q")[0])
        (dimensions,) = _take(stream, "<I")
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        yield _take(stream, f"<{dimensions}Q")
        _skip(stream, 4 + 8)


def _take(stream: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, stream.read(struct.calcsize(layout)))


def _skip(stream: BinaryIO, count: int) -> None:
    stream.seek(count, os.SEEK_CUR)


def _skip_value(stream: BinaryIO, kind: int, depth: int = 0) -> None:
    if depth > _MOST_DIMENSIONS:
        raise ValueError("arrays within arrays")
    if kind == _GGUF_STRING:
        _skip(stream, _take(stream, "<Q")[0])
    elif kind == _GGUF_ARRAY:
        inner, count = _take(stream, "<IQ")
        if count > _MOST_ITEMS:
            raise ValueError(f"an array of {count} values")
        if inner in _GGUF_BYTES:
            _skip(stream, _GGUF_BYTES[inner] * count)
        else:
            for _ in range(count):
                _skip_value(stream, inner, depth + 1)
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
    total = cgroup_memory.field(_small(proc / "meminfo"), b"MemTotal:")
    machine = total * 1024 if total else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *_cgroup_limits(proc)])


def _cgroup_limits(proc: Path) -> Iterator[int]:
    lines = os.fsdecode(_small(proc / "self/cgroup")).splitlines()
    own = [fields for line in lines if len(fields := line.split(":", 2)) == 3]
    mounts = [line.split() for line in os.fsdecode(_small(proc / "self/mountinfo")).splitlines()]
    unified = next((path for number, _, path in own if number == "0"), None)
    memory = next((path for _, names, path in own if "memory" in names.split(",")), None)
    for fields in mounts:
        if len(fields) < 9 or "-" not in fields[5:-1]:
            continue
        kind, options = fields[fields.index("-", 5) + 1], fields[-1].split(",")
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
        # The root has no such file, and a path of another namespace is not there.
        if (limit := cgroup_memory.number(_small(at / name))) is not None:
            yield limit
        if at in (mount, at.parent):
            return
        at = at.parent


def _small(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError):  # ValueError: a damaged name holds a NUL
        return b""


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10_000_000 else f"{count / 1e6:.3f} MB"
