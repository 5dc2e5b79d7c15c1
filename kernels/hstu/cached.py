"""Candidates over cached keys and values by the forward kernel: the same items, with q and k, v in different places."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.hstu.function import Problem, check_supported, launch_forward, padded_dim, tile_set
from kernels.hstu.plan import candidate_items
from kernels.mask import AttentionMask
from kernels.plan import AttentionPlan

_MASK = AttentionMask(0, 0)


def attention_over_cache(
    q_CHA: Tensor,
    k_THA: Tensor,
    v_THV: Tensor,
    *,
    candidate_offsets_B1: Tensor,
    cache_offsets_B1: Tensor,
    alpha: float,
) -> Tensor:
    """(C, H, V) fp32: SiLU(alpha q k^T) v of each request's candidates over its cache.

    Raises:
        NotImplementedError: device, dtype, head dim or strides are beyond the kernel.
    """
    check_supported(q_CHA, k_THA, v_THV)
    out_CHV = torch.zeros((q_CHA.shape[0], *v_THV.shape[1:]), dtype=torch.float32, device=q_CHA.device)
    if q_CHA.numel() == 0 or k_THA.numel() == 0:
        return out_CHV
    tiles = tile_set(q_CHA, v_THV, _MASK)
    num_heads, block = q_CHA.shape[1], tiles.forward.block_m
    work = candidate_items(
        cache_offsets_B1,
        candidate_offsets_B1,
        totals=(k_THA.shape[0], q_CHA.shape[0]),
        block=block,
        chunk=tiles.forward.chunk,
        slot_elements=num_heads * block * padded_dim(v_THV.shape[2], beside=q_CHA.shape[2]),
    )
    plan = AttentionPlan(cache_offsets_B1, candidate_offsets_B1, 0, k_THA.shape[0])
    launch_forward((q_CHA, k_THA, v_THV, out_CHV), Problem(plan, _MASK, alpha, 1.0), tiles, work)
    return out_CHV
