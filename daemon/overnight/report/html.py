"""The report's files: one page for the grid that stands alone, and a page for each conversation beside it.

Each page carries its style and its one script, both named by their hashes in its Content-Security-Policy: nothing else
is run, drawn from elsewhere, or fetched, whatever a model wrote.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup, escape

from overnight import __version__, durable
from overnight.errors import UserError
from overnight.queue.states import Status
from overnight.report import groups, overview, palette, story
from overnight.report.gather import Cell, Night
from overnight.report.markdown import FRAME_STYLE
from overnight.report.words import NONE, clock, count, number, percent, plural, shortened, visible, when

TEMPLATES = Path(__file__).parent / "templates"
INDEX = "index.html"
_MOST_KEYS = 30
_MOST_TOLD = 12
"""Cells of a finding: more are folded."""


@dataclass(frozen=True)
class Layout:
    """Where the files of one report go: `index`, and the folder of its pages beside it."""

    index: Path
    pages: Path

    @classmethod
    def of(cls, index: Path) -> Layout:
        """index.html has its pages in `cells`, NAME.html in `NAME.cells`, so that two reports may share a folder."""
        return cls(index, index.parent / ("cells" if index.name == INDEX else f"{index.stem}.cells"))

    def page(self, key: str) -> Path:
        return self.pages / f"{key}.html"

    def href(self, key: str) -> str:
        """From the index to a cell's page."""
        return f"{quote(self.pages.name)}/{quote(key)}.html"

    @property
    def back(self) -> str:
        """From a cell's page to the index."""
        return f"../{quote(self.index.name)}"


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=_shown,
    )  # fmt: skip
    environment.filters["clock"] = lambda seconds: clock(seconds, seconds_too=True)
    environment.filters["words"] = lambda text: plural(len(str(text).split()), "word")
    return environment


def _shown(value: Any) -> Any:
    """Every text that is put into a page comes by here: what is not markup of ours is made harmless first."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _style() -> Markup:
    return Markup(palette.css() + (TEMPLATES / "style.css").read_text("utf-8"))  # noqa: S704 - our own file


@cache
def _script() -> Markup:
    return Markup((TEMPLATES / "script.js").read_text("utf-8"))  # noqa: S704 - our own file


@cache
def policy() -> str:
    """The Content-Security-Policy of every page."""
    styles = f"{_hash(_style())} {_hash(FRAME_STYLE)}"
    return (
        f"default-src 'none'; script-src {_hash(_script())}; style-src {styles}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def version() -> str:
    """Of what makes pages: another template makes them anew."""
    parts = [file.read_bytes() for file in sorted([*TEMPLATES.iterdir(), *Path(__file__).parent.glob("*.py")])]
    return hashlib.sha256(b"\0".join([__version__.encode(), *parts])).hexdigest()[:16]


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def render(template: str, **values: Any) -> bytes:
    """A whole page."""
    found = _environment().get_template(template)
    text = found.render(
        **{"inputs": "", **values}, policy=policy(), style=_style(), script=_script(), version=__version__
    )
    return text.encode("utf-8")


def data_block(value: Any) -> Markup:
    """JSON that can stand in an element: no `<` that could end it, no line separator that an old parser minds."""
    written = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return Markup(written.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))  # noqa: S704


def write(path: Path, page: bytes) -> None:
    """Whole or not at all; it can be made again, so nothing is waited for. Raises UserError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write_atomic(path, page, durable=False)
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror}; name another place with --out FILE") from None


def index(night: Night, layout: Layout, *, pages: bool = True) -> bytes:
    """The grid's page. pages: those of conversations are written, too; what has none gets no link."""
    written = {cell.key for cell in night.cells if pages and cell.source is not None}

    def href(key: str) -> str:
        return layout.href(key) if key in written else ""

    told = story.tell(night, href)
    tables = groups.tables(night)
    panels = groups.panels(night, href)
    contents = [("grid", "Grid"), ("memory", "Memory"), ("retried", "Tried again"), ("audit", "Audit")]
    contents[1:1] = [("statistics", "Scaffolds")] * bool(tables or "statistics" in night.missing)
    contents[-3:-3] = [("similarity", "Similarity")] * bool(panels)
    contents += [("cells", "All cells"), ("provenance", "Provenance")]
    return render(
        "index.html",
        grid=night.grid.name,
        period=overview.period(night),
        written=when(time.time()),
        lede=overview.lede(night, sum(not each.is_own for each in told.leavings)),
        tiles=overview.tiles(night),
        contents=contents,
        missing_of={**dict.fromkeys(("analysis", "statistics", "memory", "audit"), ""), **night.missing},
        map=overview.heat_map(night, href),
        statuses=_statuses(night),
        steps=palette.STEPS,
        tables=tables,
        notes=list(night.statistics.notes) if night.statistics is not None else [],
        sentences=_sentences(night),
        analysis=night.analysis.replace("-", ", "),
        panels=panels,
        most_turns=max((c.analysed.line[-1][0] for c in night.cells if c.analysed and c.analysed.line), default=0),
        story=told,
        findings=_findings(night, href),
        is_imported=night.is_imported,
        is_command=night.is_command,
        rows=[_row(cell, href, is_imported=night.is_imported) for cell in night.cells],
        with_analysis=any(cell.analysed for cell in night.cells),
        provenance=_provenance(night),
        data=data_block(overview.panel(night, href)),
    )


