"""Settings of all tests, and the checks of kernels in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

_ROOT = Path(__file__).parents[1]

# A loaded machine makes single examples slow, which says nothing about the code.
settings.register_profile("project", deadline=None)
settings.load_profile("project")


@pytest.fixture
def checks_hold() -> Callable[[Path, str], None]:
    """Runs a script of checks on "cpu", in Triton's interpreter, or on "cuda".

    Triton decides at its import whether it interprets, hence the process.
    """

    def run(script: Path, device: str) -> None:
        found = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(found)}
        environment |= {"TRITON_INTERPRET": "1"} if device == "cpu" else {}
        command = [sys.executable, "-W", "ignore", str(script), device]
        done = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, check=False)
        print(done.stdout)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "all checks hold" in done.stdout

    return run
