import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import QuantisedRows, linear, project_uvqk, quantise_rows


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def product_by_hand(x, weight):
    rows = [[math.fsum(a * b for a, b in zip(r, w, strict=True)) for w in weight.tolist()] for r in x.tolist()]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(x), len(weight))


sizes = st.tuples(st.integers(0, 4), st.integers(1, 4), st.integers(1, 5))


@settings(max_examples=30, deadline=None)
@given(size=sizes, with_bias=st.booleans(), with_residual=st.booleans())
def test_linear_is_the_formula(size, with_bias, with_residual):
    rows, depth, columns = size
    x, weight = random(rows, depth), random(columns, depth, seed=1)
    bias = random(columns, seed=2) if with_bias else None
    residual = random(rows, columns, seed=3) if with_residual else None
    found = linear(x, weight, impl="reference", dtype=torch.float64, bias_N=bias, residual_TN=residual)
    expected = product_by_hand(x, weight) + (bias if with_bias else 0) + (residual if with_residual else 0)
    torch.testing.assert_close(found, expected)


@settings(max_examples=30, deadline=None)
@given(size=sizes, num_gates=st.integers(0, 5), keep_pre=st.booleans())
def test_projection_is_the_formula(size, num_gates, keep_pre):
    rows, depth, columns = size
    num_gates = min(num_gates, columns)
    x, weight, bias = random(rows, depth), random(columns, depth, seed=1), random(columns, seed=2)
    pre = product_by_hand(x, weight) + bias
    activated = pre / (1 + torch.exp(-pre))
    found = project_uvqk(x, weight, bias, num_gates=num_gates, dtype=torch.float64, impl="reference", keep_pre=keep_pre)
    torch.testing.assert_close(found.vqk_TN, activated[:, num_gates:])
    if keep_pre:
        torch.testing.assert_close(found.pre_TN, pre)
        assert found.u_TE.shape == (rows, 0)
    else:
        torch.testing.assert_close(found.u_TE, activated[:, :num_gates])
        assert found.pre_TN is None


def test_sums_are_kept_in_fp32_and_rounded_once():
    # 1 + 512 x 2^-9 = 2; in bf16, 1 + 2^-9 is 1 and the sum would stay there.
    x = torch.full((1, 513), 2.0**-9, dtype=torch.bfloat16)
    x[0, 0] = 1.0
    ones = torch.ones(1, 513, dtype=torch.bfloat16)
    found = linear(x, ones, impl="reference", dtype=torch.bfloat16, residual_TN=torch.full((1, 1), 2.0))
    assert found.dtype == torch.bfloat16
    assert found.item() == 4.0


def test_quantised_operands_multiply_as_their_values():
    x, weight = random(5, 8).float(), random(3, 8, seed=1).float()
    x[2] = 0
    a, b = quantise_rows(x, impl="reference"), quantise_rows(weight, impl="reference")
    found = linear(a, b, impl="reference", dtype=torch.float32)
    torch.testing.assert_close(found, a.dequantised() @ b.dequantised().T)
    assert (found[2] == 0).all()
    # Both factors are off by at most 2^-4 of themselves, and by half of e4m3's smallest step where they are small.
    bound = (2**-3 + 2**-8) * x.abs() @ weight.abs().T + 0.02
    assert ((found - x @ weight.T).abs() <= bound).all()


def test_one_quantised_operand_is_refused():
    x = torch.zeros(2, 4)
    quantised = quantise_rows(x, impl="reference")
    assert isinstance(quantised, QuantisedRows)
    for operands in ((x, quantised), (quantised, x)):
        with pytest.raises(ValueError, match="quantised together"):
            linear(*operands, impl="reference", dtype=torch.float32)


@pytest.mark.parametrize(("impl", "message"), [("cublas", "'cublas'"), ("triton", "needs a GPU")])
def test_an_implementation_that_cannot_run_is_named(impl, message):
    pytest.importorskip("triton")
    x = torch.zeros(2, 4)
    with pytest.raises(NotImplementedError, match=message):
        linear(x, x, impl=impl, dtype=torch.float32)
    with pytest.raises(NotImplementedError, match=message):
        project_uvqk(x, x, x[0, :2], num_gates=1, dtype=torch.float32, impl=impl)
