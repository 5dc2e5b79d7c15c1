"""Beam's local job service with several workers: `python -m pipelines.job_service --port 50000 --num-workers 2`.

It is what `--runner=PortableRunner --job_endpoint=localhost:50000` sends its pipelines to. The service that Beam ships
asks for one worker whatever the options say, and waits forever for a worker that died.
"""

from __future__ import annotations

import argparse
import functools
import logging
import signal
import threading
from types import FrameType
from typing import Any

import grpc
from apache_beam.portability.api import beam_job_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner, worker_handlers
from apache_beam.runners.portability.fn_api_runner.worker_handlers import ControlConnection
from apache_beam.runners.portability.local_job_service import BeamJob, LocalJobServicer
from apache_beam.runners.runner import PipelineResult

from features.errors import DataError
from pipelines.engine import log_to_stderr

_LOG = logging.getLogger(__name__)


class WatchedConnection(ControlConnection):
    """The connection of a worker; when it ends, what the worker still owed fails instead of being waited for."""

    def _read(self) -> None:
        try:
            super()._read()
        except grpc.RpcError:
            _LOG.warning("a worker hung up")
        self.abort(DataError("a worker died (killed, or out of memory); nothing was published, run the stage again"))


class SpreadRunner(FnApiRunner):
    """Beam's local runner, spread over so many workers; they live outside, so options of the local runner are none."""

    def __init__(self, num_workers: int, **settings: Any) -> None:
        super().__init__(**settings)
        self._num_workers = num_workers


class SpreadJob(BeamJob):
    """A job that runs on several workers."""

    def __init__(self, *arguments: Any, num_workers: int) -> None:
        super().__init__(*arguments)
        self._num_workers = num_workers

    def _invoke_runner(self) -> PipelineResult:
        self.set_state(beam_job_api_pb2.JobState.RUNNING)
        runner = SpreadRunner(self._num_workers, provision_info=self._provision_info)
        return runner.run_via_runner_api(self._pipeline_proto, self.pipeline_options())


def serve(port: int, num_workers: int) -> None:
    """Serves until SIGTERM or SIGINT; port 0 takes a free one, which the log names."""
    # Beam's servicer looks its connections' class up here and has no other way to name one.
    worker_handlers.ControlConnection = WatchedConnection  # type: ignore[misc]
    service = LocalJobServicer(beam_job_type=functools.partial(SpreadJob, num_workers=num_workers))
    stop = threading.Event()

    def leave(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    port = service.start_grpc_server(port)
    _LOG.info("job service at localhost:%d, %d workers a job", port, num_workers)
    stop.wait()
    service.stop()


def main() -> None:
    """Command line of the service."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.job_service", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--port", type=int, default=50_000)
    parser.add_argument("--num-workers", type=int, default=2)
    args = parser.parse_args()
    log_to_stderr()
    serve(args.port, args.num_workers)


if __name__ == "__main__":
    main()
