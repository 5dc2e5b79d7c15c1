"""Matrix products of an STU layer with their epilogues, in PyTorch and in Triton.

Legend: T tokens, K and N input and output columns.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from kernels.carriers import Matrix, Projections, QuantisedRows
from kernels.impl import check_impl


def linear(
    x_TK: Matrix,
    weight_NK: Matrix,
    *,
    impl: str,
    dtype: torch.dtype,
    bias_N: Tensor | None = None,
    residual_TN: Tensor | None = None,
) -> Tensor:
    """x weight^T + bias + residual, accumulated in fp32 and rounded once; no autograd.

    Args:
        x_TK: (T, K) tokens, or quantised rows.
        weight_NK: (N, K), quantised when x is.
        impl: "reference" or "triton".
        dtype: of the result.
        bias_N: (N,) added to every row.
        residual_TN: (T, N) added to the product.
    """
    check_impl(impl, _values(x_TK))
    if impl == "triton":
        from kernels.layer import gemms

        return gemms.linear(x_TK, weight_NK, dtype=dtype, bias_N=bias_N, residual_TN=residual_TN)
    out = _product(x_TK, weight_NK)
    if bias_N is not None:
        out = out + bias_N
    if residual_TN is not None:
        out = out + residual_TN
    return out.to(dtype)


def project_uvqk(
    x_TK: Matrix,
    weight_NK: Matrix,
    bias_N: Tensor,
    *,
    num_gates: int,
    dtype: torch.dtype,
    impl: str,
    keep_pre: bool = False,
) -> Projections:
    """SiLU(x weight^T + bias), its first `num_gates` columns apart (paper Eq. 2); no autograd.

    Args:
        x_TK: (T, K) normalised tokens, or quantised rows.
        weight_NK: (N, K), quantised when x is.
        bias_N: (N,).
        num_gates: E, columns of u.
        dtype: of the results.
        impl: "reference" or "triton".
        keep_pre: for the backward: returns what SiLU got, and leaves u empty.
    """
    check_impl(impl, _values(x_TK))
    if impl == "triton":
        from kernels.layer import gemms

        return gemms.project_uvqk(x_TK, weight_NK, bias_N, num_gates=num_gates, dtype=dtype, keep_pre=keep_pre)
    pre = _product(x_TK, weight_NK) + bias_N
    activated = silu(pre).to(dtype)
    if keep_pre:
        return Projections(activated[:, :0], activated[:, num_gates:], pre.to(dtype))
    return Projections(activated[:, :num_gates], activated[:, num_gates:])


def _values(x: Matrix) -> Tensor:
    return x.values_TD if isinstance(x, QuantisedRows) else x


def _product(x: Matrix, weight: Matrix) -> Tensor:
    if isinstance(x, QuantisedRows) != isinstance(weight, QuantisedRows):
        raise ValueError("x and weight are quantised together or not at all")
    a, b = (y.dequantised() if isinstance(y, QuantisedRows) else y for y in (x, weight))
    return a @ b.T if a.dtype == torch.float64 else a.float() @ b.float().T
