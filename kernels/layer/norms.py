"""Launches the norm kernels and gives them to autograd."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.carriers import FP8, GatedNorm, QuantisedRows
from kernels.hstu.function import backend
from kernels.launch import cdiv, next_power_of_2
from kernels.layer.norm_kernels import (
    gated_norm_bwd_kernel,
    gated_norm_fwd_kernel,
    layer_norm_bwd_kernel,
    layer_norm_fwd_kernel,
    quantise_rows_kernel,
    silu_bwd_kernel,
)

# Elements that a warp holds at once, and rows that a program holds at most; backward kernels hold more tensors.
_ELEMENTS_PER_WARP = 1024
_FORWARD_ROWS, _LAYER_NORM_BACKWARD_ROWS, _GATED_BACKWARD_ROWS = 4, 1, 2
_MAX_COLUMNS = 8192
# Rows of a backward kernel that run at once; each program leaves one row of partial sums.
_BACKWARD_ROWS_AT_ONCE = 132 * 16


@dataclass(frozen=True)
class RowTiles:
    """Launch settings of a kernel that holds whole rows."""

    groups: int
    dim: int
    block: int
    rows: int

    @classmethod
    @cache
    def of(cls, columns: int, groups: int = 1, *, rows: int = _FORWARD_ROWS) -> RowTiles:
        """For rows of so many columns, `rows` of them at most.

        Raises:
            NotImplementedError: more columns than a program can hold, or groups that are no power of two.
        """
        if columns > _MAX_COLUMNS or groups & (groups - 1):
            raise NotImplementedError(
                f'impl "triton" takes rows of up to {_MAX_COLUMNS} columns in 1, 2, 4, ... groups, '
                f"not {columns} in {groups}"
            )
        block = next_power_of_2(columns // groups)
        return cls(groups, columns // groups, block, max(1, min(rows, 8 * _ELEMENTS_PER_WARP // (groups * block))))

    @cached_property
    def fixed(self) -> dict[str, int]:
        """The kernels' compile-time arguments, apart from groups."""
        warps = self.rows * self.groups * self.block // _ELEMENTS_PER_WARP
        return {"DIM": self.dim, "BLOCK": self.block, "ROWS": self.rows, "num_warps": max(1, min(warps, 8))}


def quantise_rows(x_TD: Tensor) -> QuantisedRows:
    """Rows in e4m3 with their scales."""
    tiles, out = RowTiles.of(x_TD.shape[1]), _empty_quantised(x_TD)
    if x_TD.numel() > 0:
        with torch.cuda.device_of(x_TD):
            quantise_rows_kernel[(cdiv(x_TD.shape[0], tiles.rows),)](
                x_TD, out.values_TD, out.scale_T, x_TD.shape[0], x_TD.stride(0), x_TD.shape[1], **tiles.fixed
            )
    return out


