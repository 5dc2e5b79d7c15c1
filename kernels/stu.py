"""A whole STU layer (paper Eq. 1-5), in PyTorch and as one Triton-backed autograd function.

X = LayerNorm(Z)                            (T, D)
U, V, Q, K = SiLU(X W1^T + b1)              (T, H V), (T, H V), (T, H A), (T, H A)
A = (SiLU(alpha Q K^T) * M) V scale         (T, H V)
Y = Dropout(Norm(A) * U) W2^T               (T, D)
Z + Y
"""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor
from torch.nn.functional import silu

from kernels import ops
from kernels.attention import hstu_attention
from kernels.carriers import STUSettings, STUWeights
from kernels.impl import check_impl
from kernels.norm import gated_norm, layer_norm
from kernels.plan import AttentionPlan


def stu_layer(
    z_TD: Tensor, weights: STUWeights, plan: AttentionPlan, settings: STUSettings, *, impl: str, seed: int = 0
) -> Tensor:
    """Z + Y of one layer, with autograd.

    The "triton" implementation saves z, u and the attention, three (T, D)-wide tensors, and computes everything else
    again in the backward. Weights in fp32 beside 16-bit tokens are rounded to the tokens' dtype on the way.

    Args:
        z_TD: (T, D) tokens.
        weights: the layer's parameters.
        plan: the batch's layout, shared by its layers.
        settings: what the layer is.
        impl: "reference" or "triton"; nothing falls back to another.
        seed: of the dropout in "triton"; the reference draws from PyTorch's generator.

    Raises:
        NotImplementedError: the implementation does not exist, or cannot take this device, dtype or shape.
    """
    if impl == "triton" and torch.compiler.is_compiling():
        return ops.stu_layer(z_TD, weights, plan, settings, seed=seed)
    check_impl(impl, z_TD)
    if impl == "triton":
        from kernels.layer.stu_function import stu_layer_triton

        return stu_layer_triton(z_TD, weights, plan, settings, seed=seed)
    if settings.gemm != "full":
        raise NotImplementedError('impl "reference" multiplies in the tokens\' dtype; gemm "fp8" needs "triton"')
    rounded = STUWeights(*(getattr(weights, field.name).to(z_TD.dtype) for field in fields(STUWeights)))
    return z_TD + _output(z_TD, rounded, plan, settings)


def _output(z_TD: Tensor, weights: STUWeights, plan: AttentionPlan, settings: STUSettings) -> Tensor:
    """Y, in plain PyTorch."""
    w = weights
    normal_TD = layer_norm(z_TD, w.norm_weight_D, w.norm_bias_D, epsilon=settings.epsilon, impl="reference")
    u_TE, v_TE, q_TF, k_TF = silu(torch.nn.functional.linear(normal_TD, w.uvqk_weight_ND, w.uvqk_bias_N)).split(
        settings.sizes, dim=1
    )
    attention_THV = hstu_attention(
        q_TF.unflatten(1, (settings.num_heads, settings.qk_dim)),
        k_TF.unflatten(1, (settings.num_heads, settings.qk_dim)),
        v_TE.unflatten(1, (settings.num_heads, settings.v_dim)),
        offsets_B1=plan.offsets_B1,
        num_contextual=plan.num_contextual,
        num_candidates_B=plan.num_candidates_B,
        mask=settings.mask,
        alpha=settings.alpha,
        scale=settings.scale,
        impl="reference",
        plan=plan,
    )
    gated_TE = gated_norm(
        attention_THV.flatten(1), u_TE, w.gate_weight_E, w.gate_bias_E, settings=settings.gate, impl="reference"
    )
    return torch.nn.functional.linear(gated_TE, w.output_weight_DE)
