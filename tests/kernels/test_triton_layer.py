import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

CHECKS = Path(__file__).with_name("triton_layer_checks.py")
ROOT = CHECKS.parents[2]


def run_checks(device, **environment):
    """In a process of its own: Triton decides at its import whether it interprets."""
    command = [sys.executable, "-W", "ignore", str(CHECKS), device]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all checks hold" in done.stdout


def test_layer_equals_the_reference_in_the_interpreter():
    run_checks("cpu", TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_layer_equals_the_reference_on_the_gpu():
    run_checks("cuda")
