"""Published datasets from their own bytes to a validated dataset, with the settings that docs/sources.md shows."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from features.config import DataConfig, FeaturesConfig
from features.errors import DataError
from features.files import read_json
from pipelines.sources.plan import plan_logs
from tests.pipelines.published.built import Build, Example


def test_movielens_1m(raw: Path, example: Example, build: Build) -> None:
    (raw / "ratings.dat").write_text("1::1193::5::978300760\n1::661::3::978302109\n2::1357::2::978398709\n3::a::2::9\n")
    (raw / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n3::M::25::15::55117\n")
    titles = '661::Misérables, "Les" (1995)::Drama|Musical\n1193::James & Giant: Peach (1996)::Drama\n1357::Shine::\n'
    (raw / "movies.dat").write_bytes(titles.encode("latin-1"))
    side = {"item_categories": ["genre", "genre_2", "genre_3"], "user_categories": ["gender", "age", "zip_code"]}
    found = build(example("movielens", data={"eval_days": 1, "max_quarantine_ratio": 0.5}, features=side))
    assert found.masks("movielens") == [{"is_liked", "is_loved"}, set(), {"is_disliked"}]
    columns = found.events.select("user_id", "item_id", "timestamp_ms", "value", "source_order")
    assert columns.rows() == [
        (1, 1193, 978300760000, 5.0, 0),
        (1, 661, 978302109000, 3.0, 1),
        (2, 1357, 978398709000, 2.0, 2),
    ]
    assert found.quarantine.select("row", "reason", "content").rows() == [(4, "not an integer", "3::a::2::9")]
    items, users = (pl.read_parquet(found.folder / "events" / f"{name}.parquet") for name in ("items", "users"))
    assert items.rows() == [(661, "Drama", "Musical", None), (1193, "Drama", None, None), (1357, None, None, None)]
    assert users.rows() == [(1, "F", "1", "48067"), (2, "M", "56", "70072"), (3, "M", "25", "55117")]


def test_movielens_20m_is_sorted_by_movie_and_not_by_time(raw: Path, example: Example, build: Build) -> None:
    (raw / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n1,29,4.0,1112584676\n1,32,0.5,1112484819\n1,47,4.5,9\n"
    )
    (raw / "movies.csv").write_text(
        'movieId,title,genres\n2,"American President, The (1995)",Comedy|Drama|Romance\n29,Été,(no genres listed)\n'
    )
    found = build(example("movielens", data={"eval_days": 1, "max_quarantine_ratio": 0.5}))
    assert found.events["value"].to_list() == [3.5, 4.0, 0.5]
    assert found.masks("movielens") == [set(), {"is_liked"}, {"is_disliked"}]
    assert found.quarantine["reason"].to_list() == ["timestamp outside 1995-01-01..2030-01-01"]
    items = pl.read_parquet(found.folder / "events" / "items.parquet")
    assert items.rows() == [(2, "Comedy", "Drama"), (29, "(no genres listed)", None)]


def test_real_movie_ratings(real_data: Path, raw: Path, example: Example, build: Build) -> None:
    lines = (real_data / "ml-latest-small" / "ratings.csv").read_text().splitlines()
    kept = [line for line in lines[1:] if int(line.split(",")[0]) <= 8]
    (raw / "ratings.csv").write_text("\n".join([lines[0], *kept]))
    (raw / "movies.csv").write_bytes((real_data / "ml-latest-small" / "movies.csv").read_bytes())
    found = build(example("movielens"))
    assert found.stats["read"] == found.stats["kept"] == len(kept) > 500
    assert sum("is_liked" in mask for mask in found.masks("movielens")) == sum(
        float(x.split(",")[2]) >= 4 for x in kept
    )


def test_the_real_otto_sessions(real_data: Path, raw: Path, example: Example, build: Build) -> None:
    (raw / "train.jsonl").write_bytes((real_data / "otto_sample" / "train.jsonl").read_bytes())
    found = build(example("otto"))
    sessions = [json.loads(line) for line in (raw / "train.jsonl").read_text().splitlines()]
    expected = [
        (session["session"], event["aid"], event["ts"], {f"is_{event['type'][:-1]}"})
        for session in sessions
        for event in session["events"]
    ]
    assert len(expected) == 862
    rows = found.events.select("user_id", "item_id", "timestamp_ms").rows()
    assert [(*row, mask) for row, mask in zip(rows, found.masks("otto"), strict=True)] == expected


def test_otto_sessions_of_broken_lines(raw: Path, example: Example, build: Build) -> None:
    event = '{"aid":7,"ts":1659304800025,"type":"clicks"}'
    later = '{"aid":8,"ts":1659800000000,"type":"orders"}'
    lines = [
        f'{{"session":1,"events":[{event},{later}]}}',
        "",
        f'{{"session":2,"events":[{event},{{"aid":null,"ts":1659304800025,"type":"carts"}},{later}]}}',
        f'{{"session":3,"events":[{event}',
        '{"session":4}',
        '{"session":5,"events":[]}',
        f'{{"session":6,"events":[{{"aid":9,"ts":1659304800,"type":"clicks"}},{event.replace("clicks", "views")}]}}',
    ]
    (raw / "otto-recsys-test.jsonl").write_text("\n".join(lines) + "\n")
    found = build(example("otto", data={"eval_days": 1, "max_quarantine_ratio": 1.0}))
    assert found.events.select("user_id", "item_id").rows() == [(1, 7), (1, 8), (2, 7), (2, 8)]
    assert found.quarantine.select("row", "column", "reason").rows() == [
        (3, "events.aid", "null key"),
        (4, None, "not JSON"),
        (5, "events", "not a list"),
        (7, "events.ts", "timestamp outside 2022-07-01..2022-10-01: looks like seconds, not milliseconds"),
        (7, "events.type", "unknown action value"),
    ]
    assert json.loads(found.quarantine["content"][0]) == {
        "session": 2,
        "aid": None,
        "ts": 1659304800025,
        "type": "carts",
    }


def test_taobao(raw: Path, example: Example, build: Build) -> None:
    rows = [
        "1,2268318,2520377,pv,1511544070",
        "1,2333346,2520771,buy,1511561733",
        "2,2268318,2520377,cart,1511539200",
        "2,2268318,2520999,fav,1512316799",
        "2,2576651,149192,pv,1512316800",
        "2,2576651,149192,pv,-2134949234",
        "2,2576651,149192,pv,2122867355",
        "2,2576651,149192,look,1511572885",
    ]
    (raw / "UserBehavior.csv").write_text("\n".join(rows) + "\n")
    wide = {"earliest": "1900-01-01", "latest": "2100-01-01", "max_quarantine_ratio": 0.5}
    found = build(example("taobao", data=wide))
    assert found.masks("taobao") == [{"is_click"}, {"is_buy"}, {"is_cart"}, {"is_favorite"}]
    assert found.events["timestamp_ms"].to_list() == [1511544070000, 1511561733000, 1511539200000, 1512316799000]
    outside = "timestamp outside 2017-11-25..2017-12-04"
    assert found.quarantine.select("row", "reason").rows() == [
        (5, outside),
        (6, outside),
        (7, outside),
        (8, "unknown action value"),
    ]
    assert (found.stats["first_day"], found.stats["last_day"]) == ("2017-11-25", "2017-12-03")
    items = pl.read_parquet(found.folder / "events" / "items.parquet")
    assert items.rows() == [(2268318, "2520377"), (2333346, "2520771"), (2576651, "149192")]


def test_the_parts_of_kuairand_27k_are_merged_by_time(
    raw: Path, write_params: Example, build: Build, log_line: Callable[..., str]
) -> None:
    header = "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    header += "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
    day, noon = 86_400_000, 1_650_600_000_000
    files = {
        "log_random_4_22_to_5_08_27k.csv": [log_line(time_ms=noon + 3, video_id=4, is_rand=1, tab=2)],
        "log_standard_4_08_to_4_21_27k_part1.csv": [log_line(time_ms=noon + offset - day) for offset in (0, 4)],
        "log_standard_4_08_to_4_21_27k_part2.csv": [log_line(time_ms=noon + offset - day) for offset in (2, 6)],
        # User 2 is in the second half only; the log begins hours before its first date.
        "log_standard_4_22_to_5_08_27k_part2.csv": [
            log_line(user_id=2, time_ms=noon - day // 2 - 3_600_000),
            log_line(user_id=2, time_ms=noon, play_time_ms=-8, duration_ms=0),
        ],
        "video_features_statistic_27k_part1.csv": ["averages over the whole month"],
    }
    for name, rows in files.items():
        (raw / name).write_text("\n".join([header, *rows]) + "\n")
    params = write_params(
        raw, data={"eval_days": 1}, features={"vocabulary": {"min_count": 1, "base": None}}, pipelines={"num_shards": 2}
    )
    found = build(params)
    assert found.stats["kept"] == 7
    first = pl.read_parquet(found.folder / "events" / "date=2022-04-21" / "part-000.parquet")
    assert (first["timestamp_ms"] - (noon - day)).to_list() == [0, 2, 4, 6, day // 2 - 3_600_000]
    assert first["user_id"].to_list() == [1, 1, 1, 1, 2]
    last = pl.read_parquet(found.folder / "events" / "date=2022-04-22" / "part-000.parquet")
    assert last.select("user_id", "surface", "watch_ms", "duration_ms").rows() == [
        (2, 1, 0, None),
        (1, 102, 5000, 10000),
    ]


YAMBDA_EVENTS = pl.DataFrame(
    {
        "uid": [100, 100, 100, 200],
        "timestamp": [39420, 39420, 25_913_595, 25_913_600],
        "item_id": [8326270, 1441281, 1441281, 9_390_000],
        "is_organic": [0, 1, 1, 0],
        "played_ratio_pct": [95, 20, None, 130],
        "track_length_seconds": [170, 105, None, 200],
        "event_type": ["listen", "listen", "like", "listen"],
    },
    schema={
        "uid": pl.UInt32,
        "timestamp": pl.UInt32,
        "item_id": pl.UInt32,
        "is_organic": pl.UInt8,
        "played_ratio_pct": pl.UInt16,
        "track_length_seconds": pl.UInt32,
        "event_type": pl.Enum(["listen", "dislike", "like", "undislike", "unlike"]),
    },
)


@pytest.mark.parametrize("is_one_file", [True, False])
def test_yambda(raw: Path, example: Example, build: Build, is_one_file: bool) -> None:
    if is_one_file:
        YAMBDA_EVENTS.write_parquet(raw / "multi_event.parquet")
    else:
        kinds = YAMBDA_EVENTS["event_type"].cast(pl.String)
        YAMBDA_EVENTS.filter(kinds == "listen").drop("event_type").write_parquet(raw / "listens.parquet")
        played = ("played_ratio_pct", "track_length_seconds", "event_type")
        YAMBDA_EVENTS.filter(kinds == "like").drop(played).write_parquet(raw / "likes.parquet")
    found = build(example("yambda"))
    ordered = found.events.sort("timestamp_ms", "source_order")
    assert ordered.select("user_id", "watch_ms", "duration_ms", "surface").rows() == [
        (100, 161_500, 170_000, 0),
        (100, 21_000, 105_000, 1),
        (100, None, None, 1),
        (200, 260_000, 200_000, 0),
    ]
    assert sorted(map(sorted, found.masks("yambda"))) == [[], ["is_like"], ["is_listened"], ["is_listened"]]
    # The last official day is a whole UTC day, and the only one that is held out.
    midnight = datetime.datetime.fromtimestamp(ordered["timestamp_ms"][3] / 1000, datetime.UTC)
    assert (midnight.hour, midnight.minute, midnight.second) == (0, 0, 0)
    assert list(found.stats["days"].values()) == [2, 1, 1]
    assert read_json(found.folder / "validation.json")["cut_ms"] == ordered["timestamp_ms"][3]


def test_both_shapes_of_one_dataset_are_refused(raw: Path, example: Example) -> None:
    YAMBDA_EVENTS.write_parquet(raw / "multi_event.parquet")
    YAMBDA_EVENTS.drop("event_type").write_parquet(raw / "listens.parquet")
    params = example("yambda")
    with pytest.raises(DataError, match=r"both multi_event\.parquet and listens\.parquet are there, which hold the"):
        plan_logs(DataConfig.load(params), FeaturesConfig.load(params))
