"""No process of a stage outlives the run, however the run ends. Process trees here are real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flows.process import interpreter_environment, launched

from .conftest import is_alive, wait_until

# Writes the ids of a shell, its child and its grandchild, the last two in the background.
TREE = "sh -c 'sleep 300 & echo $! >> pids; echo $$ >> pids; wait' & echo $! >> pids; echo $$ >> pids; wait"
STUBBORN = "trap '' TERM; echo $$ >> pids; while :; do sleep 0.1; done"


def shell(command: str) -> list[str]:
    return ["-c", f"import subprocess, sys; sys.exit(subprocess.call(['sh', '-c', {command!r}]))"]


def pids(workspace: Path) -> list[int]:
    path = workspace / "pids"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def test_an_exception_ends_the_whole_tree(tmp_path: Path):
    def interrupted() -> None:
        with launched(shell(TREE), tmp_path, output=subprocess.DEVNULL, environment={}):
            assert wait_until(lambda: len(pids(tmp_path)) == 4)
            assert all(is_alive(pid) for pid in pids(tmp_path))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert wait_until(lambda: not any(is_alive(pid) for pid in pids(tmp_path)), seconds=2)


def test_a_tree_that_ignores_sigterm_is_killed(tmp_path: Path):
    with launched(shell(STUBBORN), tmp_path, output=subprocess.DEVNULL, environment={}):
        assert wait_until(lambda: len(pids(tmp_path)) == 1)
    assert not is_alive(pids(tmp_path)[0])


def test_kill_9_of_the_parent_ends_the_tree(tmp_path: Path):
    code = f"""
import subprocess, time
from pathlib import Path
from flows.process import launched
with launched({shell(TREE)!r}, Path("."), output=subprocess.DEVNULL, environment={{}}):
    time.sleep(300)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    assert wait_until(lambda: len(pids(tmp_path)) == 4)
    parent.kill()
    assert parent.wait() == -signal.SIGKILL
    assert wait_until(lambda: not any(is_alive(pid) for pid in pids(tmp_path)))


def test_what_a_command_leaves_in_the_background_ends_with_it(tmp_path: Path):
    with launched(shell("sleep 300 & echo $! >> pids"), tmp_path, output=subprocess.PIPE, environment={}) as process:
        assert process.stdout is not None
        assert process.stdout.read() == ""
        assert process.wait() == 0
    assert not is_alive(pids(tmp_path)[0])


@pytest.mark.parametrize(("command", "status"), [("exit 3", 3), ("kill -9 $PPID", 128 + 9), ("true", 0)])
def test_the_exit_status_is_the_commands(tmp_path: Path, command: str, status: int):
    with launched(shell(command), tmp_path, output=subprocess.DEVNULL, environment={}) as process:
        assert process.wait() == status


def test_python_is_this_interpreter_whatever_path_says(tmp_path: Path):
    environment = interpreter_environment({"PATH": "/usr/bin:/bin"})
    found = subprocess.check_output(["sh", "-c", "command -v python"], env=environment, text=True).strip()
    assert Path(found) == Path(sys.executable).with_name("python")
