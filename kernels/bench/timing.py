"""What the benchmarks share: the shape, one row of the table, medians and the check before a timing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

DTYPE = torch.bfloat16
# Each of scores, weights and result is rounded once: 2 eps in the mean, some eps of the largest element at worst.
MEAN_EPS, WORST_EPS = 2.0, 8.0
_COOL_DOWN_SECONDS = 1.5


@dataclass(frozen=True)
class Shape:
    """What is measured; the defaults are those of docs/gpu-results.md.

    Attributes:
        num_heads: H.
        head_dim: A and V.
        dim: D of the layer.
        length: tokens of each request.
        num_requests: B.
        num_candidates: last tokens of each request.
        local_window: K1.
        global_window: K2.
        product_rows: tokens of the products with a residual.
    """

    num_heads: int = 4
    head_dim: int = 128
    dim: int = 512
    length: int = 16_384
    num_requests: int = 8
    num_candidates: int = 20
    local_window: int = 256
    global_window: int = 256
    product_rows: int = 1 << 20


@dataclass(frozen=True)
class Timing:
    """One row of the table.

    Attributes:
        case: what was run.
        part: forward, backward, or both.
        ms: median of the kernels alone.
        call_ms: median of the public function where that is more.
        rate: TFLOP/s or GB/s.
        unit: of the rate.
        share: of what bounds it, measured in the same process: a matrix product's TFLOP/s or a copy's GB/s.
        error_eps: largest error in eps of the largest element, or None where a test checks it.
        note: anything else.
    """

    case: str
    part: str
    ms: float
    rate: float
    unit: str
    share: float | None = None
    call_ms: float | None = None
    error_eps: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Rulers:
    """What the card does now."""

    tflop_per_s: float
    gbyte_per_s: float


def cool_down() -> None:
    """Waits until the clock that the case before has pulled down is up again."""
    torch.cuda.synchronize()
    time.sleep(_COOL_DOWN_SECONDS)


def median_ms(run: Callable[[], object]) -> float:
    """Median of many runs, with the L2 cache emptied between them."""
    from triton.testing import do_bench

    return float(do_bench(run, warmup=25, rep=120, return_mode="median"))


def recorded(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Its kernels as a graph, whose replay takes the device's time however slow the host is; `run` has run before."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def checked(name: str, found: Tensor, exact: Tensor) -> float:
    """Largest error in eps of the largest element.

    Raises:
        ValueError: beyond the budget; what is wrong is not timed.
    """
    eps = torch.finfo(DTYPE).eps
    error = found.double() - exact.double()
    worst = float(error.abs().max() / exact.abs().max()) / eps
    mean = float(error.norm() / exact.double().norm()) / eps
    if not (worst <= WORST_EPS and mean <= MEAN_EPS):
        raise ValueError(f"{name} is off by {worst:.1f} eps, {mean:.1f} in the mean; not timed")
    return worst


def compute_row(case: str, part: str, ms: float, tflop: float, rulers: Rulers, **more: float | str | None) -> Timing:
    """A row whose rate is TFLOP/s."""
    rate = tflop / ms * 1e3
    return Timing(case, part, ms, rate, "TFLOP/s", rate / rulers.tflop_per_s, **more)  # type: ignore[arg-type]


def memory_row(case: str, part: str, ms: float, gbyte: float, rulers: Rulers, **more: float | str | None) -> Timing:
    """A row whose rate is GB/s."""
    rate = gbyte / ms * 1e3
    return Timing(case, part, ms, rate, "GB/s", rate / rulers.gbyte_per_s, **more)  # type: ignore[arg-type]
