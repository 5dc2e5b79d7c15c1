"""Running jobs and stages: which runner, and what errors look like to the one who started it."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable

from features.errors import DataError
from pipelines.config import LOCAL, PipelinesConfig
from pipelines.memory import keep_freed_memory
from pipelines.steps import Job, run_in_threads

_LOG = logging.getLogger(__name__)

# A runner may carry an error as the text of its traceback, which ends with the error and the step that raised it.
_DATA_ERROR = f"{DataError.__module__}.{DataError.__qualname__}"
# The three ways in which a system says that there is no room; Arrow writes the first in words of its own.
_NO_ROOM = re.compile(r"No space left on device|Disk quota exceeded|File too large")
_STEP = re.compile(r" \[while running '[^\n]*\s*\Z")


def run_job(job: Job, config: PipelinesConfig, *, needs_disk: bool = True) -> None:
    """Runs a job to its end and lets errors of its steps surface as themselves.

    Args:
        job: what to do.
        config: on which runner, with which options.
        needs_disk: whether the steps read and write paths of this machine. A spill URL tells that the workers do not
            share its disk; such steps then run here.

    Raises:
        DataError: a step raised it, the runner is unknown, or something that it needs is missing.
    """
    if needs_disk and config.spill is not None and config.runner != LOCAL:
        _LOG.info("pipelines.spill is %s: this pipeline needs the disk and runs here", config.spill)
        config = config.model_copy(update={"runner": LOCAL, "options": ()})
    try:
        _run(job, config)
    except Exception as error:
        text = data_error_text(error)
        if text is None:
            raise
        raise DataError(text) from None


def _run(job: Job, config: PipelinesConfig) -> None:
    if config.runner != LOCAL:
        from pipelines.beam_engine import run_on_beam  # a second of imports, which a local run does without

        run_on_beam(job, config)
    elif config.options:
        raise DataError(
            f"pipelines.options: {config.options[0]}: the local runner takes none; name a Beam runner (--runner=RUNNER)"
        )
    else:
        run_in_threads(job, config.num_workers)


def run_stage(stage: Callable[[], None]) -> None:
    """Runs a stage's command: progress to stderr, a DataError as its own text and exit status 1."""
    log_to_stderr()
    keep_freed_memory()
    try:
        stage()
    except DataError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        text = data_error_text(error)
        if text is None:
            raise
        sys.exit(f"error: {text}")


def log_to_stderr() -> None:
    """Sets up logging for a command: what this project has to tell, and of Beam only warnings."""
    # Importing Beam sets up the root logger, hence force.
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    logging.getLogger("apache_beam").setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.addFilter(lambda record: not tells_data_error(logging.Formatter().format(record)))


def data_error_text(error: BaseException) -> str | None:
    """The text of the DataError that `error` is or carries, without what the runner wrote around it.

    A full disk is one too, though it surfaces as an error of the system; None for any other error.
    """
    if isinstance(error, DataError):
        return _STEP.sub("", str(error))
    _, found, text = str(error).rpartition(f"{_DATA_ERROR}: ")
    if found:
        return _STEP.sub("", text).strip()
    no_room = _NO_ROOM.search(str(error))
    return f"{no_room[0]}: nothing was published; make room where the stage writes" if no_room else None


def tells_data_error(text: str) -> bool:
    """Whether a text that a runner logged or printed is about an error that `data_error_text` knows."""
    return _DATA_ERROR in text or _NO_ROOM.search(text) is not None
