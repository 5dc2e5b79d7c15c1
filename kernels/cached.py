"""Attention of candidates over a stored history, for inference.

Legend: B requests, T cached tokens, C candidates, H heads, A query and key dim, V value dim.

A candidate sees its request's whole cache (contextual tokens and history) and itself, never another candidate: with
the keys and values of a history stored once, any number of candidates is scored in any grouping with the same result.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

IMPLEMENTATIONS = ("reference", "triton")
# Rows of the dense product that the reference makes at once; bounds its memory.
_REFERENCE_ROWS = 1024


def hstu_attention_cached(
    q_CHA: Tensor,
    k_CHA: Tensor,
    v_CHV: Tensor,
    cache_k_THA: Tensor,
    cache_v_THV: Tensor,
    *,
    candidate_offsets_B1: Tensor,
    cache_offsets_B1: Tensor,
    alpha: float,
    scale: float,
    impl: str,
) -> Tensor:
    """The candidates' rows of `kernels.hstu_attention`, given the history's keys and values. No autograd.

    Args:
        q_CHA: (C, H, A) queries of the candidates, requests concatenated.
        k_CHA: (C, H, A) their own keys.
        v_CHV: (C, H, V) their own values.
        cache_k_THA: (T, H, A) keys of contextual tokens and history.
        cache_v_THV: (T, H, V) values of the same.
        candidate_offsets_B1: (B + 1,) int64, request b owns candidates offsets[b] : offsets[b + 1].
        cache_offsets_B1: (B + 1,) int64, the same for cached rows.
        alpha: factor of q k^T.
        scale: factor of the output.
        impl: "reference" or "triton"; nothing falls back to another.

    Returns:
        (C, H, V), dtype of v.

    Raises:
        ValueError: shapes do not fit together.
        NotImplementedError: the implementation does not exist, or cannot take this device, dtype or shape.
    """
    if impl not in IMPLEMENTATIONS:
        raise NotImplementedError(
            f"hstu_attention_cached has no implementation {impl!r}, only {', '.join(IMPLEMENTATIONS)}"
        )
    _check(q_CHA, k_CHA, v_CHV, cache_k_THA, cache_v_THV)
    if candidate_offsets_B1.shape != cache_offsets_B1.shape:
        raise ValueError(
            f"candidate offsets {tuple(candidate_offsets_B1.shape)} and cache offsets "
            f"{tuple(cache_offsets_B1.shape)} must be of the same requests"
        )
    with torch.no_grad():
        if impl == "reference":
            history_CHV = _over_cache(
                q_CHA * alpha,
                cache_k_THA,
                cache_v_THV,
                candidate_offsets_B1=candidate_offsets_B1,
                cache_offsets_B1=cache_offsets_B1,
            )
        else:
            # Imported when asked for: Triton exists for Linux alone.
            from kernels.hstu.cached import attention_over_cache

            history_CHV = attention_over_cache(
                q_CHA,
                cache_k_THA,
                cache_v_THV,
                candidate_offsets_B1=candidate_offsets_B1,
                cache_offsets_B1=cache_offsets_B1,
                alpha=alpha,
            )
        score_CH1 = (q_CHA * alpha * k_CHA).to(history_CHV.dtype).sum(-1, keepdim=True)
        return ((history_CHV + silu(score_CH1) * v_CHV) * scale).to(v_CHV.dtype)


def _over_cache(
    q_CHA: Tensor, k_THA: Tensor, v_THV: Tensor, *, candidate_offsets_B1: Tensor, cache_offsets_B1: Tensor
) -> Tensor:
    """(C, H, V): SiLU(q k^T) v of each request's candidates over its cache, some rows at a time."""
    out_CHV = q_CHA.new_zeros((q_CHA.shape[0], *v_THV.shape[1:]))
    candidates, cached = candidate_offsets_B1.tolist(), cache_offsets_B1.tolist()
    for request in range(len(cached) - 1):
        k_HAT = k_THA[cached[request] : cached[request + 1]].permute(1, 2, 0)
        v_HTV = v_THV[cached[request] : cached[request + 1]].transpose(0, 1)
        for begin in range(candidates[request], candidates[request + 1], _REFERENCE_ROWS):
            rows = slice(begin, min(begin + _REFERENCE_ROWS, candidates[request + 1]))
            weights_HCT = silu(q_CHA[rows].transpose(0, 1) @ k_HAT)
            out_CHV[rows] = (weights_HCT @ v_HTV).transpose(0, 1)
    return out_CHV


def _check(q: Tensor, k: Tensor, v: Tensor, cache_k: Tensor, cache_v: Tensor) -> None:
    if q.ndim != 3 or k.shape != q.shape or v.ndim != 3 or v.shape[:2] != q.shape[:2]:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} must be (C, H, A), (C, H, A), (C, H, V)"
        )
    if cache_k.shape[1:] != k.shape[1:] or cache_v.shape[1:] != v.shape[1:] or len(cache_k) != len(cache_v):
        raise ValueError(
            f"cached k {tuple(cache_k.shape)} and v {tuple(cache_v.shape)} must be (T, {k.shape[1]}, {k.shape[2]}) and "
            f"(T, {v.shape[1]}, {v.shape[2]})"
        )
    if not q.dtype == k.dtype == v.dtype == cache_k.dtype == cache_v.dtype:
        raise ValueError(f"all must share a dtype, not {q.dtype}, {k.dtype}, {v.dtype}, {cache_k.dtype}")
