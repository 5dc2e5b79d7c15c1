from __future__ import annotations

import errno
import logging
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from features.errors import DataError
from pipelines.config import PipelinesConfig
from pipelines.engine import data_error_text, run_job, run_stage
from pipelines.steps import Job, Step

TEXT = "data/x.csv: column 'a' is missing [sic]\nsecond line"


def config_of(runner: str = "local", num_workers: int = 1, options: tuple[str, ...] = ()) -> PipelinesConfig:
    return PipelinesConfig(runner=runner, options=options, num_workers=num_workers, num_shards=1, rows_per_unit=1)


BEAM = "BundleBasedDirectRunner"
RUNNERS = [config_of(), config_of(num_workers=2), config_of(BEAM)]


class Fail(Step):
    def __init__(self, error: Exception) -> None:
        self._error = error

    def process(self, element: int) -> None:
        raise self._error


class Remainder(Step):
    def process(self, element: int) -> Iterator[tuple[int, int]]:
        yield element % 3, element


class Collect(Step):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def setup(self) -> None:
        (self._folder / f"begun-{threading.get_ident()}").touch()

    def process(self, element: tuple[int, Iterable[int]]) -> None:
        (self._folder / str(element[0])).write_text(repr(sorted(element[1])))


@pytest.mark.parametrize("config", RUNNERS)
@pytest.mark.parametrize("elements", [[], list(range(20))])
def test_a_runner_conserves_elements(config, elements, tmp_path):
    run_job(Job(elements, Remainder(), Collect(tmp_path)), config)
    found = {path.name: path.read_text() for path in tmp_path.iterdir() if not path.name.startswith("begun")}
    assert found == ({str(key): repr(elements[key::3]) for key in range(3)} if elements else {})


def test_the_local_runner_sets_a_step_up_once(tmp_path):
    run_job(Job(range(20), Remainder(), Collect(tmp_path)), config_of(num_workers=2))
    assert len(list(tmp_path.glob("begun-*"))) == 1


def test_the_local_runner_works_in_as_many_threads_as_it_is_told(tmp_path):
    meeting = threading.Barrier(3, timeout=10)

    class Meet(Step):
        def process(self, element: int) -> None:
            meeting.wait()

    run_job(Job(range(3), Meet()), config_of(num_workers=3))


def test_after_an_error_nothing_new_is_begun():
    begun = []

    class FailFirst(Step):
        def process(self, element: int) -> None:
            begun.append(element)
            raise DataError(TEXT)

    with pytest.raises(DataError):
        run_job(Job(range(1_000), FailFirst()), config_of())
    assert begun == [0]


def test_a_local_run_does_without_beam():
    code = "import sys, pipelines.ingest, pipelines.streams, pipelines.validate; sys.exit('apache_beam' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


@pytest.mark.parametrize("config", RUNNERS)
def test_a_data_error_surfaces_with_its_own_text(config, capfd, caplog):
    with pytest.raises(DataError) as caught:
        run_job(Job([1], Fail(DataError(TEXT))), config)
    assert str(caught.value) == TEXT
    assert caught.value.__suppress_context__
    if config.runner == "local":
        assert "Traceback" not in capfd.readouterr().err + caplog.text


@pytest.mark.parametrize("config", RUNNERS)
def test_other_errors_stay_errors_with_their_traceback(config):
    with pytest.raises(Exception, match="lost a cable") as caught:
        run_job(Job([1], Fail(OSError("lost a cable"))), config)
    assert not isinstance(caught.value, DataError)


def test_an_unknown_runner_is_named():
    with pytest.raises(DataError, match=r"pipelines\.runner: unknown Beam runner 'Flonk'"):
        run_job(Job([1], Remainder()), config_of("Flonk"))


def test_options_reach_the_runner(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "pipelines.beam_engine.add_job",
        lambda pipeline, job: seen.append(pipeline.options.get_all_options()["job_name"]),
    )
    run_job(Job([1], Remainder()), config_of(BEAM, options=("--job_name=nightly",)))
    assert seen == ["nightly"]


def test_options_without_a_beam_runner_are_refused():
    with pytest.raises(DataError, match=r"pipelines\.options: --job_name=x: the local runner takes none"):
        run_job(Job([1], Remainder()), config_of(options=("--job_name=x",)))


def test_text_of_errors_that_carry_a_data_error():
    traceback = "Traceback ...\nfeatures.errors.DataError: first\n\nDuring handling ...\nfeatures.errors.DataError: "
    assert data_error_text(RuntimeError(f"{traceback}{TEXT} [while running 'Build-ptransform-7']\n")) == TEXT
    assert data_error_text(RuntimeError("anything else")) is None


@pytest.mark.parametrize("config", RUNNERS)
def test_a_full_disk_is_one_line(config, capfd, caplog):
    full = OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28] No space left on device")
    with pytest.raises(DataError) as caught:
        run_job(Job([1], Fail(full)), config)
    assert str(caught.value) == "No space left on device: nothing was published; make room where the stage writes"
    if config.runner == "local":
        assert "Traceback" not in capfd.readouterr().err + caplog.text


def test_a_stage_tells_a_data_error_in_one_line_and_exits_with_1(capsys):
    def stage() -> None:
        raise DataError("params.yaml: no such file")

    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        with pytest.raises(SystemExit) as caught:
            run_stage(stage)
    finally:
        root.handlers[:], root.level = handlers, level
    assert caught.value.code == "error: params.yaml: no such file"


def test_the_shipped_settings_are_read():
    config = PipelinesConfig.load(Path(__file__).parents[2] / "params.yaml")
    assert config.runner == "local"


@pytest.mark.parametrize("key", ["num_workers", "num_shards", "rows_per_unit"])
def test_settings_out_of_range_are_named(tmp_path, key):
    settings = {"runner": "local", "options": [], "num_workers": 1, "num_shards": 1, "rows_per_unit": 1, key: 0}
    (tmp_path / "params.yaml").write_text(f"pipelines: {settings}")
    with pytest.raises(DataError, match=rf"params\.yaml: pipelines\.{key}: Input should be greater"):
        PipelinesConfig.load(tmp_path / "params.yaml")
