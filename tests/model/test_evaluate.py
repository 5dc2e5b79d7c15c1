import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from features.dataset import open_dataset
from features.errors import DataError
from model.config import ModelConfig
from model.evaluate import EvaluatePaths, evaluate
from model.evaluation import Scores, measure, score_candidates
from model.floor import floor_logits, read_impressions
from model.ranker import Ranker
from model.reader import Reader
from model.train import TrainPaths, train
from model.training.checkpoint import load_checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def make_workspace(tmp_path, write_dataset, write_params, write_validation):
    """A function that trains on a content and returns what the evaluate stage needs."""

    def make(content, num_shards=2):
        write_dataset(tmp_path / "streams", content, num_shards)
        params = write_params(tmp_path / "params.yaml")
        validation = write_validation(tmp_path / "validation.json")
        train(TrainPaths(params, tmp_path / "streams", validation, tmp_path / "ranker", tmp_path / "metrics"))
        return EvaluatePaths(params, tmp_path / "streams", tmp_path / "ranker", tmp_path / "metrics")

    return make


def load_ranker(paths):
    config = ModelConfig.load(paths.params)
    checkpoint = load_checkpoint(paths.model)
    ranker = Ranker(config, checkpoint.header.spec)
    ranker.load_state(dict(checkpoint.tensors["dense"]), dict(checkpoint.tensors["tables"]))
    return ranker


def reader_of(paths, batch_size, split=1):
    return Reader(open_dataset(paths.streams), split=split, batch_size=batch_size, max_lengths=(16, 8))


def test_figures_equal_those_of_candidates_scored_one_request_at_a_time(make_workspace, make_content):
    content = make_content(seed=1, num_users=60)
    paths = make_workspace(content)
    evaluate(paths)
    found = json.loads((paths.metrics / "evaluate.json").read_text())
    requests = sorted((r for r in content.requests if r["split"] == 1), key=lambda r: r["request_id"])
    rows = [(r["user_row"], event) for r in requests for event in r["candidates"]]
    assert (found["num_requests"], found["num_candidates"]) == (len(requests), len(rows))

    ranker = load_ranker(paths)
    alone = score_candidates(ranker, reader_of(paths, 1), CPU)
    together = score_candidates(ranker, reader_of(paths, 1000), CPU)
    # a score does not depend on batch-mates, to fp32 rounding
    torch.testing.assert_close(alone.logits_CK, together.logits_CK, rtol=1e-5, atol=1e-5)

    floor = floor_logits(*(read_impressions(open_dataset(paths.streams), s) for s in (0, 1)), [0, 1, 2], smoothing=20.0)
    for column, (task, figures) in enumerate(found["tasks"].items()):
        labels = np.array([event["action_mask"] >> column & 1 for _, event in rows])
        base = labels.mean()
        assert task == ("is_click", "is_like", "long_view")[column]
        assert (figures["positives"], figures["num_candidates"]) == (labels.sum(), len(rows))
        assert figures["base_rate"] == pytest.approx(base)
        for logits, prefix in ((alone.logits_CK[:, column].double().numpy(), ""), (floor[column], "floor_")):
            ne = log_loss(labels, 1 / (1 + np.exp(-logits))) / log_loss(labels, np.full(len(labels), base))
            assert figures[f"{prefix}ne"] == pytest.approx(ne, rel=1e-5)
            assert figures[f"{prefix}auc"] == pytest.approx(roc_auc_score(labels, logits), abs=1e-4)
        users = np.array([user for user, _ in rows])
        both = [user for user in set(users) if 0 < labels[users == user].mean() < 1]
        assert (figures["gauc_users"], figures["gauc_users_skipped"]) == (len(both), len(set(users)) - len(both))
    tasks = found["tasks"]
    for prefix in ("", "floor_"):
        click, view, like = (tasks[task][f"{prefix}ne"] for task in ("is_click", "long_view", "is_like"))
        assert found[f"{prefix}c_ne"] == pytest.approx((click + view) / 2)
        assert found[f"{prefix}e_ne"] == pytest.approx(like)


def test_csv_files_tell_the_same(make_workspace, make_content):
    paths = make_workspace(make_content(seed=1, num_users=60))
    evaluate(paths)
    found = json.loads((paths.metrics / "evaluate.json").read_text())
    with (paths.metrics / "tasks.csv").open() as file:
        for row in csv.DictReader(file):
            figures = found["tasks"][row.pop("task")]
            assert {name: float(value) for name, value in row.items()} == {name: figures[name] for name in row}
    with (paths.metrics / "calibration.csv").open() as file:
        bins = list(csv.DictReader(file))
    assert [(row["task"], row["bin"]) for row in bins] == [(task, str(n)) for task in found["tasks"] for n in range(4)]
    for task, figures in found["tasks"].items():
        mine = [row for row in bins if row["task"] == task]
        assert sum(int(row["count"]) for row in mine) == figures["num_candidates"]
        positives = sum(int(row["count"]) * float(row["mean_label"]) for row in mine)
        assert positives == pytest.approx(figures["positives"])


