"""Times the way of embedding rows to the device, in every precision: in the lookup itself, and as one copy."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import cast, get_args

import numpy as np
import torch
from torch import Tensor

from model.batch import Batch
from model.embeddings import TokenEmbeddings, table_fields
from model.serving.export_tables import segment_rows
from model.serving.precision import Precision
from model.serving.quantize import RowFormat, TableFormat
from model.serving.quantize_tables import Placement, QuantizedTables
from model.serving.scorer_model import ServedModel
from model.tables import Bags, EmbeddingTables

_REPEATS = 30
_SMALL_ROWS = 1000
_GROUP_SIZE = 128


@dataclass(frozen=True)
class TransferFigures:
    """One precision.

    Attributes:
        rows: of large tables that one request looks up, repeated ones counted each time.
        unique_rows: without repetitions.
        row_bytes: of a large table's row in the bundle; in memory a GPU's row may be padded.
        table_bytes: of all rows in memory.
        copy_bytes, copy_ms: the unique rows, gathered into page-locked memory and copied; the gathering not timed.
        lookup_ms: the lookup with the rows in host memory: reads them over the bus and sums them as fp32.
        lookup_device_ms: the same with the rows in the device's memory; None on a CPU.
    """

    label: str
    rows: int
    unique_rows: int
    row_bytes: int
    table_bytes: int
    copy_bytes: int
    copy_ms: float
    lookup_ms: float
    lookup_device_ms: float | None

    def line(self) -> str:
        """One row of a table."""
        device = "" if self.lookup_device_ms is None else f", from device memory {self.lookup_device_ms:.3f} ms"
        return (
            f"rows in {self.label}: {self.copy_bytes / 1e6:.2f} MB to the device in {self.copy_ms:.3f} ms, "
            f"lookup from host memory {self.lookup_ms:.3f} ms{device}"
        )


def transfer_figures(model: ServedModel, tables: Mapping[str, Tensor], batch: Batch) -> list[TransferFigures]:
    """Every precision, for the rows of one request.

    Args:
        model: the model that is served.
        tables: (rows, D) float32 weights by name.
        batch: one request.
    """
    rows = [RowFormat(precision=precision) for precision in get_args(Precision)]
    if model.config.dim > _GROUP_SIZE:
        rows.append(RowFormat(precision="int4", group_size=_GROUP_SIZE))
    formats = [TableFormat(rows=one, small_rows=_SMALL_ROWS) for one in rows]
    return [_figures(model, tables, batch, table_format=table_format) for table_format in formats]


@torch.inference_mode()
def _figures(
    model: ServedModel, tables: Mapping[str, Tensor], batch: Batch, *, table_format: TableFormat
) -> TransferFigures:
    config, spec, device = model.config, model.spec, model.device
    segments = segment_rows(tables, config, spec, table_format=table_format)
    placed: dict[Placement, float] = {}
    for placement in _placements(device):
        quantised = QuantizedTables(
            table_fields(config, spec), config.dim, table_format, device=device, placement=placement
        )
        quantised.load_rows(segments)
        bags = _looked_up(model, quantised, batch)
        placed[placement] = _milliseconds(partial(quantised, bags), device)
        table_bytes = quantised.num_bytes
    large = quantised.segments[0]
    large_rows_L = bags.rows_L[bags.rows_L < large.num_rows]
    unique_rows = large_rows_L.unique().numel()
    row_bytes = large.rows.row_bytes(config.dim)
    return TransferFigures(
        label=table_format.label,
        rows=large_rows_L.numel(),
        unique_rows=unique_rows,
        row_bytes=row_bytes,
        table_bytes=table_bytes,
        copy_bytes=unique_rows * row_bytes,
        copy_ms=_copy_milliseconds(unique_rows * row_bytes, device),
        lookup_ms=placed["host"],
        lookup_device_ms=placed.get("device"),
    )


def _placements(device: torch.device) -> tuple[Placement, ...]:
    return ("host",) if device.type == "cpu" else ("host", "device")


def _looked_up(model: ServedModel, tables: QuantizedTables, batch: Batch) -> Bags:
    """What a batch asks these tables for."""
    embeddings = TokenEmbeddings(model.config, model.spec, device=model.device, tables=cast(EmbeddingTables, tables))
    return cast(Bags, embeddings.rows(batch.to(model.device)).plan)


def _milliseconds(work: Callable[[], object], device: torch.device) -> float:
    """Median of some repetitions."""
    durations = []
    for _ in range(_REPEATS):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        durations.append(1000 * (time.perf_counter() - started))
    return float(np.median(durations))


def _copy_milliseconds(num_bytes: int, device: torch.device) -> float:
    on_gpu = device.type == "cuda"
    source = torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=on_gpu)
    target = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    return _milliseconds(lambda: target.copy_(source, non_blocking=True), device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
