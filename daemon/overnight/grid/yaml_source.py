"""YAML text -> plain values, and the place in the text from which each of them came.

A grid file is read with less of YAML than there is: no anchors, aliases, tags or second documents, no double
keys, and scalars as in YAML 1.2, because YAML 1.1 reads `on` as true, `010` as 8, `1:30` as 90 and `1e-3` as
text. Depth and number of values are bounded, so that a hostile file costs seconds and not the machine.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from typing import Any

import yaml

from overnight.errors import GridError
from overnight.grid.nearest import one_line, quoted

LARGEST_BYTES = 1 << 20
DEEPEST = 32
MOST_VALUES = 20_000

Path = tuple[str | int, ...]
"""Where a value stands: ("models", 0, "name")."""

_TAG = "tag:yaml.org,2002:"

_SAID: tuple[tuple[str, str], ...] = (
    ("character '\\t'", "a tab where YAML wants spaces; replace it with spaces"),
    ("expected a single document", "a second document begins here ('---'); write one grid a file"),
    (
        "mapping values are not allowed",
        "a ':' where none can stand; put the text in quotes or mend the indent",
    ),
    ("could not find expected ':'", "a ':' is missing after a key; write `key: value`"),
    ("expected <block end>", "the indentation does not fit the lines above; align it with its neighbours"),
    ("expected ',' or", "the [...] or {...} that begins here lacks a ',' or its closing bracket; add it"),
    ("unexpected end of stream", "the quotes or brackets that begin here are never closed; close them"),
    ("unknown escape character", "an unknown escape; use single quotes or double the backslash"),
    ("cannot start any token", "text cannot begin with this character; put it in quotes"),
)
"""(part of PyYAML's message, what to tell people instead)."""


@dataclass(frozen=True, slots=True)
class Place:
    """line, column: from 1. raw: a scalar as it is written, without quotes. plain: written without quotes."""

    line: int
    column: int
    raw: str | None = None
    plain: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """value: dicts, lists, str, int, float, bool, None. places: of every value (in a mapping: of its key)."""

    value: Any
    places: dict[Path, Place] = field(repr=False)

    def place(self, path: Path) -> Place:
        """The place of `path`, or of the nearest thing around it that is in the text."""
        while path not in self.places:
            path = path[:-1]
        return self.places[path]


def read(text: str, file: str) -> Source:
    """Read the text of a grid file. Raises GridError with one line."""
    _refuse_what_is_not_text(text, file)
    loader: _Loader | None = None
    try:
        loader = _Loader(text, file)
        node = loader.get_single_node()
    except yaml.reader.ReaderError as error:
        raise GridError(
            f"the character U+{_code(error.character):04X} cannot stand in a grid file; remove it",
            file=file,
            line=text.count("\n", 0, error.position) + 1,
        ) from None
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(error, file) from None
    except (yaml.YAMLError, ValueError, OverflowError, IndexError):
        # PyYAML lets these through for an escape beyond Unicode ("\Uffffffff") and the like.
        line = loader.line + 1 if loader is not None else 1
        said = "this is not valid YAML; look for an impossible escape"
        raise GridError(said, file=file, line=line) from None
    if node is None:
        raise GridError("the file is empty; expected at least name, models and scaffolds", file=file, line=1)
    places: dict[Path, Place] = {(): Place(node.start_mark.line + 1, 0)}
    return Source(_Reading(file, places).value(node, ()), places)


def dotted(path: Path) -> str:
    """`models[0].sampling.temperature`; a key that is no plain word is quoted."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if re.fullmatch(r"[A-Za-z0-9_-]{1,48}", part) else quoted(part)
            text += f".{name}" if text else name
    return text


_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.")),
)
"""(kind, pattern, characters that it can begin with) of the plain scalars of YAML 1.2."""

_LONGEST_NUMBER = 40


def scalar(text: str) -> Any:
    """A value as it is written without quotes in a grid file: a number, true, false, null, or else text."""
    kind = next((kind for kind, pattern, _ in _SCALARS if re.fullmatch(pattern, text)), "str")
    return text if kind in ("int", "float") and len(text) > _LONGEST_NUMBER else _plain(kind, text)


def _plain(kind: str, text: str) -> Any:
    if kind == "null":
        return None
    if kind == "bool":
        return text[0] in "tT"
    if kind == "int":
        return int(text)
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan")) if kind == "float" else text


class _Loader(yaml.SafeLoader):
    """SafeLoader that composes nodes only, of the part of YAML that grid files may use."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML wants it so

    def __init__(self, text: str, file: str) -> None:
        super().__init__(text)
        self._file, self._depth, self._values = file, 0, 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self._values += 1
        self._depth += 1
        if (said := self._refused(event)) is not None:
            raise GridError(said, file=self._file, line=event.start_mark.line + 1)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def _refused(self, event: yaml.NodeEvent) -> str | None:
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            return "anchors (&) and aliases (*) are not used; write the value out"
        tag = getattr(event, "tag", None)  # of every node but an alias
        if tag is not None:
            return f"tags ({quoted(tag.replace(_TAG, '!!'))}) are not used; write the value without"
        if self._values > MOST_VALUES:
            return f"more than {MOST_VALUES} values; use `runs` for repetition, or several files"
        if self._depth > DEEPEST:
            return f"nested deeper than {DEEPEST} levels; flatten it"
        return None


for _name, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(rf"(?:{_pattern})\Z"), _first)


