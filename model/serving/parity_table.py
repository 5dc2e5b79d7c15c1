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


def quality_lines(table: ParityTable, tasks: Sequence[str]) -> list[str]:
    """NE and AUC of every task and the two groups' mean NE, in Markdown."""
    rows = []
    for row in table.variants:
        tasks_of_row = [row.tasks[task] for task in tasks]
        cells = [f"{_number(figures.ne, 5)} / {_number(figures.auc, 4)}" for figures in tasks_of_row]
        rows.append([row.label, *cells, _number(row.c_ne, 5), _number(row.e_ne, 5)])
    return _markdown(["served in", *(f"{task} NE / AUC" for task in tasks), "C-NE", "E-NE"], rows)


def cost_lines(table: ParityTable) -> list[str]:
    """Bytes, differences and times, in Markdown."""
    rows = [
        [
            row.label,
            f"{row.table_bytes / 1e6:.2f} MB",
            f"{row.table_share:.4f}",
            f"{row.largest_difference:.1e}",
            f"{row.latency_p50_ms:.1f} ms",
            f"{row.latency_p99_ms:.1f} ms",
            f"{row.candidates_per_s:,.0f}",
        ]
        for row in table.variants
    ]
    columns = ["served in", "embedding rows", "of fp32", "largest difference", "p50", "p99", "candidates/s"]
    return _markdown(columns, rows)


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows)]


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
