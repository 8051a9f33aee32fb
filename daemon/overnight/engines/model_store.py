"""The model store: one folder a (name, dtype) below var/models, converted once, fingerprinted, checked when used.

    NAME--DTYPE/model.json         the manifest, written last; a folder without it is not a model
    NAME--DTYPE/*.safetensors ...  weights in that dtype, config, tokenizer with its chat template
    .NAME--DTYPE.lock              held while the model is added; a second adder waits, and then finds it
    .NAME--DTYPE.tmp-PID/          an add under way, or the rest of a killed one, which the next add removes

Standard library only: the dispatcher and the CLI import this. Converting imports torch, in a process that ends:

    python -m overnight.engines.model_store add STORE SOURCE [--dtype float32] [--name NAME] [--parent PID]

prints one JSON line; a refusal is one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from overnight import checked, durable, procfs
from overnight.engines import model_sizes
from overnight.engines.model_sources import BUILTIN, ENCODER_MARK, Source, first_line, resolve
from overnight.errors import ModelError, UserError

__all__ = ["BUILTIN", "Manifest", "add", "ensure", "list_models", "locate", "predict_bytes"]

MANIFEST = "model.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True)
class Manifest:
    """One model of the store.

    source: what it was added from: a built-in name, an absolute path or a hub id.
    origin: changes when the files at a source path change; '' for a hub id.
    fingerprint: SHA-256 over names and contents of all its files.
    params: number of parameters. bytes: size of the weights, on disk as in memory.
    files: name -> {bytes, sha256, mtime_ns}.
    """

    v: int
    name: str
    source: str
    origin: str
    dtype: str
    fingerprint: str
    params: int
    bytes: int
    files: dict[str, dict[str, Any]]
    created_at: str
    versions: dict[str, str]
    folder: Path

    @property
    def is_encoder(self) -> bool:
        """It makes embeddings for analysis, and no replies."""
        return ENCODER_MARK in self.files

    def to_json(self) -> dict[str, Any]:
        found = asdict(self)
        del found["folder"]
        return found


def add(
    store: Path, source: str, *, dtype: str = "float32", name: str | None = None, limit_bytes: int | None = None
) -> Manifest:
    """Convert `source` into the store, unless it is there. Imports torch: call it in a process that ends.

    source: a built-in name, a model folder, a .gguf file or a hub id; or the name of a model that the store has in
    another dtype. limit_bytes: memory that its weights may take (default: the machine's and the cgroups' limit).
    Raises ModelError.
    """
    _check_dtype(dtype)
    found = _find(source, store)
    name = _check_name(name or found.name)
    store.mkdir(parents=True, exist_ok=True)
    folder = store / f"{name}--{dtype}"
    with _locked(store / f".{folder.name}.lock"):
        for stale in store.glob(f".{folder.name}.tmp-*"):
            shutil.rmtree(stale)
        if (folder / MANIFEST).is_file():
            return _same_source(_checked(folder), found)
        if folder.exists():
            raise ModelError(f"{folder} is in the way and is no model (it has no {MANIFEST}): move or remove it")
        return _add(store, found, name, dtype, folder, limit_bytes)


def _add(store: Path, source: Source, name: str, dtype: str, folder: Path, limit_bytes: int | None) -> Manifest:
    from overnight.engines import model_convert

    what = f"model {source.recorded} in {dtype}"
    hub = model_convert.HubModel(source.recorded) if source.is_hub else None
    params = hub.params if hub is not None else source.params()
    model_sizes.check_room(
        what,
        weights=params * model_sizes.ITEM_BYTES[dtype],
        store=store,
        limit_bytes=limit_bytes,
        download=hub.download_bytes if hub is not None else 0,
    )
    temporary = store / f".{folder.name}.tmp-{os.getpid()}"
    try:
        temporary.mkdir()
        origin = source.origin()
        path = hub.fetch(temporary / ".download") if hub is not None else source.local()
        versions = model_convert.convert(path, temporary, dtype, what=what)
        shutil.rmtree(temporary / ".download", ignore_errors=True)
        manifest = _describe(temporary, name, source.recorded, origin, dtype, versions)
        durable.write_atomic(temporary / MANIFEST, _manifest_bytes(manifest))
        _sync_all(temporary)
        temporary.rename(folder)
        durable.sync_folder(store)
    except OSError as error:
        raise ModelError(f"{what} cannot be added: {error.strerror or error} ({error.filename or store})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return replace(manifest, folder=folder)


def _describe(folder: Path, name: str, source: str, origin: str, dtype: str, versions: dict[str, str]) -> Manifest:
    found = sorted(file for file in folder.rglob("*") if file.is_file())
    files = {file.relative_to(folder).as_posix(): _facts(file) for file in found}
    weights = model_sizes.weight_files(folder)
    hashes = {name: facts["sha256"] for name, facts in files.items()}
    return Manifest(
        v=1,
        name=name,
        source=source,
        origin=origin,
        dtype=dtype,
        fingerprint=fingerprint(hashes),
        params=model_sizes.folder_params(folder),
        bytes=sum(file.stat().st_size for file in weights),
        files=files,
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        versions=versions,
        folder=folder,
    )


def fingerprint(hashes: dict[str, str]) -> str:
    """Of a model's files: name -> SHA-256."""
    return hashlib.sha256(durable.canonical(hashes).encode(errors=durable.ODD_NAMES)).hexdigest()


