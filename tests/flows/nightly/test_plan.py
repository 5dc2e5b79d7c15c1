"""Which logs a night reads, whether it runs at all, what it writes into params.yaml, which stages that makes stale."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from flows.models import Promotion
from flows.nightly.config import RetrainConfig
from flows.nightly.logs import list_logs
from flows.nightly.plan import Window, decide, look_at_window, stale_stages, window_settings
from flows.nightly.record import NightRecord, Outcome, Records, Running
from flows.nightly.workspace import NightlyPlaces
from flows.settings import apply_changes, check_params

from .conftest import ROOT

DATE = datetime.date(2024, 3, 1)
DAY = datetime.timedelta(days=1)
NOW = datetime.datetime(2024, 3, 2, 3, 30, tzinfo=datetime.UTC)
CONFIG = RetrainConfig.load(ROOT / "params.yaml").model_copy(update={"day_pattern": "log_%Y%m%d.csv", "window_days": 3})


def record(date: datetime.date, outcome: Outcome = "kept", **changes: object) -> NightRecord:
    fields = {
        "date": date,
        "outcome": outcome,
        "reason": "because",
        "attempt": 1,
        "started_at": NOW,
        "seconds": {"ingest": 2.0},
        "base": "0" * 40,
        "pushed": True,
        "earlier": (),
    }
    empty = dict.fromkeys(
        ("step", "digest", "day_digest", "data", "model", "champion", "gate", "profile", "tag", "resumed")
    )
    return NightRecord.model_validate({**empty, **fields, **changes})


@pytest.fixture
def window(tmp_path: Path) -> Callable[..., Window]:
    landing = tmp_path / "landing"
    landing.mkdir()
    for name in ("log_20240228.csv", "log_20240229.csv", "log_20240301.csv", "log_20240302.csv", "users.csv"):
        (landing / name).write_text(name)

    def look(*records: NightRecord, date: datetime.date = DATE) -> Window:
        files = list_logs(landing, CONFIG.day_pattern)
        known = {one.date: one for one in records}
        return look_at_window(files, date, CONFIG, places=NightlyPlaces(tmp_path), records=known)

    return look


def names(found: Window) -> list[str]:
    return [file.name for file in found.files]


def test_a_window_ends_with_its_date_and_takes_the_side_tables(window: Callable[..., Window]):
    found = window()
    assert names(found) == ["log_20240228.csv", "log_20240229.csv", "log_20240301.csv", "users.csv"]
    assert (found.account.files, found.account.absent, found.account.left_out) == (4, (), ())
    assert window(date=DATE + 3 * DAY).account.absent == (DATE + 2 * DAY, DATE + 3 * DAY)


def test_days_before_the_first_logs_are_no_gap(window: Callable[..., Window]):
    assert window(date=datetime.date(2024, 2, 29)).account.absent == ()


def test_a_day_that_failed_on_its_logs_stays_out_until_they_change(window: Callable[..., Window]):
    day = DATE - DAY
    digest = window(date=day).day_digest
    refused = record(day, "failed", step="validate", day_digest=digest)
    assert window(refused).account.left_out == (day,)
    assert "log_20240229.csv" not in names(window(refused))
    for innocent in (
        record(day, "failed", step="validate", day_digest="another"),
        record(day, "failed", step="train", day_digest=digest),
        record(day, "kept", day_digest=digest),
    ):
        assert window(innocent).account.left_out == ()
    # It may always try itself again.
    assert window(refused, date=day).account.left_out == ()


def test_a_date_is_run_once_per_content():
    done = record(DATE, digest="a")
    assert decide(None, "a", force=False).run
    assert not decide(done, "a", force=False).run
    assert decide(done, "b", force=False).run
    assert decide(done, "a", force=True).run
    assert decide(record(DATE, "failed", digest="a"), "a", force=False).run


def test_the_edits_of_a_night_are_settings_that_exist_and_name_no_machine(window: Callable[..., Window]):
    champion = Promotion(model="0123456789abcdef", date=DATE - DAY, promoted_at=NOW, by="gate")
    settings = window_settings(DATE, CONFIG, window(), champion=champion, baseline="2024-02-29-abc.json")
    assert all(not str(value).startswith("/") for value in settings.values())
    assert settings["features.vocabulary.base"] == "../../models/store/0123456789abcdef/vocab"
    path = ROOT / "params.yaml"
    known = yaml.safe_load(path.read_text())
    edits = {key: value for key, value in settings.items() if key.split(".")[1] in known[key.split(".")[0]]}
    assert {"data.path", "data.window", "validate.baseline", "features.vocabulary.base"} <= set(edits)
    check_params(apply_changes(path.read_text(), edits, path), path)


def test_known_gaps_are_no_drift(window: Callable[..., Window]):
    settings = window_settings(DATE + 3 * DAY, CONFIG, window(date=DATE + 3 * DAY), champion=None, baseline=None)
    assert settings["validate.drift.max_missing_days"] == 2
    assert settings["features.vocabulary.base"] is None


def test_staleness_runs_down_the_graph():
    stages = {
        "a": {"deps": ["raw", "code"], "params": ["x"], "outs": ["out/a"]},
        "b": {"deps": ["out/a"], "params": ["y"], "outs": ["out/b"]},
        "c": {"deps": ["other"], "params": ["z"], "metrics": ["out/c"]},
    }
    assert stale_stages(stages, ["code/deep/file.py"], ()) == {"a": "code", "b": "out/a of a"}
    assert stale_stages(stages, ["codes"], {"y"}) == {"b": "params y"}
    assert stale_stages(stages, (), {"z"}) == {"c": "params z"}
    assert stale_stages(stages, (), ()) == {}


def test_records_come_back_as_they_were_and_the_marker_tells_a_killed_night(tmp_path: Path):
    records = Records(tmp_path)
    running = Running(date=DATE, pid=7, started_at=NOW, step="train")
    records.mark(running)
    assert records.running() == running
    kept = record(DATE, digest="a", seconds={"ingest": 1.5})
    records.save(kept)
    assert records.running() is None
    assert records.get(DATE) == kept
    assert records.all() == {DATE: kept}
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(line).items() >= {"date": "2024-03-01", "event": "kept", "reason": "because"}.items()
    assert records.get(DATE - DAY) is None
