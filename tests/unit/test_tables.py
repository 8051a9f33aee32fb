"""Tables of an analysis, and their files: what a spreadsheet, a program and a data frame get."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.analysis_records import record
from overnight.analysis import table_files, tables
from overnight.analysis.statistics import Settings, analyse
from overnight.analysis.tables import Column, Table
from overnight.errors import UserError


def text_table(*texts: str) -> Table:
    return Table("t", (Column("a", "text"), Column("b", "integer")), lambda: iter([(text, 1) for text in texts]))


def read_csv(table: Table) -> list[dict[str, str]]:
    data = b"".join(table_files.csv_pieces(table))
    return list(csv.DictReader(io.StringIO(data.decode(), newline="")))


def read_json(table: Table) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(b"".join(table_files.json_pieces(table)))
    return found


@pytest.fixture
def records() -> list[dict[str, Any]]:
    return [record(scaffold, run=run, fraction=0.5 * (run == 2), coords={"heat": 0.5 * run, "tone": "kind"}, turns=3)
            for scaffold in ("baseline", "values") for run in (1, 2)]  # fmt: skip


def test_a_row_a_cell_a_turn_a_span(records: list[dict[str, Any]]) -> None:
    cells, series, spans = tables.of_records(records)
    assert [len(read_json(each)) for each in (cells, series, spans)] == [4, 12, 2]
    assert read_json(cells)[1] == {
        "grid": "night", "key": "baseline_small_run2", "scaffold": "baseline", "model": "small", "run": 2,
        "axis.heat": 1.0, "axis.tone": "kind", "backend": "tfidf", "embedding_model": None, "method": "absolute",
        "status": "done", "end_reason": "max_iterations", "turns": 3, "tokens": 1002, "collapsed": True, "spans": 1,
        "onset_turn": 4, "collapsed_fraction": 0.5, "collapse_rate": 0.05, "transcript_sha256": f"{2:064x}",
        "overnight": "0.1.0", "metric.vendi_score": 3.0 + 2 / 7,
    }  # fmt: skip
    turn = read_json(series)[0]
    assert (turn["key"], turn["turn"], turn["words"], turn["sim_prev1"]) == ("baseline_small_run1", 1, 41, None)
    span = read_json(spans)[0]
    assert (span["key"], span["first_turn"], span["label"]) == ("baseline_small_run2", 4, "again and again")


def test_collapsed_is_what_has_an_onset_and_nothing_where_nothing_was_said() -> None:
    episode = record(run=1, fraction=0.2)
    episode["collapse"] |= {"onset_turn": None, "collapse_rate": 0.0}
    silent = record(run=2, turns=0, metrics={}, series=[])
    rows = read_json(tables.of_records([episode, silent])[0])
    figures = [(row["collapsed"], row["spans"], row["collapsed_fraction"], row["collapse_rate"]) for row in rows]
    assert figures == [(False, 1, 0.2, 0.0), (None, 0, None, None)]


def test_a_row_a_group_and_metric_and_a_comparison(records: list[dict[str, Any]]) -> None:
    found = analyse(records, settings=Settings(seed=3, resamples=99))
    groups, comparisons = tables.of_statistics(found)
    rows = read_json(groups)
    assert len(rows) == len(found.groups) * len(found.metrics)
    expected = {
        "grid": "night", "scaffold": "baseline", "axis.heat": 0.5, "axis.tone": "kind", "metric": "collapsed", "n": 1,
        "sd": None, "seed": 3,
    }  # fmt: skip
    assert rows[0].items() >= expected.items()
    row = read_json(comparisons)[0]
    assert (row["baseline"], row["scaffold"], row["p"], row["exact"], row["significant"]) == (
        *("baseline", "values", None, None),
        False,
    )
    assert row["sentence"] == "n = 1 against 1: no test, which takes two runs on each side"


def test_figures_of_tested_groups_are_in_the_tables() -> None:
    records = [record(scaffold, run=run, metrics={"m": run + 10.0 * (scaffold != "baseline")})
               for scaffold in ("baseline", "values") for run in (1, 2, 3)]  # fmt: skip
    groups, comparisons = tables.of_statistics(analyse(records))
    row = next(row for row in read_json(comparisons) if row["metric"] == "m")
    assert (row["difference"], row["cliffs_delta"], row["permutations"], row["exact"]) == (10.0, 1.0, 20, True)
    assert (row["p"], row["smallest_p"], row["p_holm"]) == pytest.approx((0.1, 0.1, 0.1))
    assert row["interval"] == "BCa" and row["low"] < 10 < row["high"] and row["backend"] == "tfidf"
    mean = next(row for row in read_json(groups) if row["metric"] == "m")
    assert (mean["mean"], mean["sd"], mean["median"], mean["level"]) == (2.0, 1.0, 2.0, 0.95)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2], "integer"), ([1, 0.5], "number"), ([True, False], "flag"), ([1, "x"], "text"), (["a"], "text"),
        ([True, 1], "text"), ([{"a": 1}], "text"), ([2**70], "number"), ([None, "x"], "text"),
    ],
)  # fmt: skip
def test_an_axis_is_of_the_kind_of_its_values(values: list[Any], kind: str) -> None:
    cells, _, _ = tables.of_records([record(coords={"x": value}) for value in values])
    assert next(column.kind for column in cells.columns if column.name == "axis.x") == kind
    read_csv(cells)


def test_an_iterator_is_good_enough(records: list[dict[str, Any]]) -> None:
    for one, other in zip(tables.of_records(iter(records)), tables.of_records(records), strict=True):
        assert list(one.rows()) == list(one.rows()) == list(other.rows())


def test_not_a_number_is_no_value() -> None:
    cells, _, _ = tables.of_records([record(metrics={"m": float("nan"), "n": float("inf"), "o": None, "p": 2})])
    row = read_json(cells)[0]
    assert [row[f"metric.{name}"] for name in "mnop"] == [None, None, None, 2.0]


# -- CSV --------------------------------------------------------------------------------------------------------------


def test_csv_is_rfc_4180() -> None:
    columns = (Column("a", "text"), Column("b", "number"), Column("c", "flag"), Column("d", "integer"))
    rows: list[tuple[Any, ...]] = [
        ('say "hi", you\nand you', -0.5, True, -3),
        ("", None, None, None),
        ("ü", 0.1, False, 0),
    ]
    data = b"".join(table_files.csv_pieces(Table("t", columns, lambda: iter(rows))))
    assert data == ('a,b,c,d\r\n"say ""hi"", you\nand you",-0.5,true,-3\r\n,,,\r\nü,0.1,false,0\r\n'.encode())


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        " =1",
        "=cmd|' /C calc'!A0",
        "\uff1d1",
        "'=1",
        "\n=2",
        "-",
        '=HYPERLINK("x")',
    ],
)
def test_no_text_of_a_model_is_a_formula(text: str) -> None:
    cell = read_csv(text_table(text))[0]["a"]
    assert cell.startswith("'")
    if "\r" not in text:
        assert cell == f"'{text}" or cell == f"'{text}".replace("\r", "\\x0d")


@pytest.mark.parametrize("text", ["a=1", "1-2", "it's", "'tis", "", "a\tb", "so - it goes"])
def test_other_text_stays_as_it_is(text: str) -> None:
    assert read_csv(text_table(text))[0]["a"] == text


@settings(deadline=None)
@given(st.text())
def test_csv_gives_every_text_back(text: str) -> None:
    cell = read_csv(text_table(text))[0]["a"]
    assert cell[:1] not in ("=", "+", "-", "@", "\t", "\r", "\n")
    back = cell[1:] if cell.startswith("'") and table_files._FORMULA.match(cell[1:]) else cell
    assert back == table_files._CONTROL.sub(lambda match: table_files._escape(ord(match.group())), text)


@settings(deadline=None)
@given(st.text(st.characters(), max_size=5))
def test_csv_holds_no_control_characters(text: str) -> None:
    data = b"".join(table_files.csv_pieces(text_table(text, "\x1b[31m\ud800\x00")))
    assert not {0, 7, 8, 27, 127} & set(data)
    assert "\\x1b[31m\\ud800\\x00" in data.decode()


def test_numbers_are_no_text() -> None:
    cells, _, _ = tables.of_records([record(coords={"shift": -1.5})])
    assert read_csv(cells)[0]["axis.shift"] == "-1.5"


def test_a_label_and_a_scaffold_that_are_formulas() -> None:
    cells, _, spans = tables.of_records([record("=1+1", fraction=0.5, label="@evil")])
    assert read_csv(cells)[0]["scaffold"] == "'=1+1"
    assert read_csv(spans)[0]["label"] == "'@evil"
    assert read_json(spans)[0]["label"] == "@evil"


# -- JSON -------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=())), max_size=4))
def test_json_gives_every_text_back(texts: list[str]) -> None:
    assert [row["a"] for row in read_json(text_table(*texts))] == texts


# -- Parquet and files ------------------------------------------------------------------------------------------------


def test_parquet_holds_the_same_as_json(records: list[dict[str, Any]], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    made = [*tables.of_records(records), *tables.of_statistics(analyse(records, settings=Settings(resamples=99)))]
    paths = table_files.write(made, tmp_path / "new" / "out", "parquet")
    assert [path.name for path in paths] == [
        *("cells.parquet", "series.parquet", "spans.parquet", "groups.parquet", "comparisons.parquet"),
    ]
    for table, path in zip(made, paths, strict=True):
        assert parquet.read_table(path).to_pylist() == read_json(table)
    kinds = {field.name: str(field.type) for field in parquet.read_schema(paths[0])}
    assert (kinds["run"], kinds["axis.heat"], kinds["collapsed"], kinds["key"]) == ("int64", "double", "bool", "string")


def test_parquet_in_several_pieces_and_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(table_files, "_PARQUET_ROWS", 3)
    table = text_table(*"abcdefgh", "\ud800")
    pieces = list(table_files.parquet_pieces(table))
    assert len(pieces) == 4
    path = tmp_path / "t.parquet"
    path.write_bytes(b"".join(pieces))
    assert parquet.read_table(path).column("a").to_pylist() == [*"abcdefgh", "\\ud800"]
    path.write_bytes(b"".join(table_files.parquet_pieces(text_table())))
    assert parquet.read_table(path).num_rows == 0


def test_without_pyarrow_there_is_one_clear_line_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"Parquet needs pyarrow.*pip install pyarrow.*csv or json"):
        table_files.write([text_table("a")], tmp_path / "out", "parquet")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["csv", "json"])
def test_files_are_whole_or_not_there(tmp_path: Path, form: table_files.Format) -> None:
    def broken() -> Any:
        yield ("a", 1)
        raise RuntimeError("the disk of the records went away")

    table_files.write([text_table("old")], tmp_path, form)
    before = (tmp_path / f"t.{form}").read_bytes()
    with pytest.raises(RuntimeError):
        table_files.write([Table("t", text_table().columns, broken)], tmp_path, form)
    assert [path.name for path in tmp_path.iterdir()] == [f"t.{form}"]
    assert (tmp_path / f"t.{form}").read_bytes() == before


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_long_table_is_written_in_pieces(form: str) -> None:
    made = table_files.csv_pieces if form == "csv" else table_files.json_pieces
    table = text_table(*(["some words"] * 100_000))
    sizes = [len(piece) for piece in made(table)]
    assert len(sizes) > 3
    assert max(sizes) < 2 * table_files._PIECE_BYTES
    assert len(read_csv(table) if form == "csv" else read_json(table)) == 100_000
