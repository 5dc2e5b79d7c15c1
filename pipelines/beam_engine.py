"""The one place that knows Beam runners: jobs as Beam pipelines, and what a runner logs of errors."""

from __future__ import annotations

import io
import logging
import sys
import typing
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from features.errors import DataError
from pipelines.config import PipelinesConfig
from pipelines.engine import tells_data_error
from pipelines.preflight import check_runner
from pipelines.steps import Job, Step

# A job service's messages come through the root logger.
_NOISY_LOGGERS = ("apache_beam.runners.common", "apache_beam.runners.worker.sdk_worker", None)


class StepFn(beam.DoFn):
    """A step as Beam calls it."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def setup(self) -> None:
        """Sets the step up, once per worker."""
        self._step.setup()

    def teardown(self) -> None:
        """Lets go of what the step holds."""
        self._step.teardown()

    def process(self, element: Any) -> Iterable[Any] | None:
        """Handles one element."""
        return self._step.process(element)


def run_on_beam(job: Job, config: PipelinesConfig) -> None:
    """Runs a job on the Beam runner of the settings.

    Raises:
        DataError: the runner is unknown, or something that it needs is missing.
        Exception: whatever the runner makes of an error of a step; see `engine.data_error_text`.
    """
    check_runner(config)
    try:
        beam.runners.create_runner(config.runner)
    except (ValueError, ImportError, AttributeError) as error:
        raise DataError(f"pipelines.runner: unknown Beam runner {config.runner!r}: {error}") from None
    options = PipelineOptions(list(config.options))
    with _quiet_data_errors(), beam.Pipeline(runner=config.runner, options=options) as pipeline:
        add_job(pipeline, job)


def add_job(pipeline: beam.Pipeline, job: Job) -> None:
    """Adds a job's steps to a pipeline."""
    spread = pipeline | "Elements" >> beam.Create(job.elements) | "Spread" >> beam.Reshuffle()
    first = type(job.first).__name__ >> beam.ParDo(StepFn(job.first))
    if job.then is None:
        _ = spread | first
        return
    pairs = spread | first.with_output_types(typing.Tuple[job.key_type, typing.Any])  # noqa: UP006
    _ = pairs | "Meet" >> beam.GroupByKey() | type(job.then).__name__ >> beam.ParDo(StepFn(job.then))


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
        logged = (logging.Formatter().format(record) for record in held.records)
        if not tells_data_error(printed.getvalue()) and not any(map(tells_data_error, logged)):
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
