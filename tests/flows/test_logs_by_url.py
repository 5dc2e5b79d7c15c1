from __future__ import annotations

import uuid
from pathlib import Path

import fsspec
import pytest
from typer.testing import CliRunner

from features.config import DataConfig
from features.errors import DataError
from flows.cli import app
from flows.commands.data import local_logs, refresh_logs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    url = f"memory://{uuid.uuid4().hex}/night"
    fsspec.open(f"{url}/log.csv", "w").open().close()
    return url


def test_a_folder_stands_for_itself(tmp_path: Path) -> None:
    assert local_logs(str(tmp_path)) == tmp_path
    refresh_logs(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_urls_copy_is_brought_up_to_date(url: str) -> None:
    result = CliRunner().invoke(app, ["data", "mirror", url])
    assert result.exit_code == 0, result.output
    folder = local_logs(url)
    assert f"{folder}: as {url}" in result.output
    assert [path.name for path in folder.iterdir()] == ["log.csv"]
    with fsspec.open(f"{url}/log_2.csv", "w") as sink:
        sink.write("user_id")
    refresh_logs(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["log.csv", "log_2.csv"]


def test_a_url_without_logs_is_refused_before_params_are_edited(url: str) -> None:
    with pytest.raises(DataError, match="no file is there"):
        CliRunner().invoke(app, ["run", "--data", f"{url}/nowhere"], catch_exceptions=False)


def test_a_url_in_the_settings_says_how_to_get_a_copy(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text().replace("path: data/raw/synthetic", "path: s3://bucket/raw")
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(DataError, match=r"data\.path: .*s3://bucket/raw is a URL; `hstu2 run --data s3://bucket/raw`"):
        DataConfig.load(tmp_path / "params.yaml")
