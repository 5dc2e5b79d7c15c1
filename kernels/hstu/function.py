"""Launches the attention kernels and gives them to autograd."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.hstu.backward import hstu_attention_dkdv_kernel, hstu_attention_dq_kernel
from kernels.hstu.forward import hstu_attention_fwd_kernel, sum_parts_kernel
from kernels.hstu.plan import WorkItems, key_items, query_items
from kernels.hstu.tiles import Backend, Tiles, TileSet, choose_tiles
from kernels.launch import block_descriptor, next_power_of_2
from kernels.mask import AttentionMask
from kernels.plan import AttentionPlan

MAX_HEAD_DIM = 256
# Positions within a request and rows are int32 in the kernels, and a window is added to them.
_MAX_TOKENS = 1 << 30
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_SUM_ROWS = 16


@dataclass(frozen=True)
class Problem:
    """What is computed, apart from q, k and v."""

    plan: AttentionPlan
    mask: AttentionMask
    alpha: float
    scale: float


def hstu_attention_triton(q_THA: Tensor, k_THA: Tensor, v_THV: Tensor, problem: Problem) -> Tensor:
    """The attention by Triton kernels.

    Raises:
        NotImplementedError: device, dtype, head dim or strides are beyond the kernels.
    """
    check_supported(q_THA, k_THA, v_THV)
    plan = problem.plan
    if not plan.offsets_B1.device == plan.num_candidates_B.device == k_THA.device == v_THV.device == q_THA.device:
        raise ValueError(f"q, k, v, offsets and num_candidates must all lie on {q_THA.device}")
    return _HSTUAttention.apply(q_THA, k_THA, v_THV, problem)


class _HSTUAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Tensor:
        ctx.save_for_backward(q, k, v, problem.plan.offsets_B1, problem.plan.num_candidates_B)
        ctx.problem = problem
        return attention_forward(q, k, v, problem)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # Asking autograd for the offsets makes it notice when they were changed since.
        q, k, v, _, _ = ctx.saved_tensors
        gradients = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        attention_backward((q, k, v), grads[0], gradients, ctx.problem)
        return *gradients, None


def attention_forward(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Tensor:
    """The output, without autograd."""
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    if out.numel() > 0:
        tiles = tile_set(q, v, problem.mask)
        work = query_work(problem, tiles.forward, num_heads=q.shape[1], dim=padded_dim(v.shape[2], beside=q.shape[2]))
        launch_forward((q, k, v, out), problem, tiles, work)
    return out


def attention_backward(qkv: tuple[Tensor, ...], do: Tensor, gradients: tuple[Tensor, ...], problem: Problem) -> None:
    """Writes dq, dk and dv, which may be views of one buffer."""
    q, k, v = qkv
    if v.numel() == 0:
        return
    if do.stride(-1) != 1 or 0 in do.stride():
        do = do.contiguous()
    dq, dk, dv = gradients
    tiles = tile_set(q, v, problem.mask)
    work = query_work(problem, tiles.dq, num_heads=q.shape[1], dim=padded_dim(q.shape[2], beside=v.shape[2]))
    launch_dq((q, k, v, do, dq), problem, tiles, work)
    keys = key_items(problem.plan, problem.mask, tiles.dkdv.block_n)
    launch_dkdv((q, k, v, do, dk, dv), problem, tiles, keys)


def query_work(problem: Problem, tiles: Tiles, *, num_heads: int, dim: int) -> WorkItems:
    """The plan's items for these tiles; `dim` columns are summed."""
    slot_elements = num_heads * tiles.block_m * dim
    return query_items(problem.plan, problem.mask, block=tiles.block_m, chunk=tiles.chunk, slot_elements=slot_elements)


def launch_forward(tensors: tuple[Tensor, ...], problem: Problem, tiles: TileSet, work: WorkItems) -> None:
    """Writes out of (q, k, v, out)."""
    q, k, v, out = tensors
    settings = tiles.forward
    blocks = (settings.block_m, settings.block_n, settings.block_n)
    sources = _sources((q, k, v), blocks, tma=tiles.tma)
    parts = _parts(work, settings, out, dim=padded_dim(v.shape[2], beside=q.shape[2]))
    fixed = {"TWO_LOOPS": settings.two_loops}
    _launch(
        hstu_attention_fwd_kernel, (*sources, out, parts), tensors, problem, settings, work, (problem.scale,), fixed
    )
    _add_parts(parts, out, work, settings, problem.scale)


def launch_dq(tensors: tuple[Tensor, ...], problem: Problem, tiles: TileSet, work: WorkItems) -> None:
    """Writes dq of (q, k, v, do, dq)."""
    q, k, v, do, dq = tensors
    settings, scale = tiles.dq, problem.alpha * problem.scale
    blocks = (settings.block_m, settings.block_n, settings.block_n, settings.block_m)
    sources = _sources((q, k, v, do), blocks, tma=tiles.tma)
    parts = _parts(work, settings, dq, dim=padded_dim(q.shape[2], beside=v.shape[2]))
    _launch(hstu_attention_dq_kernel, (*sources, dq, parts), tensors, problem, settings, work, (scale,), {})
    _add_parts(parts, dq, work, settings, scale)