def test_figures_do_not_depend_on_sharding_or_repetition(make_workspace, make_content, write_dataset, tmp_path):
    content = make_content(seed=1, num_users=40)
    paths = make_workspace(content)
    written = []
    for num_shards in (2, 2, 5):
        streams = tmp_path / f"again-{len(written)}"
        write_dataset(streams, content, num_shards)
        metrics = tmp_path / f"metrics-{len(written)}"
        evaluate(replace(paths, streams=streams, metrics=metrics))
        written.append({path.name: path.read_bytes() for path in metrics.iterdir() if path.is_file()})
    assert set(written[0]) == {"evaluate.json", "tasks.csv", "calibration.csv"}
    assert written[0] == written[1] == written[2]


@pytest.mark.parametrize("value", [0, 1])
def test_task_with_one_class_gets_null(make_workspace, make_content, value):
    content = make_content(seed=1, num_users=40)
    for request in content.requests:
        for event in request["candidates"]:
            event["action_mask"] = (event["action_mask"] & ~2) | (value << 1)
    paths = make_workspace(content)
    evaluate(paths)
    found = json.loads((paths.metrics / "evaluate.json").read_text())
    like = found["tasks"]["is_like"]
    assert [like[name] for name in ("ne", "auc", "gauc", "floor_ne", "floor_auc")] == [None] * 5
    assert (like["base_rate"], like["gauc_users"]) == (value, 0)
    assert found["e_ne"] is found["floor_e_ne"] is None
    assert found["tasks"]["is_click"]["ne"] > 0
    assert ",,,," in (paths.metrics / "tasks.csv").read_text()


def test_task_that_only_the_evaluation_window_has_keeps_its_own_figures():
    generator = torch.Generator().manual_seed(0)
    scores = Scores(
        logits_CK=torch.randn(50, 1, generator=generator),
        labels_CK=torch.rand(50, 1, generator=generator) < 0.3,
        user_id_C=torch.arange(50) // 5,
        num_requests=10,
    )
    found = measure(scores, [None], ["is_like"], groups={"engagement": ("is_like",)}, cut_ms=5)
    assert found.tasks["is_like"].ne == found.e_ne
    assert found.tasks["is_like"].floor_ne is found.floor_e_ne is found.c_ne is None


def test_dropout_is_off_and_scoring_repeats(make_workspace, make_content):
    paths = make_workspace(make_content(seed=1, num_users=20))
    ranker = load_ranker(paths)
    ranker.train()
    first, second = (score_candidates(ranker, reader_of(paths, 8), CPU) for _ in range(2))
    assert torch.equal(first.logits_CK, second.logits_CK)


def test_what_does_not_fit_is_refused(make_workspace, make_content, write_params, write_dataset, tmp_path):
    content = make_content(seed=1, num_users=20)
    paths = make_workspace(content)
    groups = {"consumption": ["is_clik"], "engagement": ["is_like"]}
    typo = write_params(tmp_path / "typo.yaml", evaluate={"groups": groups})
    with pytest.raises(DataError, match=r"evaluate\.groups\.consumption: no action 'is_clik'"):
        evaluate(replace(paths, params=typo))
    wider = write_params(tmp_path / "wider.yaml", model={"dim": 32})
    with pytest.raises(DataError, match=r"ranker: trained with model\.dim = 16, now it is 32; train again"):
        evaluate(replace(paths, params=wider))
    with pytest.raises(DataError, match=r"absent/checkpoint\.json: no such file"):
        evaluate(replace(paths, model=tmp_path / "absent"))
    content.requests = [request | {"split": 0} for request in content.requests]
    write_dataset(tmp_path / "early", content)
    with pytest.raises(DataError, match=r"early: no requests in the evaluation window"):
        evaluate(replace(paths, streams=tmp_path / "early"))
    manifest = paths.streams / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"vocabulary_hash": "vocabulary"', '"vocabulary_hash": "newer"'))
    with pytest.raises(DataError, match="trained with vocabulary vocabulary, the dataset has newer"):
        evaluate(paths)
    assert not (paths.metrics / "evaluate.json").exists()
