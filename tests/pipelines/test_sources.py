"""CSV text in pieces: whatever the cut, every line ends in one place, with the same number."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import DataError
from features.schema import EVENTS
from pipelines.sources import csv_text
from pipelines.sources import lines as lines_module
from pipelines.sources.checks import MAX_ID, check_rows
from pipelines.sources.csv_text import open_csv
from pipelines.sources.lines import LINE, line_texts, plan_lines
from pipelines.sources.raw import RANK_SHIFT, EventTypes, FileForm, LogLayout, RawRows, TimeRange
from pipelines.sources.read import events_table, read_unit

TIMES = TimeRange(946_684_800_000, 4_102_444_800_000, "2000-01-01..2100-01-01")
NOW_MS = 1_650_600_000_000
CSV = FileForm("csv")
LAYOUT = LogLayout(
    user_id="user",
    item_id="item",
    timestamp="time",
    timestamp_unit="ms",
    decimals=False,
    flags=(("click", 0), ("like", 3)),
    watch_ms="watch",
    duration_ms="length",
    surface="tab",
    random_flag="rand",
)
HEADER = "user,item,time,click,like,watch,length,tab,rand"
GOOD = f"1,2,{NOW_MS},1,1,30,40,5,0"


def read_text(path: Path, text: str | bytes, rank: int = 0, layout: LogLayout = LAYOUT) -> RawRows:
    """All pieces of a file with this text, put together."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    file = open_csv(path, path.name, rank, CSV)
    pieces = [read_unit(unit, layout, TIMES) for unit in plan_lines(file)]
    return RawRows(
        pl.concat(piece.events for piece in pieces),
        pl.concat(piece.quarantine for piece in pieces),
        sum(piece.num_blank for piece in pieces),
    )


def faults(rows: RawRows) -> list[tuple[int, str | None, str]]:
    return list(rows.quarantine.select("row", "column", "reason").iter_rows())


def test_a_row_becomes_an_event(tmp_path: Path) -> None:
    rows = read_text(tmp_path / "log.csv", f"{HEADER}\n{GOOD}\n", rank=3)
    assert rows.events.row(0, named=True) == {
        "user_id": 1,
        "item_id": 2,
        "timestamp_ms": NOW_MS,
        "action_mask": 0b1001,
        "watch_ms": 30,
        "duration_ms": 40,
        "value": None,
        "surface": 5,
        "source_order": 3 << RANK_SHIFT,
    }
    assert events_table(rows.events).schema.equals(EVENTS)
    assert len(rows.quarantine) == 0


def test_unknown_durations_negative_watch_times_and_random_exposures(tmp_path: Path) -> None:
    lines = [f"1,2,{NOW_MS},0,0,-8,0,5,1", f"1,2,{NOW_MS},0,0,,,,0"]
    rows = read_text(tmp_path / "log.csv", "\n".join([HEADER, *lines]))
    columns = rows.events.select("watch_ms", "duration_ms", "surface")
    assert columns.rows() == [(0, None, 105), (None, None, None)]


@pytest.mark.parametrize(
    ("line", "column", "reason"),
    [
        (f"x,2,{NOW_MS},0,0,1,1,1,0", "user", "not an integer"),
        (f"1.0,2,{NOW_MS},0,0,1,1,1,0", "user", "not an integer"),
        (f",2,{NOW_MS},0,0,1,1,1,0", "user", "null key"),
        (f"-1,2,{NOW_MS},0,0,1,1,1,0", "user", "negative id"),
        (f"1,{MAX_ID + 1},{NOW_MS},0,0,1,1,1,0", "item", "id over 2^53"),
        (f"1,99999999999999999999,{NOW_MS},0,0,1,1,1,0", "item", "id over 2^53"),
        (f"1,-99999999999999999999,{NOW_MS},0,0,1,1,1,0", "item", "negative id"),
        (f"0x1F,2,{NOW_MS},0,0,1,1,1,0", "user", "not an integer"),
        ("1,2,,0,0,1,1,1,0", "time", "null key"),
        ("1,2,soon,0,0,1,1,1,0", "time", "not an integer"),
        ("1,2,5,0,0,1,1,1,0", "time", "timestamp outside 2000-01-01..2100-01-01"),
        (
            f"1,2,{NOW_MS // 1000},0,0,1,1,1,0",
            "time",
            "timestamp outside 2000-01-01..2100-01-01: looks like seconds, not milliseconds",
        ),
        (
            f"1,2,{NOW_MS * 1000},0,0,1,1,1,0",
            "time",
            "timestamp outside 2000-01-01..2100-01-01: looks like microseconds, not milliseconds",
        ),
        (f"1,2,{NOW_MS},2,0,1,1,1,0", "click", "action flag is not 0 or 1"),
        (f"1,2,{NOW_MS},0,,1,1,1,0", "like", "action flag is not 0 or 1"),
        (f"1,2,{NOW_MS},yes,0,1,1,1,0", "click", "action flag is not 0 or 1"),
        (f"1,2,{NOW_MS},0,0,1.5,1,1,0", "watch", "not an integer"),
        (f"1,2,{NOW_MS},0,0,1,{2**31},1,0", "length", "over 2147483647 milliseconds"),
        (f"1,2,{NOW_MS},0,0,1,1,-1,0", "tab", "surface outside 0..32667"),
        (f"1,2,{NOW_MS},0,0,1,1,home,0", "tab", "not an integer"),
        (f"1,2,{NOW_MS},0,0,1,1,1,2", "rand", "flag is not 0 or 1"),
        (f"1,2,{NOW_MS},0,0", None, "too few fields"),
        (f"1,2,{NOW_MS},0,0,1,1,1,0,9", None, "too many fields"),
        (f'1,"2,{NOW_MS},0,0,1,1,1,0', None, "stray quote or carriage return"),
        (f"\xff,2,{NOW_MS},0,0,1,1,1,0", "user", "not an integer"),
        (f"1,2,{NOW_MS},0,\r0,1,1,1,0", None, "stray quote or carriage return"),
        ("   ", None, "too few fields"),
    ],
)
def test_a_bad_row_is_quarantined_with_its_line(tmp_path: Path, line: str, column: str | None, reason: str) -> None:
    rows = read_text(tmp_path / "log.csv", f"{HEADER}\n{GOOD}\n{line}\n{GOOD}\n".encode("latin-1"))
    assert faults(rows) == [(3, column, reason)]
    assert rows.quarantine["file"].to_list() == ["log.csv"]
    assert rows.quarantine["content"].to_list() == [line.encode("latin-1").decode("utf-8", "replace")]
    assert rows.events["source_order"].to_list() == [0, 2]


