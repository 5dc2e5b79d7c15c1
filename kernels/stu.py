"""A whole STU layer (paper Eq. 1-5), in PyTorch and as one Triton-backed autograd function.

X = LayerNorm(Z)                            (T, D)
U, V, Q, K = SiLU(X W1^T + b1)              (T, H V), (T, H V), (T, H A), (T, H A)
A = (SiLU(alpha Q K^T) * M) V scale         (T, H V)
Y = Dropout(Norm(A) * U) W2^T               (T, D)
Z + Y
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import silu

from kernels import ops
from kernels.attention import hstu_attention
from kernels.mask import AttentionMask
from kernels.norm import GatedNorm, check_impl, gated_norm, layer_norm
from kernels.plan import AttentionPlan

Gemm = Literal["full", "fp8"]


@dataclass(frozen=True)
class STUSettings:
    """What a layer is, apart from its weights.

    Attributes:
        num_heads: H.
        qk_dim: A, per head.
        v_dim: V, per head.
        alpha: factor of q k^T.
        scale: factor of the attention, 1 / the configured maximum length.
        mask: who sees whom.
        epsilon: of the LayerNorm before the projection.
        gate: of the norm behind the attention.
        gemm: "full" multiplies in the tokens' dtype, "fp8" in e4m3 with a scale per row; the backward is "full".
    """

    num_heads: int
    qk_dim: int
    v_dim: int
    alpha: float
    scale: float
    mask: AttentionMask
    epsilon: float
    gate: GatedNorm
    gemm: Gemm = "full"

    @property
    def sizes(self) -> list[int]:
        """Columns of u, v, q and k in the projection."""
        values, keys = self.num_heads * self.v_dim, self.num_heads * self.qk_dim
        return [values, values, keys, keys]


@dataclass(frozen=True)
class STUWeights:
    """The parameters of a layer.

    Attributes:
        norm_weight_D: (D,).
        norm_bias_D: (D,).
        uvqk_weight_ND: (N, D), rows in the order u, v, q, k.
        uvqk_bias_N: (N,).
        gate_weight_E: (E,), E = H V.
        gate_bias_E: (E,).
        output_weight_DE: (D, E).
    """

    norm_weight_D: Tensor
    norm_bias_D: Tensor
    uvqk_weight_ND: Tensor
    uvqk_bias_N: Tensor
    gate_weight_E: Tensor
    gate_bias_E: Tensor
    output_weight_DE: Tensor


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
