"""The model store: every file of every model hashed again, and its fingerprint with them. Changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from overnight.engines import model_store
from overnight.errors import ModelError
from overnight.repair.finding import Finding


def check(store: Path) -> Iterator[Finding]:
    for folder in models(store):
        for what, mended_by in _of_model(folder):
            yield Finding("model", f"models/{folder.name}", what, mended_by)


def models(store: Path) -> list[Path]:
    """Folders that are meant as models. A name with a dot in front is a lock, or an add that is under way."""
    try:
        return sorted(path for path in store.iterdir() if not path.name.startswith(".") and path.is_dir())
    except OSError:
        return []


def _of_model(folder: Path) -> Iterator[tuple[str, str]]:
    again = f"remove {folder} and add the model again"
    try:
        manifest = model_store._read_manifest(folder)
    except ModelError as error:
        yield str(error), ""
        return
    if folder.name != f"{manifest.name}--{manifest.dtype}":
        yield f"its model.json is that of {manifest.name}--{manifest.dtype}", again
    hashes: dict[str, str] = {}
    try:
        for name, facts in sorted(manifest.files.items()):
            with (folder / name).open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
                size = stream.tell()
            hashes[name] = found
            if (size, found) != (facts["bytes"], facts["sha256"]):
                yield f"{name} is not what was added", again
        if model_store.fingerprint(hashes) != manifest.fingerprint:
            yield "its files do not have its fingerprint", again
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and name != model_store.MANIFEST and name not in manifest.files:
                yield f"{name} was not added with it", "move it away"
    except OSError as error:
        yield f"{error.filename or folder}: {error.strerror}", again
    except (KeyError, TypeError, ValueError) as error:
        yield f"its model.json cannot be understood ({type(error).__name__}: {error})", again
