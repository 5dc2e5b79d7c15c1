"""Child processes that cannot outlive this one, see `flows/launcher.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LAUNCHER = Path(__file__).with_name("launcher.py")


@contextmanager
def launched(
    arguments: list[str],
    workspace: Path,
    *,
    output: IO[str] | int,
    environment: Mapping[str, str],
    held: tuple[int, ...] = (),
) -> Iterator[subprocess.Popen[str]]:
    """Runs this interpreter with the arguments in a session of its own; leaving the block stops whatever still runs.

    Args:
        arguments: what follows `python`.
        workspace: working directory.
        output: where standard output and standard error go together, as for `subprocess.Popen`.
        environment: variables added to this process's own.
        held: descriptors of lock files that stay locked until the last process of the command is gone, even when this
            process is killed: the launcher has them too.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", str(LAUNCHER), sys.executable, *arguments],
        cwd=workspace,
        env=interpreter_environment(os.environ) | dict(environment),
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        pass_fds=held,
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def interpreter_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment in which `python` is this interpreter and its output comes line by line."""
    binaries = str(Path(sys.executable).parent)
    path = os.pathsep.join(part for part in (binaries, environment.get("PATH", "")) if part)
    return {**environment, "PATH": path, "PYTHONUNBUFFERED": "1"}
