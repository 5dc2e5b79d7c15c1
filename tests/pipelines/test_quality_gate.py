"""The quality gate from raw logs on: a normal next day passes, a feed that drifts is stopped by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from features.errors import DataError
from features.files import read_json
from features.profile import Profile
from pipelines.ingest import ingest
from pipelines.profiles import keep_profile, load_baseline
from pipelines.streams import build_streams
from pipelines.validate import Inputs, validate
from pipelines.vocab import build_vocabularies

ROOT = Path(__file__).parents[2]
FIRST_MS = 1_650_556_800_000  # 2022-04-22 00:00 in Shanghai
DAY_MS = 86_400_000
NUM_DAYS = 4  # of the baseline
EVENTS_PER_DAY = 3000
ACTIONS = ("is_click", "is_like", "long_view")
SHADOWS = {"surface", "duration", "intensity", "history length in consumption", "history length in interaction"}
Damage = Callable[[pl.DataFrame], pl.DataFrame]


def day_log(day: int) -> pl.DataFrame:
    """A day of a service that never changes."""
    rng = np.random.default_rng(day)
    size = EVENTS_PER_DAY
    duration = rng.integers(3000, 60_000, size)
    return pl.DataFrame(
        {
            "user_id": rng.integers(0, 60, size),
            "video_id": rng.integers(0, 100, size),
            "time_ms": FIRST_MS + day * DAY_MS + np.sort(rng.choice(DAY_MS, size, replace=False)),
            "is_click": (rng.random(size) < 0.4).astype(int),
            "is_like": (rng.random(size) < 0.1).astype(int),
            "long_view": (rng.random(size) < 0.3).astype(int),
            "play_time_ms": (duration * rng.random(size)).astype(int),
            "duration_ms": duration,
            "is_rand": 0,
            "tab": rng.choice([0, 1, 4], size, p=[0.3, 0.6, 0.1]),
        }
    )


def put_day(raw: Path, day: int, damage: Damage) -> None:
    damage(day_log(day)).write_csv(raw / f"log_standard_{day:02d}.csv")


def write_params(root: Path, **validation: Any) -> Path:
    document = yaml.safe_load((ROOT / "params.yaml").read_text())
    document["data"] |= {"path": str(root / "raw"), "eval_days": 1}
    document["data"] |= {"window": {"until": f"2022-04-{21 + NUM_DAYS}", "days": NUM_DAYS}}
    document["features"] |= {"actions": list(ACTIONS), "item_categories": [], "user_categories": []}
    document["features"]["streams"] = {"consumption": "all", "interaction": ["is_like"]}
    document["pipelines"] |= {"num_workers": 1, "num_shards": 2, "store": str(root / "store")}
    document["validate"] |= validation
    path = root / "params.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def move_window(params: Path) -> None:
    document = yaml.safe_load(params.read_text())
    document["data"]["window"]["until"] = f"2022-04-{22 + NUM_DAYS}"
    params.write_text(yaml.safe_dump(document))


def run(root: Path, params: Path) -> None:
    data = root / "data"
    ingest(params, data / "events", data / "quarantine")
    build_vocabularies(params, data / "events", data / "vocab")
    build_streams(params, data / "events", data / "vocab", data / "streams")
    check(root, params)


def check(root: Path, params: Path) -> None:
    data = root / "data"
    validate(params, Inputs(data / "events", data / "vocab", data / "streams"), data / "validation.json")


@pytest.fixture(scope="module")
def good_night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace after its first night."""
    root = tmp_path_factory.mktemp("night")
    (root / "raw").mkdir()
    for day in range(NUM_DAYS):
        put_day(root / "raw", day, lambda log: log)
    run(root, write_params(root))
    return root


