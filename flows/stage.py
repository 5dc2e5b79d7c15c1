"""Runs DVC stages and tells in their own words how they went. Knows nothing of Prefect."""

from __future__ import annotations

import enum
import re
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import yaml

from features.errors import DataError
from flows.process import launched

MAX_ERROR_LINES = 10
MAX_KEPT_LINES = 1000

_COMMAND = re.compile(r"> \S")
_COMMAND_FAILED = re.compile(r"ERROR: failed to reproduce '[^']*': failed to run: ")
_DVC_ERROR = re.compile(r"ERROR: (?:failed to reproduce '[^']*': )?(.+)")
_DVC_HINT = re.compile(
    r"To track the changes with git|\s+git add |To enable auto staging|\s+dvc config core.autostage"
    r"|Use `dvc push`|Data and pipelines are up to date|(?:Generating|Updating) lock file|Having any troubles"
)
_PROGRESS = re.compile(r"\d\d:\d\d:\d\d |(?:\S+ ){0,2}(?:DEBUG|INFO)\b")
_STAGE_ERROR = "error: "


class Status(enum.Enum):
    """How a stage ended."""

    RAN = "ran"
    UNCHANGED = "unchanged"
    RESTORED = "restored from DVC's cache"
    FAILED = "failed"


@dataclass(frozen=True)
class StageOutcome:
    """End of one stage; `error` holds its last lines when it failed."""

    stage: str
    status: Status
    error: str = ""


def stage_names(workspace: Path) -> tuple[str, ...]:
    """The stages of the workspace's dvc.yaml in the order written there, which is the order to run them.

    Raises:
        DataError: there is no dvc.yaml.
    """
    path = workspace / "dvc.yaml"
    if not path.is_file():
        raise DataError(f"{path}: no such file; run hstu2 in the root folder of the repository")
    return tuple(yaml.safe_load(path.read_text())["stages"])


class Reproduction:
    """One `dvc repro --single-item` at work on several stages, in the order in which they were named."""

    def __init__(
        self, process: subprocess.Popen[str], stages: Sequence[str], timeout_seconds: float | None = None
    ) -> None:
        self._process = process
        self._following = dict(pairwise((*stages, None)))
        self._timeout_seconds = timeout_seconds
        self._ahead: str | None = None

    def finish(self, stage: str, on_line: Callable[[str], None]) -> StageOutcome:
        """Waits for the end of a stage; called for each in turn, up to the first that fails.

        Args:
            stage: the next one that has not been waited for.
            on_line: receives every line that the stage and DVC print, as it comes, but for DVC's advice on git.
        """
        kept: deque[str] = deque(maxlen=MAX_KEPT_LINES)
        following = self._following[stage]
        with ended_after(self._process, self._timeout_seconds) as timer:
            for text in self._lines():
                if following is not None and _begins(text, following):
                    # DVC is at the next stage already.
                    self._ahead = text
                    return summarize(stage, kept, 0)
                kept.append(text)
                if text and not _DVC_HINT.match(text):
                    on_line(text)
            code = self._process.wait()
        if code and timer.has_fired:
            return StageOutcome(stage, Status.FAILED, f"was ended after {self._timeout_seconds:,.0f} s, its time limit")
        return summarize(stage, kept, code)

    def _lines(self) -> Iterator[str]:
        if self._ahead is not None:
            yield self._ahead
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield line.rstrip()


def _begins(line: str, stage: str) -> bool:
    """Whether DVC speaks of a stage for the first time."""
    return line.startswith((f"Running stage '{stage}':", f"Stage '{stage}' ", f"ERROR: failed to reproduce '{stage}'"))


@contextmanager
def reproducing(
    stages: Sequence[str], workspace: Path, *, timeout_seconds: float | None = None, held: tuple[int, ...] = ()
) -> Iterator[Reproduction]:
    """Brings stages up to date, one after the other, with one DVC process: starting it takes as long as a small stage.

    Args:
        stages: of the workspace's dvc.yaml, in the order to run them.
        workspace: folder that holds dvc.yaml.
        timeout_seconds: after which a stage is ended and has failed; never without it.
        held: see `launched`.

    Leaving the block, by an exception too (Ctrl-C, a cancelled flow), and the death of this process end every process
    of the stages.
    """
    command = ["-m", "dvc", "repro", "--single-item", *stages]
    environment = {"DVC_NO_ANALYTICS": "1"}
    with launched(command, workspace, output=subprocess.PIPE, environment=environment, held=held) as process:
        yield Reproduction(process, stages, timeout_seconds)


@dataclass
class Timer:
    """Whether the time was up."""

    has_fired: bool = False


@contextmanager
def ended_after(process: subprocess.Popen[str], seconds: float | None) -> Iterator[Timer]:
    """Ends a launched process, and with it its group, when it runs for too long."""
    state = Timer()

    def fire() -> None:
        state.has_fired = True
        assert process.stdin is not None
        process.stdin.close()

    timer = threading.Timer(seconds, fire) if seconds is not None else None
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        yield state
    finally:
        if timer is not None:
            timer.cancel()


def summarize(stage: str, lines: Iterable[str], exit_code: int) -> StageOutcome:
    """Outcome of a stage from what DVC and the stage printed."""
    lines = list(lines)
    if exit_code:
        return StageOutcome(stage, Status.FAILED, stage_error(lines) or f"ended with exit status {exit_code}")
    if f"Stage '{stage}' didn't change, skipping" in lines:
        return StageOutcome(stage, Status.UNCHANGED)
    if any(line.startswith(f"Stage '{stage}' is cached - skipping run") for line in lines):
        return StageOutcome(stage, Status.RESTORED)
    return StageOutcome(stage, Status.RAN)


def stage_error(lines: list[str]) -> str:
    """The stage's own last lines; DVC's reason when the command never ran, or ended without a word."""
    started = max((index for index, line in enumerate(lines) if _COMMAND.match(line)), default=len(lines))
    own = [line for line in lines[started + 1 :] if line and not line.startswith("ERROR: failed to reproduce")]
    said = [line for line in own if not _PROGRESS.match(line)]
    if said and any(_COMMAND_FAILED.match(line) for line in lines):
        return "\n".join(_last_error(said))
    reasons = [match.group(1) for line in lines if (match := _DVC_ERROR.match(line))]
    return "\n".join(reasons or own[-MAX_ERROR_LINES:])


def _last_error(lines: list[str]) -> list[str]:
    """What follows the last `error: `, a Python exception without its traceback, or else the last few lines."""
    start = _last_index(lines, _STAGE_ERROR)
    if start is not None:
        return [lines[start].removeprefix(_STAGE_ERROR), *lines[start + 1 :]][:MAX_ERROR_LINES]
    start = _last_index(lines, "Traceback (most recent call last)")
    raised = lines if start is None else [line for line in lines[start + 1 :] if not line.startswith(" ")]
    return raised[-MAX_ERROR_LINES:]


def _last_index(lines: list[str], prefix: str) -> int | None:
    return max((index for index, line in enumerate(lines) if line.startswith(prefix)), default=None)
