"""Times HSTU attention on this GPU, beside a plain matrix product and cuDNN's attention in the same process.

python -m kernels.bench          a table, and bench/kernels.json

Each case is first compared with the fp64 reference on its longest request; what is wrong is not timed.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from kernels.attention import hstu_attention
from kernels.jagged import lengths_to_offsets
from kernels.mask import AttentionMask

logger = logging.getLogger(__name__)
_OUT = Path("bench/kernels.json")
_HEADS, _DIM, _CANDIDATES = 4, 128, 20
_DTYPE = torch.bfloat16
# Each of scores, weights and result is rounded once: 2 eps in the mean, some eps of the largest element at worst.
_MEAN_EPS, _WORST_EPS = 2.0, 8.0


@dataclass(frozen=True)
class Case:
    """Lengths with their candidates, and a mask."""

    name: str
    lengths: tuple[int, ...]
    mask: AttentionMask

    def tflop(self) -> float:
        """Of one forward: two products over the pairs that see each other; the backward's five are 2.5 times that."""
        pairs = sum(
            self.mask.num_visible(length - _CANDIDATES, num_contextual=0, num_candidates=_CANDIDATES)
            for length in self.lengths
        )
        return 4 * _DIM * _HEADS * pairs / 1e12


@dataclass(frozen=True)
class Timing:
    """One row of the table; a call is the public function, with its checks and its schedule."""

    case: str
    direction: str
    kernels_ms: float | None
    call_ms: float
    tflop_per_s: float
    error_eps: float | None


@dataclass(frozen=True)
class Inputs:
    """A case on the device; q, k and v are views of one buffer."""

    case: Case
    qkv: tuple[Tensor, ...]
    offsets_B1: Tensor
    num_candidates_B: Tensor
    gradient: Tensor

    def attend(self) -> Tensor:
        """The public call."""
        return _attend(self.qkv, self.offsets_B1, self.num_candidates_B, self.case, impl="triton")


def cases() -> list[Case]:
    """Equal and skewed lengths, each under the semi-local and the full mask."""
    generator = torch.Generator().manual_seed(0)
    skewed = tuple((torch.rand(64, generator=generator) ** 3 * 16_000 + 64).long().tolist())
    equal = (16_384,) * 8
    semi_local, full = AttentionMask(256, 256), AttentionMask(1 << 20, 0)
    return [
        Case("semi-local, 16,384 x 8", equal, semi_local),
        Case("full, 16,384 x 8", equal, full),
        Case("semi-local, 64 skewed", skewed, semi_local),
        Case("full, 64 skewed", skewed, full),
    ]


def _inputs(case: Case) -> Inputs:
    generator = torch.Generator(device="cuda").manual_seed(1)
    total = sum(case.lengths)
    buffer = torch.randn(total, 4, _HEADS, _DIM, device="cuda", generator=generator).to(_DTYPE)
    gradient = torch.randn(total, _HEADS, _DIM, device="cuda", generator=generator).to(_DTYPE)
    lengths_B = torch.tensor(case.lengths, device="cuda")
    qkv = tuple(buffer[:, part].requires_grad_(True) for part in (1, 2, 3))
    return Inputs(case, qkv, lengths_to_offsets(lengths_B), torch.full_like(lengths_B, _CANDIDATES), gradient)


def _attend(qkv: tuple[Tensor, ...], offsets_B1: Tensor, num_candidates_B: Tensor, case: Case, *, impl: str) -> Tensor:
    return hstu_attention(
        *qkv,
        offsets_B1=offsets_B1,
        num_contextual=0,
        num_candidates_B=num_candidates_B,
        mask=case.mask,
        alpha=_DIM**-0.5,
        scale=1 / max(case.lengths),
        impl=impl,
    )


def largest_error(inputs: Inputs) -> float:
    """Largest error of the output and the gradients on the longest request's last head, in eps of the largest element.

    Raises:
        ValueError: beyond the budget.
    """
    case, eps = inputs.case, torch.finfo(_DTYPE).eps
    request = case.lengths.index(max(case.lengths))
    rows = slice(sum(case.lengths[:request]), sum(case.lengths[: request + 1]))
    out = inputs.attend()
    found = (out.detach(), *torch.autograd.grad(out, inputs.qkv, inputs.gradient))
    exact_qkv = tuple(x.detach()[rows, -1:].double().requires_grad_(True) for x in inputs.qkv)
    offsets_B1 = torch.tensor([0, case.lengths[request]], device="cuda")
    exact_out = _attend(exact_qkv, offsets_B1, inputs.num_candidates_B[:1], case, impl="reference")
    exact = (exact_out.detach(), *torch.autograd.grad(exact_out, exact_qkv, inputs.gradient[rows, -1:].double()))
    largest = 0.0
    for name, mine, other in zip(("out", "dq", "dk", "dv"), found, exact, strict=True):
        error = mine[rows, -1:].double() - other
        worst = float(error.abs().max() / other.abs().max()) / eps
        mean = float(error.norm() / other.norm()) / eps
        if not (worst <= _WORST_EPS and mean <= _MEAN_EPS):
            raise ValueError(f"{case.name}: {name} is off by {worst:.1f} eps, {mean:.1f} in the mean; not timed")
        largest = max(largest, worst)
    return largest