def _statuses(night: Night) -> list[tuple[str, str, str]]:
    counted = [(status, sum(1 for cell in night.cells if cell.row.status is status)) for status in Status]
    return [(str(status), overview.GLYPHS[status], count(n)) for status, n in counted if n]


def _sentences(night: Night) -> list[tuple[str, str]]:
    if night.statistics is None:
        return []
    first = [c for metric in groups.FIRST for c in night.statistics.of_metric(metric)]
    return [(f"{c.name}, {c.metric.replace('_', ' ')}:", c.sentence) for c in first]


def _findings(night: Night, href: Callable[[str], str]) -> list[dict[str, Any]] | None:
    if night.findings is None:
        return None
    known = {cell.key: at for cell in night.cells if (at := href(cell.key))}
    return [
        {
            "severity": each.severity,
            "code": each.code,
            "title": each.title,
            "detail": _linked(each.detail, [key for key in each.cells if key in known], known),
            "many": plural(len(each.cells), "cell") if len(each.cells) > _MOST_TOLD else "",
        }
        for each in night.findings
    ]


def _linked(text: str, keys: Sequence[str], known: Mapping[str, str]) -> Markup:
    """A text in which the keys of cells lead to their pages."""
    if not keys:
        return escape(visible(text))
    named = re.compile(rf"(?<![\w.-])({'|'.join(map(re.escape, sorted(keys, key=len, reverse=True)))})(?![\w-])")
    parts = named.split(visible(text))
    told = [Markup('<a href="{}">{}</a>').format(known[p], p) if n % 2 else escape(p) for n, p in enumerate(parts)]
    return Markup("").join(told)


def _row(cell: Cell, href: Callable[[str], str], *, is_imported: bool) -> dict[str, str]:
    row, analysed = cell.row, cell.analysed
    collapse: Mapping[str, Any] = analysed.collapse if analysed else {}
    return {
        "key": cell.key,
        "href": href(cell.key),
        "status": str(row.status),
        "turns": count(row.turns) if row.turns else NONE,
        "tokens": count(row.output_tokens) if row.output_tokens else NONE,
        "collapsed": percent(collapse.get("collapsed_fraction")),
        "onset": number(collapse.get("onset_turn")),
        "vendi": number(analysed.metric("vendi_score"), 1) if analysed else NONE,
        "attempts": count(row.attempts),
        "end": row.end_reason or (shortened(row.reason, 60) if row.reason else NONE),
        "seed": NONE if is_imported else str(row.seed),
        "sha256": row.transcript_sha256 or "",
    }


def _provenance(night: Night) -> dict[str, Any]:
    found = night.provenance
    conditions = [
        {
            "model": model,
            "what": str((whole.get("conditions") or {}).get("engine", "")),
            "cells": plural(len(keys), "cell"),
            "keys": ", ".join(keys[:_MOST_KEYS]) + (" ..." if len(keys) > _MOST_KEYS else ""),
            "facts": list(_flat(whole)),
        }
        for model, whole, keys in found["conditions"]
    ]
    several = {model for model, _, _ in found["conditions"]}
    spread = [m for m in sorted(several) if sum(1 for each in found["conditions"] if each[0] == m) > 1]
    logs = f"{', '.join(night.logs.found)}" if night.logs.found else ""
    if night.logs.dropped:
        logs += f"; {plural(night.logs.dropped, 'event')} beyond what a report can show"
    return {
        **found,
        "conditions": conditions,
        "differs": f"Not all cells of {', '.join(spread)} ran with the same settings: they stand apart above."
        if spread
        else "",
        "scaffolds": sorted(found["scaffolds"].items()),
        "spec": json.dumps(found["grid"], indent=2, ensure_ascii=False),
        "seed": found["grid"].get("seed"),
        "logs": logs,
    }


def _flat(value: Any, path: str = "") -> Any:
    """Every leaf of a JSON value with its path."""
    if isinstance(value, dict) and value:
        for name, part in value.items():
            yield from _flat(part, f"{path}.{name}" if path else str(name))
    elif value not in (None, {}, []):
        yield path.removeprefix("conditions."), value if isinstance(value, str) else json.dumps(value)


__all__ = ["INDEX", "Layout", "index", "policy", "render", "version", "write"]
