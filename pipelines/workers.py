"""A pool of worker processes for Beam's portable runners: `python -m pipelines.workers --port 50001`.

It is what `--environment_type=EXTERNAL --environment_config=HOST:50001` asks for workers. Beam's own pool starts
whatever `python` is on the PATH and leaves its workers alone when it is killed; this one starts its own interpreter,
and its workers end with it.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from types import FrameType

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc
from apache_beam.runners.worker.sdk_worker import SdkHarness
from apache_beam.utils import thread_pool_executor

from pipelines.engine import log_to_stderr

_LOG = logging.getLogger(__name__)
_PR_SET_PDEATHSIG = 1
_SECONDS_TO_STOP = 5.0


@dataclass
class WorkerPool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """Starts a process for each worker that a runner asks for, and stops it when the runner says so."""

    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def StartWorker(  # noqa: N802
        self, request: beam_fn_api_pb2.StartWorkerRequest, context: object
    ) -> beam_fn_api_pb2.StartWorkerResponse:
        """Starts a worker that connects to the control endpoint of the request."""
        self._forget_the_dead()
        command = [sys.executable, "-m", "pipelines.workers"]
        command += ["--worker", request.worker_id, "--control", request.control_endpoint.url]
        try:
            self.workers[request.worker_id] = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        except OSError as error:
            return beam_fn_api_pb2.StartWorkerResponse(error=f"cannot start a worker: {error}")
        _LOG.info("%s started for %s", request.worker_id, request.control_endpoint.url)
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(  # noqa: N802
        self, request: beam_fn_api_pb2.StopWorkerRequest, context: object
    ) -> beam_fn_api_pb2.StopWorkerResponse:
        """Stops a worker; one that is not there is stopped already."""
        worker = self.workers.pop(request.worker_id, None)
        if worker is not None:
            _stop(worker)
        return beam_fn_api_pb2.StopWorkerResponse()

    def _forget_the_dead(self) -> None:
        """A worker ends when its runner hangs up, which no one tells the pool."""
        for worker_id, worker in list(self.workers.items()):
            if worker.poll() is not None:
                self.workers.pop(worker_id, None)

    def stop_all(self) -> None:
        """Stops what still runs."""
        for worker in self.workers.values():
            _stop(worker)


def serve(port: int) -> None:
    """Serves until SIGTERM or SIGINT; port 0 takes a free one, which the log names."""
    options = [("grpc.http2.max_pings_without_data", 0), ("grpc.http2.max_ping_strikes", 0)]
    server = grpc.server(thread_pool_executor.shared_unbounded_instance(), options=options)
    pool, stop = WorkerPool(), threading.Event()
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    port = server.add_insecure_port(f"[::]:{port}")

    def leave(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    server.start()
    _LOG.info("worker pool at localhost:%d", port)
    stop.wait()
    server.stop(0)
    pool.stop_all()


def work(worker_id: str, control: str) -> None:
    """Runs one worker until its runner hangs up or the pool dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    SdkHarness(control, worker_id=worker_id).run()


def _stop(worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()
    try:
        worker.wait(_SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def main() -> None:
    """Command line of the pool; --worker and --control are for the processes that it starts."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.workers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, default=50_001)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--control", help=argparse.SUPPRESS)
    args = parser.parse_args()
    log_to_stderr()
    if args.worker is None:
        serve(args.port)
    else:
        work(args.worker, args.control)


if __name__ == "__main__":
    main()
