"""The kernels against their references, in the interpreter and on a GPU."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

SCRIPTS = ("triton_checks.py", "triton_bags_checks.py", "triton_layer_checks.py", "triton_ops_checks.py")


@pytest.mark.parametrize("script", SCRIPTS)
def test_checks_hold_in_the_interpreter(checks_hold, script):
    checks_hold(Path(__file__).with_name(script), "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("script", SCRIPTS)
def test_checks_hold_on_the_gpu(checks_hold, script):
    checks_hold(Path(__file__).with_name(script), "cuda")