def layer_norm_forward(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """LayerNorm without autograd."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _launch_layer_norm(x, weight, bias, epsilon, out=out)
    return out


def layer_norm_quantised(x_TD: Tensor, weight_D: Tensor, bias_D: Tensor, epsilon: float) -> QuantisedRows:
    """LayerNorm in e4m3."""
    quantised = _empty_quantised(x_TD)
    _launch_layer_norm(x_TD, weight_D, bias_D, epsilon, quantised=quantised)
    return quantised


def layer_norm_both(x_TD: Tensor, weight_D: Tensor, bias_D: Tensor, epsilon: float) -> tuple[Tensor, QuantisedRows]:
    """LayerNorm and the same in e4m3."""
    out, quantised = torch.empty_like(x_TD, memory_format=torch.contiguous_format), _empty_quantised(x_TD)
    _launch_layer_norm(x_TD, weight_D, bias_D, epsilon, out=out, quantised=quantised)
    return out, quantised


def _launch_layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    epsilon: float,
    *,
    out: Tensor | None = None,
    quantised: QuantisedRows | None = None,
) -> None:
    tiles = RowTiles.of(x.shape[1])
    values, scales = (None, None) if quantised is None else (quantised.values_TD, quantised.scale_T)
    if x.numel() > 0:
        with torch.cuda.device_of(x):
            layer_norm_fwd_kernel[(cdiv(x.shape[0], tiles.rows),)](
                x, weight, bias, out, values, scales, x.shape[0], x.stride(0), epsilon,
                FULL=out is not None, QUANTISE=quantised is not None, **tiles.fixed,
            )  # fmt: skip


@dataclass(frozen=True)
class NormGradients:
    """Gradients of a norm: of its input, its weight and its bias."""

    input: Tensor
    weight: Tensor
    bias: Tensor


def layer_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor, epsilon: float, *, residual: Tensor | None = None
) -> NormGradients:
    """Gradients of LayerNorm; `residual` is added to the input's."""
    tiles = RowTiles.of(x.shape[1], rows=_LAYER_NORM_BACKWARD_ROWS)
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    programs, rows_per_program = _backward_grid(x.shape[0], tiles.rows)
    shares = torch.empty(programs, 2, x.shape[1], device=x.device)
    if programs > 0:
        with torch.cuda.device_of(x):
            layer_norm_bwd_kernel[(programs,)](
                dy, x, weight, residual, dx, shares,
                x.shape[0], dy.stride(0), x.stride(0), 0 if residual is None else residual.stride(0), dx.stride(0),
                epsilon, rows_per_program, RESIDUAL=residual is not None, **tiles.fixed,
            )  # fmt: skip
    return NormGradients(dx, *shares.sum(0).to(weight.dtype).unbind())


def layer_norm(x_TD: Tensor, weight_D: Tensor, bias_D: Tensor, epsilon: float) -> Tensor:
    """LayerNorm with autograd."""
    return _LayerNorm.apply(x_TD, weight_D, bias_D, epsilon)


class _LayerNorm(torch.autograd.Function):
    """LayerNorm that saves its input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.epsilon = epsilon
        return layer_norm_forward(x, weight, bias, epsilon)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        found = layer_norm_backward(_rows(grads[0]), x, weight, ctx.epsilon)
        return found.input, found.weight, found.bias, None


@dataclass(frozen=True)
class GatedInputs:
    """What the gated norm reads.

    Attributes:
        a: (T, E) attention; rows may be strided, as may u's.
        u: (T, E) gate.
        weight: (E,).
        bias: (E,).
        seed: of the dropout.
    """

    a: Tensor
    u: Tensor
    weight: Tensor
    bias: Tensor
    seed: int


def gated_norm_forward(inputs: GatedInputs, settings: GatedNorm) -> Tensor:
    """The gated norm without autograd."""
    out = torch.empty(inputs.a.shape, dtype=inputs.u.dtype, device=inputs.a.device)
    _launch_gated_norm(inputs, settings, out, out, quantise=False)
    return out


def gated_norm_quantised(inputs: GatedInputs, settings: GatedNorm) -> QuantisedRows:
    """The gated norm in e4m3."""
    out = _empty_quantised(inputs.a)
    _launch_gated_norm(inputs, settings, out.values_TD, out.scale_T, quantise=True)
    return out


def _launch_gated_norm(
    inputs: GatedInputs, settings: GatedNorm, out: Tensor, scales: Tensor, *, quantise: bool
) -> None:
    a, u = inputs.a, inputs.u
    tiles = RowTiles.of(a.shape[1], settings.num_groups)
    if a.numel() > 0:
        with torch.cuda.device_of(a):
            gated_norm_fwd_kernel[(cdiv(a.shape[0], tiles.rows),)](
                a, u, inputs.weight, inputs.bias, out, scales, a.shape[0], a.stride(0), u.stride(0), out.stride(0),
                settings.epsilon, *_dropped(settings.dropout), inputs.seed,
                G=tiles.groups, QUANTISE=quantise, DROPOUT=settings.dropout > 0, **tiles.fixed,
            )  # fmt: skip


@dataclass(frozen=True)
class GatedGradients:
    """Where the backward writes: gradients of a and u, which may be views of a buffer, and the forward's y again."""

    a: Tensor
    u: Tensor
    y: Tensor


def gated_norm_backward(
    dy: Tensor, inputs: GatedInputs, settings: GatedNorm, target: GatedGradients
) -> tuple[Tensor, Tensor]:
    """Writes `target`; returns the gradients of weight and bias."""
    a, u = inputs.a, inputs.u
    tiles = RowTiles.of(a.shape[1], settings.num_groups, rows=_GATED_BACKWARD_ROWS)
    programs, rows_per_program = _backward_grid(a.shape[0], tiles.rows)
    shares = torch.empty(programs, 2, a.shape[1], device=a.device)
    if programs > 0:
        with torch.cuda.device_of(a):
            gated_norm_bwd_kernel[(programs,)](
                dy, a, u, inputs.weight, inputs.bias, target.a, target.u, target.y, shares,
                a.shape[0], dy.stride(0), a.stride(0), u.stride(0),
                target.a.stride(0), target.u.stride(0), target.y.stride(0),
                settings.epsilon, *_dropped(settings.dropout), inputs.seed, rows_per_program,
                G=tiles.groups, DROPOUT=settings.dropout > 0, **tiles.fixed,
            )  # fmt: skip
    dweight, dbias = shares.sum(0).to(inputs.weight.dtype).unbind()
    return dweight, dbias


def _dropped(share: float) -> tuple[int, float]:
    """How many of 2^16 elements become 0, and the factor of the others that keeps the mean."""
    drop_below = min(round(share * 2**16), 2**16 - 1)
    return drop_below, 2**16 / (2**16 - drop_below)


def gated_norm(inputs: GatedInputs, settings: GatedNorm) -> Tensor:
    """The gated norm with autograd."""
    return _GatedNorm.apply(inputs.a, inputs.u, inputs.weight, inputs.bias, settings, inputs.seed)


class _GatedNorm(torch.autograd.Function):
    """The gated norm, which saves a and u alone."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, u: Tensor, weight: Tensor, bias: Tensor, settings: GatedNorm, seed: int) -> Tensor:
        ctx.save_for_backward(a, u, weight, bias)
        ctx.settings, ctx.seed = settings, seed
        return gated_norm_forward(GatedInputs(a, u, weight, bias, seed), settings)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        a, u, weight, bias = ctx.saved_tensors
        inputs = GatedInputs(a, u, weight, bias, ctx.seed)
        target = GatedGradients(torch.empty_like(inputs.a), torch.empty_like(inputs.u), torch.empty_like(inputs.u))
        dweight, dbias = gated_norm_backward(_rows(grads[0]), inputs, ctx.settings, target)
        return target.a, target.u, dweight, dbias, None, None


def silu_backward_(gradient_TN: Tensor, pre_TN: Tensor) -> Tensor:
    """gradient *= SiLU'(pre) in place; returns the sum of its rows in fp32."""
    num_rows, num_columns = gradient_TN.shape
    rows, columns = 32, 512
    programs, rows_per_program = _backward_grid(num_rows, rows)
    total = torch.empty(programs, num_columns, device=gradient_TN.device)
    if gradient_TN.numel() > 0:
        with torch.cuda.device_of(gradient_TN):
            silu_bwd_kernel[(programs, cdiv(num_columns, columns))](
                gradient_TN, pre_TN, total, num_rows, gradient_TN.stride(0), pre_TN.stride(0), rows_per_program,
                num_columns, ROWS=rows, COLUMNS=columns, num_warps=8,
                FAST_TANH=backend() == "cuda" and gradient_TN.dtype != torch.float32,
            )  # fmt: skip
    return total.sum(0)


def _backward_grid(num_rows: int, rows: int) -> tuple[int, int]:
    """Programs, none without rows, and the rows of each: a multiple of a tile's."""
    programs = min(cdiv(num_rows, rows), _BACKWARD_ROWS_AT_ONCE // rows)
    return programs, cdiv(cdiv(num_rows, max(programs, 1)), rows) * rows


def _rows(gradient: Tensor) -> Tensor:
    """The gradient with its columns side by side; sum() hands back one without strides."""
    return gradient if gradient.stride(1) == 1 and 0 not in gradient.stride() else gradient.contiguous()


def _empty_quantised(x: Tensor) -> QuantisedRows:
    if torch.version.hip is not None:
        raise NotImplementedError("FP8 is e4m3fn here, which AMD's gfx942 does not have")
    values = torch.empty(x.shape, dtype=FP8, device=x.device)
    return QuantisedRows(values, torch.empty(x.shape[0], dtype=torch.float32, device=x.device))
