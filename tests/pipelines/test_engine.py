from __future__ import annotations

import errno
import logging
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to

from features.errors import DataError
from pipelines.config import PipelinesConfig
from pipelines.engine import data_error_text, run_pipeline, run_stage

TEXT = "data/x.csv: column 'a' is missing [sic]\nsecond line"


def config_of(runner: str = "local", num_workers: int = 1, options: tuple[str, ...] = ()) -> PipelinesConfig:
    return PipelinesConfig(runner=runner, options=options, num_workers=num_workers, num_shards=1, rows_per_unit=1)


class Fail(beam.DoFn):
    def __init__(self, error: Exception) -> None:
        self._error = error

    def process(self, element):
        raise self._error


def grouped(pipeline: beam.Pipeline, elements: list[int], check) -> None:
    keyed = pipeline | beam.Create(elements) | beam.Reshuffle() | beam.WithKeys(lambda element: element % 3)
    assert_that(keyed | beam.GroupByKey() | beam.MapTuple(lambda key, values: (key, sorted(values))), check)


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("elements", [[], list(range(20))])
def test_the_local_runner_conserves_elements(num_workers, elements):
    expected = [(key, elements[key::3]) for key in range(3)] if elements else []
    run_pipeline(lambda pipeline: grouped(pipeline, elements, equal_to(expected)), config_of(num_workers=num_workers))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_failing_check_fails_the_run(num_workers):
    with pytest.raises(Exception, match=r"BeamAssertException|Failed assert"):
        run_pipeline(lambda pipeline: grouped(pipeline, [1], equal_to([])), config_of(num_workers=num_workers))


@pytest.mark.parametrize("config", [config_of(), config_of(num_workers=2), config_of("BundleBasedDirectRunner")])
def test_a_data_error_surfaces_with_its_own_text(config, capfd, caplog):
    with pytest.raises(DataError) as caught:
        run_pipeline(lambda pipeline: pipeline | beam.Create([1]) | beam.ParDo(Fail(DataError(TEXT))), config)
    assert str(caught.value) == TEXT
    assert caught.value.__suppress_context__
    if config.runner == "local":
        assert "Traceback" not in capfd.readouterr().err + caplog.text


@pytest.mark.parametrize("num_workers", [1, 2])
def test_other_errors_stay_errors_with_their_traceback(num_workers):
    with pytest.raises(Exception, match="lost a cable") as caught:
        run_pipeline(
            lambda pipeline: pipeline | beam.Create([1]) | beam.ParDo(Fail(OSError("lost a cable"))),
            config_of(num_workers=num_workers),
        )
    assert not isinstance(caught.value, DataError)


def test_an_error_while_the_pipeline_is_built_surfaces():
    def build(pipeline: beam.Pipeline) -> None:
        raise DataError(TEXT)

    with pytest.raises(DataError, match="column 'a' is missing"):
        run_pipeline(build, config_of())


def test_an_unknown_runner_is_named():
    with pytest.raises(DataError, match=r"pipelines\.runner: unknown Beam runner 'Flonk'"):
        run_pipeline(lambda pipeline: None, config_of("Flonk"))


def test_options_reach_the_runner():
    seen = []
    run_pipeline(
        lambda pipeline: seen.append(pipeline.options.get_all_options()["job_name"]),
        config_of(options=("--job_name=nightly",)),
    )
    assert seen == ["nightly"]


def test_text_of_errors_that_carry_a_data_error():
    traceback = "Traceback ...\nfeatures.errors.DataError: first\n\nDuring handling ...\nfeatures.errors.DataError: "
    assert data_error_text(RuntimeError(f"{traceback}{TEXT} [while running 'Build-ptransform-7']\n")) == TEXT
    assert data_error_text(RuntimeError("anything else")) is None


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_full_disk_is_one_line(num_workers, capfd, caplog):
    full = OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28] No space left on device")
    with pytest.raises(DataError) as caught:
        run_pipeline(
            lambda pipeline: pipeline | beam.Create([1]) | beam.ParDo(Fail(full)), config_of(num_workers=num_workers)
        )
    assert str(caught.value) == "No space left on device: nothing was published; make room where the stage writes"
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
