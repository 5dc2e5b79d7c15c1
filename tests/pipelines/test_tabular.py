"""CSV and Parquet logs of any shape through the column mapping."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.config import DataConfig, FeaturesConfig
from features.errors import DataError
from pipelines.sources.plan import plan_units
from pipelines.sources.raw import RANK_SHIFT, RawLogs, RawRows, TimeRange
from pipelines.sources.read import read_unit
from pipelines.sources.side_tables import read_side_table
from pipelines.sources.tabular import plan_tabular

FIRST_S = 1_650_600_000
COLUMNS = {"user_id": "uid", "item_id": "iid", "timestamp": "at", "timestamp_unit": "s"}
MAPPING = {"pattern": "*.csv", "columns": COLUMNS, "action_columns": {"like": "liked"}}
FEATURES = {"actions": ["like"], "streams": {"consumption": "all"}}
TABLE = {"uid": [1, 2], "iid": [10, 20], "at": [FIRST_S, FIRST_S + 1], "liked": [0, 1]}


@pytest.fixture
def params(tmp_path: Path, write_params: Callable[..., Path]) -> Callable[..., Path]:
    """Writes parameters for the folder `raw` with MAPPING changed as given."""

    def write(features: dict[str, Any] | None = None, **changes: Any) -> Path:
        mapping = {**MAPPING, **changes}
        source = "parquet" if str(mapping["pattern"]).endswith("parquet") else "csv"
        data = {"source": source, "tabular": mapping}
        return write_params(tmp_path / "raw", data=data, features={**FEATURES, **(features or {})})

    return write


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    return folder


def plan(params: Path) -> RawLogs:
    return plan_tabular(DataConfig.load(params), FeaturesConfig.load(params))


def read_all(params: Path, rows_per_unit: int = 1000) -> RawRows:
    logs, times = plan(params), TimeRange.of(DataConfig.load(params))
    pieces = [read_unit(unit, logs.layout, times) for file in logs.files for unit in plan_units(file, rows_per_unit)]
    return RawRows(pl.concat(p.events for p in pieces), pl.concat(p.quarantine for p in pieces), 0)


def test_every_column_of_a_csv_log(raw: Path, params: Callable[..., Path]) -> None:
    (raw / "log.csv").write_text(
        "extra,at,uid,iid,liked,seen,length,stars,place\n"
        f"x,{FIRST_S}.5,1,2,1,1500.6,2000,4.5,3\n"
        f"x,{FIRST_S},1,2,0,,0,,\n"
    )
    columns = {**COLUMNS, "watch_ms": "seen", "duration_ms": "length", "value": "stars", "surface": "place"}
    events = read_all(params(columns=columns)).events
    assert events.drop("source_order").rows() == [
        (1, 2, FIRST_S * 1000 + 500, 1, 1501, 2000, 4.5, 3),
        (1, 2, FIRST_S * 1000, 0, None, None, None, None),
    ]


@pytest.mark.parametrize(("unit", "scale"), [("s", 1), ("ms", 1000), ("us", 1_000_000)])
def test_time_units(raw: Path, params: Callable[..., Path], unit: str, scale: int) -> None:
    (raw / "log.csv").write_text(f"uid,iid,at,liked\n1,2,{FIRST_S * scale},0\n1,2,{FIRST_S * scale * 1000},0\n")
    rows = read_all(params(columns={**COLUMNS, "timestamp_unit": unit}))
    assert rows.events["timestamp_ms"].to_list() == [FIRST_S * 1000]
    hint = {"s": "looks like milliseconds, not seconds", "ms": "looks like microseconds, not milliseconds"}
    reason = rows.quarantine["reason"][0]
    assert reason.endswith(hint.get(unit, "2000-01-01..2100-01-01"))


def test_an_event_type_column(raw: Path, params: Callable[..., Path]) -> None:
    (raw / "log.csv").write_text(
        f"uid,iid,at,what\n1,2,{FIRST_S},pv\n1,2,{FIRST_S},fav\n1,2,{FIRST_S},buy\n1,2,{FIRST_S},cart\n"
    )
    values = {"pv": "", "fav": "favourite", "buy": "purchase"}
    features = {"actions": ["purchase", "favourite"]}
    rows = read_all(params(features, action_columns={}, action_column="what", action_values=values))
    assert rows.events["action_mask"].to_list() == [0, 2, 1]
    assert rows.quarantine.select("row", "column", "reason").rows() == [(5, "what", "unknown action value")]


def test_files_are_ranked_by_their_path_below_the_folder(raw: Path, params: Callable[..., Path]) -> None:
    for name, user in (("b/x.csv", 2), ("a/z.csv", 1), ("c.csv", 3)):
        path = raw / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"uid,iid,at,liked\n{user},2,{FIRST_S},0\n")
    (raw / ".hidden.csv").write_text("")
    events = read_all(params(pattern="**/*.csv")).events
    assert events.select("user_id", "source_order").rows() == [(n, (n - 1) << RANK_SHIFT) for n in (1, 2, 3)]


@pytest.mark.parametrize("rows_per_unit", [1, 5, 1000])
def test_parquet_row_groups_make_units(raw: Path, params: Callable[..., Path], rows_per_unit: int) -> None:
    frame = pl.DataFrame({"uid": range(20), "iid": range(20), "at": [FIRST_S] * 20, "liked": [True, False] * 10})
    frame.write_parquet(raw / "log.parquet", row_group_size=3)
    mapped = params(pattern="*.parquet")
    units = list(plan_units(plan(mapped).files[0], rows_per_unit))
    assert sum(unit.num_rows for unit in units) == 20
    assert all(unit.num_rows >= rows_per_unit for unit in units[:-1])
    events = read_all(mapped, rows_per_unit).events
    assert events["source_order"].to_list() == list(range(20))
    assert events["action_mask"].to_list() == [1, 0] * 10


def test_bad_parquet_rows_keep_their_number_and_content(raw: Path, params: Callable[..., Path]) -> None:
    table = {"uid": [1, None, -1, 1], "iid": [1, 1, 1, 2**60], "at": [FIRST_S] * 4, "liked": [0] * 4}
    pl.DataFrame(table).write_parquet(raw / "log.parquet", row_group_size=2)
    rows = read_all(params(pattern="*.parquet"), rows_per_unit=1)
    assert rows.quarantine.select("row", "column", "reason").rows() == [
        (2, "uid", "null key"),
        (3, "uid", "negative id"),
        (4, "iid", "id over 2^53"),
    ]
    assert rows.quarantine["content"][1] == f'{{"uid": -1, "iid": 1, "at": {FIRST_S}, "liked": 0}}'
    assert rows.events["source_order"].to_list() == [0]


def test_parquet_timestamps_of_any_resolution(raw: Path, params: Callable[..., Path]) -> None:
    for rank, unit in enumerate(("s", "ms", "us", "ns")):
        moment = pa.array([datetime.datetime.fromtimestamp(FIRST_S, datetime.UTC)], pa.timestamp(unit, "UTC"))
        pq.write_table(pa.table({"uid": [1], "iid": [1], "at": moment, "liked": [0]}), raw / f"{rank}.parquet")
    events = read_all(params(pattern="*.parquet")).events
    assert events["timestamp_ms"].to_list() == [FIRST_S * 1000] * 4


def test_unsigned_ids_nan_amounts_and_infinite_values(raw: Path, params: Callable[..., Path]) -> None:
    frame = pl.DataFrame(
        {
            "uid": pl.Series([1, 2**64 - 1, 3], dtype=pl.UInt64),
            "iid": [1, 1, 1],
            "at": [float(FIRST_S)] * 3,
            "liked": [0, 0, 0],
            "seen": [float("nan"), 1.0, 2.0],
            "stars": [float("nan"), 1.0, float("inf")],
        }
    )
    frame.write_parquet(raw / "log.parquet")
    columns = {**COLUMNS, "watch_ms": "seen", "value": "stars"}
    rows = read_all(params(pattern="*.parquet", columns=columns))
    assert rows.events.select("user_id", "watch_ms", "value").rows() == [(1, None, None)]
    assert rows.quarantine.select("row", "reason").rows() == [(2, "id over 2^53"), (3, "not a number")]


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("uid", ["a", "b"], "column 'uid' has type string, expected an integer"),
        ("iid", [1.0, 2.0], "column 'iid' has type double, expected an integer"),
        ("at", ["x", "y"], "column 'at' has type string, expected a number or a timestamp"),
        ("liked", [0.0, 1.0], "column 'liked' has type double, expected an integer or a boolean"),
    ],
)
def test_a_column_retyped_in_a_later_parquet_file(
    raw: Path, params: Callable[..., Path], column: str, values: list[Any], message: str
) -> None:
    pq.write_table(pa.table(TABLE), raw / "day1.parquet")
    pq.write_table(pa.table({**TABLE, column: values}), raw / "day2.parquet")
    with pytest.raises(DataError) as error:
        plan(params(pattern="*.parquet"))
    assert str(error.value) == f"day2.parquet: {message}"


def test_narrower_integers_in_a_later_parquet_file_are_no_retype(raw: Path, params: Callable[..., Path]) -> None:
    pq.write_table(pa.table(TABLE), raw / "day1.parquet")
    narrow = pa.table(TABLE).set_column(0, "uid", pa.array([3, 4], pa.int32()))
    pq.write_table(narrow, raw / "day2.parquet")
    assert read_all(params(pattern="*.parquet")).events["user_id"].to_list() == [1, 2, 3, 4]


@pytest.mark.parametrize("size", [0, 10, -20])
def test_a_half_written_parquet_file(raw: Path, params: Callable[..., Path], size: int) -> None:
    path = raw / "log.parquet"
    pq.write_table(pa.table(TABLE), path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=r"^log\.parquet: unreadable Parquet, is it half-written\? "):
        plan(params(pattern="*.parquet"))


def test_a_parquet_file_damaged_in_the_middle(raw: Path, params: Callable[..., Path]) -> None:
    path = raw / "log.parquet"
    pl.DataFrame({name: list(range(5000)) for name in TABLE}).write_parquet(path)
    data = path.read_bytes()
    path.write_bytes(data[:4] + bytes(len(data) // 2) + data[4 + len(data) // 2 :])
    with pytest.raises(DataError, match=r"^log\.parquet: unreadable Parquet, is it half-written\? "):
        read_all(params(pattern="*.parquet"))


@pytest.mark.parametrize(
    ("changes", "features", "message"),
    [
        (
            {"columns": {**COLUMNS, "user_id": "who"}},
            {},
            "log.csv: column 'who' is missing (data.tabular maps it); found: uid, iid, at, liked",
        ),
        ({"pattern": "*.tsv"}, {}, "raw: no file matches data.tabular.pattern '*.tsv'"),
        ({"pattern": "*"}, {}, "notes.txt: data.tabular.pattern '*' matches it, but data.source is csv"),
        ({"action_columns": {"like": "liked", "buy": "liked"}}, {}, "action_columns: 'buy' is not in features.actions"),
        (
            {},
            {"actions": ["like", "share"]},
            "data.tabular.action_columns: nothing is mapped to 'share' of features.actions; map it or remove it there",
        ),
        (
            {"action_columns": {}, "action_column": "liked", "action_values": {"1": "lik"}},
            {},
            "data.tabular.action_values: 'lik' is not in features.actions",
        ),
        (
            {},
            {"item_categories": ["genre"]},
            "features.item_categories: 'genre' is not in data.tabular.items.features; map it or remove it",
        ),
        (
            {"users": {"path": "users.csv", "key": "uid", "features": {}}},
            {},
            "users.csv: no such file (data.tabular)",
        ),
        (
            {"items": {"path": "log.csv", "key": "iid", "features": {"genre": "genres"}}},
            {"item_categories": ["genre"]},
            "log.csv: column 'genres' is missing (data.tabular.items maps it)",
        ),
    ],
)
def test_a_mapping_that_does_not_fit(
    raw: Path, params: Callable[..., Path], changes: dict[str, Any], features: dict[str, Any], message: str
) -> None:
    (raw / "log.csv").write_text(f"uid,iid,at,liked\n1,2,{FIRST_S},0\n")
    (raw / "notes.txt").write_text("")
    with pytest.raises(DataError) as error:
        plan(params(features, **changes))
    assert message in str(error.value)


def test_a_missing_header_line_is_suspected(raw: Path, params: Callable[..., Path]) -> None:
    (raw / "log.csv").write_text(f"1,2,{FIRST_S},0\n")
    with pytest.raises(DataError, match=r"column 'uid' is missing .*; is the header line missing\?"):
        plan(params())


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_side_tables(raw: Path, params: Callable[..., Path], kind: str) -> None:
    (raw / "log.csv").write_text(f"uid,iid,at,liked\n1,2,{FIRST_S},0\n")
    table = pl.DataFrame({"id": [5, 6, -7, None], "band": [1.0, None, 3.0, 4.0], "city": [" Wien", "", "x", "y"]})
    getattr(table, f"write_{kind}")(raw / f"people.{kind}")
    users = {"path": f"people.{kind}", "key": "id", "features": {"age": "band", "town": "city"}}
    logs = plan(params({"user_categories": ["town", "age"]}, users=users))
    assert [file.name for file in logs.files] == ["log.csv"]
    (rows,) = read_side_table(logs.users, logs.users.files[0])
    assert rows.events.columns == ["user_id", "town", "age"]
    assert rows.events.rows() == [(5, "Wien", "1"), (6, None, None)]
    first = 2 if kind == "csv" else 1
    assert rows.quarantine.select("row", "reason").rows() == [(first + 2, "negative id"), (first + 3, "null key")]


def test_real_movie_ratings(real_data: Path, write_params: Callable[..., Path]) -> None:
    folder = real_data / "ml-latest-small"
    values = {f"{stars / 2}": "liked" if stars >= 8 else "" for stars in range(1, 11)}
    mapping = {
        "pattern": "ratings.csv",
        "columns": {
            "user_id": "userId",
            "item_id": "movieId",
            "timestamp": "timestamp",
            "timestamp_unit": "s",
            "value": "rating",
        },
        "action_column": "rating",
        "action_values": values,
        "items": {"path": "movies.csv", "key": "movieId", "features": {"genres": "genres"}},
    }
    data = {"source": "csv", "tabular": mapping, "earliest": "1990-01-01", "timezone": "UTC"}
    features = {"actions": ["liked"], "streams": {"consumption": "all"}, "item_categories": ["genres"]}
    params = write_params(folder, data=data, features=features)
    rows = read_all(params)
    assert (len(rows.events), len(rows.quarantine)) == (100_004, 0)
    assert rows.events["user_id"].n_unique() == 671
    raw = pl.read_csv(folder / "ratings.csv")
    assert rows.events["timestamp_ms"].equals((raw["timestamp"] * 1000).alias("timestamp_ms"))
    assert rows.events["value"].equals(raw["rating"].cast(pl.Float32).alias("value"))
    assert rows.events["action_mask"].to_list() == (raw["rating"] >= 4).cast(int).to_list()
    logs = plan(params)
    assert sum(len(rows.events) for rows in read_side_table(logs.items, logs.items.files[0])) == 9125