def test_a_row_with_several_faults_is_counted_once(tmp_path: Path) -> None:
    rows = read_text(tmp_path / "log.csv", f"{HEADER}\n-1,x,5,7,7,1,1,1,9\n")
    assert faults(rows) == [(2, "user", "negative id")]


def test_a_very_long_line_is_kept_short(tmp_path: Path) -> None:
    rows = read_text(tmp_path / "log.csv", f"{HEADER}\n{'x' * 300_000}\n{GOOD}\n")
    assert len(rows.quarantine["content"][0]) == 1000
    assert len(rows.events) == 1


@pytest.mark.parametrize(
    "text", [f"{HEADER}\r\n{GOOD}\r\n{GOOD}\r\n", f"{HEADER}\n{GOOD}\n{GOOD}", f"﻿{HEADER}\n{GOOD}\n{GOOD}\n"]
)
def test_line_ends_missing_last_line_end_and_byte_order_mark(tmp_path: Path, text: str) -> None:
    rows = read_text(tmp_path / "log.csv", text)
    assert rows.events["source_order"].to_list() == [0, 1]
    assert len(rows.quarantine) == 0


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path: Path) -> None:
    rows = read_text(tmp_path / "log.csv", f"{HEADER}\n{GOOD}\n\nbad\n\r\n{GOOD}\n\n")
    assert rows.num_blank == 3
    assert faults(rows) == [(4, None, "too few fields")]
    assert rows.events["source_order"].to_list() == [0, 4]


def test_a_file_of_a_header_has_no_units(tmp_path: Path) -> None:
    for text in (HEADER, f"{HEADER}\n"):
        path = tmp_path / "log.csv"
        path.write_text(text)
        assert list(plan_lines(open_csv(path, "log.csv", 0, CSV))) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "log.csv: no header line, the file is empty or begins with a blank line"),
        (b"\n1,2\n", "log.csv: no header line, the file is empty or begins with a blank line"),
        (b"\x80\x81\n1\n", "log.csv: the header line is not UTF-8 text"),
        (b"a,b,a\n1,2,3\n", "log.csv: column 'a' is in the header twice"),
    ],
)
def test_a_bad_header_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        open_csv(path, "log.csv", 0, CSV)
    assert str(error.value) == message


field = st.sampled_from(["1", "77", "x", "", "-3", "0x1", '"5"', '"', "1.0", str(NOW_MS), " 4"])
line = st.one_of(
    st.just(GOOD),
    st.just(GOOD),
    st.sampled_from(["", "\r", "half,a,row", GOOD + "\r"]),
    st.lists(field, min_size=8, max_size=10).map(",".join),
)


