"""The Prefect API that a run reports to: the configured one, or an embedded server that lives as long as the run."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from features.errors import DataError
from flows.process import launched

START_TIMEOUT_SECONDS = 120.0


@contextmanager
def prefect_api(workspace: Path) -> Iterator[None]:
    """Makes a Prefect API available to the block.

    Without `PREFECT_API_URL` this starts Prefect's server on a free local port with its database in Prefect's home
    (`.prefect/` in the workspace) and its log in `server.log` there. Prefect can start one by itself, but that one
    stays behind when the run is killed, and a terminal's Ctrl-C ends it before the flow has reported.

    Raises:
        DataError: the server does not start.
    """
    from prefect.logging import get_logger
    from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

    settings = get_current_settings()
    if settings.api.url is not None:
        yield
        return
    home = settings.home.absolute()
    home.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    api = f"http://127.0.0.1:{port}/api"
    command = ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--no-scheduler", "--no-late-runs", "--log-level", "warning"]
    log = home / "server.log"
    get_logger().info("starting Prefect's server; the first time takes a few seconds more")
    with (
        log.open("w") as output,
        launched(command, workspace, output=output, environment={"PREFECT_HOME": str(home)}) as process,
    ):
        _wait_until_healthy(f"{api}/health", process, log)
        with temporary_settings({PREFECT_API_URL: api}):
            _close_abandoned_runs()
            yield


def _close_abandoned_runs() -> None:
    """Marks as crashed what a killed run left behind as running: one run at a time writes to this server's database."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    running = FlowRunFilter.model_validate({"state": {"type": {"any_": [StateType.RUNNING, StateType.PENDING]}}})
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=running):
            client.set_flow_run_state(run.id, Crashed(message="The run was killed."), force=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_healthy(url: str, process: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.1)
    raise DataError(f"{log}: Prefect's server did not start, its log tells why")
