"""The two products of an STU layer as a served model computes them: by its modules, or by the layer's own kernels.

Legend: T tokens, D model dim, E columns of u and v, F columns of q and k.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from kernels import GatedNorm, QuantisedRows, gated_norm, layer_norm, layer_norm_quantised, project_uvqk, quantise_rows
from kernels import linear as kernel_linear
from model.serving.precision import Compute
from model.stu import STULayer

Matrix = Tensor | QuantisedRows


class Projected(NamedTuple):
    """u (T, E), v (T, E), q (T, F), k (T, F) of tokens."""

    u_TE: Tensor
    v_TE: Tensor
    q_TF: Tensor
    k_TF: Tensor


class Products(Protocol):
    """What a layer does to tokens apart from its attention; `dtype` is that of the tokens, None if autocast decides."""

    dtype: torch.dtype | None

    def project(self, values_TD: Tensor) -> Projected:
        """Norm, product and SiLU (Eq. 1-2)."""

    def keys_and_values(self, values_TD: Tensor) -> tuple[Tensor, Tensor]:
        """k and v alone."""

    def output(self, attention_TE: Tensor, u_TE: Tensor, residual_TD: Tensor) -> Tensor:
        """Gated norm, product and residual (Eq. 4-5): (T, D)."""


def products_of(layer: STULayer, compute: Compute) -> Products:
    """The products of a layer, its weights as they are now."""
    if compute == "fp8" or (compute == "bf16" and layer.impl == "triton"):
        return KernelProducts(layer, fp8=compute == "fp8")
    return ModuleProducts(layer)


def _parts(layer: STULayer) -> tuple[slice, slice]:
    """Rows of k and of v in the joint projection u, v, q, k."""
    total_v, total_qk = layer.sizes[0], layer.sizes[2]
    return slice(2 * total_v + total_qk, None), slice(total_v, 2 * total_v)


class ModuleProducts:
    """The layer's modules; autocast chooses between fp32 and bf16."""

    dtype: torch.dtype | None = None

    def __init__(self, layer: STULayer) -> None:
        self._layer = layer

    def project(self, values_TD: Tensor) -> Projected:
        """Norm, product and SiLU."""
        layer = self._layer
        return Projected(*silu(layer.uvqk(layer.input_norm(values_TD))).split(layer.sizes, dim=1))

    def keys_and_values(self, values_TD: Tensor) -> tuple[Tensor, Tensor]:
        """k and v alone."""
        layer = self._layer
        x_TD = layer.input_norm(values_TD)
        k_TF, v_TE = (silu(linear(x_TD, layer.uvqk.weight[p], layer.uvqk.bias[p])) for p in _parts(layer))
        return k_TF, v_TE

    def output(self, attention_TE: Tensor, u_TE: Tensor, residual_TD: Tensor) -> Tensor:
        """Gated norm, product and residual."""
        return self._layer.output(self._layer.attention_norm(attention_TE) * u_TE) + residual_TD


class KernelProducts:
    """The layer's own kernels: tokens in bf16, both products in bf16 or in e4m3 with a scale per row.

    On a CPU the rounding of FP8 is computed in fp32: it tells what FP8 costs in quality, not what it saves.
    """

    dtype: torch.dtype | None = torch.bfloat16

    def __init__(self, layer: STULayer, *, fp8: bool) -> None:
        self._layer, self._impl, self._fp8 = layer, layer.impl, fp8
        k_part, v_part = _parts(layer)
        weight_ND, bias_N = layer.uvqk.weight.detach(), layer.uvqk.bias.detach()
        self._bias_N = bias_N
        self._uvqk = self._matrix(weight_ND)
        self._kv = self._matrix(torch.cat([weight_ND[k_part], weight_ND[v_part]]))
        self._kv_bias = torch.cat([bias_N[k_part], bias_N[v_part]])
        self._output = self._matrix(layer.output.weight.detach())

    def project(self, values_TD: Tensor) -> Projected:
        """Norm, product and SiLU."""
        sizes = self._layer.sizes
        projections = project_uvqk(
            self._normal(values_TD), self._uvqk, self._bias_N, num_gates=sizes[0], dtype=torch.bfloat16, impl=self._impl
        )
        return Projected(projections.u_TE, *projections.vqk_TN.split(sizes[1:], dim=1))

    def keys_and_values(self, values_TD: Tensor) -> tuple[Tensor, Tensor]:
        """k and v alone."""
        kv_TN = kernel_linear(
            self._normal(values_TD), self._kv, impl=self._impl, dtype=torch.bfloat16, bias_N=self._kv_bias
        )
        k_TF, v_TE = silu(kv_TN).split([self._layer.sizes[3], self._layer.sizes[1]], dim=1)
        return k_TF, v_TE

    def output(self, attention_TE: Tensor, u_TE: Tensor, residual_TD: Tensor) -> Tensor:
        """Gated norm, product and residual."""
        norm = self._layer.attention_norm
        gated_TE = gated_norm(attention_TE, u_TE, norm.weight, norm.bias, settings=GatedNorm(norm.eps), impl=self._impl)
        return kernel_linear(
            self._matrix(gated_TE), self._output, impl=self._impl, dtype=torch.bfloat16, residual_TN=residual_TD
        )

    def _normal(self, values_TD: Tensor) -> Matrix:
        norm = self._layer.input_norm
        normalise = layer_norm_quantised if self._fp8 else layer_norm
        return normalise(values_TD, norm.weight, norm.bias, epsilon=norm.eps, impl=self._impl)

    def _matrix(self, rows_XD: Tensor) -> Matrix:
        return quantise_rows(rows_XD, impl=self._impl) if self._fp8 else rows_XD.to(torch.bfloat16)
