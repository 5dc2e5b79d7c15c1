"""DVC commands of a night: they end with the night, and hold its lock while they live."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from features.errors import DataError
from flows.process import launched
from flows.stage import ended_after


@dataclass(frozen=True)
class Commands:
    """Runs Python modules in the worktree.

    Attributes:
        workspace: working directory.
        held: lock descriptors, see `flows.process.launched`.
        say: receives every line that a command prints.
        timeout_seconds: after which a command is ended and has failed.
    """

    workspace: Path
    held: tuple[int, ...]
    say: Callable[[str], None]
    timeout_seconds: float

    def python(self, *arguments: str) -> None:
        """Runs `python` with the arguments.

        Raises:
            DataError: it failed; its last line.
        """
        last = ""
        environment = {"DVC_NO_ANALYTICS": "1"}
        with (
            launched(
                list(arguments), self.workspace, output=subprocess.PIPE, environment=environment, held=self.held
            ) as process,
            ended_after(process, self.timeout_seconds) as timer,
        ):
            assert process.stdout is not None
            for line in process.stdout:
                if text := line.rstrip():
                    last = text
                    self.say(text)
            code = process.wait()
        if code:
            what = " ".join(arguments[1:3])
            if timer.has_fired:
                raise DataError(f"{what}: was ended after {self.timeout_seconds:,.0f} s, its time limit")
            raise DataError(f"{what}: {last.removeprefix('error: ').removeprefix('ERROR: ') or f'exit status {code}'}")

    def track(self, name: str) -> None:
        """Puts a file or folder of the worktree into DVC's cache and writes `<name>.dvc`."""
        self.python("-m", "dvc", "add", "--quiet", name)

    def push(self, *, all_tags: bool) -> None:
        """Uploads what the worktree's dvc.lock and .dvc files name to the default remote.

        Args:
            all_tags: and what those of all tags name.

        Raises:
            DataError: the remote cannot be reached, or something is missing here.
        """
        self.python("-m", "dvc", "push", "--quiet", *(["--all-tags"] if all_tags else []))