@settings(max_examples=40, deadline=None)
@given(lines=st.lists(line, max_size=40), unit_bytes=st.integers(1, 400), block_bytes=st.integers(1, 200))
def test_cuts_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], unit_bytes: int, block_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("cuts") / "log.csv"
    text = "\n".join([HEADER, GOOD, *lines]) + "\n"
    whole = read_text(path, text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines_module, "UNIT_BYTES", unit_bytes)
        patch.setattr(lines_module, "BLOCK_BYTES", block_bytes)
        units = list(plan_lines(open_csv(path, "log.csv", 0, CSV)))
        cut = read_text(path, text)
    assert cut.events.equals(whole.events)
    assert cut.quarantine.equals(whole.quarantine)
    assert cut.num_blank == whole.num_blank == sum(not line.removesuffix("\r") for line in lines)
    assert len(whole.events) + len(whole.quarantine) + whole.num_blank == len(lines) + 1
    assert sum(unit.num_rows for unit in units) == len(lines) + 1
    assert [unit.first_row for unit in units] == list(np.cumsum([0, *(unit.num_rows for unit in units)])[:-1])
    assert [unit.start for unit in units[1:]] == [unit.stop for unit in units[:-1]]


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.lists(st.text("ab1,\"' ", max_size=6), min_size=3, max_size=3), min_size=1, max_size=20))
def test_line_by_line_reading_is_the_csv_module_s(
    rows: list[list[str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("text") / "log.csv"
    with path.open("w", newline="") as sink:
        writer = csv.writer(sink, lineterminator="\n")
        writer.writerows([["a", "b", "c"], *rows])
    file = open_csv(path, "log.csv", 0, CSV)
    dtypes: dict[str, pl.DataType] = dict.fromkeys("abc", pl.String())
    data = path.read_bytes().split(b"\n", 1)[1]
    fast = csv_text._parse(data, file.columns, dtypes)
    slow = csv_text._split_fields(data, file.columns, tuple("abc"))
    expected = [tuple(value or None for value in row) for row in rows]
    assert slow.frame.select("a", "b", "c").rows() == expected
    assert fast is None or fast.select("a", "b", "c").rows() == expected
    assert len(slow.faults) == 0
    texts = line_texts(data, slow.frame[LINE].to_numpy())
    assert [next(csv.reader([text])) for text in texts] == rows


@settings(max_examples=100, deadline=None)
@given(
    lines=st.lists(st.text("a1,\r", max_size=6).filter(lambda line: "\r" not in line[:-1]), min_size=1, max_size=12),
    ended=st.booleans(),
)
def test_counting_commas_splits_as_the_csv_module_does(lines: list[str], ended: bool) -> None:
    data = "\n".join(lines).encode() + b"\n" * ended
    if not data:
        return
    columns = ("a", "b", "c")
    counted = csv_text._count_fields(data, columns, columns)
    split = csv_text._split_fields(data, columns, columns)
    assert counted is not None
    assert counted.frame.select(LINE, *columns).equals(split.frame.select(LINE, *columns))
    assert counted.faults.equals(split.faults)
    assert counted.num_blank == split.num_blank


integers = st.one_of(
    st.none(), st.integers(-3, 3), st.sampled_from([MAX_ID, MAX_ID + 1, NOW_MS, NOW_MS // 1000, 2**63 - 1, -(2**63)])
)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.lists(integers, min_size=9, max_size=9), max_size=20))
def test_typed_and_text_columns_are_judged_alike(rows: list[list[int | None]]) -> None:
    names = HEADER.split(",")
    typed = pl.DataFrame(rows, schema=dict.fromkeys(names, pl.Int64), orient="row").with_row_index(LINE)
    typed = typed.with_columns(pl.col(LINE).cast(pl.Int64))
    text = typed.with_columns(pl.col(names).cast(pl.String))
    by_type, by_text = check_rows(typed, LAYOUT, TIMES), check_rows(text, LAYOUT, TIMES)
    assert by_type.events.equals(by_text.events)
    assert by_type.faults.equals(by_text.faults)
    assert len(by_type.events) + len(by_type.faults) == len(rows)


def test_event_types_become_masks(tmp_path: Path) -> None:
    layout = LogLayout(
        "u", "i", "t", "s", decimals=True, event_types=EventTypes("what", {"view": 0, "buy": 4}), value="what"
    )
    rows = read_text(tmp_path / "log.csv", "u,i,t,what\n1,2,1650600000.25,view\n1,2,1650600001,buy\n", layout=layout)
    assert faults(rows) == [(2, "what", "not a number"), (3, "what", "not a number")]
    layout = LogLayout("u", "i", "t", "s", decimals=True, event_types=EventTypes("what", {"view": 0, "buy": 4}))
    rows = read_text(
        tmp_path / "log.csv",
        "u,i,t,what\n1,2,1650600000.25,view\n1,2,1650600001,buy\n1,2,1650600001,sell\n1,2,1650600001,\n",
        layout=layout,
    )
    assert rows.events.select("timestamp_ms", "action_mask").rows() == [(NOW_MS + 250, 0), (NOW_MS + 1000, 4)]
    assert faults(rows) == [(4, "what", "unknown action value"), (5, "what", "unknown action value")]


def test_a_file_that_changed_since_it_was_planned_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f"{HEADER}\n{GOOD}\n{GOOD}\n")
    (unit,) = plan_lines(open_csv(path, path.name, 0, CSV))
    path.write_text(f"{HEADER}\n{GOOD}\n")
    message = r"^log\.csv: 2 rows were counted from row 0 on, but 1 were read; did the file change meanwhile\?"
    with pytest.raises(DataError, match=message):
        read_unit(unit, LAYOUT, TIMES)
