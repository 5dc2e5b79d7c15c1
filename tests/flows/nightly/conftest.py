"""A small repository with git and DVC whose model is one number: how much noise its scores carry."""

from __future__ import annotations

import datetime
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from flows.nightly.record import NightRecord, Records
from flows.nightly.workspace import NightlyPlaces, git
from flows.settings import edit_params

ROOT = Path(__file__).parents[3]
FIRST = datetime.date(2024, 2, 28)
STAGES = {
    "ingest": {
        "cmd": "python stages.py ingest",
        "deps": ["${data.path}", "stages.py"],
        "params": ["data"],
        "outs": ["data/events", "data/vocab"],
    },
    "train": {
        "cmd": "python stages.py train",
        "deps": ["data/events", "stages.py"],
        "params": ["model", "train"],
        "outs": ["models/ranker"],
    },
}
CODE = """
import json, os, sys, time
from pathlib import Path
import yaml
stage = sys.argv[1]
if os.environ.get("HANG_IN") == stage:
    Path(os.environ["HANG_PID"]).write_text(f"{os.getpid()}\\n")
    time.sleep(300)
if stage == "ingest":
    days = sorted(Path("logs").glob("log_standard_*.csv"))
    if any("broken" in path.read_text() for path in days):
        sys.exit("error: a row is broken")
    for name in ("data/events", "data/vocab", "data"):
        Path(name).mkdir(parents=True, exist_ok=True)
    Path("data/events/noise").write_text(days[-1].read_text())
    Path("data/events/stats.json").write_text(json.dumps({"kept": len(days), "quarantined": 0}))
    Path("data/vocab/rows").write_text("rows")
if stage == "train":
    params = yaml.safe_load(Path("params.yaml").read_text())
    dim, start = params["model"]["dim"], params["train"]["warm_start"]
    if start and (before := int(Path(start, "dim").read_text())) != dim:
        sys.exit(f"error: train.warm_start: {start}: it has model.dim = {before}, now it is {dim}")
    Path("models/ranker").mkdir(parents=True)
    Path("models/ranker/dim").write_text(str(dim))
    Path("models/ranker/start").write_text(str(start))
    Path("models/ranker/noise").write_text(Path("data/events/noise").read_text())
"""
PREDICT = """
import argparse, json
from pathlib import Path
import numpy as np, pyarrow as pa
parser = argparse.ArgumentParser()
parser.add_argument("--model", action="append")
parser.add_argument("--out", type=Path)
args = parser.parse_args()
rng = np.random.default_rng(0)
size, tasks = 3000, ["is_click"]
truth = rng.normal(0, 1.3, size)
columns = {"user_id": np.arange(size) % 300, "request_id": np.arange(size), "history": np.full(size, 20),
           "cold": np.zeros(size, bool), "surface": np.full(size, 2)}
columns["label is_click"] = rng.random(size) < 1 / (1 + np.exp(-truth))
for text in args.model:
    name, _, folder = text.partition("=")
    noise = float((Path(folder) / "ranker" / "noise").read_text())
    columns[f"logit {name} is_click"] = (truth + noise * rng.normal(0, 1, size)).astype(np.float32)
latency = {text.partition("=")[0]: 1.0 for text in args.model}
table = pa.table(columns).replace_schema_metadata({"hstu2": json.dumps({"tasks": tasks, "latency_ms": latency})})
with pa.OSFile(str(args.out), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
    writer.write_table(table)
"""


@dataclass(frozen=True)
class Repository:
    """The repository and its landing folder."""

    root: Path

    @property
    def places(self) -> NightlyPlaces:
        return NightlyPlaces(self.root)

    @property
    def landing(self) -> Path:
        return self.root.parent / "landing"

    def land(self, date: datetime.date, text: str) -> None:
        """A day's log: the noise of the model that is trained on it."""
        (self.landing / f"log_standard_{date:%Y%m%d}.csv").write_text(text)

    def record(self, date: datetime.date) -> NightRecord:
        record = Records(self.places.folder).get(date)
        assert record is not None
        return record


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as committed."""
    root = tmp_path_factory.mktemp("template") / "repository"
    (root / "model").mkdir(parents=True)
    (root / ".dvc").mkdir()
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}, sort_keys=False))
    (root / "stages.py").write_text(CODE)
    (root / "model" / "__init__.py").touch()
    (root / "model" / "predict.py").write_text(PREDICT)
    for name in (".gitignore", ".dvcignore", "params.yaml", ".dvc/config", ".dvc/.gitignore"):
        shutil.copyfile(ROOT / name, root / name)
    edit_params(
        root / "params.yaml",
        {
            "retrain.logs": "../landing",
            "retrain.settle_seconds": 0,
            "retrain.poll_seconds": 0.1,
            "retrain.deadline_minutes": 0,
            "retrain.window_days": 3,
            "retrain.push_attempts": 1,
            "retrain.gate.tasks": ["is_click"],
            "retrain.gate.bootstrap_samples": 20,
            "retrain.gate.max_calibration_error": 5.0,
        },
    )
    git(root, "init", "--quiet", "--initial-branch=main")
    for name, value in (("user.name", "a"), ("user.email", "a@localhost")):
        git(root, "config", name, value)
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "Begin")
    return root


@pytest.fixture
def repository(template: Path, tmp_path: Path) -> Repository:
    root = tmp_path / "repository"
    shutil.copytree(template, root)
    (tmp_path / "landing").mkdir()
    (root / ".dvc" / "config.local").write_text(f"[core]\n    site_cache_dir = {tmp_path / 'site'}\n")
    return Repository(root)


def dvc(workspace: Path, *words: str) -> str:
    """What a DVC command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *words], cwd=workspace, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
