import csv
import json
import logging
import random
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import model.training.trainer
from features.errors import DataError
from model.config import ModelConfig
from model.evaluation import score_candidates
from model.metrics import rank_auc
from model.progress import Progress
from model.reader import Reader
from model.stage import device_of, max_lengths
from model.train import TrainPaths, base_rates, build_trainer, main, train
from model.training.schedule import schedule_factor
from model.training.train_config import TrainConfig
from model.training.trainer import Trainer


@pytest.fixture
def paths(tmp_path, make_content, write_dataset, write_params, write_validation):
    """A workspace of which only training is left to do."""
    write_dataset(tmp_path / "data/streams", make_content(seed=1, num_users=40), 2)
    return TrainPaths(
        params=write_params(tmp_path / "params.yaml", train={"checkpoint_every_steps": 3}),
        streams=tmp_path / "data/streams",
        validation=write_validation(tmp_path / "data/validation.json"),
        out=tmp_path / "models/ranker",
        metrics=tmp_path / "metrics",
    )


def contents(paths):
    files = [path for folder in (paths.out, paths.metrics) for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(paths.out.parents[1]): path.read_bytes() for path in files}


def fail_at(monkeypatch, step):
    """Ends training as a killed process would, after `step` steps."""
    train_on = Trainer._train_on

    def stop(self, batch):
        if self.step == step:
            raise KeyboardInterrupt
        train_on(self, batch)

    monkeypatch.setattr(Trainer, "_train_on", stop)


