"""Cached scoring by the Triton kernels."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

SCRIPT = Path(__file__).with_name("cached_checks.py")


def test_the_kernels_give_the_references_scores_in_the_interpreter(checks_hold):
    checks_hold(SCRIPT, "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_kernels_give_the_references_scores_on_the_gpu(checks_hold):
    checks_hold(SCRIPT, "cuda")