@pytest.fixture
def next_night(good_night: Path, tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Puts the next day's log, damaged, into a copy of the workspace and moves the window; gives folder and params."""

    def make(damage: Damage = lambda log: log, **validation: Any) -> tuple[Path, Path]:
        root = tmp_path / "night"
        shutil.copytree(good_night, root)
        put_day(root / "raw", NUM_DAYS, damage)
        (baseline,) = (root / "store" / "profiles").iterdir()
        params = write_params(root, baseline=str(baseline), **validation)
        move_window(params)
        return root, params

    return make


def test_a_first_night_passes_and_keeps_its_profile(good_night: Path):
    document = read_json(good_night / "data" / "validation.json")
    assert document["drift"] == {"verdict": "no baseline", "baseline": None, "reason": None, "drifted": []}
    (kept,) = (good_night / "store" / "profiles").iterdir()
    profile = load_baseline(kept)
    assert kept.name.startswith("2022-04-25-")
    assert sum(day.events for day in profile.days.values()) == NUM_DAYS * EVENTS_PER_DAY
    assert "First night." in (good_night / "data" / "drift.html").read_text()


def test_a_normal_next_day_passes(next_night: Callable[..., tuple[Path, Path]]):
    root, params = next_night()
    run(root, params)
    document = read_json(root / "data" / "validation.json")
    assert document["drift"]["verdict"] == "passed"
    report = read_json(root / "data" / "drift.json")
    assert report["comparison"]["new_days"] == ["2022-04-26"]
    verdicts = {check["metric"]: check["verdict"] for check in report["comparison"]["checks"]}
    few = {"history length in consumption", "history length in interaction"}  # of 60 users
    assert {metric for metric, verdict in verdicts.items() if verdict != "ok"} == few
    assert len(list((root / "store" / "profiles").iterdir())) == 2
    assert "Passed." in (root / "data" / "drift.html").read_text()


def without_likes(log: pl.DataFrame) -> pl.DataFrame:
    return log.with_columns(is_like=pl.when(pl.int_range(pl.len()) % 2 == 0).then(0).otherwise(pl.col("is_like")))


def without_a_surface(log: pl.DataFrame) -> pl.DataFrame:
    return log.with_columns(tab=pl.col("tab").replace(4, 1))


def some_seconds(log: pl.DataFrame) -> pl.DataFrame:
    return log.with_columns(
        time_ms=pl.when(pl.int_range(pl.len()) % 25 == 0).then(pl.col("time_ms") // 1000).otherwise(pl.col("time_ms"))
    )


def doubled(log: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([log, log])


def without_an_afternoon(log: pl.DataFrame) -> pl.DataFrame:
    hour = pl.col("time_ms") % DAY_MS // 3_600_000
    return log.filter(~hour.is_between(5, 8))


def of_strangers(log: pl.DataFrame) -> pl.DataFrame:
    return log.with_columns(pl.col("user_id") + 1_000_000)


def without_durations(log: pl.DataFrame) -> pl.DataFrame:
    return log.with_columns(
        duration_ms=pl.when(pl.int_range(pl.len()) % 5 == 0).then(0).otherwise(pl.col("duration_ms"))
    )


def a_third_of_the_rows(log: pl.DataFrame) -> pl.DataFrame:
    return log.gather_every(3)


@pytest.mark.parametrize(
    ("damage", "metrics"),
    [
        (without_likes, {"rate of is_like"}),
        (without_a_surface, {"surfaces gone"}),
        (some_seconds, {"quarantined rows"}),
        (doubled, {"duplicate rows"}),
        (without_an_afternoon, {"hours without events", "hour"}),
        (of_strangers, {"new users", "events with unknown user", "users"}),
        (without_durations, {"events without duration"}),
        (a_third_of_the_rows, {"events a day"}),
    ],
)
def test_a_drifting_feed_is_stopped_by_name(
    next_night: Callable[..., tuple[Path, Path]], damage: Damage, metrics: set[str]
):
    root, params = next_night(damage, drift=limits(min_events=900))
    with pytest.raises(DataError, match="the data up to 2022-04-26 has drifted since 2022-04-25-") as caught:
        run(root, params)
    named = {line.partition(":")[0] for line in str(caught.value).splitlines()[1:]}
    assert metrics <= named
    assert named <= metrics | SHADOWS
    assert not (root / "data" / "validation.json").exists()
    page = (root / "data" / "drift.html").read_text()
    assert "Stopped." in page
    assert all(f'<th scope="row">{metric}</th>' in page for metric in metrics)
    assert len(list((root / "store" / "profiles").iterdir())) == 1


def limits(**changes: Any) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "params.yaml").read_text())["validate"]["drift"] | changes


def test_drift_that_was_accepted_passes_with_its_reason_on_that_night_only(
    next_night: Callable[..., tuple[Path, Path]],
):
    accepted = {"until": "2022-04-26", "reason": "the heart button moved"}
    root, params = next_night(without_likes, accept=accepted)
    run(root, params)
    drift = read_json(root / "data" / "validation.json")["drift"]
    assert (drift["verdict"], drift["reason"]) == ("accepted", "the heart button moved")
    assert drift["drifted"] == ["rate of is_like"]
    assert "the heart button moved" in (root / "data" / "drift.html").read_text()
    document = yaml.safe_load(params.read_text())
    document["validate"]["accept"]["until"] = "2022-04-25"
    params.write_text(yaml.safe_dump(document))
    with pytest.raises(DataError, match="rate of is_like"):
        check(root, params)


def test_a_baseline_is_what_its_name_says(good_night: Path, tmp_path: Path):
    (kept,) = (good_night / "store" / "profiles").iterdir()
    profile = load_baseline(kept)
    assert keep_profile(profile, tmp_path) == tmp_path / kept.name
    (tmp_path / kept.name).write_text(kept.read_text().replace('"users": 60', '"users": 59'))
    with pytest.raises(DataError, match="its content is that of 2022-04-25-"):
        load_baseline(tmp_path / kept.name)
    (tmp_path / kept.name).write_text(kept.read_text().replace(f'"version": {profile.version}', '"version": 0'))
    with pytest.raises(DataError, match="a profile of version 0"):
        load_baseline(tmp_path / kept.name)
    with pytest.raises(DataError, match="no such file"):
        load_baseline(tmp_path / "2022-04-01-0123456789ab.json")


def test_the_profile_does_not_depend_on_the_shards(good_night: Path, tmp_path: Path):
    root = tmp_path / "night"
    shutil.copytree(good_night, root)
    params = write_params(root)
    document = yaml.safe_load(params.read_text())
    document["pipelines"] |= {"num_shards": 5, "store": None}
    params.write_text(yaml.safe_dump(document))
    build_streams(params, root / "data" / "events", root / "data" / "vocab", root / "data" / "streams")
    check(root, params)
    first, second = (
        Profile.model_validate(read_json(folder / "data" / "profile.json")) for folder in (good_night, root)
    )
    assert first == second
