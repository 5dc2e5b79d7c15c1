"""Holds cached scoring by Triton kernels to the reference: python cached_checks.py cpu|cuda.

On a CPU in Triton's interpreter (TRITON_INTERPRET=1), which multiplies fp32 alone.
"""

from __future__ import annotations

import dataclasses
import sys

import torch

from model.bench.inference import TINY, Setting, random_batch
from model.embeddings import table_fields
from model.serving.cached_layer import Compute
from model.serving.export_tables import segment_rows
from model.serving.quantize import RowFormat, TableFormat
from model.serving.scorer_model import ServedModel

_FORMAT = TableFormat(rows=RowFormat(precision="int4"), small_rows=1000)
_BOUNDS: dict[Compute, float] = {"fp32": 1e-5, "bf16": 0.03, "fp8": 0.1}


def build(setting: Setting, axis: str, impl: str, compute: Compute) -> ServedModel:
    """A model of the same random weights each time."""
    config = setting.model().model_copy(update={"global_axis": axis, "impl": impl})
    spec, device = setting.spec(), torch.device(setting.device)
    torch.manual_seed(0)
    model = ServedModel(config, spec, _FORMAT, device=device, placement="host", compute=compute)
    torch.nn.init.normal_(model.heads.weight, std=0.1)
    tables = {field.name: torch.randn(field.size, config.dim) * 0.3 for field in table_fields(config, spec)}
    dense = {name: value.detach().clone() for name, value in model.named_parameters()}
    model.load(dense, segment_rows(tables, config, spec, table_format=_FORMAT))
    return model


def main(device: str) -> None:
    """Compares every way that the device has."""
    size = {"length": 40, "candidates": 12, "num_items": 2000} if device == "cpu" else {"dim": 128, "length": 1500}
    setting = dataclasses.replace(TINY, device=device, **size)
    computed: tuple[Compute, ...] = ("fp32",) if device == "cpu" else ("fp32", "bf16", "fp8")
    for axis in ("queries", "keys"):
        reference = build(setting, axis, "reference", "fp32")
        batch = random_batch(reference.spec, setting.length, setting.candidates, seed=1)
        expected = torch.sigmoid(reference(batch, micro_batch_size=1000).logits_CK).cpu()
        for compute in computed:
            model = build(setting, axis, "triton", compute)
            for micro_batch_size in (1000, 5):
                found = torch.sigmoid(model(batch, micro_batch_size=micro_batch_size).logits_CK).cpu()
                difference = float((found - expected).abs().max())
                print(f"{axis}, {compute}, micro-batches of {micro_batch_size}: {difference:.1e}")
                assert difference <= _BOUNDS[compute]
    print("all checks hold")


if __name__ == "__main__":
    main(sys.argv[1])
