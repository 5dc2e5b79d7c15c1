"""Wall time, processor time and peak memory of a command and of every process that it starts."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

_SECONDS_BETWEEN_SAMPLES = 0.05
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Usage:
    """What a command took.

    Attributes:
        seconds: wall time, start of the interpreter included.
        cpu_seconds: user and system time of the process and of its ended children.
        peak_bytes: the largest sum of resident memory over the process tree at one instant, mapped files included.
        memory: (seconds since the start, bytes) samples of that sum.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    memory: tuple[tuple[float, int], ...]


def run_measured(command: list[str], *, cwd: Path) -> Usage:
    """Runs a command to its end.

    Raises:
        RuntimeError: it failed; with the end of what it printed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    samples: list[tuple[float, int]] = []
    with tempfile.TemporaryFile() as output:
        start = time.monotonic()
        process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=output, stderr=subprocess.STDOUT)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            samples.append((time.monotonic() - start, sum(map(_resident_bytes, _tree(process.pid)))))
            time.sleep(_SECONDS_BETWEEN_SAMPLES)
        seconds = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            text = output.read().decode("utf-8", "replace")[-2000:]
            raise RuntimeError(f"{' '.join(command)}: exit status {process.returncode}\n{text}")
    peak = max((size for _, size in samples), default=0)
    return Usage(seconds, usage.ru_utime + usage.ru_stime, peak, tuple(samples))


def _tree(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0
