import dataclasses
import json

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from features.dataset import open_dataset
from features.errors import DataError
from model.config import ModelConfig
from model.reader import Reader
from model.study.cells import Bench, CellStore
from model.study.config import StudyConfig, changed
from model.study.fits import Spread, gain_line, power_law, spread
from model.study.page import write_page
from model.study.plan import EQUAL_FLOPS, GRID, plan
from model.study.run import StudyPaths, Summary, run_study, scaling_of, train_missing
from model.study.world import (
    MAX_SESSIONS,
    SESSION_EVENTS,
    WorldSettings,
    make_catalogue,
    user_events,
    write_world,
)
from model.training.sampler import EVALUATION, TRAIN
from model.training.train_config import EvaluateConfig, TrainConfig

STUDY = {
    "seeds": [1, 2],
    "grid": {"stream": "consumption", "kinds": ["hstu", "stca"], "depths": [1, 2], "lengths": [8]},
    "equal_flops": None,
    "ablations": {"as configured": {}, "one stream": {"streams.interaction": None}},
}


@pytest.fixture
def paths(tmp_path, make_content, write_dataset, write_params):
    write_dataset(tmp_path / "streams", make_content(3, num_users=20))
    params = write_params(tmp_path / "params.yaml", train={"num_epochs": 1}, study=STUDY)
    return StudyPaths(params, tmp_path / "streams", tmp_path / "cells", tmp_path / "bench" / "study.json")


@pytest.fixture
def config(write_params, tmp_path):
    return ModelConfig.load(write_params(tmp_path / "model.yaml"))


def study_of(**changes):
    return StudyConfig.model_validate(STUDY | changes)


def test_a_study_trains_each_cell_once_and_writes_every_figure(paths, monkeypatch):
    run_study(paths)
    study = json.loads(paths.out.read_text())
    assert study["missing"] == 0
    assert [(point["figure"], point["label"]) for point in study["summaries"]] == [
        ("grid", "hstu 1 x 8"),
        ("grid", "hstu 2 x 8"),
        ("grid", "stca 1 x 8"),
        ("grid", "stca 2 x 8"),
        ("ablations", "as configured"),
        ("ablations", "one stream"),
    ]
    assert all(point["c_ne"]["count"] == 2 and point["training_gflops"] > 0 for point in study["summaries"])
    assert set(study["scaling"]) == {"hstu", "stca"}
    assert study["scaling"]["hstu"]["training_line"] is not None
    monkeypatch.setattr(Bench, "run", lambda *_: pytest.fail("a finished cell is trained again"))
    before = paths.out.read_bytes()
    run_study(paths)
    assert paths.out.read_bytes() == before
    page = paths.out.with_suffix(".html")
    write_page(paths.out, page)
    text = page.read_text()
    assert text.count("<h2>") == 4
    assert "one stream" in text


def test_parts_cover_all_cells_and_an_unfinished_study_says_what_it_lacks(paths):
    run_study(paths, part=(0, 3))
    assert json.loads(paths.out.read_text())["missing"] == 12 - len(list(paths.cells.iterdir())) > 0
    for number in (1, 2):
        run_study(paths, part=(number, 3))
    assert json.loads(paths.out.read_text())["missing"] == 0
    assert len(list(paths.cells.iterdir())) == 12


def test_no_cell_is_started_that_would_end_too_late(paths, config):
    bench = Bench(open_dataset(paths.streams), TrainConfig.load(paths.params), EvaluateConfig.load(paths.params))
    points = plan(study_of(), config, lambda model: 1.0)
    times = iter(range(0, 10_000, 50))
    store = CellStore(paths.cells)
    train_missing(bench, points, [1], store=store, minutes=3, clock=lambda: float(next(times)))
    assert 0 < len(list(paths.cells.iterdir())) < len(points)


