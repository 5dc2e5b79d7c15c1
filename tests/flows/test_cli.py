"""The `hstu2` command as a person meets it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HSTU2 = [sys.executable, "-c", "from flows.cli import main; main()"]
HEAVY = ("torch", "prefect", "apache_beam", "polars", "pyarrow", "numpy", "plotly")


def hstu2(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "COLUMNS": "200"}
    return subprocess.run(
        [*HSTU2, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    return tmp_path


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((), ("run", "inspect", "report", "data")),
        (("run",), ("--data", "--source", "--until", "--set")),
        (("inspect",), ("--user", "--request")),
        (("score",), ("--requests", "--bundle", "--streams", "--out")),
        (("report",), ("--out",)),
        (("data",), ("synthesize",)),
        (("data", "fetch"), ("--to", "--keep-archives", "ml-20m")),
        (("data", "synthesize"), ("--num-events", "--seed", "--dirty")),
    ],
)
def test_every_command_explains_itself(tmp_path: Path, command: tuple[str, ...], words: tuple[str, ...]):
    shown = hstu2(*command, "--help", folder=tmp_path)
    assert shown.returncode == 0
    assert all(word in shown.stdout for word in words)


def test_help_loads_nothing_heavy():
    assert loaded("flows.cli", HEAVY) == []


def test_what_only_starts_stages_does_not_load_what_they_compute_with():
    assert loaded("flows.run, flows.retrain, flows.settings", ("torch", "apache_beam", "polars", "sklearn")) == []


def loaded(modules: str, heavy: tuple[str, ...]) -> list[str]:
    """Which heavy modules come along when these are imported."""
    code = f"import sys, {modules}; print(*sorted(set({heavy!r}) & set(sys.modules)))"
    return subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--data", "missing"), "hstu2: missing: no such folder of raw logs; name one with"),
        (("run",), "hstu2: data/raw/synthetic: no such folder of raw logs; name one with"),
        (("run", "--set", "train.num_epoch=2"), "hstu2: params.yaml: train.num_epoch: unknown key (a typo?)"),
        (("run", "--set", "train.num_epochs"), "hstu2: --set train.num_epochs: write section.key=value"),
        (("run", "--source", "csv"), "hstu2: params.yaml: data: Value error, 'tabular' is for the sources parquet,"),
        (("score",), "hstu2: models/bundle: no bundle; manifest.json is written last, run the export stage"),
        (("inspect", "nowhere"), "hstu2: nowhere/manifest.json: missing, so nowhere is not a finished dataset"),
        (("report",), "hstu2: "),
    ],
)
def test_a_mistake_is_one_line_and_status_1(workspace: Path, arguments: tuple[str, ...], message: str):
    shown = hstu2(*arguments, folder=workspace)
    assert shown.returncode == 1
    assert shown.stderr.startswith(message)
    assert len(shown.stderr.splitlines()) == 1
    assert shown.stdout == ""


def test_an_empty_folder_of_logs_is_refused(workspace: Path):
    (workspace / "logs").mkdir()
    assert "the folder of raw logs is empty" in hstu2("run", "--data", "logs", folder=workspace).stderr


def test_a_missing_folder_is_not_written_into_params(workspace: Path):
    hstu2("run", "--data", "missing", folder=workspace)
    assert (workspace / "params.yaml").read_text() == (ROOT / "params.yaml").read_text()


def test_outside_of_the_repository_the_user_is_told_where_to_go(tmp_path: Path):
    shown = hstu2("run", folder=tmp_path)
    assert shown.returncode == 1
    assert shown.stderr == "hstu2: params.yaml: no such file; run hstu2 in the root folder of the repository\n"


def test_synthesize_writes_logs_and_says_what_comes_next(tmp_path: Path):
    shown = hstu2("data", "synthesize", "logs", "--num-events", "500", folder=tmp_path)
    assert shown.returncode == 0
    assert "hstu2 run --data logs --source kuairand" in shown.stdout
    assert list((tmp_path / "logs").glob("**/log_standard_*.csv"))