def locate(store: Path, source: str, dtype: str) -> Manifest | None:
    """The model in the store for a store name, built-in name, path or hub id; None when it is not there.

    Its files are compared with the manifest (contents only where size or time differ). Raises ModelError when it
    is damaged, or when the files at a source path have changed since it was added.
    """
    _check_dtype(dtype)
    by_name = store / f"{source}--{dtype}"
    if _NAME.fullmatch(source) and (by_name / MANIFEST).is_file():
        return _checked(by_name)
    found = _find(source, store)
    for manifest in list_models(store):
        if manifest.dtype == dtype and manifest.source == found.recorded:
            return _same_source(_checked(manifest.folder), found)
    return None


def ensure(store: Path, source: str, dtype: str) -> Manifest:
    """`locate`, or `add` in a process of its own, so that torch and the heap it leaves stay out of ours."""
    if (found := locate(store, source, dtype)) is not None:
        return found
    command = [sys.executable, "-m", "overnight.engines.model_store", "add", str(store), source]
    command += ["--dtype", dtype, "--parent", str(os.getpid())]
    here = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    # Libraries may say a file's name as its very bytes, which need be no text.
    ended = subprocess.run(
        command, capture_output=True, text=True, errors="backslashreplace", check=False, env=environment
    )
    if ended.returncode != 0:
        said = ended.stderr.strip().splitlines() or ["it said nothing"]
        if ended.returncode == UserError.exit_code:
            raise ModelError(said[-1])
        raise ModelError(f"adding {source} ended with exit status {ended.returncode}: {said[-1]}")
    added = locate(store, source, dtype)
    if added is None:
        raise ModelError(f"{source} was added to {store}, and is gone again")
    return added


def check_converses(manifest: Manifest) -> None:
    """Raises ModelError for a model that cannot be a cell's."""
    if manifest.is_encoder:
        raise ModelError(
            f"{manifest.name} is an encoder: it makes embeddings for `overnight analyze` and cannot answer; "
            "give the grid a model that can (an -Instruct or -chat one)"
        )


def list_models(store: Path) -> list[Manifest]:
    """Every model of the store, by name. Raises ModelError for a manifest that cannot be read."""
    if not store.is_dir():
        return []
    folders = sorted(folder for folder in store.iterdir() if not folder.name.startswith("."))
    return [_read_manifest(folder) for folder in folders if (folder / MANIFEST).is_file()]


def predict_bytes(source: str, dtype: str) -> int:
    """Bytes of the weights in `dtype`, from the headers of the files (a hub id asks the hub). Raises ModelError."""
    _check_dtype(dtype)
    return resolve(source).params() * model_sizes.ITEM_BYTES[dtype]


def _find(source: str, store: Path) -> Source:
    """What a source means; a name of the store in another dtype means what that was added from."""
    others = [] if source in BUILTIN else [model for model in list_models(store) if model.name == source]
    return replace(resolve(others[0].source), name=source) if others else resolve(source)


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ModelError(
            f"{name!r} is no name for a model: letters, digits, '.', '_' and '-', the first a letter or digit"
        )
    return name


def _check_dtype(dtype: str) -> None:
    if dtype not in model_sizes.ITEM_BYTES:
        raise ModelError(f"there is no dtype {dtype!r}; there are: {', '.join(model_sizes.ITEM_BYTES)}")


