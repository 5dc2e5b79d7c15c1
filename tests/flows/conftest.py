"""A DVC workspace whose stages are shell commands, and one embedded Prefect server for all tests of a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from flows.server import prefect_api

ROOT = Path(__file__).parents[2]


@pytest.fixture
def make_workspace(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    """Makes a workspace from shell commands by stage name; stage b reads what stage a wrote and writes out/b."""

    def make(commands: dict[str, str]) -> Path:
        stages, source = {}, "source"
        for name, command in commands.items():
            stages[name] = {"cmd": f"mkdir -p out && {command}", "deps": [source], "outs": [f"out/{name}"]}
            source = f"out/{name}"
        (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
        (tmp_path / "source").write_text("1\n")
        (tmp_path / ".gitignore").write_text("/out/\n")
        (tmp_path / ".dvc").mkdir()
        (tmp_path / ".dvc" / "config").write_text(
            f"[core]\n    no_scm = true\n    analytics = false\n    site_cache_dir = {tmp_path / 'site'}\n"
        )
        return tmp_path

    return make


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh Prefect home with the embedded server that a first run would start there."""
    home = tmp_path_factory.mktemp("prefect") / "home"
    with temporary_settings({PREFECT_HOME: home}, restore_defaults={PREFECT_API_URL}), prefect_api(ROOT):
        yield home


def api_environment() -> dict[str, str]:
    """The environment of a child process that reports to the server of `prefect_home`."""
    return {**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value() or "", "PYTHONPATH": str(ROOT)}


@contextmanager
def started(code: str, workspace: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a Python child with SIGINT as a terminal leaves it; it is gone after the block."""
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=workspace,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody has reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Waits for a condition; false when it did not come in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
