"""The norms of an STU layer and row-wise FP8 quantisation, in PyTorch and in Triton.

Legend: T rows, D or E columns. Every function takes `impl`: "reference" is the definition and runs anywhere, "triton"
is one pass over memory; nothing falls back to another.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.carriers import FP8, GatedNorm, QuantisedRows
from kernels.impl import check_impl

_FP8_MAX = 448.0
# Beneath it 448 / largest is beyond fp32, and infinity times the row's zeros is NaN.
_VANISHING = 1e-35


def quantise_rows(x_TD: Tensor, *, impl: str) -> QuantisedRows:
    """Rows in e4m3, each scaled to its own largest element; rows of less than 1e-35 become zeros."""
    check_impl(impl, x_TD)
    if impl == "triton":
        from kernels.layer import norms

        return norms.quantise_rows(x_TD)
    x_TD = x_TD.float()
    largest_T = x_TD.abs().amax(dim=1)
    factor_T = torch.where(largest_T > _VANISHING, _FP8_MAX / largest_T, 0.0)
    return QuantisedRows((x_TD * factor_T[:, None]).to(FP8), largest_T / _FP8_MAX)


def layer_norm(x_TD: Tensor, weight_D: Tensor, bias_D: Tensor, *, epsilon: float, impl: str) -> Tensor:
    """LayerNorm of each row, with autograd; statistics in fp32."""
    check_impl(impl, x_TD)
    if impl == "triton":
        from kernels.layer import norms

        return norms.layer_norm(x_TD, weight_D, bias_D, epsilon)
    return torch.nn.functional.layer_norm(x_TD, x_TD.shape[1:], weight_D, bias_D, epsilon)


def layer_norm_quantised(x_TD: Tensor, weight_D: Tensor, bias_D: Tensor, *, epsilon: float, impl: str) -> QuantisedRows:
    """LayerNorm of each row, quantised before it reaches memory; no autograd."""
    check_impl(impl, x_TD)
    if impl == "triton":
        from kernels.layer import norms

        return norms.layer_norm_quantised(x_TD, weight_D, bias_D, epsilon)
    x_TD, weight_D, bias_D = x_TD.float(), weight_D.float(), bias_D.float()
    return quantise_rows(layer_norm(x_TD, weight_D, bias_D, epsilon=epsilon, impl=impl), impl=impl)


def gated_norm(
    a_TE: Tensor, u_TE: Tensor, weight_E: Tensor, bias_E: Tensor, *, settings: GatedNorm, impl: str, seed: int = 0
) -> Tensor:
    """Dropout(Norm(a) * u) of each row (paper Eq. 4), with autograd; statistics in fp32.

    Args:
        a_TE: (T, E) attention.
        u_TE: (T, E) gate.
        weight_E: (E,) the norm's factors.
        bias_E: (E,) the norm's summands.
        settings: epsilon, groups and dropout.
        impl: "reference" or "triton".
        seed: of the dropout in "triton"; the reference draws from PyTorch's generator.
    """
    check_impl(impl, a_TE)
    if a_TE.shape[1] % settings.num_groups:
        raise ValueError(f"{a_TE.shape[1]} columns do not make {settings.num_groups} groups")
    if impl == "triton":
        from kernels.layer import norms

        return norms.gated_norm(norms.GatedInputs(a_TE, u_TE, weight_E, bias_E, seed), settings)
    grouped = a_TE.unflatten(1, (settings.num_groups, -1))
    normal = torch.nn.functional.layer_norm(grouped, grouped.shape[2:], eps=settings.epsilon).flatten(1)
    return torch.nn.functional.dropout((normal * weight_E + bias_E) * u_TE, settings.dropout)
