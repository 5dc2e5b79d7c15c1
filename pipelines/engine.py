"""The one place that knows Beam runners: which one runs, with which options, and what its errors mean."""

from __future__ import annotations

import io
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from features.errors import DataError
from pipelines.config import PipelinesConfig
from pipelines.memory import keep_freed_memory
from pipelines.preflight import LOCAL, check_runner

_LOG = logging.getLogger(__name__)

# A runner may carry an error as the text of its traceback, which ends with the error and the step that raised it.
_DATA_ERROR = f"{DataError.__module__}.{DataError.__qualname__}"
# The three ways in which a system says that there is no room; Arrow writes the first in words of its own.
_NO_ROOM = re.compile(r"No space left on device|Disk quota exceeded|File too large")
_STEP = re.compile(r" \[while running '[^\n]*\s*\Z")
# A job service's messages come through the root logger.
_NOISY_LOGGERS = ("apache_beam.runners.common", "apache_beam.runners.worker.sdk_worker", None)


def run_pipeline(build: Callable[[beam.Pipeline], None], config: PipelinesConfig, *, needs_disk: bool = True) -> None:
    """Builds a pipeline, runs it to its end and lets errors of its DoFns surface as themselves.

    `runner: local` is Beam's in-process runner, named here because Beam's own default downloads a binary.

    Args:
        build: adds the pipeline's steps.
        config: which runner, with which options.
        needs_disk: whether the steps read and write paths of this machine. A spill URL tells that the workers do not
            share its disk; such steps then run here.

    Raises:
        DataError: a DoFn raised it, the runner is unknown, or something that it needs is missing.
    """
    if needs_disk and config.spill is not None and config.runner != LOCAL:
        _LOG.info("pipelines.spill is %s: this pipeline needs the disk and runs here", config.spill)
        config = config.model_copy(update={"runner": LOCAL, "options": ()})
    check_runner(config)
    try:
        with _quiet_data_errors(), beam.Pipeline(runner=_runner(config), options=_options(config)) as pipeline:
            build(pipeline)
    except Exception as error:
        text = data_error_text(error)
        if text is None:
            raise
        raise DataError(text) from None


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
        handler.addFilter(lambda record: not _is_told(record))


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


def _runner(config: PipelinesConfig) -> str | FnApiRunner:
    if config.runner == LOCAL:
        return FnApiRunner()
    try:
        beam.runners.create_runner(config.runner)
    except (ValueError, ImportError, AttributeError) as error:
        raise DataError(f"pipelines.runner: unknown Beam runner {config.runner!r}: {error}") from None
    return config.runner


def _options(config: PipelinesConfig) -> PipelineOptions:
    options = list(config.options)
    if config.runner == LOCAL and config.num_workers > 1:
        # Threads suffice: the work is NumPy's and Arrow's, which release the interpreter lock.
        options += ["--direct_running_mode=multi_threading", f"--direct_num_workers={config.num_workers}"]
    return PipelineOptions(options)


@contextmanager
def _quiet_data_errors() -> Iterator[None]:
    """Keeps Beam from showing the tracebacks of a DataError, whose text is all that the user needs.

    Beam logs them, and prints them to stderr too, beside errors of other workers that were cut off; all of it waits for
    the end and is passed on unless there was a DataError.
    """
    held = _HeldBack()
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    for logger in loggers:
        logger.addFilter(held)
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(held)
        if not _tells_data_error(printed.getvalue()) and not any(map(_is_told, held.records)):
            for record in held.records:
                logging.getLogger(record.name).handle(record)
            sys.stderr.write(printed.getvalue())


class _HeldBack(logging.Filter):
    """Keeps errors for later, and drops what a job service tells of its doings."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            self.records.append(record)
            return False
        return record.module != "portable_runner" or record.levelno >= logging.WARNING


def _is_told(record: logging.LogRecord) -> bool:
    return _tells_data_error(logging.Formatter().format(record))


def _tells_data_error(text: str) -> bool:
    return _DATA_ERROR in text or _NO_ROOM.search(text) is not None
