"""The figures of the ways to serve a model, side by side."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class TaskFigures:
    """Of one task; None where its labels are all equal."""

    ne: float | None
    auc: float | None


@dataclass(frozen=True)
class VariantFigures:
    """A row of the table.

    table_bytes: of the embedding rows in a bundle; table_share: the same over fp32's.
    largest_difference: of a probability, from the first variant's.
    latency_p50_ms, latency_p99_ms: of one request alone, host to host.
    candidates_per_s: of the whole window in batches.
    """

    label: str
    tasks: dict[str, TaskFigures]
    c_ne: float | None
    e_ne: float | None
    table_bytes: int
    table_share: float
    largest_difference: float
    latency_p50_ms: float
    latency_p99_ms: float
    candidates_per_s: float


@dataclass(frozen=True)
class ParityTable:
    """All variants, how many requests and candidates they scored, and on what."""

    variants: tuple[VariantFigures, ...]
    num_requests: int
    num_candidates: int
    device: str
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """For write_json."""
        return asdict(self)


def table_lines(table: ParityTable, tasks: Sequence[str]) -> list[str]:
    """The table in Markdown.

    Args:
        table: the figures.
        tasks: tasks with columns of their own, beside the two groups' means.
    """
    columns = ["served in", *(f"{task} NE / AUC" for task in tasks), "C-NE", "E-NE", "tables", "of fp32"]
    columns += ["largest difference", "p50 ms", "p99 ms", "candidates/s"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in table.variants:
        cells = [row.label]
        cells += [f"{_number(row.tasks[task].ne, 5)} / {_number(row.tasks[task].auc, 4)}" for task in tasks]
        cells += [
            _number(row.c_ne, 5),
            _number(row.e_ne, 5),
            f"{row.table_bytes / 1e6:.2f} MB",
            f"{row.table_share:.4f}",
        ]
        cells += [f"{row.largest_difference:.1e}", f"{row.latency_p50_ms:.1f}", f"{row.latency_p99_ms:.1f}"]
        lines.append("| " + " | ".join([*cells, f"{row.candidates_per_s:,.0f}"]) + " |")
    return lines


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def versions() -> dict[str, str]:
    """Of what computes."""
    found = {"torch": str(torch.__version__)}
    for name in ("fbgemm-gpu", "fbgemm-gpu-cpu", "triton"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
