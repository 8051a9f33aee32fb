"""Tables as files: CSV (RFC 4180), JSON, Parquet. Each is written whole or not at all, a piece at a time.

CSV is opened with spreadsheets, which take text that begins with =, +, - or @ for a formula (a tab or a line end may
come before it): such text gets an apostrophe in front, numbers stay numbers (OWASP, "CSV Injection"). Control
characters and what is no UTF-8 are written as escapes (\\x1b). JSON and Parquet hold every text as it is.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from overnight import durable
from overnight.analysis.tables import Column, Kind, Table, Value
from overnight.errors import UserError

FORMATS = ("csv", "json", "parquet")
Format = Literal["csv", "json", "parquet"]

_PIECE_BYTES = 2**18
_PARQUET_ROWS = 2**14

_FORMULA = re.compile(r"'*(?:\s*[=+\-@\uFF0B\uFF0D\uFF1D\uFF20]|[\t\r\n])")
"""Also the full-width forms, which some programs take for the same. A text that is marked already gets a second mark,
so that taking one apostrophe away always gives the text back."""

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufeff]")


def write(tables: Iterable[Table], folder: Path, form: Format) -> list[Path]:
    """NAME.csv, NAME.json or NAME.parquet of each table in `folder`, which is made. Returns the paths.

    Raises UserError when there is no pyarrow for Parquet (nothing is written then), OSError."""
    pieces = _WRITERS[form]()
    durable.make_folders(folder)
    paths = []
    for table in tables:
        path = folder / f"{table.name}.{form}"
        durable.write_atomic(path, pieces(table))
        paths.append(path)
    return paths


def csv_pieces(table: Table) -> Iterator[bytes]:
    """Header line, CRLF, an empty field where there is no value, true and false."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow([_csv_text(column.name) for column in table.columns])
    for row in table.rows():
        writer.writerow([_csv_value(value) for value in row])
        if buffer.tell() >= _PIECE_BYTES:
            yield buffer.getvalue().encode()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue().encode()


def _csv_value(value: Value) -> str:
    if isinstance(value, str):
        return _csv_text(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else repr(value)


def _csv_text(text: str) -> str:
    harmless = _CONTROL.sub(lambda match: _escape(ord(match.group())), text)
    return f"'{harmless}" if _FORMULA.match(text) else harmless


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def json_pieces(table: Table) -> Iterator[bytes]:
    """An array of objects, one a line."""
    names = [column.name for column in table.columns]
    lead = "["
    pieces: list[str] = []
    size = 0
    for row in table.rows():
        piece = lead + json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False, allow_nan=False)
        lead, size = ",\n", size + len(piece)
        pieces.append(piece)
        if size >= _PIECE_BYTES:
            yield "".join(pieces).encode(errors=durable.ODD_NAMES)
            pieces, size = [], 0
    pieces.append("[]\n" if lead == "[" else "]\n")
    yield "".join(pieces).encode(errors=durable.ODD_NAMES)


def parquet_pieces(table: Table) -> Iterator[bytes]:
    """Columns of text, int64, float64 and bool, in groups of 16,384 rows."""
    import pyarrow
    from pyarrow import parquet

    types: dict[Kind, Any] = {}
    types |= {
        "text": pyarrow.string(),
        "integer": pyarrow.int64(),
        "number": pyarrow.float64(),
        "flag": pyarrow.bool_(),
    }
    schema = pyarrow.schema([(column.name, types[column.kind]) for column in table.columns])
    sink = _Sink()
    with parquet.ParquetWriter(pyarrow.PythonFile(sink, mode="w"), schema) as writer:
        rows = table.rows()
        while group := list(itertools.islice(rows, _PARQUET_ROWS)):
            writer.write_table(pyarrow.Table.from_arrays(_arrays(pyarrow, group, table.columns, types), schema=schema))
            yield sink.taken()
    yield sink.taken()


def _arrays(
    pyarrow: Any, rows: Sequence[tuple[Value, ...]], columns: Sequence[Column], types: dict[Kind, Any]
) -> list[Any]:
    found = []
    for column, values in zip(columns, zip(*rows, strict=True), strict=True):
        # A lone half of a character is no UTF-8, which is all that Parquet takes as text.
        fit = [v.encode(errors="backslashreplace").decode() if isinstance(v, str) else v for v in values]
        found.append(pyarrow.array(fit, type=types[column.kind]))
    return found


class _Sink:
    """A file that is handed on piece by piece while it is written."""

    closed = False

    def __init__(self) -> None:
        self._buffer, self._before = io.BytesIO(), 0

    def write(self, data: Any) -> int:
        return self._buffer.write(data)

    def tell(self) -> int:
        return self._before + self._buffer.tell()

    def flush(self) -> None:
        """Nothing is on disk yet."""

    def close(self) -> None:
        """The rest is still to be taken."""

    def taken(self) -> bytes:
        data = self._buffer.getvalue()
        self._before += len(data)
        self._buffer = io.BytesIO()
        return data


def _csv() -> Callable[[Table], Iterator[bytes]]:
    return csv_pieces


def _json() -> Callable[[Table], Iterator[bytes]]:
    return json_pieces


def _parquet() -> Callable[[Table], Iterator[bytes]]:
    try:
        import pyarrow.parquet  # noqa: F401 - to know before anything is written
    except ImportError as error:
        raise UserError(
            f"Parquet needs pyarrow, which cannot be imported ({error}); `pip install pyarrow`, or export csv or json"
        ) from None
    return parquet_pieces


_WRITERS: dict[Format, Callable[[], Callable[[Table], Iterator[bytes]]]] = {
    "csv": _csv,
    "json": _json,
    "parquet": _parquet,
}
