"""Typed, closed configuration of the sections `export` and `score` of params.yaml."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from features.config import Section
from features.errors import DataError
from model.config import ModelConfig
from model.serving.precision import Compute, Precision

if TYPE_CHECKING:
    import torch

    from model.serving.quantize import TableFormat

Count = Annotated[int, Field(ge=1)]


class ExportConfig(Section):
    """What a bundle's embedding rows are stored in, and how much of the evaluation window its figures come from.

    embeddings: precision of the rows.
    group_size: int4 values that share a scale, null for one scale a row.
    small_rows: tables of at most this many rows are int8 where others are int4, and in a GPU's memory.
    parity_requests: requests, evenly spaced over the window, that every precision is measured on; null for all.
    """

    section: ClassVar[str] = "export"

    embeddings: Precision
    group_size: Annotated[int, Field(ge=8, multiple_of=8)] | None
    small_rows: Annotated[int, Field(ge=0)]
    parity_requests: Count | None

    @model_validator(mode="after")
    def _groups_are_int4(self) -> Self:
        if self.group_size is not None and self.embeddings != "int4":
            raise ValueError(f"group_size: only int4 has groups, {self.embeddings} has none: use null")
        return self

    @property
    def table_format(self) -> TableFormat:
        """Of the bundle's embedding rows."""
        return self.format_of(self.embeddings, self.group_size)

    def format_of(self, precision: Precision, group_size: int | None = None) -> TableFormat:
        """The same with other rows."""
        from model.serving.quantize import RowFormat, TableFormat

        return TableFormat(rows=RowFormat(precision=precision, group_size=group_size), small_rows=self.small_rows)


class ScoreConfig(Section):
    """How a bundle scores.

    device, num_threads: as in `evaluate`.
    impl: which kernels run, whatever the model was trained with.
    compute: what the products of the layers take; sums of embeddings and heads stay fp32.
    placement: of large tables' rows when the device is a GPU; `host` keeps them quantised in host memory.
    tokens_per_batch: history tokens and candidates that are encoded together, at most; a larger request goes alone.
    micro_batch_size: candidates that go through the layers together, at most.
    """

    section: ClassVar[str] = "score"

    device: Literal["cpu", "cuda"]
    num_threads: Count
    impl: Literal["reference", "triton"]
    compute: Compute
    placement: Literal["host", "device"]
    tokens_per_batch: Count
    micro_batch_size: Count

    def torch_device(self) -> torch.device:
        """The device.

        Raises:
            DataError: it is not there, or cannot run `impl`.
        """
        from model.stage import device_of

        device = device_of(self.device, "score.device")
        if self.impl == "triton" and device.type == "cpu":
            raise DataError("params.yaml: score.impl: 'triton' needs the device cuda; the CPU runs 'reference'")
        return device

    def serving(self, model: ModelConfig) -> ModelConfig:
        """The model's configuration with these kernels; the cached layers choose what they compute in."""
        return model.model_copy(update={"impl": self.impl, "compute": "fp32", "gemm": "bf16"})
