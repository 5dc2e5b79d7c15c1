"""The whole thing, small: synthetic logs to a report with one command, twice, and killed in every stage."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from features.dataset import open_dataset
from features.errors import DataError
from flows.process import interpreter_environment
from flows.settings import edit_params, parse_assignment
from flows.stage import stage_names
from model.config import ModelConfig

ROOT = Path(__file__).parents[2]
STAGES = stage_names(ROOT)
TASK_FIGURES = {"ne", "auc", "gauc", "positives", "base_rate", "floor_ne", "floor_auc"}
SMALL = (
    "model.dim=16",
    "model.num_heads=1",
    "model.qk_dim=8",
    "model.v_dim=8",
    "model.streams={consumption: {max_length: 16, num_layers: 1, local_window: 4, global_window: 4, pyramid: []}}",
    "model.heads.hidden_dim=8",
    "train.num_epochs=1",
    "train.checkpoint_every_steps=1",
)
WRITES_A_DIRECTORY = {
    "ingest": "data",
    "vocab": "data",
    "streams": "data",
    "train": "models",
    "export": "models",
    "score": "data",
}

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Workspace:
    """A copy of the repository and how a person works in it."""

    path: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.path,
            env=interpreter_environment(os.environ) | {"PYTHONPATH": str(self.path)},
            capture_output=True,
            text=True,
            check=False,
        )

    def hstu2(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("-c", "from flows.cli import main; main()", *arguments)

    def dvc(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "dvc", *arguments)

    def json(self, name: str) -> dict:
        return json.loads((self.path / name).read_text())


def copy_of_the_repository(target: Path) -> Workspace:
    listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, text=True)
    for name in filter(None, listed.split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    subprocess.check_call(["git", "init", "--quiet"], cwd=target)
    edit_params(target / "params.yaml", dict(parse_assignment(text) for text in SMALL))
    return Workspace(target)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs outside of any workspace, as a person's own are."""
    folder = tmp_path_factory.mktemp("raw") / "logs"
    made = Workspace(ROOT).hstu2("data", "synthesize", str(folder), "--num-events", "3000", "--dirty")
    assert made.returncode == 0, made.stderr
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Workspace:
    """A workspace after its first run, on Prefect's embedded server in a fresh home."""
    workspace = copy_of_the_repository(tmp_path_factory.mktemp("finished"))
    first = workspace.hstu2("run", "--data", str(logs), "--source", "kuairand")
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-1] == ", ".join(f"{stage} ran" for stage in STAGES)
    assert "Traceback" not in first.stderr
    assert "locked" not in first.stderr
    return workspace


def test_the_figures_are_there_for_every_task(finished: Workspace):
    evaluation = finished.json("metrics/evaluate.json")
    assert list(evaluation["tasks"]) == sorted(ModelConfig.load(finished.path / "params.yaml").heads.tasks)
    for figures in evaluation["tasks"].values():
        assert set(figures) >= TASK_FIGURES
        assert 0 <= figures["base_rate"] <= 1
    assert evaluation["tasks"]["is_click"]["ne"] > 0


def test_the_accounts_of_dirty_logs_add_up(finished: Workspace):
    ingested, streams = finished.json("data/events/stats.json"), finished.json("data/streams/stats.json")
    assert ingested["quarantined"] > 0
    assert streams["duplicates"] > 0
    assert ingested["read"] == ingested["quarantined"] + streams["events"] + streams["duplicates"]


def test_the_report_is_one_page_that_needs_nothing_else(finished: Workspace):
    page = (finished.path / "reports" / "index.html").read_text()
    assert "is_click" in page
    assert 'src="http' not in page


def test_a_second_run_executes_no_stage(finished: Workspace):
    second = finished.hstu2("run")
    assert second.returncode == 0
    assert second.stdout.splitlines()[-1] == ", ".join(f"{stage} unchanged" for stage in STAGES)
    assert "Running stage" not in finished.dvc("repro").stdout
    assert "up to date" in finished.dvc("status").stdout


def test_dvc_shows_metrics_and_plots(finished: Workspace):
    shown = json.loads(finished.dvc("metrics", "show", "--json").stdout)
    files = shown[""]["data"] if "data" in shown[""] else shown[""]
    assert set(files) == {"metrics/evaluate.json", "metrics/train.json"}
    plots = finished.dvc("plots", "show", "--json").stdout
    assert all(title in plots for title in ("Training loss", "Calibration", "Normalized entropy"))


def test_inspect_reads_what_the_run_made(finished: Workspace):
    shown = finished.hstu2("inspect")
    assert shown.returncode == 0
    assert "BAD" not in shown.stdout


def test_a_stages_error_is_the_runs_last_line(finished: Workspace, tmp_path: Path):
    (tmp_path / "log_standard_4_22_to_5_08_pure.csv").write_text("user_id,video_id\n1,2\n")
    params = (finished.path / "params.yaml").read_text()
    failed = finished.hstu2("run", "--data", str(tmp_path), "--until", "ingest")
    (finished.path / "params.yaml").write_text(params)
    assert failed.returncode == 1
    last = failed.stderr.splitlines()[-1]
    assert last.startswith("hstu2: ingest failed: ")
    assert "log_standard_4_22_to_5_08_pure.csv" in last


def test_a_kill_in_any_stage_leaves_nothing_and_the_next_run_ends_the_same(
    finished: Workspace, logs: Path, tmp_path: Path
):
    workspace = copy_of_the_repository(tmp_path)
    edit_params(workspace.path / "params.yaml", {"data.path": str(logs)})
    for stage in STAGES:
        kill_in(workspace, stage)
        for out in outputs(workspace, stage):
            assert not out.exists(), f"{stage} left {out}"
        if stage == "streams":
            with pytest.raises(DataError, match=r"manifest\.json"):
                open_dataset(workspace.path / "data" / "streams")
    last = workspace.dvc("repro")
    assert last.returncode == 0, last.stderr
    leftovers = [path for folder in ("data", "models", "metrics") for path in (workspace.path / folder).glob(".tmp-*")]
    assert not leftovers
    for name in ("data/streams/manifest.json", "metrics/evaluate.json", "metrics/train.json"):
        assert workspace.json(name) == finished.json(name)


def outputs(workspace: Workspace, stage: str) -> list[Path]:
    declared = yaml.safe_load((workspace.path / "dvc.yaml").read_text())["stages"][stage]
    return [workspace.path / name for name in (*declared["outs"], *declared.get("metrics", []))]


def kill_in(workspace: Workspace, stage: str) -> None:
    """Runs up to the stage and kills everything at once while it writes, or, where that is short, while it loads."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", stage],
        cwd=workspace.path,
        env=interpreter_environment(os.environ) | {"PYTHONPATH": str(workspace.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    lines: Iterator[str] = iter(process.stdout.readline, "")
    assert any(line.startswith(f"Running stage '{stage}'") for line in lines)
    if stage in WRITES_A_DIRECTORY:
        parent = workspace.path / WRITES_A_DIRECTORY[stage]
        while process.poll() is None and not any(path.is_dir() for path in parent.glob(".tmp-*")):
            time.sleep(0.002)
    else:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
