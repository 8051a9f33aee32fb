"""pydantic's errors -> one line that says where, what was found, what was expected and what to do."""

from __future__ import annotations

from collections.abc import Callable
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from overnight.errors import GridError
from overnight.grid.command_schema import CommandGrid
from overnight.grid.fields import Section
from overnight.grid.nearest import did_you_mean, one_of, quoted
from overnight.grid.options import OPTIONS
from overnight.grid.schema import Grid, Model
from overnight.grid.yaml_source import Path, Place, Source, dotted

KINDS: dict[str, type[Grid | CommandGrid]] = {"idle_loop": Grid, "command": CommandGrid}
"""What `kind` may be in a grid file -> its schema."""

_MOVED = {
    "analysis": "; a command has no conversation",
    "limits": "; a command has none: write timeout at the top",
    "models": "; a command has none",
    "scaffolds": "; a command has none",
}
"""Keys of idle loops in a grid of commands -> what to do about them."""

_OF_COMMANDS = frozenset(CommandGrid.model_fields.keys() - Grid.model_fields.keys())


def kind_of(value: dict[str, Any], source: Source, file: str) -> type[Grid | CommandGrid]:
    """The schema of a grid file, by its `kind`; idle loops where there is none. Raises GridError."""
    kind = value.get("kind", "idle_loop")
    if isinstance(kind, str) and kind in KINDS:
        if "kind" not in value and "command" in value and not value.keys() & {"models", "scaffolds"}:
            said = "a grid with a command says so; add the line `kind: command`"
            raise GridError(said, file=file, line=source.place(("command",)).line, key="command")
        return KINDS[kind]
    near = did_you_mean(kind, KINDS) if isinstance(kind, str) else ""
    said = f"found {_shown(kind, '')}, expected {one_of(KINDS)}{near}"
    raise GridError(said, file=file, line=source.place(("kind",)).line, key="kind")


def first_error(
    error: ValidationError,
    source: Source,
    file: str = "",
    *,
    root: type[Section] = Grid,
    named: Callable[[Path], str] = dotted,
) -> GridError:
    """The first error in the order of the file, and how many more there are.

    root: the schema that found it. named: what a path is called.
    """
    problems = [(_path(detail, source), detail) for detail in error.errors(include_url=False)]
    ends = _ends(source) if any(detail["type"] == "missing" for _, detail in problems) else {}
    path, detail = min(problems, key=lambda problem: _order(problem[0], problem[1], source, ends))
    others = len({other for other, _ in problems} - {path})
    more = f" (and {others} more)" if others else ""
    return GridError(_said(detail, path, source, root) + more, file=file, line=source.place(path).line, key=named(path))


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


def _said(detail: ErrorDetails, path: Path, source: Source, root: type[Section]) -> str:
    kind, found = detail["type"], detail["input"]
    if kind == "overnight":
        return str(detail["msg"])
    if kind == "extra_forbidden":
        return _unknown_key(path, source, root)
    annotation, expected = _field(path, source, root)
    if kind == "missing":
        return f"missing, expected {expected}"
    choices = _choices(annotation)
    hint = did_you_mean(found, choices) if isinstance(found, str) else ""
    return f"found {_shown(found, kind)}, expected {expected}{hint or _quotes(kind, found, source.place(path))}"


def _unknown_key(path: Path, source: Source, root: type[Section]) -> str:
    section = _section(_field(path[:-1], source, root)[0])
    if section is None or not section.model_fields:
        return "unknown key, expected none here; remove it"
    whole = {name: name for name in section.model_fields}
    for name, field in section.model_fields.items():
        if (deeper := _section(field.annotation)) is not None:
            whole |= {below: f"{name}.{below}" for below in deeper.model_fields}
    name = str(path[-1])
    near = did_you_mean(name, whole, shown=whole)
    if section is CommandGrid:
        near = _MOVED.get(name, near)
    elif section is Grid and name in _OF_COMMANDS:
        near = near or "; that is for a grid of `kind: command`"
    return f"unknown key, expected {one_of(section.model_fields)}{near}"


def _field(path: Path, source: Source, root: type[Section]) -> tuple[Any, str]:
    """(type, description) of what the schema wants at `path`; (None, '') where it wants nothing."""
    at: Any = root
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
    """(type, description) of a list's items, or of a mapping's values."""
    inner = get_args(annotation)[-1] if get_origin(annotation) in (list, dict) else None
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
