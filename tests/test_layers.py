"""Folders import in one direction, and importing does nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("features", "pipelines", "kernels", "model", "flows")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_ours_and_not_a_namesake(package: str):
    module = __import__(package)
    assert module.__file__ is not None
    assert Path(module.__file__).parent == ROOT / package


def test_the_import_rules_hold():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()", "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_importing_prints_nothing_and_starts_nothing():
    names = sorted(
        str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
        for package in ("features", "kernels", "model", "flows")
        for path in (ROOT / package).rglob("*.py")
        if path.name not in ("__main__.py", "__init__.py")
    )
    code = (
        "import importlib, sys, threading\n"
        "[importlib.import_module(name) for name in sys.argv[1:]]\n"
        "assert threading.active_count() == 1\n"
    )
    result = subprocess.run([sys.executable, "-c", code, *names], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
