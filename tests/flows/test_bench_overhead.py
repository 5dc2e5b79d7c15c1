"""The benchmark of the overhead: what it starts from is nothing but the logs."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from flows.bench_overhead import LOGS, Cost, Turn, clean, commands, take_times

from .conftest import ROOT


def test_a_turn_begins_with_nothing_but_the_logs(tmp_path: Path):
    shutil.copyfile(ROOT / "dvc.yaml", tmp_path / "dvc.yaml")
    made = [
        out for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values() for out in stage["outs"]
    ]
    for name in (*made, ".dvc/cache/files", "data/store/raw", "dvc.lock", f"{LOGS}/log.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / ".dvc" / "config").touch()
    clean(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"dvc.yaml", ".dvc/config", f"{LOGS}/log.csv"}


def test_the_overhead_is_a_share_of_the_flows_time():
    assert Turn(run=Cost(100.0, 85.0), stages=90.0, bare=None, load=0.0).overhead == 1 - 0.9


def test_every_stages_command_is_timed(tmp_path: Path):
    shutil.copyfile(ROOT / "dvc.yaml", tmp_path / "dvc.yaml")
    take_times(tmp_path)
    assert [command.split(" && ")[1] for command in commands(tmp_path)] == commands(ROOT)