def test_a_cell_is_another_when_anything_changes_that_decides_it(paths, config):
    dataset, train = open_dataset(paths.streams), TrainConfig.load(paths.params)
    evaluate = EvaluateConfig.load(paths.params)
    bench = Bench(dataset, train, evaluate)
    others = [
        bench.cell_of(config, 2),
        bench.cell_of(changed(config, {"dropout": 0.3}, key=""), 1),
        Bench(dataset, train.model_copy(update={"num_epochs": 9}), evaluate).cell_of(config, 1),
        Bench(dataset, train, evaluate.model_copy(update={"groups": {}})).cell_of(config, 1),
    ]
    assert len({bench.cell_of(config, 1), *others}) == 5
    same = Bench(dataset, train.model_copy(update={"log_every_steps": 9, "seed": 4}), evaluate)
    assert same.cell_of(config, 1) == bench.cell_of(config, 1)


def test_equal_flops_picks_the_nearest_depth_of_each_kind(config):
    calls = {"ultra_hstu": 10.0, "transformer": 4.0, "din": 0.1}

    def flops(model):
        return calls[model.kind] * model.streams["consumption"].num_layers

    study = study_of(grid=None, ablations={}, equal_flops={"kinds": ["transformer", "din"], "max_depth": 6})
    deep = changed(config, {"streams.consumption.num_layers": 2}, key="")
    points = {point.label: point for point in plan(study, deep, flops)}
    depth = {name: point.config.streams["consumption"].num_layers for name, point in points.items()}
    assert depth == {"ultra_hstu": 2, "transformer": 5, "din": 6}
    assert points["transformer"].config.streams["interaction"].num_layers == 2
    assert {point.figure for point in points.values()} == {EQUAL_FLOPS}


