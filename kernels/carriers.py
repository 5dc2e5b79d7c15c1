"""The frozen carriers that the public operators and their Triton launches share.

Legend: T tokens, D and E columns, K and N input and output columns of a product, A and V dims of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kernels.mask import AttentionMask

FP8 = torch.float8_e4m3fn
Gemm = Literal["full", "fp8"]


@dataclass(frozen=True)
class QuantisedRows:
    """A matrix in float8 e4m3 with one scale per row: values * scale[:, None] is the matrix.

    Attributes:
        values_TD: (T, D) float8_e4m3fn.
        scale_T: (T,) fp32, a row's largest element / 448; 0 for a row of zeros, whose values are 0.
    """

    values_TD: Tensor
    scale_T: Tensor

    def dequantised(self) -> Tensor:
        """(T, D) fp32."""
        return self.values_TD.float() * self.scale_T[:, None]


@dataclass(frozen=True)
class GatedNorm:
    """Settings of Dropout(Norm(a) * u).

    Attributes:
        epsilon: added to the variance.
        num_groups: groups of columns that are normalised apart; 1 is LayerNorm, the number of heads a norm per head.
        dropout: share of elements that become 0, in Triton rounded to 2^-16; the others are divided by 1 - dropout.
    """

    epsilon: float
    num_groups: int = 1
    dropout: float = 0.0


Matrix = Tensor | QuantisedRows


@dataclass(frozen=True)
class Projections:
    """The UVQK projection, split where the gate ends.

    Attributes:
        u_TE: (T, E) SiLU'd gate.
        vqk_TN: (T, N - E) SiLU'd values, queries and keys.
        pre_TN: (T, N) what SiLU got, when it was asked for, and then u is empty.
    """

    u_TE: Tensor
    vqk_TN: Tensor
    pre_TN: Tensor | None = None


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
