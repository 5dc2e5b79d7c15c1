"""JSON lines: whatever the cut and whichever way they are read, the same rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import DataError
from pipelines.sources import json_lines, lines
from pipelines.sources.csv_text import open_csv
from pipelines.sources.forms import open_file
from pipelines.sources.json_lines import read_jsonl_unit, record_texts
from pipelines.sources.lines import plan_lines
from pipelines.sources.raw import RANK_SHIFT, EventTypes, FileForm, LogLayout, RawRows, TimeRange
from pipelines.sources.read import read_unit

TIMES = TimeRange(946_684_800_000, 4_102_444_800_000, "2000-01-01..2100-01-01")
NOW_MS = 1_650_600_000_000
NESTED = FileForm("jsonl", records="events")
NESTED_LAYOUT = LogLayout(
    "session", "events.aid", "events.ts", "ms", event_types=EventTypes("events.type", {"clicks": 1, "carts": 2})
)
FLAT = FileForm("jsonl")
FLAT_LAYOUT = LogLayout("user", "item", "ts", "ms", flags=(("liked", 0),), value="stars", decimals=True)


def read_all(path: Path, form: FileForm, layout: LogLayout) -> RawRows:
    file = open_file(path, path.name, 2, form)
    pieces = [read_unit(unit, layout, TIMES) for unit in plan_lines(file)]
    return RawRows(
        pl.concat(piece.events for piece in pieces),
        pl.concat(piece.quarantine for piece in pieces),
        sum(piece.num_blank for piece in pieces),
    )


def test_a_line_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    rows = [
        {"user": 1, "item": 2, "ts": NOW_MS, "liked": 1, "stars": 4.5, "more": {"x": [1]}},
        {"item": 3, "user": 1, "ts": NOW_MS + 0.4, "liked": 0},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    events = read_all(path, FLAT, FLAT_LAYOUT).events
    columns = events.select("user_id", "item_id", "timestamp_ms", "action_mask", "value", "source_order")
    first = 2 << RANK_SHIFT
    assert columns.rows() == [(1, 2, NOW_MS, 1, 4.5, first), (1, 3, NOW_MS, 0, None, first + 1)]


@pytest.mark.parametrize(
    ("row", "column", "reason"),
    [
        ({"item": 2}, "user", "null key"),
        ({"user": "x", "item": 2}, "user", "not an integer"),
        ({"user": 1.5, "item": 2}, "user", "not an integer"),
        ({"user": 1, "item": -2}, "item", "negative id"),
        ({"user": 1, "item": [2]}, "item", "not an integer"),
        ({"user": 1, "item": 2, "liked": "yes"}, "liked", "action flag is not 0 or 1"),
        ({"user": 1, "item": 2, "stars": {}}, "stars", "not a number"),
    ],
)
def test_a_bad_row_is_quarantined_with_its_line(
    tmp_path: Path, row: dict[str, object], column: str, reason: str
) -> None:
    path = tmp_path / "log.jsonl"
    good = {"user": 1, "item": 2, "ts": NOW_MS, "liked": True}
    bad = {"ts": NOW_MS, "liked": 0, **row}
    path.write_text(f"{json.dumps(good)}\n\n{json.dumps(bad)}\n{json.dumps(good)}\n")
    found = read_all(path, FLAT, FLAT_LAYOUT)
    assert found.quarantine.select("row", "column", "reason").rows() == [(3, column, reason)]
    assert json.loads(found.quarantine["content"][0]) == bad
    assert found.events["action_mask"].to_list() == [1, 1]
    assert found.num_blank == 1


record = st.fixed_dictionaries(
    {"aid": st.sampled_from([1, 2, -3, None, "7", 2**60]), "ts": st.sampled_from([NOW_MS, NOW_MS // 1000, 0])},
    optional={"type": st.sampled_from(["clicks", "carts", "x", None]), "more": st.just("}{")},
)
session = st.one_of(
    st.fixed_dictionaries({"session": st.integers(0, 9), "events": st.lists(record, max_size=4)}).map(json.dumps),
    st.sampled_from(["", " ", "{", "[]", '{"session":1}', '{"session":1,"events":[3]}', '{"events":null}', "\r"]),
)
good_session = json.dumps({"session": 1, "events": [{"aid": 5, "ts": NOW_MS, "type": "clicks"}] * 3})


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.one_of(st.just(good_session), session), max_size=20), unit=st.integers(1, 400))
def test_cuts_change_nothing(tmp_path_factory: pytest.TempPathFactory, texts: list[str], unit: int) -> None:
    path = tmp_path_factory.mktemp("cuts") / "log.jsonl"
    path.write_text("\n".join([good_session, *texts]) + "\n", newline="")
    whole = read_all(path, NESTED, NESTED_LAYOUT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "UNIT_BYTES", unit)
        patch.setattr(lines, "BLOCK_BYTES", unit // 2 + 1)
        cut = read_all(path, NESTED, NESTED_LAYOUT)
    assert cut.events.equals(whole.events)
    assert cut.quarantine.equals(whole.quarantine)
    assert cut.num_blank == whole.num_blank == sum(not text.strip() for text in texts)
    order = whole.events["source_order"].to_numpy()
    assert (np.diff(order) > 0).all()
    assert order[:3].tolist() == [2 << RANK_SHIFT, (2 << RANK_SHIFT) + 1, (2 << RANK_SHIFT) + 2]


@settings(max_examples=40, deadline=None)
@given(
    sessions=st.lists(
        st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["clicks", "carts"])), max_size=4), min_size=1, max_size=8
    )
)
def test_both_ways_of_reading_agree(sessions: list[list[tuple[int, str]]]) -> None:
    data = "\n".join(
        json.dumps({"session": n, "events": [{"aid": aid, "ts": NOW_MS, "type": kind} for aid, kind in events]})
        for n, events in enumerate(sessions)
    ).encode()
    fast = json_lines._parse(data, NESTED_LAYOUT.dtypes, "events")
    slow = json_lines._Lines(tuple(NESTED_LAYOUT.dtypes), "events")
    slow.add_lines(data)
    assert fast is not None
    assert fast.cast(pl.String).equals(slow.frame().cast(pl.String))
    assert len(slow.faults) == slow.num_blank == 0
    texts = record_texts(data, fast["line"].to_numpy(), "events")
    assert [json.loads(text)["aid"] for text in texts] == fast["events.aid"].to_list()


def test_a_file_without_rows_has_no_units(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("")
    assert list(plan_lines(open_file(path, "log.jsonl", 0, FLAT))) == []


def test_progress_counts_the_rows_and_not_the_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f"{good_session}\n{good_session}")
    (unit,) = plan_lines(open_file(path, "log.jsonl", 0, NESTED))
    assert (unit.num_counted, unit.num_rows) == (2, 6)
    (block,) = read_jsonl_unit(unit, NESTED_LAYOUT.dtypes)
    assert len(block.frame) == 6


def test_a_file_that_is_one_endless_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "UNIT_BYTES", 1 << 20)
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 2 << 20)
    path = tmp_path / "log.csv"
    path.write_bytes(b"a,b\n" + bytes(4 << 20))
    with pytest.raises(DataError, match=r"log\.csv: a line is longer than 2 MB; is this a log of one row a line\?"):
        list(plan_lines(open_csv(path, "log.csv", 0, FileForm("csv"))))
