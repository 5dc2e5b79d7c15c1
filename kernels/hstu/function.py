"""Launches the kernels and gives them to autograd."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.hstu.backward import hstu_attention_dkdv_kernel, hstu_attention_dq_kernel
from kernels.hstu.forward import hstu_attention_fwd_kernel
from kernels.hstu.schedule import Sequences, key_tiles, query_tiles
from kernels.hstu.tiles import Backend, Tiles, TileSet, choose_tiles
from kernels.mask import AttentionMask

MAX_HEAD_DIM = 256
# Positions within a request are int32 in the kernels, and a window is added to them.
_MAX_TOKENS = 1 << 30
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def hstu_attention_triton(
    q_THA: Tensor,
    k_THA: Tensor,
    v_THV: Tensor,
    *,
    offsets_B1: Tensor,
    num_contextual: int,
    num_candidates_B: Tensor,
    mask: AttentionMask,
    alpha: float,
    scale: float,
) -> Tensor:
    """The attention by Triton kernels; arguments as `kernels.hstu_attention`.

    Raises:
        NotImplementedError: device, dtype, head dim or strides are beyond the kernels.
    """
    _check_supported(q_THA, k_THA, v_THV)
    if not offsets_B1.device == num_candidates_B.device == k_THA.device == v_THV.device == q_THA.device:
        raise ValueError(f"q, k, v, offsets and num_candidates must all lie on {q_THA.device}")
    sequences = Sequences(offsets_B1.contiguous(), num_candidates_B.contiguous(), num_contextual, q_THA.shape[0])
    return _HSTUAttention.apply(q_THA, k_THA, v_THV, Problem(sequences, mask, alpha, scale))


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels: decided when Triton was imported."""
    return not isinstance(hstu_attention_fwd_kernel, triton.JITFunction)


def constants(
    *, num_heads: int, qk_dim: int, v_dim: int, mask: AttentionMask, dtype: torch.dtype, backend: Backend
) -> dict[str, Any]:
    """The compile-time arguments that the three kernels share."""
    return {
        "H": num_heads,
        "A": qk_dim,
        "V": v_dim,
        "BLOCK_A": padded_dim(qk_dim, beside=v_dim),
        "BLOCK_V": padded_dim(v_dim, beside=qk_dim),
        "GLOBAL_KEYS": mask.global_axis == "keys",
        # PTX alone has the instruction, and its error is above fp32's.
        "FAST_TANH": backend == "cuda" and dtype != torch.float32,
        "PRECISION": "ieee",
    }


@dataclass(frozen=True)
class Problem:
    """What is computed, apart from q, k and v."""

    sequences: Sequences
    mask: AttentionMask
    alpha: float
    scale: float


class _HSTUAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Tensor:
        sequences = problem.sequences
        ctx.save_for_backward(q, k, v, sequences.offsets_B1, sequences.num_candidates_B)
        ctx.problem = problem
        out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
        if out.numel() > 0:
            tiles = tile_set(q, v, problem.mask).forward
            ctx.query_table = query_tiles(sequences, problem.mask, tiles.block_m)
            launch_forward((q, k, v, out), problem, tiles, ctx.query_table)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # Asking autograd for the offsets makes it notice when they were changed since.
        q, k, v, _, _ = ctx.saved_tensors
        problem = ctx.problem
        do = grads[0].contiguous()
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        if do.numel() > 0:
            tiles = tile_set(q, v, problem.mask)
            table = ctx.query_table
            if tiles.dq.block_m != tiles.forward.block_m:
                table = query_tiles(problem.sequences, problem.mask, tiles.dq.block_m)
            launch_dq((q, k, v, do, dq), problem, tiles.dq, table)
            table = key_tiles(problem.sequences, problem.mask, tiles.dkdv.block_n)
            launch_dkdv((q, k, v, do, dk, dv), problem, tiles.dkdv, table)
        return dq, dk, dv, None


def launch_forward(tensors: tuple[Tensor, ...], problem: Problem, tiles: Tiles, table: Tensor) -> None:
    """Writes out of (q, k, v, out)."""
    _launch(hstu_attention_fwd_kernel, tensors, problem, tiles, table, (problem.scale,))


