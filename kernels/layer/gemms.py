"""Launches the matrix product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.carriers import Matrix, Projections, QuantisedRows
from kernels.hstu.function import backend
from kernels.launch import block_descriptor, cdiv, num_multiprocessors
from kernels.layer.gemm_kernels import gemm_kernel


@dataclass(frozen=True)
class GemmTiles:
    """Launch settings.

    Attributes:
        block_m: rows of an output tile.
        block_n: columns of an output tile.
        block_k: depth of a step.
        warps: warps of a program.
        stages: steps in flight.
        programs_per_sm: persistent programs a multiprocessor.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    programs_per_sm: int = 1


_SMALL = GemmTiles(32, 32, 32, 4, 1)
_HIP = GemmTiles(128, 128, 32, 8, 2)
_CUDA_16 = GemmTiles(128, 256, 64, 8, 3)
_CUDA_8 = GemmTiles(128, 256, 128, 8, 3)
# A residual and a second output want shared memory of their own.
_CUDA_16_WIDE = GemmTiles(128, 128, 64, 8, 4)
_CUDA_8_WIDE = GemmTiles(128, 128, 128, 8, 4)
_GROUP_M = 8


def choose_gemm_tiles(*, dtype: torch.dtype, where: str, wide: bool) -> GemmTiles:
    """The settings for operands of a dtype on a backend; `wide` when there is a residual."""
    if where == "interpreter" or dtype == torch.float32:
        return _SMALL
    if where == "hip":
        return _HIP
    if dtype.itemsize == 1:
        return _CUDA_8_WIDE if wide else _CUDA_8
    return _CUDA_16_WIDE if wide else _CUDA_16


@dataclass(frozen=True)
class Epilogue:
    """What happens to a product on its way to memory.

    Attributes:
        bias: (N,) added to every row.
        residual: (M, N) added at the end.
        silu: whether SiLU is applied in between.
        pre: (M, N) to write what SiLU gets, or None.
    """

    bias: Tensor | None = None
    residual: Tensor | None = None
    silu: bool = False
    pre: Tensor | None = None


def linear(
    x: Matrix, weight: Matrix, *, dtype: torch.dtype, bias_N: Tensor | None, residual_TN: Tensor | None
) -> Tensor:
    """x weight^T + bias + residual."""
    out = torch.empty(_values(x).shape[0], _values(weight).shape[0], dtype=dtype, device=_values(x).device)
    launch(x, weight, out, Epilogue(bias=bias_N, residual=residual_TN))
    return out


def project_uvqk(
    x: Matrix, weight: Matrix, bias_N: Tensor, *, num_gates: int, dtype: torch.dtype, keep_pre: bool
) -> Projections:
    """SiLU(x weight^T + bias) in two matrices, and what SiLU got instead of the first."""
    rows, columns, device = _values(x).shape[0], _values(weight).shape[0], _values(x).device
    gates, others = _split(weight, num_gates)
    vqk = torch.empty(rows, columns - num_gates, dtype=dtype, device=device)
    if not keep_pre:
        u = torch.empty(rows, num_gates, dtype=dtype, device=device)
        launch(x, gates, u, Epilogue(bias=bias_N[:num_gates], silu=True))
        launch(x, others, vqk, Epilogue(bias=bias_N[num_gates:], silu=True))
        return Projections(u, vqk)
    pre = torch.empty(rows, columns, dtype=dtype, device=device)
    launch(x, gates, pre[:, :num_gates], Epilogue(bias=bias_N[:num_gates]))
    launch(x, others, vqk, Epilogue(bias=bias_N[num_gates:], silu=True, pre=pre[:, num_gates:]))
    return Projections(vqk[:, :0], vqk, pre)


def launch(x: Matrix, weight: Matrix, out: Tensor, epilogue: Epilogue, *, tiles: GemmTiles | None = None) -> None:
    """Writes `out`.

    Raises:
        ValueError: operands do not fit together.
        NotImplementedError: the kernel cannot take them.
    """
    a, b = _values(x), _values(weight)
    _check(x, weight)
    (num_rows, depth), num_columns = a.shape, b.shape[0]
    if num_rows == 0 or num_columns == 0:
        return
    where = backend()
    tiles = tiles or choose_gemm_tiles(
        dtype=a.dtype, where=where, wide=epilogue.residual is not None or epilogue.pre is not None
    )
    matrices = (a, b, epilogue.residual, out, epilogue.pre)
    tma = where == "cuda" and a.dtype != torch.float32 and all(y is None or _fits_descriptor(y) for y in matrices)
    blocks = ((tiles.block_m, tiles.block_k), (tiles.block_n, tiles.block_k), *[(tiles.block_m, tiles.block_n)] * 3)
    num_tiles = cdiv(num_rows, tiles.block_m) * cdiv(num_columns, tiles.block_n)
    programs = min(num_tiles, num_multiprocessors(a.device) * tiles.programs_per_sm)
    scaled = isinstance(x, QuantisedRows)
    with torch.cuda.device_of(a):
        gemm_kernel[(programs,)](
            *(_source(y, block, tma=tma) for y, block in zip(matrices, blocks, strict=True)),
            *((x.scale_T, weight.scale_T) if scaled else (None, None)), epilogue.bias,  # type: ignore[union-attr]
            num_rows, num_columns, depth, *(0 if y is None else y.stride(0) for y in matrices),
            SCALED=scaled, BIAS=epilogue.bias is not None,
            RESIDUAL=epilogue.residual is not None, SILU=epilogue.silu, PRE=epilogue.pre is not None,
            FAST_TANH=where == "cuda" and out.dtype != torch.float32, PRECISION="ieee", TMA=tma, PROGRAMS=programs,
            BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, BLOCK_K=tiles.block_k, GROUP_M=_GROUP_M,
            STAGES=tiles.stages, num_warps=tiles.warps,
        )  # fmt: skip


def _split(matrix: Matrix, rows: int) -> tuple[Matrix, Matrix]:
    if isinstance(matrix, QuantisedRows):
        values, scale = matrix.values_TD, matrix.scale_T
        return QuantisedRows(values[:rows], scale[:rows]), QuantisedRows(values[rows:], scale[rows:])
    return matrix[:rows], matrix[rows:]


def _source(matrix: Tensor | None, block: tuple[int, int], *, tma: bool) -> Any:
    if matrix is None or not tma:
        return matrix
    return block_descriptor(matrix, matrix.shape, matrix.stride(), block)


def _fits_descriptor(matrix: Tensor) -> bool:
    aligned = matrix.data_ptr() % 16 == 0 and matrix.stride(0) * matrix.element_size() % 16 == 0
    return matrix.stride(1) == 1 and aligned


def _check(x: Matrix, weight: Matrix) -> None:
    a, b = _values(x), _values(weight)
    if isinstance(x, QuantisedRows) != isinstance(weight, QuantisedRows):
        raise ValueError("x and weight are quantised together or not at all")
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or a.dtype != b.dtype:
        raise ValueError(f"x {tuple(a.shape)} {a.dtype} and weight {tuple(b.shape)} {b.dtype} make no x weight^T")
    if a.stride(1) != 1 or b.stride(1) != 1:
        raise NotImplementedError(f'impl "triton" needs columns side by side, not strides {a.stride()}, {b.stride()}')


def _values(matrix: Matrix) -> Tensor:
    return matrix.values_TD if isinstance(matrix, QuantisedRows) else matrix
