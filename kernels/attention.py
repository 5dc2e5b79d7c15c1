"""The public entry to HSTU attention: checks its arguments once, then runs the implementation it is told to."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.mask import AttentionMask
from kernels.reference import hstu_attention_reference

IMPLEMENTATIONS = ("reference", "triton")


def hstu_attention(
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
    impl: str,
) -> Tensor:
    """Pointwise attention (SiLU(alpha q k^T) * M) v * scale over jagged sequences, without softmax.

    Each request is [contextual | history, newest to oldest | candidates]; M is `kernels.mask`. Any length is fine.

    Args:
        q_THA: (T, H, A) queries, requests concatenated; may be a strided view, as may the next two.
        k_THA: (T, H, A) keys.
        v_THV: (T, H, V) values.
        offsets_B1: (B + 1,) int64, request b owns rows offsets[b] : offsets[b + 1].
        num_contextual: contextual tokens of every request.
        num_candidates_B: (B,) int64.
        mask: which keys a query sees.
        alpha: factor of q k^T.
        scale: factor of the output, 1 / the configured maximum length: the batch's own longest request would make a
            score depend on its batch-mates.
        impl: "reference" or "triton"; nothing falls back to another.

    Returns:
        (T, H, V), dtype of v.

    Raises:
        ValueError: shapes or offsets do not fit together.
        NotImplementedError: the implementation does not exist, or cannot take this device, dtype or shape.
    """
    if impl not in IMPLEMENTATIONS:
        raise NotImplementedError(f"hstu_attention has no implementation {impl!r}, only {', '.join(IMPLEMENTATIONS)}")
    _check_shapes(q_THA, k_THA, v_THV, offsets_B1=offsets_B1, num_candidates_B=num_candidates_B)
    _check_offsets(offsets_B1, num_contextual, num_candidates_B, total=q_THA.shape[0])
    return _implementation(impl)(
        q_THA,
        k_THA,
        v_THV,
        offsets_B1=offsets_B1,
        num_contextual=num_contextual,
        num_candidates_B=num_candidates_B,
        mask=mask,
        alpha=alpha,
        scale=scale,
    )


def _implementation(impl: str) -> Callable[..., Tensor]:
    if impl == "reference":
        return hstu_attention_reference
    # Imported when asked for: Triton exists for Linux alone.
    from kernels.hstu.function import hstu_attention_triton

    return hstu_attention_triton


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, *, offsets_B1: Tensor, num_candidates_B: Tensor) -> None:
    if q.ndim != 3 or k.shape != q.shape or v.ndim != 3 or v.shape[:2] != q.shape[:2]:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} must be (T, H, A), (T, H, A), (T, H, V)"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v must share a dtype, not {q.dtype}, {k.dtype}, {v.dtype}")
    if offsets_B1.dtype != torch.int64 or num_candidates_B.dtype != torch.int64:
        raise ValueError(f"offsets and num_candidates must be int64, not {offsets_B1.dtype}, {num_candidates_B.dtype}")
    if offsets_B1.ndim != 1 or num_candidates_B.shape != (offsets_B1.numel() - 1,):
        raise ValueError(
            f"offsets {tuple(offsets_B1.shape)} must be (B + 1,), num_candidates {tuple(num_candidates_B.shape)} (B,)"
        )


def _check_offsets(offsets_B1: Tensor, num_contextual: int, num_candidates_B: Tensor, *, total: int) -> None:
    """One read-back of the device decides; only a failure looks closer."""
    history_B = offsets_B1.diff() - num_contextual - num_candidates_B
    fits = (history_B >= 0).all() & (num_candidates_B >= 0).all() & (offsets_B1[0] == 0) & (offsets_B1[-1] == total)
    if num_contextual >= 0 and bool(fits):
        return
    if int(offsets_B1[0]) != 0 or int(offsets_B1[-1]) != total:
        raise ValueError(
            f"offsets run from {int(offsets_B1[0])} to {int(offsets_B1[-1])}, the tokens from 0 to {total}"
        )
    if num_contextual < 0 or bool((num_candidates_B < 0).any()):
        raise ValueError("num_contextual and num_candidates must not be negative")
    request = int((history_B < 0).nonzero()[0])
    raise ValueError(
        f"request {request} has {int(offsets_B1.diff()[request])} tokens, fewer than its {num_contextual} contextual "
        f"and {int(num_candidates_B[request])} candidates"
    )
