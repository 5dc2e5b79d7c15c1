"""What the card does at the moment, for it slows down under load: a matrix product, a copy, and cuDNN's attention."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from kernels.bench.timing import DTYPE, Rulers, Shape, Timing, cool_down, median_ms


def measure_rulers() -> Rulers:
    """A product of 8192^3 and a copy of 512 MB."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=DTYPE) for _ in range(2))
    cool_down()
    product_ms = median_ms(lambda: a @ b)
    source, target = (torch.empty(1 << 29, dtype=torch.int8, device="cuda") for _ in range(2))
    copy_ms = median_ms(lambda: target.copy_(source))
    return Rulers(2 * 8192**3 / product_ms / 1e9, 2 * source.numel() / copy_ms / 1e6)


def time_rulers(rulers: Rulers, shape: Shape) -> list[Timing]:
    """Rows of the rulers, and softmax attention by cuDNN at the full case's shape."""
    rows = [
        Timing(
            "matrix product, 8192^3", "forward", 2 * 8192**3 / rulers.tflop_per_s / 1e9, rulers.tflop_per_s, "TFLOP/s"
        ),
        Timing("copy, 512 MB", "", 2 * (1 << 29) / rulers.gbyte_per_s / 1e6, rulers.gbyte_per_s, "GB/s"),
    ]
    size = (shape.num_requests, shape.num_heads, shape.length, shape.head_dim)
    q, k, v = (torch.randn(size, device="cuda", dtype=DTYPE, requires_grad=True) for _ in range(3))
    pairs = shape.num_requests * shape.length * (shape.length + 1) // 2
    tflop = 4 * shape.head_dim * shape.num_heads * pairs / 1e12
    name = f"cuDNN causal softmax, {shape.length:,} x {shape.num_requests}"
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        out = scaled_dot_product_attention(q, k, v, is_causal=True)
        gradient = torch.randn_like(out)
        for part, factor, run in (
            ("forward", 1.0, lambda: scaled_dot_product_attention(q, k, v, is_causal=True)),
            ("backward", 2.5, lambda: torch.autograd.grad(out, (q, k, v), gradient, retain_graph=True)),
        ):
            ms = median_ms(run)
            rate = factor * tflop / ms * 1e3
            rows.append(Timing(name, part, ms, rate, "TFLOP/s", rate / rulers.tflop_per_s))
    return rows
