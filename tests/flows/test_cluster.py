from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from features.errors import DataError
from flows.cli import app
from flows.commands.cluster import beam_settings

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("", {"pipelines.runner": "local", "pipelines.options": []}),
        ("--job_name=night", {"pipelines.options": ["--job_name=night"]}),
        (
            "--runner FlinkRunner --flink_master=h:8081",
            {"pipelines.runner": "FlinkRunner", "pipelines.options": ["--flink_master=h:8081"]},
        ),
        (
            """--runner=PortableRunner --environment_config='{"command": "a b"}'""",
            {"pipelines.runner": "PortableRunner", "pipelines.options": ['--environment_config={"command": "a b"}']},
        ),
    ],
)
def test_beam_options_become_settings(text: str, settings: dict[str, object]) -> None:
    assert beam_settings(text) == settings


def test_the_check_names_the_workers_that_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["cluster", "check"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("local: 1 workers answer and share data\n")


def test_the_check_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "params.yaml").read_text().replace("runner: local", "runner: PortableRunner")
    (tmp_path / "params.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="--job_endpoint=HOST:PORT is missing"):
        CliRunner().invoke(app, ["cluster", "check"], catch_exceptions=False)