def _same_source(manifest: Manifest, source: Source) -> Manifest:
    """The model of the store, if it is still what its source is. Raises ModelError."""
    again = f"remove {manifest.folder} and add it again, or add it under another --name"
    if manifest.source != source.recorded:
        raise ModelError(
            f"the store has another {manifest.name} in {manifest.dtype}, added from {manifest.source}: {again}"
        )
    origin = source.origin()
    if origin and manifest.origin and origin != manifest.origin:
        raise ModelError(f"{manifest.source} has changed since it was added as {manifest.name}: {again}")
    return manifest


def _checked(folder: Path) -> Manifest:
    """The manifest, after comparing the files with it. Raises ModelError."""
    manifest = _read_manifest(folder)
    times: dict[str, dict[str, Any]] = {}
    for name, facts in _named_files(manifest).items():
        try:
            stat = (folder / name).stat()
            if stat.st_size == facts["bytes"] and stat.st_mtime_ns == facts["mtime_ns"]:
                continue
            found = _facts(folder / name)
        except OSError as error:
            raise _damaged(manifest, f"{name}: {error.strerror}") from None
        if (found["bytes"], found["sha256"]) != (facts["bytes"], facts["sha256"]):
            raise _damaged(manifest, f"{name} is not what was added")
        times[name] = found
    if times:
        # Copied or touched, and whole: remember the new times, so that it is not hashed at every start.
        manifest = replace(manifest, files={**manifest.files, **times})
        with contextlib.suppress(OSError):  # a store that cannot be written is hashed again, no more
            durable.write_atomic(folder / MANIFEST, _manifest_bytes(manifest))
    return manifest


def _damaged(manifest: Manifest, what: str) -> ModelError:
    return ModelError(
        f"model {manifest.name} in {manifest.dtype} is damaged ({what}): remove {manifest.folder} and add it again"
    )


def _read_manifest(folder: Path) -> Manifest:
    try:
        held = checked.json_object(checked.read_small(folder / MANIFEST))
        if checked.whole(held["v"]) != 1:
            raise ModelError(f"{folder} was written by a newer Overnight (model.json version {held['v']})")
        return _sound(Manifest(**held, folder=folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder / MANIFEST} cannot be read ({first_line(error)}): remove {folder} and add the model again"
        ) from None


def _sound(manifest: Manifest) -> Manifest:
    """What is shown of it, and reckoned with, is of the kind that it says. Raises ValueError."""
    for name in ("name", "origin", "dtype", "fingerprint", "created_at"):
        checked.text(getattr(manifest, name), 4096)
    checked.path(manifest.source)
    for figure in (manifest.params, manifest.bytes):
        checked.whole(figure)
    return manifest


def _named_files(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Its files, none of them outside its folder. Raises ModelError."""
    try:
        for name, facts in manifest.files.items():
            if not checked.path(name) or Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(name)
            checked.whole(facts["bytes"])
            checked.whole(facts["mtime_ns"], -checked.MOST)
            checked.text(facts["sha256"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _damaged(manifest, f"{MANIFEST} is not what was written") from None
    return manifest.files


def _manifest_bytes(manifest: Manifest) -> bytes:
    text = json.dumps(manifest.to_json(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    return text.encode(errors=durable.ODD_NAMES)


def _facts(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        stat = os.fstat(stream.fileno())
    return {"bytes": stat.st_size, "sha256": digest, "mtime_ns": stat.st_mtime_ns}


def _sync_all(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_dir():
            durable.sync_folder(path)
        else:
            with path.open("rb") as stream:
                durable.sync(stream.fileno())
    durable.sync_folder(folder)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file; wait while another process does."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def main(argv: list[str] | None = None) -> int:
    """The subprocess entry; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m overnight.engines.model_store")
    parser.add_argument("action", choices=["add"])
    parser.add_argument("store", type=Path)
    parser.add_argument("source")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--name")
    parser.add_argument("--parent", type=int, help="end when this process does")
    args = parser.parse_args(argv)
    if args.parent is not None:
        procfs.die_with_parent(args.parent)
    try:
        manifest = add(args.store, args.source, dtype=args.dtype, name=args.name)
    except UserError as error:
        print(error, file=sys.stderr)
        return UserError.exit_code
    print(json.dumps({**manifest.to_json(), "folder": str(manifest.folder)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
