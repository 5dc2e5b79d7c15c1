"""The stage under torchrun, and what becomes of it when a rank is killed."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from model.evaluate import EvaluatePaths, evaluate
from model.train import TrainPaths, train
from model.training.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[3]
SETTINGS = {"num_epochs": 30, "tracking": []}
TRAIN_PATHS = {
    "params": "params.yaml",
    "streams": "data/streams",
    "validation": "data/validation.json",
    "out": "models/ranker",
    "metrics": "metrics",
}
EVALUATE_PATHS = {
    "params": "params.yaml",
    "streams": "data/streams",
    "model": "models/ranker",
    "metrics": "metrics",
}
RANKS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]

pytestmark = pytest.mark.slow


@pytest.fixture
def start():
    """Starts a stage on two ranks in a workspace; none outlives its test."""
    jobs = []

    def run(workspace, module):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        jobs.append(
            subprocess.Popen(
                [*RANKS, module],
                cwd=workspace,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return jobs[-1]

    yield run
    for job in jobs:
        job.terminate()
        job.communicate()


@pytest.fixture
def workspace(tmp_path, make_content, write_dataset, write_params, write_validation):
    write_dataset(tmp_path / "data/streams", make_content(seed=1, num_users=40), 2)
    write_validation(tmp_path / "data/validation.json")
    write_params(tmp_path / "params.yaml", train=SETTINGS | {"checkpoint_every_steps": 3})
    return tmp_path


def process_of_rank(parent, rank):
    for path in Path("/proc").glob("[0-9]*"):
        try:
            is_child = f"\nPPid:\t{parent}\n" in (path / "status").read_text()
            if is_child and f"RANK={rank}".encode() in (path / "environ").read_bytes().split(b"\0"):
                return int(path.name)
        except OSError:
            continue
    raise AssertionError(f"process {parent} has no rank {rank}")


def test_a_killed_rank_ends_the_job_by_name_and_the_run_goes_on(workspace, start, write_params, caplog):
    checkpoints = workspace / "models/.checkpoints/ranker"
    job = start(workspace, "model.train")
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("step-*/checkpoint.json")):
        assert job.poll() is None, job.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    killed = process_of_rank(job.pid, 1)
    os.kill(killed, signal.SIGKILL)
    output = job.communicate(timeout=60)[0]
    assert job.returncode != 0
    assert f"rank 1 (process {killed}) is gone" in output or "rank      : 1 (local_rank: 1)\n  exitcode  : -9" in output
    assert not (workspace / "models/ranker").exists()
    last = max(checkpoints.glob("step-*"))
    step = load_checkpoint(last).header.step
    assert step >= 3

    # one process goes on where two stood; logging and saving decide nothing, so this is the same run
    write_params(workspace / "params.yaml", train=SETTINGS | {"checkpoint_every_steps": 10_000})
    with caplog.at_level(logging.INFO):
        train(TrainPaths(**{name: workspace / path for name, path in TRAIN_PATHS.items()}))
    assert f"continuing the interrupted run at step {step}" in caplog.text
    figures = json.loads((workspace / "metrics/train.json").read_text())
    assert figures["steps"] == 30 * -(-figures["requests"] // 30 // 4)
    assert figures["steps"] == load_checkpoint(workspace / "models/ranker").header.step
    assert not checkpoints.exists()
    job = start(workspace, "model.evaluate")
    output = job.communicate(timeout=120)[0]
    assert job.returncode == 0, output
    two = json.loads((workspace / "metrics/evaluate.json").read_text())
    evaluate(EvaluatePaths(**{name: workspace / path for name, path in EVALUATE_PATHS.items()}))
    one = json.loads((workspace / "metrics/evaluate.json").read_text())
    assert one["num_candidates"] == two["num_candidates"]
    for task, result in one["tasks"].items():
        assert two["tasks"][task] == pytest.approx(result, rel=1e-3)
