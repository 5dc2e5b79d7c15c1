"""Synthetic logs: the files, the rules they keep, and that history helps."""

from __future__ import annotations

import csv
import datetime
import hashlib
from pathlib import Path

import polars as pl
import pytest

from features.errors import DataError
from pipelines.sources import synthetic
from pipelines.sources.synthetic import SyntheticSettings, write_kuairand_logs
from pipelines.sources.synthetic_tables import LOG_COLUMNS

FILES = [
    "log_standard_4_08_to_4_21_pure.csv",
    "log_standard_4_22_to_5_08_pure.csv",
    "user_features_pure.csv",
    "video_features_basic_pure.csv",
]
SMALL = SyntheticSettings(num_events=20_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("logs") / "synthetic"
    write_kuairand_logs(out, SyntheticSettings())
    return out


@pytest.fixture(scope="module")
def log(folder: Path) -> pl.DataFrame:
    return pl.concat([pl.read_csv(folder / name) for name in FILES[:2]])


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_writes_exactly_the_four_files_with_their_columns(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == FILES
    headers = [next(csv.reader((folder / name).open())) for name in FILES]
    assert headers[0] == headers[1] == list(LOG_COLUMNS)
    assert (len(headers[0]), len(headers[2]), len(headers[3])) == (19, 31, 12)


def test_equal_seeds_give_equal_bytes_and_others_do_not(tmp_path: Path) -> None:
    for name, settings in (("a", SMALL), ("b", SMALL), ("c", SyntheticSettings(num_events=20_000, seed=8))):
        write_kuairand_logs(tmp_path / name, settings)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert digests(tmp_path / "a").values() != digests(tmp_path / "c").values()
    assert not set(digests(tmp_path / "a").values()) & set(digests(tmp_path / "c").values())


def test_blocks_hold_every_event_and_user_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "EVENTS_PER_BLOCK", 3_000)
    write_kuairand_logs(tmp_path / "out", SMALL)
    rows = pl.concat([pl.read_csv(tmp_path / "out" / name) for name in FILES[:2]])
    assert len(rows) == SMALL.num_events
    assert pl.read_csv(tmp_path / "out" / FILES[2])["user_id"].to_list() == list(range(SMALL.users))
    assert rows["user_id"].is_in(range(SMALL.users)).all()


def test_days_meet_between_the_files_in_beijing_time(folder: Path) -> None:
    for name, first, last in ((FILES[0], 20220415, 20220421), (FILES[1], 20220422, 20220428)):
        rows = pl.read_csv(folder / name)
        local = pl.from_epoch("time_ms", "ms").dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Shanghai")
        rows = rows.with_columns(local.dt.strftime("%Y%m%d").cast(pl.Int64).alias("day"), local.dt.hour().alias("hour"))
        assert (rows["day"] == rows["date"]).all()
        assert (rows["hour"].cast(pl.Int64) * 100 == rows["hourmin"]).all()
        assert set(rows["date"]) == set(range(first, last + 1))
        assert rows.select((pl.col("time_ms").diff().over("user_id").fill_null(0) >= 0).all()).item()


@pytest.mark.parametrize("num_days", [2, 3, 31])
def test_any_number_of_days_is_filled(tmp_path: Path, num_days: int) -> None:
    write_kuairand_logs(tmp_path / "out", SyntheticSettings(num_events=5_000, num_users=100, num_days=num_days))
    first, second = (pl.read_csv(tmp_path / "out" / name)["date"] for name in FILES[:2])
    split = datetime.date(2022, 4, 22)
    assert first.max() < int(f"{split:%Y%m%d}") <= second.min()
    assert first.n_unique() + second.n_unique() == num_days
    assert first.min() >= 20220408
    assert second.max() <= 20220508


def test_actions_and_watch_time_follow_kuairands_rules(log: pl.DataFrame) -> None:
    known = log.filter(pl.col("duration_ms") > 0)
    play, duration = pl.col("play_time_ms"), pl.col("duration_ms")
    click = pl.when(duration <= 7_000).then(play >= duration).otherwise(play > 7_000)
    long_view = pl.when(duration <= 18_000).then(play >= duration).otherwise(play >= 18_000)
    assert known.select((click == (pl.col("is_click") == 1)).all()).item()
    assert known.select((long_view == (pl.col("long_view") == 1)).all()).item()
    assert known["play_time_ms"].min() >= 0
    for action in ("is_like", "is_follow", "is_comment", "is_forward", "is_profile_enter", "long_view"):
        assert log.filter(pl.col(action) == 1)["is_click"].min() == 1
    assert log["is_rand"].max() == 0
    assert 0 < len(log) - len(known) < 0.05 * len(log)


def test_base_rates_are_kuairand_like(log: pl.DataFrame) -> None:
    expected = {"is_click": 0.40, "long_view": 0.30, "is_like": 0.027, "is_profile_enter": 0.026}
    expected |= {"is_comment": 0.012, "is_forward": 0.010, "is_follow": 0.006, "is_hate": 0.002}
    for action, rate in expected.items():
        assert log[action].mean() == pytest.approx(rate, rel=0.3), action


def test_users_and_items_are_heavy_tailed(log: pl.DataFrame) -> None:
    per_user = log["user_id"].value_counts()["count"].sort(descending=True)
    per_item = log["video_id"].value_counts()["count"].sort(descending=True)
    assert per_user.max() > 10 * per_user.median() > 0
    assert per_user.min() <= 3
    assert per_item[: len(per_item) // 10].sum() > 0.35 * len(log)


def test_pages_share_a_time_and_hold_an_item_once(log: pl.DataFrame) -> None:
    pages = log.group_by("user_id", "time_ms").agg(pl.len(), pl.col("video_id").n_unique().alias("distinct"))
    assert (pages["len"] == pages["distinct"]).all()
    assert 3 < pages["len"].mean() < 5
    assert pages["len"].max() == 12
    assert log.is_duplicated().sum() == 0


def test_items_appear_over_time_and_never_before_their_upload(folder: Path, log: pl.DataFrame) -> None:
    videos = pl.read_csv(folder / FILES[3], infer_schema_length=None, try_parse_dates=True)
    seen = log.join(videos, on="video_id", how="left", validate="m:1")
    assert seen["author_id"].null_count() == 0
    assert seen.filter(pl.col("upload_dt").dt.strftime("%Y%m%d").cast(pl.Int64) > pl.col("date")).is_empty()
    assert 0.15 < (videos["upload_dt"] >= datetime.date(2022, 4, 15)).mean() < 0.35


def test_an_author_is_about_one_topic(folder: Path) -> None:
    videos = pl.read_csv(folder / FILES[3], infer_schema_length=None)
    topics = videos.drop_nulls("tag").select("author_id", pl.col("tag").str.split(",").list.first().alias("topic"))
    assert topics["topic"].n_unique() == SyntheticSettings().num_topics
    assert (topics.group_by("author_id").agg(pl.col("topic").n_unique())["topic"] == 1).all()


def test_an_author_is_followed_once_and_liked_more_afterwards(folder: Path, log: pl.DataFrame) -> None:
    authors = pl.read_csv(folder / FILES[3], infer_schema_length=None).select("video_id", "author_id")
    rows = log.join(authors, on="video_id", how="left", maintain_order="left")
    follows = rows.filter(pl.col("is_follow") == 1)
    assert follows.select("user_id", "author_id").is_unique().all()
    first = follows.group_by("user_id", "author_id").agg(pl.col("time_ms").min().alias("since"))
    pairs = rows.join(first, on=["user_id", "author_id"])
    after = pairs.filter(pl.col("time_ms") > pl.col("since"))
    assert after["is_like"].mean() > 3 * log["is_like"].mean()


def gain_of_a_recent_click(rows: pl.DataFrame) -> float:
    """Click rate within half an hour of a click on the topic on an earlier page, less that at other times."""
    keys = ["user_id", "topic"]
    clicks = rows.filter(pl.col("is_click") == 1).select(*keys, "time_ms", pl.col("time_ms").alias("clicked_ms"))
    recent = rows.join_asof(
        clicks, on="time_ms", by=keys, strategy="backward", allow_exact_matches=False, check_sortedness=False
    )
    soon = (pl.col("time_ms") - pl.col("clicked_ms") < 1_800_000).fill_null(value=False)
    click = pl.col("is_click")
    gain = click.filter(soon).mean() - click.filter(~soon).mean()
    paired = recent.group_by(keys).agg(pl.len(), gain.alias("gain")).filter(pl.col("len") >= 20)
    return paired["gain"].drop_nulls().mean()


def test_the_order_of_clicks_tells_more_than_their_number(folder: Path, log: pl.DataFrame) -> None:
    """The intents: with each user's clicks on each topic shuffled in time, a recent click says less."""
    tags = pl.read_csv(folder / FILES[3], infer_schema_length=None).select("video_id", "tag").drop_nulls("tag")
    rows = log.join(tags, on="video_id").with_columns(pl.col("tag").str.split(",").list.first().alias("topic"))
    rows = rows.sort("time_ms", "user_id", "video_id")
    shuffled = rows.with_columns(pl.col("is_click").shuffle(seed=1).over("user_id", "topic"))
    assert gain_of_a_recent_click(rows) > gain_of_a_recent_click(shuffled) + 0.03


def test_dirty_rows_are_as_many_as_reported(tmp_path: Path) -> None:
    clean, dirty = tmp_path / "clean", tmp_path / "dirty"
    nothing = write_kuairand_logs(clean, SMALL)
    counts = write_kuairand_logs(dirty, SyntheticSettings(num_events=20_000, dirty=True))
    assert nothing == synthetic.DirtyCounts()
    assert min(vars(counts).values()) > 0
    lines = [line for name in FILES[:2] for line in (dirty / name).read_text().splitlines()[1:]]
    assert len(lines) == SMALL.num_events + counts.duplicates
    assert len(lines) - len(set(lines)) == counts.duplicates
    rows = [line.split(",") for line in dict.fromkeys(lines)]
    short = [row for row in rows if len(row) != len(LOG_COLUMNS)]
    whole = pl.DataFrame([row for row in rows if len(row) == len(LOG_COLUMNS)], schema=LOG_COLUMNS, orient="row")
    checked = whole.select("user_id", "video_id", "time_ms", "is_click")
    null = checked.select(pl.any_horizontal(pl.all() == "")).to_series()
    bad = checked.select(pl.any_horizontal(pl.all().str.contains(r"[^\d-]"))).to_series()
    negative = checked.select(pl.any_horizontal(pl.all().str.starts_with("-"))).to_series()
    seconds = checked["time_ms"].str.len_chars() == 10
    assert len(short) == counts.short_lines
    found = (bad.sum(), negative.sum(), seconds.sum(), null.sum())
    assert found == (counts.bad_integers, counts.negative_ids, counts.seconds, counts.null_fields)
    assert counts.broken == sum(found) + len(short)
    kept = whole.filter(~(bad | negative | seconds | null)).cast({"user_id": pl.Int64, "time_ms": pl.Int64})
    assert kept.select((pl.col("time_ms").diff().over("user_id") < 0).sum()).item() > 0
    original = {line for name in FILES[:2] for line in (clean / name).read_text().splitlines()[1:]}
    assert len(set(lines) & original) == SMALL.num_events - counts.broken


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(synthetic, "video_table", fail)
    with pytest.raises(OSError, match="disk full"):
        write_kuairand_logs(tmp_path / "out", SMALL)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("*.csv"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_days": 1}, "num_days is 1"),
        ({"num_days": 32}, "num_days is 32"),
        ({"num_events": 10}, "at least 100 events"),
        ({"num_items": 30}, "10 items per topic"),
        ({"num_events": 100_000, "num_users": 10}, "more than 40 events a user and day"),
        ({"new_item_share": 1.5}, "new_item_share is 1.5"),
    ],
)
def test_impossible_sizes_are_refused(settings: dict[str, float], words: str) -> None:
    with pytest.raises(DataError, match=words):
        SyntheticSettings(**settings)
