"""The public entry to HSTU attention: checks its arguments once, then runs the implementation it is told to."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import ops
from kernels.impl import IMPLEMENTATIONS
from kernels.mask import AttentionMask
from kernels.plan import AttentionPlan
from kernels.reference import hstu_attention_reference


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
    plan: AttentionPlan | None = None,
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
        plan: of these very offsets and counts, when several calls share them: the offsets are then not checked, which
            waits for the device, and the kernels' lists of work are made once.

    Returns:
        (T, H, V), dtype of v.

    Raises:
        ValueError: shapes or offsets do not fit together.
        NotImplementedError: the implementation does not exist, or cannot take this device, dtype or shape.
    """
    if impl not in IMPLEMENTATIONS:
        raise NotImplementedError(f"hstu_attention has no implementation {impl!r}, only {', '.join(IMPLEMENTATIONS)}")
    _check_shapes(q_THA, k_THA, v_THV)
    unknown = plan is None
    if plan is None:
        plan = AttentionPlan(offsets_B1, num_candidates_B, num_contextual, q_THA.shape[0])
    if impl == "triton" and torch.compiler.is_compiling():
        return ops.attention(q_THA, k_THA, v_THV, plan, mask, alpha=alpha, scale=scale, check=unknown)
    if unknown:
        plan.check()
    if impl == "reference":
        return hstu_attention_reference(
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
    # Imported when asked for: Triton exists for Linux alone.
    from kernels.hstu.function import Problem, hstu_attention_triton

    return hstu_attention_triton(q_THA, k_THA, v_THV, Problem(plan, mask, alpha, scale))


def _check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.ndim != 3 or k.shape != q.shape or v.ndim != 3 or v.shape[:2] != q.shape[:2]:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} must be (T, H, A), (T, H, A), (T, H, V)"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v must share a dtype, not {q.dtype}, {k.dtype}, {v.dtype}")
