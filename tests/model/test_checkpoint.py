import json

import pytest
import torch

from features.errors import DataError
from model.config import ModelConfig
from model.train import build_trainer
from model.training.checkpoint import Checkpoint, check_compatible, load_checkpoint, load_header, save_checkpoint
from model.training.train_config import TrainConfig


@pytest.fixture
def build(tmp_path, make_content, write_dataset, write_params):
    """A function that builds the trainer of a small dataset anew."""
    dataset = write_dataset(tmp_path / "streams", make_content(seed=1, num_users=40), 2)
    params = write_params(tmp_path / "params.yaml", model={"dropout": 0.2})

    def build(**changes):
        config = TrainConfig.load(params).model_copy(update=changes)
        return build_trainer(dataset, config, ModelConfig.load(params))[0]

    return build


def assert_same_tensors(found, expected):
    assert found.keys() == expected.keys()
    for group in expected:
        assert found[group].keys() == expected[group].keys()
        for name, tensor in expected[group].items():
            assert torch.equal(found[group][name], tensor), f"{group}/{name}"


def copy_of(checkpoint):
    tensors = {
        group: {name: tensor.clone() for name, tensor in part.items()} for group, part in checkpoint.tensors.items()
    }
    return Checkpoint(checkpoint.header, tensors)


@pytest.mark.parametrize("stop", [0, 1, 5])
def test_stopping_and_resuming_equals_going_straight(tmp_path, build, stop):
    straight = build()
    assert straight.total_steps > 10 > straight.total_steps / 2, "step 5 lies in epoch 0, step 10 in epoch 1"
    start = copy_of(straight.capture())
    straight.fit(until_step=10)
    expected = copy_of(straight.capture())
    assert all(not torch.equal(start.tensors["dense"][n], t) for n, t in expected.tensors["dense"].items())

    first = build()
    first.fit(until_step=stop)
    save_checkpoint(tmp_path / "checkpoint", first.capture())
    torch.manual_seed(99)
    second = build()
    second.restore(load_checkpoint(tmp_path / "checkpoint"))
    second.fit(until_step=10)
    found = second.capture()
    assert found.header == expected.header
    assert_same_tensors(found.tensors, expected.tensors)


def test_two_runs_write_the_same_bytes(tmp_path, build):
    for name in ("a", "b"):
        trainer = build()
        trainer.fit(until_step=3)
        save_checkpoint(tmp_path / name, trainer.capture())
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == [
        "adagrad.safetensors",
        "checkpoint.json",
        "dense.safetensors",
        "losses.safetensors",
        "optimizer.safetensors",
        "rng.safetensors",
        "tables.safetensors",
    ]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_another_seed_gives_other_weights(build):
    one, other = build(), build(seed=8)
    assert not torch.equal(one.capture().tensors["tables"]["item.item"], other.capture().tensors["tables"]["item.item"])


@pytest.fixture
def saved(tmp_path, build):
    save_checkpoint(tmp_path / "ranker", build().capture())
    return tmp_path / "ranker"


@pytest.mark.parametrize("file", ["dense", "tables", "optimizer", "rng", "losses"])
def test_damaged_or_missing_file_is_named(saved, file):
    path = saved / f"{file}.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match=rf"{file}\.safetensors: checksum differs"):
        load_checkpoint(saved)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"{file}\.safetensors: checksum differs"):
        load_checkpoint(saved)
    path.unlink()
    with pytest.raises(DataError, match=rf"{file}\.safetensors: no such file"):
        load_checkpoint(saved)


def test_header_without_a_checkpoint_is_named(saved, tmp_path):
    with pytest.raises(DataError, match=r"absent/checkpoint\.json: no such file"):
        load_header(tmp_path / "absent")
    header = saved / "checkpoint.json"
    document = json.loads(header.read_text())
    header.write_text(json.dumps(document | {"header": document["header"] | {"version": 99}}))
    with pytest.raises(DataError, match="checkpoint version 99"):
        load_header(saved)
    for broken in ("{", "[]", '{"header": {"version": 1}, "files": {}}'):
        header.write_text(broken)
        with pytest.raises(DataError, match=r"checkpoint\.json"):
            load_header(saved)


def test_other_vocabulary_spec_or_model_is_refused(saved):
    header = load_header(saved)

    def check(config=header.model, spec=header.spec, vocabulary="vocabulary"):
        check_compatible(header, config, spec, vocabulary_hash=vocabulary, source=saved)

    check()
    check(config=header.model.model_copy(update={"impl": "triton"}))
    with pytest.raises(DataError, match="ranker: trained with vocabulary vocabulary, the dataset has other"):
        check(vocabulary="other")
    with pytest.raises(DataError, match=r"features\.intensity_size = 40, now it is 41"):
        check(spec=header.spec.model_copy(update={"intensity_size": 41}))
    with pytest.raises(DataError, match=r"model\.num_heads = 1, now it is 2"):
        check(config=header.model.model_copy(update={"num_heads": 2}))
