"""The stages on Beam's portable runner: a job service and two worker processes outside, all with paths of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from features.errors import DataError
from pipelines.config import PipelinesConfig
from pipelines.engine import run_job
from pipelines.ingest import ingest
from pipelines.sources.synthetic import SyntheticSettings, write_kuairand_logs
from pipelines.steps import Job, Step
from pipelines.streams import build_streams
from pipelines.validate import Inputs, validate
from pipelines.vocab import build_vocabularies

ROOT = Path(__file__).parents[2]
OUTPUTS = ("events", "quarantine", "vocab", "streams")


@contextmanager
def serving(module: str, *arguments: str) -> Iterator[str]:
    """Runs one of the services in a folder of its own and yields its address, which its first line tells."""
    command = [sys.executable, "-m", module, "--port", "0", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd="/", env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            found = re.search(r" at (localhost:\d+)", process.stderr.readline())
            assert found
            yield found[1]
        finally:
            process.terminate()
            process.communicate()


@pytest.fixture(scope="module")
def options() -> Iterator[list[str]]:
    """Beam options of a cluster of two workers."""
    with serving("pipelines.workers") as pool, serving("pipelines.job_service", "--num-workers", "2") as jobs:
        yield [f"--job_endpoint={jobs}", "--environment_type=EXTERNAL", f"--environment_config={pool}"]


def run_stages(params: Path, out: Path) -> None:
    ingest(params, out / "events", out / "quarantine")
    build_vocabularies(params, out / "events", out / "vocab")
    build_streams(params, out / "events", out / "vocab", out / "streams")
    validate(params, Inputs(out / "events", out / "vocab", out / "streams"), out / "validation.json")


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_two_worker_processes_write_the_same_bytes_as_the_local_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    write_params: Callable[..., Path],
) -> None:
    monkeypatch.chdir(tmp_path)  # relative paths, which mean nothing to the workers
    write_kuairand_logs(Path("raw"), SyntheticSettings(num_events=4_000, num_users=60, num_items=400))
    run_stages(write_params(Path("raw")), Path("local"))
    run_stages(write_params(Path("raw"), pipelines={"runner": "PortableRunner", "options": options}), Path("cluster"))
    for name in OUTPUTS:
        assert bytes_of(Path("local") / name) == bytes_of(Path("cluster") / name)


class Refuse(Step):
    def process(self, element: int) -> None:
        raise DataError(f"raw/log.csv: row {element} is bad")


class Die(Step):
    def process(self, element: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("step", "message"), [(Refuse(), "raw/log.csv: row 3 is bad"), (Die(), "a worker died .*; nothing was published")]
)
def test_what_happens_to_a_worker_comes_back_as_one_line(
    options: list[str], capfd: pytest.CaptureFixture[str], step: Step, message: str
) -> None:
    config = PipelinesConfig(
        runner="PortableRunner", options=tuple(options), num_workers=1, num_shards=1, rows_per_unit=1, spill=None
    )
    with pytest.raises(DataError, match=f"^{message}"):
        run_job(Job([3], step), config)
    assert "Traceback" not in capfd.readouterr().err