def launch_dq(tensors: tuple[Tensor, ...], problem: Problem, tiles: Tiles, table: Tensor) -> None:
    """Writes dq of (q, k, v, do, dq)."""
    _launch(hstu_attention_dq_kernel, tensors, problem, tiles, table, (problem.alpha * problem.scale,))


def launch_dkdv(tensors: tuple[Tensor, ...], problem: Problem, tiles: Tiles, table: Tensor) -> None:
    """Writes dk and dv of (q, k, v, do, dk, dv)."""
    scales = (problem.alpha * problem.scale, problem.scale)
    _launch(hstu_attention_dkdv_kernel, tensors, problem, tiles, table, scales)


def _launch(
    kernel: Any,
    tensors: tuple[Tensor, ...],
    problem: Problem,
    tiles: Tiles,
    table: Tensor,
    scales: tuple[float, ...],
) -> None:
    q, _, v = tensors[:3]
    sequences = problem.sequences
    fixed = constants(
        num_heads=q.shape[1],
        qk_dim=q.shape[2],
        v_dim=v.shape[2],
        mask=problem.mask,
        dtype=q.dtype,
        backend=_backend(),
    )
    # The launcher takes the current device, which need not be the tensors'.
    with torch.cuda.device_of(q):
        kernel[(table.shape[0] * fixed["H"],)](
            *tensors,
            sequences.offsets_B1,
            sequences.num_candidates_B,
            table,
            *(stride for values in tensors for stride in values.stride()[:2]),
            *_windows(sequences, problem.mask),
            problem.alpha / 2,
            *scales,
            **fixed,
            BLOCK_M=tiles.block_m,
            BLOCK_N=tiles.block_n,
            STAGES=tiles.stages,
            num_warps=tiles.warps,
        )


def _windows(sequences: Sequences, mask: AttentionMask) -> tuple[int, int, int]:
    """num_contextual, K1 and K2; a window beyond all tokens sees no more than one of their number."""
    total = sequences.total
    return sequences.num_contextual, min(mask.local_window, total), min(mask.global_window, total)


def tile_set(q: Tensor, v: Tensor, mask: AttentionMask) -> TileSet:
    """The launch settings for these tensors."""
    qk_dim, v_dim = q.shape[2], v.shape[2]
    dim = max(padded_dim(qk_dim, beside=v_dim), padded_dim(v_dim, beside=qk_dim))
    return choose_tiles(dim=dim, dtype=q.dtype, local_window=mask.local_window, backend=_backend())


def padded_dim(dim: int, *, beside: int) -> int:
    """Columns of a tile: a power of two from 32 on, and from 64 on when the other head dim is that wide.

    Triton 3.6 compiles values of 32 columns beside keys of 64 or more to wrong code for Hopper.
    """
    return max(32, triton.next_power_of_2(dim), min(64, triton.next_power_of_2(beside)))


def _backend() -> Backend:
    if interpreted():
        return "interpreter"
    return "cuda" if torch.version.hip is None else "hip"


def _check_supported(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.device.type != "cuda" and not interpreted():
        raise NotImplementedError(
            f'impl "triton" needs a GPU, the tensors lie on {q.device}; "reference" runs anywhere'
        )
    dtypes = (torch.float32,) if interpreted() else _DTYPES
    if q.dtype not in dtypes:
        raise NotImplementedError(f'impl "triton" computes in {", ".join(map(str, dtypes))}, not in {q.dtype}')
    for name, values in (("q", q), ("k", k), ("v", v)):
        if values.shape[2] > MAX_HEAD_DIM or values.shape[2] == 0:
            raise NotImplementedError(
                f'impl "triton" takes head dims 1 to {MAX_HEAD_DIM}, {name} is {tuple(values.shape)}'
            )
        if values.shape[2] > 1 and values.stride(2) != 1:
            raise NotImplementedError(
                f'impl "triton" needs each head\'s values side by side, {name} has strides {values.stride()}'
            )
    if q.shape[0] >= _MAX_TOKENS:
        raise NotImplementedError(f'impl "triton" takes fewer than {_MAX_TOKENS} tokens, q has {q.shape[0]}')
