"""Warm start: a new run begins with the weights and the optimizer of a trained model, whose vocabulary may have grown.

Rows of ids that the model knew keep their weights and what Adagrad remembers of them; rows of new ids are fresh. The
learning-rate schedule and the reader begin anew. Everything else must be as it was: a model that is given other
columns, or other ids under the numbers that it knows, would not fail, it would be wrong.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from features.config import FeaturesConfig
from features.errors import DataError
from features.files import read_json
from features.spec import CategoricalField, FeatureSpec
from features.vocabulary import VOCABULARY_FILE
from model.config import ModelConfig
from model.ranker import Ranker, load_tensors
from model.training.checkpoint import INDIFFERENT, Checkpoint, Header
from model.training.optim import Optimizer

_CATEGORICAL = ("item_fields", "user_fields", "token_contexts", "candidate_contexts")


def check_warm_start(header: Header, config: ModelConfig, spec: FeatureSpec, *, source: str) -> None:
    """Refuses a model that this run cannot go on from.

    Raises:
        DataError: names the model and what differs: a setting, a column, or a field that has shrunk.
    """
    _check_same_model(header.model, config, source)
    _check_grown(header.spec, spec, source)


def check_vocabulary(header: Header, features: FeaturesConfig, *, vocabulary_hash: str, source: str) -> None:
    """Refuses a dataset whose vocabulary does not begin with the model's.

    Raises:
        DataError: features.vocabulary.base is not the vocabulary that the model was trained with.
    """
    if header.vocabulary_hash == vocabulary_hash:
        return
    base = features.vocabulary.base
    if base is None:
        raise DataError(
            f"params.yaml: features.vocabulary.base is null, so the ids of {source} are numbered anew; set it to the "
            "vocabulary that the model was trained with"
        )
    found = read_json(base / VOCABULARY_FILE).get("hash")
    if found != header.vocabulary_hash:
        raise DataError(
            f"params.yaml: features.vocabulary.base: {base} is {str(found)[:12]}, but {source} was trained with "
            f"{header.vocabulary_hash[:12]}"
        )


def _check_same_model(saved: ModelConfig, config: ModelConfig, source: str) -> None:
    before, now = saved.model_dump(mode="json"), config.model_dump(mode="json")
    for key, value in now.items():
        if before[key] != value and ("model", key) not in INDIFFERENT:
            raise DataError(f"{source}: cannot be gone on from, it has model.{key} = {before[key]}, now it is {value}")


def _check_grown(before: FeatureSpec, now: FeatureSpec, source: str) -> None:
    for key in ("actions", "streams", "intensity_size"):
        if getattr(before, key) != getattr(now, key):
            raise DataError(
                f"{source}: cannot be gone on from, the schema has changed: {key} was {getattr(before, key)}, now it "
                f"is {getattr(now, key)}"
            )
    for group in _CATEGORICAL:
        old, new = _sizes(getattr(before, group)), _sizes(getattr(now, group))
        if list(old) != list(new):
            raise DataError(
                f"{source}: cannot be gone on from, the schema has changed: {group} was {', '.join(old)}, now it is "
                f"{', '.join(new)}"
            )
        for name, size in old.items():
            if new[name] < size:
                raise DataError(
                    f"{source}: cannot be gone on from, '{name}' has shrunk from {size} rows to {new[name]}; extend "
                    "its vocabulary instead: features.vocabulary.base"
                )


def _sizes(fields: tuple[CategoricalField, ...]) -> dict[str, int]:
    return {field.name: field.size for field in fields}


def start_from(checkpoint: Checkpoint, ranker: Ranker, optimizer: Optimizer, *, source: str) -> None:
    """Copies weights and optimizer state; rows beyond the checkpoint's stay as they are.

    Args:
        checkpoint: of the model, checked.
        ranker: freshly initialised.
        optimizer: of the ranker.
        source: names the checkpoint in errors.

    Raises:
        DataError: a table or parameter is missing, unknown, larger than its successor, or of another shape.
    """
    tensors, part_of = checkpoint.tensors, ranker.embeddings.tables.part_of
    load_tensors(ranker.dense_state(), dict(tensors["dense"]), what="dense parameter")
    _copy_rows(ranker.table_state(), {n: part_of(t) for n, t in tensors["tables"].items()}, source)
    optimizer.load_dense_state(dict(tensors["optimizer"]))
    _copy_rows(optimizer.table_state(), {n: part_of(t) for n, t in tensors["adagrad"].items()}, source)


@torch.no_grad()
def _copy_rows(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor], source: str) -> None:
    for name in targets.keys() ^ sources.keys():
        raise DataError(f"{source}: cannot be gone on from, only one of the two models has the table '{name}'")
    for name, rows in sources.items():
        if len(rows) > len(targets[name]) or rows.shape[1:] != targets[name].shape[1:]:
            raise DataError(
                f"{source}: cannot be gone on from, its table '{name}' is {tuple(rows.shape)}, the new one "
                f"{tuple(targets[name].shape)}"
            )
        targets[name][: len(rows)].copy_(rows)
