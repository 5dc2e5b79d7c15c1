"""How many parameters the configured model has."""

from __future__ import annotations

import math
from dataclasses import dataclass

from features.spec import CategoricalField, FeatureSpec
from model.config import ModelConfig
from model.embeddings import table_fields
from model.ranker import Ranker

MIN_ROWS = 2


@dataclass(frozen=True)
class ModelSize:
    """Numbers of parameters: `dense` in layers, `tables` in embedding tables."""

    dense: int
    tables: int


def model_size(config: ModelConfig, spec: FeatureSpec) -> ModelSize:
    """Counts without allocating the tables: the layers do not depend on how many rows there are."""

    def shrunk(fields: tuple[CategoricalField, ...]) -> tuple[CategoricalField, ...]:
        return tuple(field.model_copy(update={"size": MIN_ROWS}) for field in fields)

    small = spec.model_copy(
        update={name: shrunk(getattr(spec, name)) for name in ("item_fields", "user_fields")} | {"intensity_size": 2}
    )
    dense = sum(math.prod(parameter.shape) for parameter in Ranker(config, small).dense_parameters().values())
    return ModelSize(dense=dense, tables=config.dim * sum(field.size for field in table_fields(config, spec)))