def test_outputs_are_whole_and_the_same_each_time(paths):
    train(paths)
    first = contents(paths)
    assert not paths.checkpoints.exists()
    figures = json.loads((paths.metrics / "train.json").read_text())
    assert figures["steps"] == 2 * -(-figures["requests"] // 2 // 4)
    assert figures["training_flops_per_request"] == pytest.approx(3 * figures["inference_flops_per_request"], rel=1e-3)
    assert figures["tokens"] > figures["candidates"] > figures["requests"]
    assert figures["loss"] == pytest.approx(np.mean(list(figures["task_losses"].values())), rel=1e-6)
    with (paths.metrics / "loss.csv").open() as file:
        curve = list(csv.DictReader(file))
    assert [int(row["step"]) for row in curve] == [*range(2, figures["steps"], 2), figures["steps"]]
    assert float(curve[-1]["loss"]) == figures["loss"]
    train(paths)
    assert contents(paths) == first


def test_interrupted_run_continues_to_the_same_bytes(paths, monkeypatch, caplog):
    train(paths)
    expected = contents(paths)
    for path in (paths.out, paths.metrics):
        path.rename(path.with_name(path.name + "-before"))
    with monkeypatch.context() as patch:
        fail_at(patch, 8)
        with pytest.raises(KeyboardInterrupt):
            train(paths)
    assert not paths.out.exists()
    with caplog.at_level(logging.INFO):
        train(paths)
    assert "continuing the interrupted run at step 6" in caplog.text
    assert contents(paths) == expected
    assert not paths.checkpoints.exists()


@pytest.mark.parametrize("change", ["settings", "content", "damage"])
def test_interrupted_run_of_another_kind_starts_anew(paths, monkeypatch, caplog, write_params, change):
    with monkeypatch.context() as patch:
        fail_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            train(paths)
    [checkpoint] = paths.checkpoints.glob("step-*")
    reason = "belongs to a run with other data or settings"
    if change == "settings":
        write_params(paths.params, train={"dense_learning_rate": 0.005})
    elif change == "content":
        manifest = paths.streams / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"checksum"', '"other"'))
        validation = json.loads(paths.validation.read_text())
        paths.validation.write_text(json.dumps(validation | {"content_checksum": "other"}))
    else:
        (checkpoint / "dense.safetensors").write_bytes(b"")
        reason = r"dense.safetensors: checksum differs"
    with caplog.at_level(logging.INFO):
        train(paths)
    assert reason in caplog.text
    assert "continuing" not in caplog.text
    found = contents(paths)
    train(paths)
    assert contents(paths) == found


def test_without_a_passed_validation_nothing_is_trained(paths, write_validation):
    for changes, message in (
        ({"passed": False}, "did not pass its validation"),
        ({"content_checksum": "older"}, "is about another content"),
    ):
        write_validation(paths.validation, **changes)
        with pytest.raises(DataError, match=rf"validation\.json: .*{message}"):
            train(paths)
    paths.validation.unlink()
    with pytest.raises(DataError, match=r"validation\.json: no such file; run the validate stage"):
        train(paths)
    assert contents(paths) == {}


def test_dataset_without_training_requests_is_refused(paths, make_content, write_dataset, tmp_path):
    content = make_content(seed=1)
    content.requests = [request | {"split": 1} for request in content.requests]
    write_dataset(tmp_path / "late", content)
    with pytest.raises(DataError, match=r"late: no requests before the evaluation window"):
        train(TrainPaths(paths.params, tmp_path / "late", paths.validation, paths.out, paths.metrics))


def test_loss_that_is_not_finite_names_its_step_and_requests(paths, monkeypatch):
    honest, seen = model.training.trainer.ranking_loss, []

    def loss_of(predictions, candidates, config, spec, *, counts):
        seen.append(candidates)
        loss = honest(predictions, candidates, config, spec, counts=counts)
        return loss if len(seen) != 4 else replace(loss, total=loss.total * torch.nan)

    batches, train_on = [], Trainer._train_on
    monkeypatch.setattr(model.training.trainer, "ranking_loss", loss_of)
    monkeypatch.setattr(Trainer, "_train_on", lambda self, batch: (batches.append(batch), train_on(self, batch)))
    with pytest.raises(DataError) as error:
        train(paths)
    listed = paths.checkpoints.parent / "not-finite-step-4.txt"
    assert f"the loss of step 4 is not finite; its 4 requests are listed in {listed}" in str(error.value)
    assert [int(line) for line in listed.read_text().split()] == batches[3].request_id_B.tolist()
    assert not paths.out.exists()
    # what was saved before the loss broke may be continued, what came after may not
    assert [path.name for path in paths.checkpoints.glob("step-*")] == ["step-000000000003"]


@pytest.mark.parametrize("argument", ["--params", "--streams"])
def test_command_line_tells_in_one_line_what_is_wrong(paths, monkeypatch, argument):
    arguments = {
        f"--{name}": str(getattr(paths, name)) for name in ("params", "streams", "validation", "out", "metrics")
    }
    arguments[argument] += "-absent"
    monkeypatch.setattr(sys, "argv", ["train", *(part for pair in arguments.items() for part in pair)])
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert str(exit_info.value).startswith(f"error: {arguments[argument]}")
    assert "\n" not in str(exit_info.value)


def test_unknown_setting_is_refused(paths, write_params):
    write_params(paths.params, train={"learning_rate": 1.0})
    with pytest.raises(DataError, match=r"train\.learning_rate: unknown key"):
        train(paths)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_absent_gpu_is_named():
    with pytest.raises(DataError, match=r"train\.device: cuda is not available"):
        device_of("cuda", "train.device")


def test_schedule():
    def factors(schedule):
        return [schedule_factor(step, 10, warmup_steps=4, schedule=schedule) for step in range(10)]

    assert factors("constant") == [0.25, 0.5, 0.75] + [1.0] * 7
    assert factors("linear") == pytest.approx([0.25, 0.5, 0.75, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert factors("cosine")[4:] == sorted(factors("cosine")[4:], reverse=True)
    assert factors("cosine")[7] == pytest.approx(0.5)
    assert schedule_factor(0, 3, warmup_steps=0, schedule="linear") == 1
    assert schedule_factor(2, 3, warmup_steps=50, schedule="linear") == pytest.approx(3 / 50)


def test_base_rates_are_those_of_training_candidates(tmp_path, make_content, write_dataset):
    content = make_content(seed=4, num_users=30)
    dataset = write_dataset(tmp_path / "streams", content, 3)
    masks = [event["action_mask"] for r in content.requests if r["split"] == 0 for event in r["candidates"]]
    expected = [sum(mask >> bit & 1 for mask in masks) / len(masks) for bit in (2, 0)]
    assert base_rates(dataset, ("long_view", "is_click")).tolist() == pytest.approx(expected)


def test_progress_line(caplog):
    now = iter([0.0, 10.0, 15.0])
    progress = Progress(logging.getLogger("test"), "train: step", total=120, done=100, clock=lambda: next(now))
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            progress.advance(requests=4000, tokens=1_000_000)
        progress.log("loss 0.5")
        progress.advance(requests=10, tokens=5)
        progress.log()
    assert caplog.messages == [
        "train: step 105/120, loss 0.5, 2.0k requests/s, 500.0k tokens/s, 0:00:30 left",
        "train: step 106/120, 2 requests/s, 1 tokens/s, 0:00:35 left",
    ]


def planted(content, num_users, seed):
    """Users without ids: those who liked what they saw click everything, the others nothing."""
    rng = random.Random(seed)
    for number in range(num_users):
        likes = rng.randrange(2)

        def event(time, action_mask):
            codes = {name: 1 + rng.randrange(3) for name in ("item", "author", "surface", "hour", "gap", "intensity")}
            return codes | {"action_mask": action_mask, "watch_ratio": 0.5, "item_id": 1, "timestamp_ms": time}

        request_ms = 10_000 if number % 3 else 1_500_000
        user = {"user_id": number, "user": 1, "degree": 1, "interaction": []}
        content.users.append(user | {"consumption": [event(1000 * age, 2 * likes) for age in (9, 8, 7)]})
        content.requests.append(
            {
                "request_id": number,
                "user_row": number,
                "request_ms": request_ms,
                "consumption_start": 0,
                "interaction_start": 0,
                "split": int(number % 3 == 0),
                "candidates": [event(request_ms, likes) for _ in range(2)],
            }
        )
    return content


@pytest.mark.parametrize("with_history", [True, False])
def test_learns_what_only_the_history_tells(tmp_path, make_content, write_dataset, write_params, with_history):
    dataset = write_dataset(tmp_path / "streams", planted(make_content(0, num_users=0), 600, seed=5), 2)
    settings = {"batch_size": 20, "num_epochs": 4, "dense_learning_rate": 0.003, "table_learning_rate": 0.1}
    params = write_params(tmp_path / "params.yaml", train=settings, model={"dropout": 0.0})
    model_config = ModelConfig.load(params)
    lengths = max_lengths(model_config, dataset.manifest.spec) if with_history else (0, 0)
    trainer, _ = build_trainer(dataset, TrainConfig.load(params), model_config)
    trainer._reader = Reader(dataset, split=0, batch_size=20, max_lengths=lengths, shuffle_seed=1)
    trainer.fit()
    evaluation = Reader(dataset, split=1, batch_size=50, max_lengths=lengths)
    scores = score_candidates(trainer.ranker, evaluation, torch.device("cpu"))
    auc = rank_auc(scores.logits_CK[:, 0].numpy(), scores.labels_CK[:, 0].numpy())
    assert auc > 0.95 if with_history else auc < 0.6
