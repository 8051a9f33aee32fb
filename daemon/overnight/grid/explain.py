"""pydantic's errors -> one line that says where, what was found, what was expected and what to do."""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from overnight.errors import GridError
from overnight.grid.fields import Section
from overnight.grid.nearest import did_you_mean, one_of, quoted
from overnight.grid.options import OPTIONS
from overnight.grid.schema import Grid, Model
from overnight.grid.yaml_source import Path, Place, Source, dotted


def first_error(error: ValidationError, source: Source, file: str) -> GridError:
    """The first error in the order of the file, and how many more there are."""
    problems = [(_path(detail, source), detail) for detail in error.errors(include_url=False)]
    ends = _ends(source) if any(detail["type"] == "missing" for _, detail in problems) else {}
    path, detail = min(problems, key=lambda problem: _order(problem[0], problem[1], source, ends))
    others = len({other for other, _ in problems} - {path})
    more = f" (and {others} more)" if others else ""
    return GridError(_said(detail, path, source) + more, file=file, line=source.place(path).line, key=dotted(path))


def _path(detail: ErrorDetails, source: Source) -> Path:
    """Where an error is. Our own refusals may name a field of a scaffold that is written as a mere number."""
    path: Path = (*detail["loc"], *detail.get("ctx", {}).get("at", ()))
    while detail["type"] == "overnight" and len(path) > 1 and path not in source.places:
        path = path[:-1]
    return path


def _order(path: Path, detail: ErrorDetails, source: Source, ends: dict[Path, Place]) -> tuple[int, int, bool]:
    """A key that is missing is missing at its mapping's end, so that a misspelt key in it is reported first."""
    missing = detail["type"] == "missing"
    place = ends.get(path[:-1], source.place(path)) if missing else source.place(path)
    return place.line, place.column, missing


def _ends(source: Source) -> dict[Path, Place]:
    """The place of the last value within each mapping and list."""
    ends: dict[Path, Place] = {}
    for path, place in source.places.items():  # in the order of the file
        for length in range(len(path) + 1):
            ends[path[:length]] = place
    return ends


def _said(detail: ErrorDetails, path: Path, source: Source) -> str:
    kind, found = detail["type"], detail["input"]
    if kind == "overnight":
        return str(detail["msg"])
    if kind == "extra_forbidden":
        return _unknown_key(path, source)
    annotation, expected = _field(path, source)
    if kind == "missing":
        return f"missing, expected {expected}"
    choices = _choices(annotation)
    hint = did_you_mean(found, choices) if isinstance(found, str) else ""
    return f"found {_shown(found, kind)}, expected {expected}{hint or _quotes(kind, found, source.place(path))}"


def _unknown_key(path: Path, source: Source) -> str:
    section = _section(_field(path[:-1], source)[0])
    if section is None or not section.model_fields:
        return "unknown key, expected none here; remove it"
    whole = {name: name for name in section.model_fields}
    for name, field in section.model_fields.items():
        if (deeper := _section(field.annotation)) is not None:
            whole |= {below: f"{name}.{below}" for below in deeper.model_fields}
    near = did_you_mean(str(path[-1]), whole, shown=whole)
    return f"unknown key, expected {one_of(section.model_fields)}{near}"


def _field(path: Path, source: Source) -> tuple[Any, str]:
    """(type, description) of what the schema wants at `path`; (None, '') where it wants nothing."""
    at: Any = Grid
    said = "a mapping"
    value = source.value
    for part in path:
        if (section := _section(at)) is None:
            at, said = _item(at)
        elif (field := section.model_fields.get(str(part))) is None:
            return None, ""
        else:
            at, said = field.annotation, field.description or ""
            if section is Model and part == "options":
                at = OPTIONS.get(value.get("engine"))
        value = _below(value, part)
    return at, said


def _below(value: Any, part: str | int) -> Any:
    """What stands at `part` of a value, or None: a missing key, or something that has no parts."""
    if isinstance(value, dict):
        return value.get(part)
    return value[part] if isinstance(value, list) and isinstance(part, int) else None


def _item(annotation: Any) -> tuple[Any, str]:
    """(type, description) of a list's items."""
    inner = next(iter(get_args(annotation)), None) if get_origin(annotation) is list else None
    if get_origin(inner) is not Annotated:
        return inner, ""
    base, *metadata = get_args(inner)
    said = next((m.description for m in metadata if isinstance(m, FieldInfo) and m.description), "")
    return base, said


def _section(annotation: Any) -> type[Section] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _choices(annotation: Any) -> tuple[str, ...]:
    if get_origin(annotation) in (Union, UnionType):
        return tuple(choice for inner in get_args(annotation) for choice in _choices(inner))
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _shown(found: Any, kind: str) -> str:
    if found is None:
        return "nothing"
    if isinstance(found, bool):
        return "true" if found else "false"
    if isinstance(found, str):
        return quoted(found) + (" (text)" if kind.endswith(("_type", "_parsing")) else "")
    if isinstance(found, list):
        short = len(found) <= 4 and all(isinstance(item, int | float) for item in found)
        return "an empty list" if not found else str(found) if short else f"a list of {len(found)}"
    if isinstance(found, dict):
        return "a mapping"
    return str(found)


def _quotes(kind: str, found: Any, place: Place) -> str:
    """What to do about a number in quotes or with an odd spelling, or about a text that reads as a number."""
    if kind in ("int_type", "float_type") and isinstance(found, str):
        try:
            float(found)  # takes 010 and 1_000, which YAML reads as text
        except ValueError:
            return ""
        return "; write it without leading zeros or underscores" if place.plain else "; remove the quotes"
    if kind == "string_type" and place.plain and place.raw and isinstance(found, bool | int | float):
        return f"; write it in quotes: '{place.raw[:48]}'"
    return ""
