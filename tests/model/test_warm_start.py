import json
import logging

import pytest
import torch

from features.errors import DataError
from features.files import write_json
from features.spec import CategoricalField
from model.config import ModelConfig
from model.train import TrainPaths, build_trainer, run_hash, train, warm_start
from model.training.checkpoint import load_checkpoint
from model.training.train_config import TrainConfig

GROWN = 50


@pytest.fixture
def champion(tmp_path, make_content, write_dataset, write_params, write_validation):
    """A trained model and the workspace that it came from."""
    write_dataset(tmp_path / "streams", make_content(seed=1, num_users=20), 1)
    paths = TrainPaths(
        params=write_params(tmp_path / "params.yaml", train={"num_epochs": 1, "tracking": []}),
        streams=tmp_path / "streams",
        validation=write_validation(tmp_path / "validation.json"),
        out=tmp_path / "champion",
        metrics=tmp_path / "metrics",
    )
    train(paths)
    return paths


def grow(spec, **sizes):
    """The spec with other sizes."""

    def fields(group):
        return tuple(CategoricalField(name=f.name, size=sizes.get(f.name, f.size)) for f in group)

    return spec.model_copy(update={"item_fields": fields(spec.item_fields), "user_fields": fields(spec.user_fields)})


@pytest.fixture
def next_night(champion, tmp_path, make_content, write_dataset, write_params):
    """Writes the next night's dataset and settings; gives a trainer on them that is not started yet."""

    def make(*, base_hash="vocabulary", vocabulary_hash="longer", change=lambda spec: grow(spec, item=GROWN), **model):
        content = make_content(seed=2, num_users=20)
        content.spec = change(content.spec)
        write_dataset(tmp_path / "next", content, 1)
        manifest = tmp_path / "next" / "manifest.json"
        document = json.loads(manifest.read_text()) | {"vocabulary_hash": vocabulary_hash}
        write_json(manifest, document)
        base = None
        if base_hash:
            base = tmp_path / "base"
            write_json(base / "vocabulary.json", {"hash": base_hash})
        write_params(
            tmp_path / "next.yaml",
            train={"warm_start": str(champion.out), "tracking": []},
            features={"vocabulary": {"min_count": 2, "base": None if base is None else str(base)}},
            model=model,
        )
        from features.dataset import open_dataset

        dataset = open_dataset(tmp_path / "next")
        config = TrainConfig.load(tmp_path / "next.yaml")
        trainer, _ = build_trainer(dataset, config, ModelConfig.load(tmp_path / "next.yaml"))
        return trainer, dataset, champion.out, tmp_path / "next.yaml"

    return make


def start(trainer, dataset, source, params):
    warm_start(trainer, dataset, source, params=params)


def test_old_rows_keep_their_weights_and_sums_and_new_ids_get_fresh_rows(next_night):
    trainer, *rest = next_night()
    fresh = {name: table.clone() for name, table in trainer.ranker.table_state().items()}
    start(trainer, *rest)
    saved = load_checkpoint(rest[1])
    captured = trainer.capture()
    assert captured.header.step == 0
    for name, value in saved.tensors["dense"].items():
        assert torch.equal(captured.tensors["dense"][name], value)
    for name, value in saved.tensors["optimizer"].items():
        assert torch.equal(captured.tensors["optimizer"][name], value)
    for name, value in saved.tensors["tables"].items():
        assert torch.equal(captured.tensors["tables"][name][: len(value)], value)
        assert torch.equal(captured.tensors["adagrad"][name][: len(value)], saved.tensors["adagrad"][name])
    assert len(captured.tensors["tables"]["item.item"]) == GROWN
    assert torch.equal(captured.tensors["tables"]["item.item"][40:], fresh["item.item"][40:])
    assert not captured.tensors["adagrad"]["item.item"][40:].any()
    trainer.fit(until_step=2)


def test_same_vocabulary_needs_no_base(next_night):
    start(*next_night(base_hash=None, vocabulary_hash="vocabulary", change=lambda spec: spec))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_hash": None}, r"features\.vocabulary\.base is null"),
        ({"base_hash": "other"}, r"features\.vocabulary\.base: .* is other, but .* was trained with vocabulary"),
        ({"change": lambda spec: grow(spec, item=30)}, r"'item' has shrunk from 40 rows to 30"),
        ({"change": lambda spec: grow(spec, user=29)}, r"'user' has shrunk from 30 rows to 29"),
        (
            {"change": lambda spec: spec.model_copy(update={"intensity_size": 41})},
            r"the schema has changed: intensity_size was 40, now it is 41",
        ),
        (
            {"change": lambda spec: spec.model_copy(update={"actions": (*spec.actions, "is_hate")})},
            r"the schema has changed: actions was",
        ),
        (
            {"change": lambda spec: spec.model_copy(update={"token_contexts": spec.token_contexts[:2]})},
            r"the schema has changed: token_contexts was surface, hour, gap, now it is surface, hour",
        ),
        ({"num_heads": 2}, r"it has model\.num_heads = 1, now it is 2"),
    ],
)
def test_what_cannot_be_gone_on_from_is_refused_by_name(next_night, settings, message):
    with pytest.raises(DataError, match=message):
        start(*next_night(**settings))


def test_stage_starts_warm_and_another_champion_is_another_run(champion, tmp_path, write_params, caplog):
    paths = TrainPaths(
        params=write_params(
            tmp_path / "params.yaml", train={"num_epochs": 1, "tracking": [], "warm_start": str(champion.out)}
        ),
        streams=champion.streams,
        validation=champion.validation,
        out=tmp_path / "next-champion",
        metrics=tmp_path / "metrics",
    )
    with caplog.at_level(logging.INFO):
        train(paths)
    assert f"going on from {champion.out}, which took" in caplog.text
    before, after = (load_checkpoint(path).tensors["optimizer"] for path in (champion.out, paths.out))
    assert after["step/heads.bias"] == 2 * before["step/heads.bias"]
    from features.dataset import open_dataset

    dataset, model_config = open_dataset(paths.streams), ModelConfig.load(paths.params)
    hashes = set()
    for source in (champion.out, paths.out):
        config = TrainConfig.load(paths.params).model_copy(update={"warm_start": source})
        hashes.add(run_hash(dataset, config, model_config))
    assert len(hashes) == 2