def time_case(case: Case) -> list[Timing]:
    """Checks and times one case."""
    inputs = _inputs(case)
    error = largest_error(inputs)
    torch.cuda.empty_cache()
    forward, backward = _kernels(inputs)
    out = inputs.attend()
    calls = {
        "forward": (forward, inputs.attend, case.tflop()),
        "backward": (
            backward,
            lambda: torch.autograd.grad(out, inputs.qkv, inputs.gradient, retain_graph=True),
            2.5 * case.tflop(),
        ),
    }
    rows = []
    for direction, (kernels, call, tflop) in calls.items():
        kernels_ms = _median_ms(kernels)
        rows.append(Timing(case.name, direction, kernels_ms, _median_ms(call), tflop / kernels_ms * 1e3, error))
    return rows


def _kernels(inputs: Inputs) -> tuple[Callable[[], object], Callable[[], object]]:
    """The kernels alone, forward and backward, with their schedules made beforehand."""
    from kernels.hstu import function, schedule

    case = inputs.case
    q, k, v = (x.detach() for x in inputs.qkv)
    sequences = schedule.Sequences(inputs.offsets_B1, inputs.num_candidates_B, 0, q.shape[0])
    problem = function.Problem(sequences, case.mask, _DIM**-0.5, 1 / max(case.lengths))
    tiles = function.tile_set(q, v, case.mask)
    tables = (
        schedule.query_tiles(sequences, case.mask, tiles.forward.block_m),
        schedule.query_tiles(sequences, case.mask, tiles.dq.block_m),
        schedule.key_tiles(sequences, case.mask, tiles.dkdv.block_n),
    )
    out, dq, dk, dv = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(4))

    def backward() -> None:
        function.launch_dq((q, k, v, inputs.gradient, dq), problem, tiles.dq, tables[1])
        function.launch_dkdv((q, k, v, inputs.gradient, dk, dv), problem, tiles.dkdv, tables[2])

    return lambda: function.launch_forward((q, k, v, out), problem, tiles.forward, tables[0]), backward


def time_rulers() -> list[Timing]:
    """What the card does now: a matrix product, and softmax attention by cuDNN at the full case's shape."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=_DTYPE) for _ in range(2))
    product_ms = _median_ms(lambda: a @ b)
    rows = [Timing("matrix product, 8192^3", "forward", None, product_ms, 2 * 8192**3 / product_ms / 1e9, None)]
    q, k, v = (torch.randn(8, _HEADS, 16_384, _DIM, device="cuda", dtype=_DTYPE, requires_grad=True) for _ in range(3))
    tflop = 4 * _DIM * _HEADS * 8 * (16_384 * 16_385 // 2) / 1e12
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        out = scaled_dot_product_attention(q, k, v, is_causal=True)
        gradient = torch.randn_like(out)
        ms = _median_ms(lambda: scaled_dot_product_attention(q, k, v, is_causal=True))
        rows.append(Timing("cuDNN causal softmax, 16,384 x 8", "forward", None, ms, tflop / ms * 1e3, None))
        ms = _median_ms(lambda: torch.autograd.grad(out, (q, k, v), gradient, retain_graph=True))
        rows.append(Timing("cuDNN causal softmax, 16,384 x 8", "backward", None, ms, 2.5 * tflop / ms * 1e3, None))
    return rows


def _median_ms(run: Callable[[], object]) -> float:
    from triton.testing import do_bench

    return float(do_bench(run, warmup=25, rep=150, return_mode="median"))


def _write(rows: list[Timing]) -> None:
    import triton

    report = {
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "timings": [asdict(row) for row in rows],
    }
    _OUT.parent.mkdir(parents=True, exist_ok=True)
    partial = _OUT.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    os.replace(partial, _OUT)


def main() -> None:
    """Prints the table and writes it as JSON."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not torch.cuda.is_available():
        logger.info("kernels.bench needs a GPU, this machine has none; nothing was timed")
        return
    logger.info("%-34s %-9s %10s %9s %9s %9s", "case", "", "kernels ms", "call ms", "TFLOP/s", "error eps")
    rows = []
    for measure in (time_rulers, *(lambda case=case: time_case(case) for case in cases()), time_rulers):
        for row in measure():
            rows.append(row)
            cells = (row.kernels_ms, row.call_ms, row.tflop_per_s, row.error_eps)
            formats = ("10.3f", "9.3f", "9.0f", "9.2f")
            text = [
                f"{'-':>{form.split('.')[0]}}" if x is None else f"{x:{form}}"
                for x, form in zip(cells, formats, strict=True)
            ]
            logger.info("%-34s %-9s %s", row.case, row.direction, " ".join(text))
        torch.cuda.empty_cache()
    _write(rows)


if __name__ == "__main__":
    main()
