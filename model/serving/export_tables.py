"""The tables of a checkpoint as the rows of a served model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from features.errors import DataError
from features.spec import FeatureSpec
from model.config import ModelConfig
from model.embeddings import table_fields
from model.serving.quantize import Segment, TableFormat, quantize_rows


def segment_rows(
    tables: Mapping[str, Tensor], config: ModelConfig, spec: FeatureSpec, *, table_format: TableFormat
) -> list[Tensor]:
    """Quantises table by table, in the order in which a served model lays them out.

    Args:
        tables: (rows, D) float32 weights by name.
        config: the model.
        spec: of the dataset.
        table_format: how a row is stored.

    Returns:
        (G, R, N) uint8 per segment.

    Raises:
        DataError: a table is missing, or has values that the format cannot hold.
    """
    return [_segment(tables, segment) for segment in table_format.segments(table_fields(config, spec))]


def _segment(tables: Mapping[str, Tensor], segment: Segment) -> Tensor:
    parts = []
    for field in segment.fields:
        if field.name not in tables:
            raise DataError(f"the checkpoint has no table '{field.name}'; train again")
        try:
            parts.append(quantize_rows(tables[field.name], segment.rows))
        except DataError as error:
            raise DataError(f"table '{field.name}' {error}") from None
    return torch.cat(parts, dim=1)


def named_segments(segments: list[Tensor]) -> dict[str, Tensor]:
    """Names for a file of tensors, in their order."""
    return {f"segment{number}": rows_GRN for number, rows_GRN in enumerate(segments)}
