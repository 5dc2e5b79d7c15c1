"""`hstu2 data window` and `--accept-drift`: what they write into params.yaml and what they say."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from features.config import DataConfig, WindowConfig
from features.errors import DataError
from features.files import write_json
from flows.cli import app
from flows.commands.window import accept_drift
from flows.settings import edit_params
from pipelines.increment_window import split_days
from pipelines.validate_config import ValidateConfig

ROOT = Path(__file__).parents[2]
FIRST_MS = 1_650_600_000_000  # 2022-04-22 12:00 in Shanghai
DAY_MS = 86_400_000


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml and logs of 22, 23 and 25 April."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for day in (0, 1, 3):
        rows = "".join(f"{user},7,{FIRST_MS + day * DAY_MS},1,1\n" for user in range(5))
        (raw / f"log_standard_{day}.csv").write_text("user_id,video_id,time_ms,is_click,tab\n" + rows)
    document = yaml.safe_load((ROOT / "params.yaml").read_text())
    document["data"]["path"] = "raw"
    document["data"] |= {
        "source": "csv",
        "tabular": {
            "pattern": "*.csv",
            "columns": {"user_id": "user_id", "item_id": "video_id", "timestamp": "time_ms", "timestamp_unit": "ms"},
            "action_columns": {"is_click": "is_click"},
        },
    }
    document["features"] |= {"actions": ["is_click"], "streams": {"consumption": "all"}}
    document["features"] |= {"item_categories": [], "user_categories": []}
    document["pipelines"] |= {"num_workers": 1}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["data", "window", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_window_is_set_and_its_days_are_told(workspace: Path):
    told = run("--until", "2022-04-25", "--days", "3")
    window = DataConfig.load(workspace / "params.yaml").window
    assert window is not None
    assert (window.first, window.until) == (datetime.date(2022, 4, 23), datetime.date(2022, 4, 25))
    assert "2 day(s) with 10 rows, 2022-04-23 to 2022-04-25" in told
    assert "1 day(s) missing: 2022-04-24" in told
    assert "1 day(s) outside with 5 rows" in told
    assert "no window" in run("--all")
    assert DataConfig.load(workspace / "params.yaml").window is None


def test_comments_of_the_settings_stay(workspace: Path):
    path = workspace / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text())
    edit_params(path, {"data.window": {"until": "2022-05-08", "days": 14}})
    changed = [
        line for line in path.read_text().splitlines() if line not in (ROOT / "params.yaml").read_text().splitlines()
    ]
    (line,) = changed
    assert line.startswith("  window: {until: '2022-05-08', days: 14}")
    assert "#" in line


@pytest.mark.parametrize(
    "arguments", [(), ("--until", "2022-04-25"), ("--days", "3"), ("--all", "--days", "3", "--until", "2022-04-25")]
)
def test_half_a_window_is_refused(workspace: Path, arguments: tuple[str, ...]):
    assert CliRunner().invoke(app, ["data", "window", *arguments]).exit_code == 2


def test_a_window_that_is_longer_than_the_logs_names_all_that_is_missing():
    window = WindowConfig(until=datetime.date(2022, 3, 2), days=12)
    found = split_days({"2022-02-28": 3, "2022-03-05": 4}, window)
    assert found.rows == {"2022-02-28": 3}
    assert found.outside == {"2022-03-05": 4}
    assert len(found.missing) == 11
    assert found.missing[0] == "2022-02-19"


def test_drift_is_accepted_for_the_last_day_of_the_window(workspace: Path):
    params, stats = workspace / "params.yaml", workspace / "stats.json"
    edit_params(params, {"data.window": {"until": "2022-04-25", "days": 3}})
    edit_params(params, accept_drift(params, stats, 'it\'s a holiday: no "likes" #1'))
    accepted = ValidateConfig.load(params).accept
    assert accepted is not None
    assert accepted.until == datetime.date(2022, 4, 25)
    assert accepted.reason == 'it\'s a holiday: no "likes" #1'


def test_drift_is_accepted_for_the_last_day_that_ingest_saw(workspace: Path):
    params, stats = workspace / "params.yaml", workspace / "stats.json"
    with pytest.raises(DataError, match=r"stats\.json is missing, so there is no drift to accept yet"):
        accept_drift(params, stats, "a holiday")
    write_json(stats, {"window": ["2022-04-22", "2022-04-24"]})
    assert accept_drift(params, stats, "a holiday")["validate.accept"]["until"] == "2022-04-24"
    with pytest.raises(DataError, match="say why"):
        accept_drift(params, stats, " ")
