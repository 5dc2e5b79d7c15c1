"""Norms, products and the whole layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields

import torch
from torch import Tensor

from kernels.bench.timing import (
    DTYPE,
    Rulers,
    Shape,
    Timing,
    checked,
    compute_row,
    cool_down,
    median_ms,
    memory_row,
    recorded,
)
from kernels.carriers import GatedNorm, Matrix, QuantisedRows, STUSettings, STUWeights
from kernels.gemm import linear, project_uvqk
from kernels.jagged import lengths_to_offsets
from kernels.layer import gemms, norms
from kernels.layer.norms import GatedGradients, GatedInputs
from kernels.mask import AttentionMask
from kernels.norm import gated_norm, layer_norm, quantise_rows
from kernels.plan import AttentionPlan
from kernels.stu import stu_layer


def _randn(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda").to(DTYPE)


def time_norms(shape: Shape, rulers: Rulers) -> Iterator[Timing]:
    """Each norm once over its tensors; a copy of as many bytes is the bound."""
    rows, dim = shape.length * shape.num_requests, shape.dim
    x, u, dy = (_randn(rows, dim) for _ in range(3))
    weight, bias = (torch.randn(dim, device="cuda") for _ in range(2))
    plain, dropped = GatedNorm(1e-6), GatedNorm(1e-6, dropout=0.2)
    inputs = GatedInputs(x, u, weight, bias, 3)
    target = GatedGradients(*(torch.empty_like(x) for _ in range(3)))
    doubles = [y.double() for y in (x[:4096], u[:4096], weight, bias)]
    exact_norm = layer_norm(doubles[0], *doubles[2:], epsilon=1e-6, impl="reference")
    exact_gate = gated_norm(*doubles, settings=plain, impl="reference")
    norm_error = checked("layer norm", norms.layer_norm_forward(x, weight, bias, 1e-6)[:4096], exact_norm)
    gate_error = checked("gated norm", norms.gated_norm_forward(inputs, plain)[:4096], exact_gate)

    def backward() -> object:
        return norms.layer_norm_backward(dy, x, weight, 1e-6, residual=dy)

    cases: list[tuple[str, str, Callable[[], object], int, float | None]] = [
        ("layer norm", "forward", lambda: norms.layer_norm_forward(x, weight, bias, 1e-6), 4, norm_error),
        ("layer norm to fp8", "forward", lambda: norms.layer_norm_quantised(x, weight, bias, 1e-6), 3, None),
        (
            "layer norm and residual",
            "backward",
            lambda: norms.layer_norm_backward(dy, x, weight, 1e-6, residual=dy),
            8,
            None,
        ),
        ("gated norm", "forward", lambda: norms.gated_norm_forward(inputs, plain), 6, gate_error),
        ("gated norm, dropout", "forward", lambda: norms.gated_norm_forward(inputs, dropped), 6, None),
        ("gated norm to fp8", "forward", lambda: norms.gated_norm_quantised(inputs, plain), 5, None),
        ("gated norm", "backward", lambda: norms.gated_norm_backward(dy, inputs, plain, target), 12, None),
        ("gated norm, dropout", "backward", lambda: norms.gated_norm_backward(dy, inputs, dropped, target), 12, None),
    ]
    for name, part, run, bytes_per_element, error in cases:
        gbyte = rows * dim * bytes_per_element / 1e9
        yield memory_row(name, part, median_ms(run), gbyte, rulers, error_eps=error)


def time_products(shape: Shape, rulers: Rulers) -> Iterator[Timing]:
    """The UVQK projection with SiLU, and square products with a residual."""
    for precision in ("bf16", "fp8"):
        yield _time_projection(shape, precision, rulers)
        torch.cuda.empty_cache()
    for dim in (512, 1024):
        for precision in ("bf16", "fp8", "torch.addmm"):
            yield _time_product(shape.product_rows, dim, precision, rulers)
            torch.cuda.empty_cache()


def _operand(rows: int, columns: int, precision: str) -> Matrix:
    values = _randn(rows, columns)
    return quantise_rows(values, impl="triton") if precision == "fp8" else values


def _head(matrix: Matrix, rows: int) -> Matrix:
    if isinstance(matrix, QuantisedRows):
        return QuantisedRows(matrix.values_TD[:rows], matrix.scale_T[:rows])
    return matrix[:rows]


def _time_projection(shape: Shape, precision: str, rulers: Rulers) -> Timing:
    tokens, columns = shape.length * shape.num_requests, 4 * shape.num_heads * shape.head_dim
    x, weight = _operand(tokens, shape.dim, precision), _operand(columns, shape.dim, precision)
    bias = torch.randn(columns, device="cuda")

    def project(x: Matrix, dtype: torch.dtype, impl: str) -> Tensor:
        return project_uvqk(x, weight, bias, num_gates=columns // 4, dtype=dtype, impl=impl).vqk_TN

    exact = project(_head(x, 8192), torch.float32, "reference")
    error = checked(f"projection {precision}", project(x, DTYPE, "triton")[:8192], exact)
    ms = median_ms(lambda: project(x, DTYPE, "triton"))
    tflop = 2 * tokens * shape.dim * columns / 1e12
    return compute_row(f"projection and SiLU, {precision}", "forward", ms, tflop, rulers, error_eps=error)


def _time_product(rows: int, dim: int, precision: str, rulers: Rulers) -> Timing:
    residual = _randn(rows, dim)
    name, tflop = f"product {dim} x {dim} and residual, {rows:,} tokens, {precision}", 2 * rows * dim * dim / 1e12
    cool_down()
    if precision == "torch.addmm":
        a, b = _randn(rows, dim), _randn(dim, dim)
        return compute_row(name, "forward", median_ms(lambda: torch.addmm(residual, a, b)), tflop, rulers)
    x, weight = _operand(rows, dim, precision), _operand(dim, dim, precision)
    out = torch.empty_like(residual)

    def multiply() -> None:
        gemms.launch(x, weight, out, gemms.Epilogue(residual=residual))

    multiply()
    exact = linear(_head(x, 8192), weight, impl="reference", dtype=torch.float32, residual_TN=residual[:8192].float())
    error = checked(f"product {precision}", out[:8192], exact)
    return compute_row(name, "forward", median_ms(multiply), tflop, rulers, error_eps=error)


def time_layers(shape: Shape, rulers: Rulers) -> Iterator[Timing]:
    """Forward, and forward and backward, with dropout; what is saved between them and the peak."""
    semi_local, full = AttentionMask(shape.local_window, shape.global_window), AttentionMask(1 << 20, 0)
    for name, mask in (("semi-local", semi_local), ("full", full)):
        for gemm in ("full", "fp8"):
            settings = STUSettings(
                shape.num_heads, shape.head_dim, shape.head_dim, shape.head_dim**-0.5, 1 / shape.length, mask, 1e-6,
                GatedNorm(1e-6 / shape.length**2, dropout=0.2), "fp8" if gemm == "fp8" else "full",
            )  # fmt: skip
            yield from _time_layer(f"layer, {name}, {'fp8' if gemm == 'fp8' else 'bf16'}", settings, shape)
            torch.cuda.empty_cache()


def _time_layer(name: str, settings: STUSettings, shape: Shape) -> Iterator[Timing]:
    lengths = torch.full((shape.num_requests,), shape.length, device="cuda")
    tokens = shape.length * shape.num_requests
    plan = AttentionPlan(lengths_to_offsets(lengths), torch.full_like(lengths, shape.num_candidates), 0, tokens)
    weights = _weights(settings, shape.dim)
    parameters = [getattr(weights, field.name) for field in fields(STUWeights)]
    z, gradient = _randn(tokens, shape.dim).requires_grad_(True), _randn(tokens, shape.dim)

    def both() -> None:
        out = stu_layer(z, weights, plan, settings, impl="triton", seed=3)
        torch.autograd.grad(out, [z, *parameters], gradient)

    def forward() -> None:
        with torch.no_grad():
            stu_layer(z, weights, plan, settings, impl="triton", seed=3)

    both()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = stu_layer(z, weights, plan, settings, impl="triton", seed=3)
    saved = torch.cuda.memory_allocated() - before - out.untyped_storage().nbytes()
    torch.autograd.grad(out, [z, *parameters], gradient)
    torch.cuda.synchronize()
    note = f"saved {saved / tokens:.0f} B/token beside z, peak {(torch.cuda.max_memory_allocated() - before) >> 20} MiB"
    del out
    for part, run in (("forward", forward), ("forward and backward", both)):
        cool_down()
        call_ms, ms = median_ms(run), median_ms(recorded(run).replay)
        yield Timing(name, part, ms, tokens / ms / 1e3, "Mtoken/s", call_ms=call_ms, note=note)


def _weights(settings: STUSettings, dim: int) -> STUWeights:
    columns, gate = sum(settings.sizes), settings.sizes[0]
    values = [
        torch.ones(dim), torch.zeros(dim), torch.randn(columns, dim) / dim**0.5, torch.zeros(columns),
        torch.ones(gate), torch.zeros(gate), torch.randn(dim, gate) / gate**0.5,
    ]  # fmt: skip
    return STUWeights(*(value.cuda().requires_grad_(True) for value in values))
