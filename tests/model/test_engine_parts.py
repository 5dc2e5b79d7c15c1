"""Early stop, tracking, the window of steps, reading ahead."""

import gc
import json
import subprocess
import threading
import time

import numpy as np
import pytest
import torch

from features.dataset import open_dataset
from features.errors import DataError
from model.config import ModelConfig
from model.loss import LossCounts
from model.read_ahead import one_ahead, read_ahead
from model.train import TrainPaths, build_trainer, train
from model.training.collection import only_new_objects
from model.training.early_stop import hold_out, stops
from model.training.sampler import index_requests, request_times
from model.training.step_window import StepCounts, StepWindow
from model.training.tracking import open_trackers
from model.training.train_config import TrainConfig


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], False),
        ([0.9], False),
        ([0.9, 0.8, 0.7], False),
        ([0.9, 0.8, 0.8, 0.9], True),
        ([0.9, 0.8, 0.81, 0.79, 0.8], False),
        ([0.9, 0.8995, 0.8991], True),
        ([float("nan"), float("nan")], True),
    ],
)
def test_stops_after_two_checks_without_an_improvement(history, expected):
    assert stops(history, patience=2, min_improvement=0.001) is expected


def test_the_newest_training_requests_are_held_out(tmp_path, make_content, write_dataset):
    dataset = write_dataset(tmp_path / "streams", make_content(seed=1, num_users=40), 2)
    index = index_requests(dataset, 0)
    parts = hold_out(dataset, index, 0.2)
    assert parts.newest.num_requests == round(0.2 * index.num_requests)
    assert parts.train.num_requests + parts.newest.num_requests == index.num_requests
    assert request_times(dataset, parts.train).max() <= request_times(dataset, parts.newest).min()
    with pytest.raises(DataError, match="leaves nothing on one side"):
        hold_out(dataset, index, 0.001)


@pytest.fixture
def paths(tmp_path, make_content, write_dataset, write_validation):
    write_dataset(tmp_path / "data/streams", make_content(seed=1, num_users=40), 2)
    return TrainPaths(
        params=tmp_path / "params.yaml",
        streams=tmp_path / "data/streams",
        validation=write_validation(tmp_path / "data/validation.json"),
        out=tmp_path / "models/ranker",
        metrics=tmp_path / "metrics",
    )


EARLY = {"holdout_share": 0.3, "every_steps": 2, "patience": 1, "min_improvement": 1.0}


def test_training_ends_early_and_resumes_to_the_same_end(paths, write_params):
    write_params(paths.params, train={"early_stop": EARLY, "tracking": []})
    train(paths)
    # nothing improves by 1.0 after the first check
    assert json.loads((paths.metrics / "train.json").read_text())["steps"] == 4
    dataset, config = open_dataset(paths.streams), TrainConfig.load(paths.params)
    model_config = ModelConfig.load(paths.params)
    first = build_trainer(dataset, config, model_config)[0]
    first.fit(until_step=3)
    second = build_trainer(dataset, config, model_config)[0]
    second.restore(first.capture())
    second.fit()
    assert second.step == 4
    assert second.is_done


def test_dvclive_gets_the_figures(paths, write_params, tmp_path, monkeypatch):
    """Also in a repository without a commit, where its experiments cannot be."""
    subprocess.check_call(["git", "init", "--quiet"], cwd=tmp_path)
    monkeypatch.chdir(tmp_path)
    early = EARLY | {"patience": 100}
    write_params(paths.params, train={"early_stop": early, "tracking": ["dvclive"], "log_every_steps": 3})
    train(paths)
    live = paths.metrics.parent / "dvclive"
    figures = json.loads((live / "metrics.json").read_text())
    assert {"loss", "ne", "tokens_per_second", "load_imbalance", "data_wait_share", "heldout_ne", "step"} == set(
        figures
    )
    assert figures["load_imbalance"] == 1
    assert 0 < figures["data_wait_share"] < 1
    rows = (live / "plots/metrics/loss.tsv").read_text().splitlines()
    assert rows[0].split("\t") == ["step", "loss"]
    assert [int(row.split("\t")[0]) for row in rows[1:3]] == [3, 6]
    assert not (tmp_path / ".dvc").exists()


def test_tensorboard_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(DataError, match=r"train\.tracking: 'tensorboard' needs the package tensorboard"):
        open_trackers(["tensorboard"], tmp_path, resume=False)


def test_window_measures_ne_over_its_steps():
    window = StepWindow(2, torch.device("cpu"))
    # 4 + 12 candidates; the second task has no positives, so no NE
    for count, entropy, positives in ((4, 0.5, 1.0), (12, 0.7, 3.0)):
        counts = StepCounts(1, 10, LossCounts(count, 0), load_imbalance=1.5)
        window.add(counts, task_K=torch.tensor([entropy, 0.1]), positives_K=torch.tensor([positives, 0.0]))
    figures = window.figures()
    base = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert figures["ne"] == pytest.approx((4 * 0.5 + 12 * 0.7) / 16 / base)
    assert figures["load_imbalance"] == 1.5
    assert window.figures().keys() == {"tokens_per_second", "load_imbalance", "data_wait_share"}


def test_reading_ahead_keeps_order_and_stays_within_its_depth():
    drawn = []

    def items():
        for number in range(20):
            drawn.append(number)
            yield number

    for found, value in enumerate(read_ahead(items(), lambda number: -number, depth=2)):
        assert value == -found
        # two in the queue, one in the thread's hand
        assert len(drawn) <= found + 4
    assert drawn == list(range(20))


def test_reading_ahead_passes_errors_on():
    def items():
        yield 1
        raise DataError("broken shard")

    iterator = read_ahead(items(), lambda number: number, depth=2)
    assert next(iterator) == 1
    with pytest.raises(DataError, match="broken shard"):
        next(iterator)


def test_reading_ahead_ends_its_thread_when_given_up():
    iterator = read_ahead(iter(range(100)), lambda number: number, depth=1)
    next(iterator)
    iterator.close()
    deadline = time.monotonic() + 10
    while any(thread.name == "read-ahead" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("count", range(4))
def test_an_item_begins_before_the_next_is_taken_and_that_before_it_is_handed_out(count):
    events = []

    def event(name, number):
        events.append((name, number))
        return number

    for number in one_ahead((event("taken", n) for n in range(count)), lambda n: event("begun", n)):
        event("handed out", number)
    order = {event: place for place, event in enumerate(events)}
    assert len(order) == 3 * count
    for n in range(count):
        assert order["taken", n] < order["begun", n] < order["handed out", n]
        if n + 1 < count:
            assert order["begun", n] < order["taken", n + 1] < order["handed out", n]


def test_what_exists_stays_out_of_collections_for_a_while():
    before = gc.get_freeze_count()
    with only_new_objects():
        assert gc.get_freeze_count() > before
    assert gc.get_freeze_count() == before
