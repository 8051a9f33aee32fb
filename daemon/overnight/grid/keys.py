"""Cell keys, `{scaffold}_{model}[_{axis}{value}...]_run{n}`: each is the name of a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,47}$"
"""Names of grids, models and scaffolds: no dot in front and no slash, so they cannot leave their folder."""

LONGEST_KEY = 120

AxisValue = int | float | None


def key(scaffold: str, model: str, axes: Mapping[str, AxisValue], run: int) -> str:
    return f"{prefix(scaffold, model, axes)}_run{run}"


def prefix(scaffold: str, model: str, axes: Mapping[str, AxisValue]) -> str:
    """All of a key but its run."""
    return "".join([scaffold, "_", model, *(f"_{axis}{value_text(value)}" for axis, value in axes.items())])


def value_text(value: AxisValue) -> str:
    """An axis value in a key and on the command line: `0.5`, `64`, `null`. Holds no underscore."""
    return "null" if value is None else repr(value)


def longest(scaffolds: Sequence[str], models: Sequence[str], axes: Mapping[str, Sequence[AxisValue]], runs: int) -> str:
    """The longest key that a grid of these axes has."""
    widest = {axis: max(values, key=lambda value: len(value_text(value))) for axis, values in axes.items()}
    return key(max(scaffolds, key=len), max(models, key=len), widest, runs)


def same_key(scaffolds: Sequence[str], models: Sequence[str]) -> tuple[tuple[str, str], tuple[str, str]] | None:
    """Two pairs (scaffold, model) that give the same key, if there are any: names may hold underscores.

    Looking at these pairs is enough: what follows them in a key can be read back from the right without a
    doubt, since all keys of a grid have the same axes in the same order, and neither values nor runs hold an
    underscore.
    """
    seen: dict[str, tuple[str, str]] = {}
    for model in models:
        for scaffold in scaffolds:
            other = seen.setdefault(prefix(scaffold, model, {}), (scaffold, model))
            if other != (scaffold, model):
                return other, (scaffold, model)
    return None
