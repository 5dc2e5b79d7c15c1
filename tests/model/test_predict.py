"""Two models on the same candidates: what another night's model knows by other rows is the same to it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from features.dataset import open_dataset
from features.errors import DataError
from features.manifest import write_manifest
from features.vocabulary import FIRST_KEY, UNKNOWN, Vocabulary, VocabularySet, key_type
from model.predict import PredictPaths, parse_models, predict, translate
from model.train import TrainPaths, train
from model.training.checkpoint import load_checkpoint, save_checkpoint

SIZES = {"user": 30, "item": 40, "surface": 4, "author": 12, "degree": 5}
TABLES = {
    "item.item": "item",
    "item.author": "author",
    "user.user": "user",
    "user.degree": "degree",
    "context.surface": "surface",
}
TASKS = ("is_click", "is_like", "long_view")


def vocabulary(field: str, codes: np.ndarray) -> Vocabulary:
    """Keys k0, k1 and so on, or numbers, in the order of `codes`."""
    keys = codes if pa.types.is_integer(key_type(field)) else [f"k{code}" for code in codes]
    return Vocabulary(field, pa.array(keys, key_type(field)), np.ones(len(codes), np.int64))


def vocabularies(orders: dict[str, np.ndarray]) -> VocabularySet:
    return VocabularySet(tuple(vocabulary(field, order) for field, order in orders.items()))


@pytest.fixture
def window(tmp_path: Path, make_content, write_dataset, write_params, write_validation) -> Path:
    """A dataset with its vocabulary, and `model` with the ranker that was trained on it."""
    known = vocabularies({field: np.arange(size - FIRST_KEY) for field, size in SIZES.items()})
    dataset = write_dataset(tmp_path / "streams", make_content(seed=4, num_users=40), 2)
    write_manifest(tmp_path / "streams", dataset.manifest.model_copy(update={"vocabulary_hash": known.hash}))
    for folder in (tmp_path / "vocab", tmp_path / "model" / "vocab"):
        folder.mkdir(parents=True)
        known.save(folder)
    params = write_params(tmp_path / "params.yaml")
    validation = write_validation(tmp_path / "validation.json")
    train(TrainPaths(params, tmp_path / "streams", validation, tmp_path / "model" / "ranker", tmp_path / "metrics"))
    return tmp_path


def shuffle(window: Path, name: str, *, keep: float = 1.0) -> Path:
    """The same model as if its vocabulary had another order, and only a share of the keys."""
    rng = np.random.default_rng(0)
    orders = {field: rng.permutation(size - FIRST_KEY) for field, size in SIZES.items()}
    orders = {field: order[: max(1, int(keep * len(order)))] for field, order in orders.items()}
    checkpoint = load_checkpoint(window / "model" / "ranker")
    tables = dict(checkpoint.tensors["tables"])
    for table, field in TABLES.items():
        rows = np.r_[np.arange(FIRST_KEY), FIRST_KEY + orders[field]]
        tables[table] = tables[table][torch.from_numpy(rows)].contiguous()

    def resized(fields):
        sizes = {field: FIRST_KEY + len(order) for field, order in orders.items()}
        return tuple(field.model_copy(update={"size": sizes.get(field.name, field.size)}) for field in fields)

    spec = checkpoint.header.spec
    groups = ("item_fields", "user_fields", "token_contexts", "candidate_contexts")
    spec = spec.model_copy(update={group: resized(getattr(spec, group)) for group in groups})
    header = checkpoint.header.model_copy(update={"spec": spec})
    save_checkpoint(
        window / name / "ranker", replace(checkpoint, header=header, tensors={**checkpoint.tensors, "tables": tables})
    )
    (window / name / "vocab").mkdir()
    vocabularies(orders).save(window / name / "vocab")
    return window / name


def score(window: Path, **models: Path) -> pa.Table:
    out = window / "predictions.arrow"
    predict(PredictPaths(window / "params.yaml", window / "streams", window / "vocab", models, out))
    with pa.memory_map(str(out)) as source:
        return pa.ipc.open_file(source).read_all()


def test_translation_goes_through_the_keys():
    source = vocabularies({"item": np.array([10, 20, 30])})
    target = vocabularies({"item": np.array([30, 10])})
    assert translate(source, target).rows["item"].tolist() == [0, 1, 3, UNKNOWN, 2]


def test_a_model_with_other_rows_for_the_same_keys_scores_the_same(window: Path):
    table = score(window, challenger=window / "model", champion=shuffle(window, "other"))
    for task in TASKS:
        own, other = (table.column(f"logit {name} {task}").to_numpy() for name in ("challenger", "champion"))
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-5)
    dataset = open_dataset(window / "streams")
    assert len(table) == sum(
        shard.requests.list("candidate.item").lengths[shard.requests.column("split") == 1].sum()
        for shard in dataset.shards
    )
    metadata = json.loads(table.schema.metadata[b"hstu2"])
    assert metadata["tasks"] == list(TASKS)
    assert set(metadata["latency_ms"]) == {"challenger", "champion"}


def test_keys_that_a_model_has_never_seen_are_unknown_to_it(window: Path):
    table = score(window, challenger=window / "model", champion=shuffle(window, "smaller", keep=0.5))
    own, other = (table.column(f"logit {name} is_click").to_numpy() for name in ("challenger", "champion"))
    assert np.isfinite(other).all()
    assert not np.allclose(own, other)


def test_a_model_of_other_features_is_not_comparable(window: Path):
    checkpoint = load_checkpoint(window / "model" / "ranker")
    spec = checkpoint.header.spec.model_copy(update={"actions": ("is_click", "long_view", "is_like")})
    header = checkpoint.header.model_copy(update={"spec": spec})
    save_checkpoint(window / "other" / "ranker", replace(checkpoint, header=header))
    (window / "model" / "vocab").rename(window / "other" / "vocab")
    with pytest.raises(DataError, match=r"not comparable, it was trained on other features \(actions\)"):
        score(window, champion=window / "other")


def test_a_vocabulary_of_another_dataset_is_refused(window: Path):
    vocabularies({field: np.arange(size - FIRST_KEY)[::-1] for field, size in SIZES.items()}).save(window / "vocab")
    with pytest.raises(DataError, match="is not the vocabulary of"):
        score(window, champion=window / "model")


def test_models_are_named_on_the_command_line():
    assert parse_models(["a=x/y", "b=z"]) == {"a": Path("x/y"), "b": Path("z")}
    with pytest.raises(DataError, match="write name=folder"):
        parse_models(["x/y"])