def launch_dkdv(tensors: tuple[Tensor, ...], problem: Problem, tiles: TileSet, work: WorkItems) -> None:
    """Writes dk and dv of (q, k, v, do, dk, dv)."""
    q, k, v, do, dk, dv = tensors
    settings = tiles.dkdv
    blocks = (settings.block_m, settings.block_n, settings.block_n, settings.block_m)
    sources = _sources((q, k, v, do), blocks, tma=tiles.tma)
    scales = (problem.alpha * problem.scale, problem.scale)
    _launch(hstu_attention_dkdv_kernel, (*sources, dk, dv), tensors, problem, settings, work, scales, {})


def _launch(
    kernel: Any,
    arguments: tuple[Any, ...],
    tensors: tuple[Tensor, ...],
    problem: Problem,
    tiles: Tiles,
    work: WorkItems,
    scales: tuple[float, ...],
    fixed: dict[str, Any],
) -> None:
    q, _, v = tensors[:3]
    shared = constants(
        num_heads=q.shape[1], qk_dim=q.shape[2], v_dim=v.shape[2], mask=problem.mask, dtype=q.dtype, backend=backend()
    )
    # The launcher takes the current device, which need not be the tensors'.
    with torch.cuda.device_of(q):
        kernel[(work.items_I.shape[0] * q.shape[1],)](
            *arguments,
            work.items_I,
            work.counts,
            *(stride for values in tensors for stride in values.stride()[:2]),
            *_windows(problem),
            problem.alpha / 2,
            *scales,
            **shared,
            **fixed,
            TMA=isinstance(arguments[0], TensorDescriptor),
            BLOCK_M=tiles.block_m,
            BLOCK_N=tiles.block_n,
            STAGES=tiles.stages,
            num_warps=tiles.warps,
        )


def _sources(tensors: tuple[Tensor, ...], blocks: tuple[int, ...], *, tma: bool) -> tuple[Any, ...]:
    """The tensors themselves, or descriptors of their blocks when all of them can have one."""
    if not tma or not all(_fits_descriptor(values) for values in tensors):
        return tensors
    return tuple(_descriptor(values, rows) for values, rows in zip(tensors, blocks, strict=True))


def _fits_descriptor(values: Tensor) -> bool:
    """Heads side by side, a power of two wide, everything at 16 bytes."""
    stride_t, stride_h, _ = values.stride()
    dim, size = values.shape[2], values.element_size()
    aligned = values.data_ptr() % 16 == 0 and stride_t * size % 16 == 0
    return stride_h == dim and dim in (64, 128, 256) and aligned


def _descriptor(values: Tensor, rows: int) -> TensorDescriptor:
    total, num_heads, dim = values.shape
    return block_descriptor(values, (total, num_heads * dim), (values.stride(0), 1), (rows, dim))


def _parts(work: WorkItems, tiles: Tiles, like: Tensor, *, dim: int) -> Tensor:
    shape = (work.num_slots, like.shape[1], tiles.block_m, dim)
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def _add_parts(parts: Tensor, out: Tensor, work: WorkItems, tiles: Tiles, scale: float) -> None:
    num_heads, dim = out.shape[1:]
    if work.num_slots == 0 or work.sums_S.shape[0] == 0:
        return
    with torch.cuda.device_of(out):
        sum_parts_kernel[(work.sums_S.shape[0] * num_heads * (tiles.block_m // _SUM_ROWS),)](
            parts, out, work.sums_S, work.counts, out.stride(0), out.stride(1), scale,
            H=num_heads, DIM=dim, BLOCK_D=parts.shape[3], ROWS=tiles.block_m, STEP=_SUM_ROWS,
        )  # fmt: skip


@cache
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


def _windows(problem: Problem) -> tuple[int, int, int]:
    """num_contextual, K1 and K2; a window beyond all tokens sees no more than one of their number."""
    total = problem.plan.total
    return (
        problem.plan.num_contextual,
        min(problem.mask.local_window, total),
        min(problem.mask.global_window, total),
    )


def tile_set(q: Tensor, v: Tensor, mask: AttentionMask) -> TileSet:
    """The launch settings for these tensors."""
    qk_dim, v_dim = q.shape[2], v.shape[2]
    dim = max(padded_dim(qk_dim, beside=v_dim), padded_dim(v_dim, beside=qk_dim))
    return choose_tiles(dim=dim, dtype=q.dtype, local_window=mask.local_window, backend=backend())


def padded_dim(dim: int, *, beside: int) -> int:
    """Columns of a tile: a power of two from 32 on, and from 64 on when the other head dim is that wide.

    Triton 3.6 compiles values of 32 columns beside keys of 64 or more to wrong code for Hopper.
    """
    return max(32, next_power_of_2(dim), min(64, next_power_of_2(beside)))


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels: decided when Triton was imported."""
    return not isinstance(hstu_attention_fwd_kernel, triton.JITFunction)


def backend() -> Backend:
    """What runs the kernels here."""
    if interpreted():
        return "interpreter"
    return "cuda" if torch.version.hip is None else "hip"


def check_supported(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Refuses what the kernels cannot take.

    Raises:
        NotImplementedError: naming the tensor.
    """
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