class _Reading:
    """Turns nodes into values and writes down their places."""

    def __init__(self, file: str, places: dict[Path, Place]) -> None:
        self._file, self._places = file, places

    def value(self, node: yaml.Node, path: Path) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._item(child, (*path, index)) for index, child in enumerate(node.value)]
        return self._scalar(node, path)

    def _item(self, node: yaml.Node, path: Path) -> Any:
        self._places[path] = _place(node, node)
        return self.value(node, path)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._scalar(key_node, path) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                raise self._refusal(key_node, path, f"a key must be text, found {_shown_key(key_node)}")
            inner = (*path, key)
            if key in values:
                said = f"this key is there already in line {self._places[inner].line}; remove one of the two"
                raise self._refusal(key_node, inner, said)
            self._places[inner] = _place(key_node, value_node)
            values[key] = self.value(value_node, inner)
        return values

    def _scalar(self, node: yaml.Node, path: Path) -> Any:
        text: str = node.value
        kind = node.tag.removeprefix(_TAG)
        if kind in ("int", "float") and len(text) > _LONGEST_NUMBER:
            raise self._refusal(node, path, "a number of more than 40 characters; write a shorter one")
        if kind != "str":
            return _plain(kind, text)
        for char in text:
            if char not in "\n\t" and unicodedata.category(char) in ("Cc", "Cs"):
                raise self._refusal(node, path, f"the text holds the character U+{ord(char):04X}; remove it")
        return text

    def _refusal(self, node: yaml.Node, path: Path, said: str) -> GridError:
        return GridError(said, file=self._file, line=node.start_mark.line + 1, key=dotted(path))


def _shown_key(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        return "a list or a mapping"
    return f"{one_line(node.value[:40])}; put it in quotes" if node.value else "nothing"


def _place(at: yaml.Node, value: yaml.Node) -> Place:
    mark = at.start_mark
    if isinstance(value, yaml.ScalarNode):
        return Place(mark.line + 1, mark.column + 1, value.value, value.style is None)
    return Place(mark.line + 1, mark.column + 1)


def _refuse_what_is_not_text(text: str, file: str) -> None:
    if len(text) > LARGEST_BYTES or len(text.encode("utf-8", "surrogatepass")) > LARGEST_BYTES:
        raise GridError("larger than 1 MiB; a grid file is never that large, split it", file=file)
    if (at := text.find("\0")) >= 0:
        raise GridError(
            "a NUL byte: this is no text file, or it was damaged; write it again",
            file=file,
            line=text.count("\n", 0, at) + 1,
        )


def _code(character: int | str | bytes) -> int:
    return character if isinstance(character, int) else ord(character)


def _not_yaml(error: yaml.MarkedYAMLError, file: str) -> GridError:
    """PyYAML's message in one line. What is never closed is reported where it begins, not at the file's end."""
    problem = " ".join(part for part in (error.context, error.problem) if part)
    problem = problem.replace("'\\x00'", "the end of the file")  # PyYAML's own mark
    other = f"this is not valid YAML: {one_line(problem)}"
    said = next((words for part, words in _SAID if part in problem), other)
    mark = error.problem_mark or error.context_mark
    if "that begin" in said:
        mark = error.context_mark or mark
    return GridError(said, file=file, line=mark.line + 1 if mark is not None else 1)