def test_the_grid_drops_pyramid_steps_that_have_no_room(config):
    stream = {"streams.consumption.num_layers": 4, "streams.consumption.pyramid": [[1, 8], [3, 4]]}
    grid = {"stream": "consumption", "kinds": ["ultra_hstu"], "depths": [2, 4], "lengths": [6, 16]}
    points = plan(study_of(grid=grid, ablations={}), changed(config, stream, key=""), lambda model: 1.0)
    pyramids = {point.label: point.config.streams["consumption"].pyramid for point in points}
    assert pyramids == {
        "ultra_hstu 2 x 6": (),
        "ultra_hstu 4 x 6": ((3, 4),),
        "ultra_hstu 2 x 16": ((1, 8),),
        "ultra_hstu 4 x 16": ((1, 8), (3, 4)),
    }
    assert {point.figure for point in points} == {GRID}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ablations": {"x": {"streams.consumption.local_windw": 0}}}, "study.ablations.x: model has no 'streams.con"),
        ({"ablations": {"x": {"streams.search": None}}}, "study.ablations.x: model has no 'streams.search'"),
        ({"ablations": {"x": {"kind": "sasrek"}}}, r"study.ablations.x: model\.kind"),
        ({"grid": STUDY["grid"] | {"stream": "search"}}, "study.grid.stream: model.streams has no 'search'"),
        ({"grid": None, "ablations": {}}, "nothing to train"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_trained(config, changes, message):
    with pytest.raises(DataError, match=message):
        plan(study_of(**changes), config, lambda model: 1.0)


def test_a_misspelt_setting_is_refused(paths):
    document = yaml.safe_load(paths.params.read_text())
    document["study"]["grid"]["depth"] = [1]
    paths.params.write_text(yaml.safe_dump(document))
    with pytest.raises(DataError, match=r"study\.grid\.depth: unknown key"):
        run_study(paths)


def test_a_broken_cell_is_named(paths, tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "x.json").write_text("{}")
    with pytest.raises(DataError, match=r"x\.json: not a finished cell"):
        CellStore(tmp_path / "cells").read("x")


FLOPS = st.lists(st.floats(0.01, 1e4), min_size=2, max_size=6, unique=True)


@given(flops=FLOPS, factor=st.floats(0.1, 2), exponent=st.floats(-0.5, 0.5))
def test_a_power_law_is_found_again(flops, factor, exponent):
    if max(flops) < 1.1 * min(flops):
        return
    fit = power_law(flops, [factor * value**-exponent for value in flops])
    assert fit.exponent == pytest.approx(exponent, abs=1e-6)
    assert fit.factor == pytest.approx(factor, rel=1e-5)


def test_a_line_is_found_again_and_one_amount_of_operations_is_no_line():
    losses = [0.9 * (1 - (0.01 * (3 * c + 1))) for c in (1.0, 2.0, 5.0)]
    line = gain_line([1.0, 2.0, 5.0], losses, 0.9)
    assert (line.slope, line.intercept) == (pytest.approx(3), pytest.approx(1))
    assert gain_line([1.0, 1.0], [0.8, 0.9], 0.9) is None
    assert power_law([1.0, 1.0], [0.8, 0.9]) is None


def test_spread_is_over_all_seeds_or_none():
    assert spread([1.0, 2.0, 3.0]) == Spread(2.0, 1.0, 3)
    assert spread([1.0]) == Spread(1.0, 0.0, 1)
    assert spread([1.0, None]) is None
    assert spread([]) is None


def test_scaling_efficiency_is_the_ratio_of_slopes():
    def point(kind, gflops, loss):
        figure = Spread(loss, 0.0, 1)
        return Summary(GRID, f"{kind} {gflops}", kind, {}, {}, gflops, gflops / 3, 1.0, figure, figure, {})

    points = [point("hstu", c, 0.9 * (1 - 0.01 * c)) for c in (1.0, 2.0, 3.0)]
    points += [point("ultra_hstu", c, 0.9 * (1 - 0.04 * c)) for c in (1.0, 2.0, 3.0)]
    points += [point("din", c, 0.9 + 0.01 * c) for c in (1.0, 2.0)]
    scaling = scaling_of(points)
    assert scaling["ultra_hstu"].training_ratio == pytest.approx(4)
    assert scaling["ultra_hstu"].inference_ratio == pytest.approx(4)
    assert scaling["hstu"].training_ratio == pytest.approx(1)
    assert scaling["din"].training_ratio is None
    assert scaling_of([dataclasses.replace(points[0], figure=EQUAL_FLOPS)]) == {}


def test_the_long_world_is_a_dataset_in_which_histories_are_strictly_older(tmp_path):
    settings = WorldSettings(num_users=3, num_events=4 * SESSION_EVENTS, num_topics=2, num_subtopics=4, num_items=40)
    for name in ("a", "b"):
        write_world(tmp_path / name, settings)
    a, b = open_dataset(tmp_path / "a"), open_dataset(tmp_path / "b")
    assert a.manifest == b.manifest
    total = 0
    for split in (TRAIN, EVALUATION):
        reader = Reader(a, split=split, batch_size=4, max_lengths=(1000, 1000))
        for batch in reader:
            counts = batch.candidates.offsets_B1.diff()
            assert (counts == SESSION_EVENTS).all()
            total += int(counts.sum())
            for stream in batch.streams:
                newest = batch.request_ms_B.repeat_interleave(stream.offsets_B1.diff())
                assert (stream.timestamp_ms_T < newest).all()
            assert (batch.streams[0].offsets_B1.diff() % SESSION_EVENTS == 0).all()
    assert total == 3 * settings.num_events
    masks = np.concatenate([shard.users.list("consumption.action_mask").values for shard in a.shards])
    assert 0.2 < np.mean(masks & 1) < 0.6


def test_a_world_too_long_for_its_days_is_refused():
    with pytest.raises(DataError, match="num_events is 33"):
        WorldSettings(num_events=33)
    with pytest.raises(DataError, match="multiple of 32"):
        WorldSettings(num_events=SESSION_EVENTS * (MAX_SESSIONS + 1))


def test_a_user_can_have_a_session_in_every_slot():
    settings = WorldSettings(num_events=SESSION_EVENTS * MAX_SESSIONS, num_items=40)
    assert np.all(np.diff(user_events(0, make_catalogue(settings), settings)["timestamp_ms"]) > 0)
