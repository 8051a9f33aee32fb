"""`overnight report GRID`: the morning report, as files that any browser shows from disk."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overnight import private
from overnight.cli import common
from overnight.errors import UserError
from overnight.paths import Paths

if TYPE_CHECKING:
    from overnight.report.html import Layout

_NEEDS = ("jinja2", "markupsafe", "markdown_it", "mdurl", "nh3")


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "report", help="the morning report of a grid: one HTML file, and a page per conversation"
    )
    parser.add_argument("grid", metavar="GRID")
    parser.add_argument("--out", metavar="FILE", help="write it to FILE (default: var/reports/GRID/index.html)")
    parser.add_argument("--open", action="store_true", help="show it in the browser")
    parser.add_argument("--backend", choices=["tfidf", "embedding"], help="figures of this analysis")
    parser.add_argument("--method", choices=["absolute", "profile"], help="figures of this detection")
    parser.add_argument("--no-pages", action="store_true", help="only the one file, without a page per conversation")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    _libraries()
    from overnight.report import html, page
    from overnight.report.gather import gather

    paths = common.home(args, looks=True)
    with common.open_queue(paths) as queue:
        layout = _layout(paths, queue.grid(args.grid).name, args.out)
        state = common.daemon_state(paths)
        live = {row["cell_id"]: (row["turn"], row["output_tokens"]) for row in (state["running"] if state else [])}
        night = gather(
            paths,
            queue,
            args.grid,
            backend=args.backend or "",
            method=args.method or "",
            daemon_lives=state is not None,
            live=live,
        )
    made = kept = 0
    if not args.no_pages:
        for _, is_new in page.write_all(night, layout):
            made, kept = made + is_new, kept + (not is_new)
    html.write(layout.index, html.index(night, layout, pages=not args.no_pages))
    for sentence in night.missing.values():
        print(sentence)
    pages = f" and {made + kept} conversations" + (f" ({kept} unchanged)" if kept else "") if made + kept else ""
    print(f"{layout.index}: {len(night.cells)} cells{pages}")
    if args.open:
        _open(layout.index)
    return 0


def _libraries() -> None:
    """Raises UserError where the extra was not installed."""
    import importlib.util

    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"a report needs {', '.join(missing)}: pip install 'overnight[report]'")


def _layout(paths: Paths, grid: str, out: str | None) -> Layout:
    from overnight.report import html

    if out is None:
        folder = paths.reports
        try:
            private.make_folder(folder)
        except FileNotFoundError:
            pass  # writing the report says what is missing
        return html.Layout.of(paths.grid_report(grid) / html.INDEX)
    index = Path(os.path.abspath(out))  # noqa: PTH100 - links on the way stay what they are
    if index.is_dir():
        raise UserError(f"--out {out}: that is a folder; name a file in it, such as {index / html.INDEX}")
    return html.Layout.of(index)


def _open(index: Path) -> None:
    import webbrowser

    if not webbrowser.open(index.as_uri()):
        print("no browser was found; open the file yourself", file=sys.stderr)
