"""One retrain at a time, also when the holder is killed and something that it started goes on writing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.nightly.lock import BusyError, retrain_lock

from ..conftest import is_alive

ROOT = Path(__file__).parents[3]
HOLD = """
import subprocess, sys, time
from pathlib import Path
from flows.nightly.lock import retrain_lock
from flows.process import launched
with retrain_lock(Path(sys.argv[1]), task="retrain of 2024-02-29", wait_seconds=0) as lock:
    # Ignores the polite signal, as a writer that hangs would: only the launcher's last word ends it.
    code = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(os.getpid(), flush=True);"
    code += "time.sleep(60)"
    with launched(["-c", code], Path("."), output=subprocess.PIPE, environment={}, held=(lock.descriptor,)) as child:
        Path(sys.argv[1]).with_name("child").write_text(child.stdout.readline())
        print("holding", flush=True)
        time.sleep(60)
"""


def test_the_second_is_told_who_holds_it(tmp_path: Path):
    path = tmp_path / "retrain.lock"
    with (
        retrain_lock(path, task="retrain of 2024-02-29", wait_seconds=0),
        pytest.raises(BusyError, match=rf"process {os.getpid()} on .* since .*: retrain of 2024-02-29"),
        retrain_lock(path, task="another", wait_seconds=0),
    ):
        pass
    with retrain_lock(path, task="another", wait_seconds=0):
        pass


def test_it_outlives_a_killed_holder_until_the_last_writer_is_gone(tmp_path: Path):
    path = tmp_path / "retrain.lock"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], env=environment, stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "holding\n"
    holder.kill()
    holder.wait()
    holder.stdout.close()
    # Nobody asked to wait, but what the dead one left ends by itself.
    started = int((tmp_path / "child").read_text())
    assert is_alive(started)
    with retrain_lock(path, task="next", wait_seconds=0):
        assert not is_alive(started)
