import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import GatedNorm, gated_norm, layer_norm, layer_norm_quantised, quantise_rows

shapes = st.tuples(st.integers(0, 5), st.integers(1, 4), st.integers(1, 3))
# e4m3 keeps three bits behind the leading one; its smallest step is 2^-9, and half of that the error beneath.
RELATIVE, HALF_STEP = 2.0**-4, 2.0**-10
# Rows of less become zeros: their factor is beyond fp32.
VANISHING = 1e-35


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def normal_by_hand(values, epsilon):
    mean = math.fsum(values) / len(values)
    variance = math.fsum((x - mean) ** 2 for x in values) / len(values)
    return [(x - mean) / math.sqrt(variance + epsilon) for x in values]


@settings(max_examples=30, deadline=None)
@given(shape=shapes, epsilon=st.sampled_from([1e-6, 1e-2, 1.0]), seed=st.integers(0, 9))
def test_layer_norm_is_the_formula(shape, epsilon, seed):
    rows, columns, _ = shape
    x, weight, bias = random(rows, columns, seed=seed), random(columns, seed=seed + 1), random(columns, seed=seed + 2)
    expected = [
        [n * w + b for n, w, b in zip(normal_by_hand(row, epsilon), weight.tolist(), bias.tolist(), strict=True)]
        for row in x.tolist()
    ]
    found = layer_norm(x, weight, bias, epsilon=epsilon, impl="reference")
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64).reshape(rows, columns))


@settings(max_examples=30, deadline=None)
@given(shape=shapes, epsilon=st.sampled_from([1e-6, 1e-2]), seed=st.integers(0, 9))
def test_gated_norm_is_the_formula_within_each_group(shape, epsilon, seed):
    rows, width, groups = shape
    columns = width * groups
    a, u = random(rows, columns, seed=seed), random(rows, columns, seed=seed + 1)
    weight, bias = random(columns, seed=seed + 2), random(columns, seed=seed + 3)
    expected = torch.zeros(rows, columns, dtype=torch.float64)
    for row in range(rows):
        for group in range(groups):
            inside = slice(group * width, (group + 1) * width)
            normal = torch.tensor(normal_by_hand(a[row, inside].tolist(), epsilon), dtype=torch.float64)
            expected[row, inside] = (normal * weight[inside] + bias[inside]) * u[row, inside]
    found = gated_norm(a, u, weight, bias, settings=GatedNorm(epsilon, groups), impl="reference")
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_are_those_of_finite_differences(groups):
    inputs = [random(3, 6, seed=1), random(3, 6, seed=2), random(6, seed=3), random(6, seed=4)]
    leaves = [x.requires_grad_(True) for x in inputs]
    norm = GatedNorm(1e-3, groups)
    assert torch.autograd.gradcheck(lambda *x: gated_norm(*x, settings=norm, impl="reference"), leaves)
    assert torch.autograd.gradcheck(
        lambda x, w, b: layer_norm(x, w, b, epsilon=1e-3, impl="reference"), (leaves[0], *leaves[2:])
    )


def test_dropout_zeroes_its_share_and_scales_the_rest():
    rows, columns, share = 400, 50, 0.2
    a, u = random(rows, columns), random(rows, columns, seed=1)
    weight, bias = torch.ones(columns, dtype=torch.float64), torch.full((columns,), 9.0, dtype=torch.float64)
    torch.manual_seed(0)
    plain = gated_norm(a, u, weight, bias, settings=GatedNorm(1e-6), impl="reference")
    found = gated_norm(a, u, weight, bias, settings=GatedNorm(1e-6, dropout=share), impl="reference")
    dropped = found == 0
    # 5 standard deviations of the number of dropped elements.
    assert abs(dropped.double().mean() - share) < 5 * (share * (1 - share) / dropped.numel()) ** 0.5
    torch.testing.assert_close(found[~dropped], plain[~dropped] / (1 - share))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.lists(st.floats(-1e4, 1e4, width=32), min_size=5, max_size=5),
        min_size=1,
        max_size=4,
    ),
    exponent=st.integers(-42, 30),
)
def test_quantised_rows_are_within_a_rounding(rows, exponent):
    x = torch.tensor(rows, dtype=torch.float32) * 10.0**exponent
    found = quantise_rows(x, impl="reference")
    back, scale = found.dequantised().double(), found.scale_T.double()[:, None]
    error = (back - x.double()).abs()
    assert (error <= 1.001 * torch.maximum(x.double().abs() * RELATIVE, scale * HALF_STEP) + VANISHING).all()
    torch.testing.assert_close(found.scale_T, x.abs().amax(1) / 448)


@pytest.mark.parametrize("largest", [0.0, 1e-45, 1e-40, 1e-37, 1e-36, 1e-34])
def test_rows_of_nothing_quantise_to_nothing(largest):
    x = torch.zeros(3, 4)
    x[1, 2] = largest
    x[2] = 448.0
    found = quantise_rows(x, impl="reference")
    assert torch.isfinite(found.dequantised()).all()
    assert (found.dequantised()[:2] - x[:2]).abs().max() <= min(largest, VANISHING)
    assert torch.equal(found.dequantised()[2], x[2])


def test_quantised_layer_norm_is_the_norm_quantised():
    x, weight, bias = random(7, 6).float(), random(6, seed=1).float(), random(6, seed=2).float()
    x[3] = 5.0
    bias[:] = 0
    found = layer_norm_quantised(x, weight, bias, epsilon=1e-6, impl="reference")
    expected = quantise_rows(layer_norm(x, weight, bias, epsilon=1e-6, impl="reference"), impl="reference")
    assert torch.equal(found.values_TD.float(), expected.values_TD.float())
    assert torch.equal(found.scale_T, expected.scale_T)
    assert (found.dequantised()[3] == 0).all(), "a constant row has no deviation"


def test_groups_that_do_not_divide_the_columns_are_refused():
    x, weight = torch.zeros(2, 6), torch.zeros(6)
    with pytest.raises(ValueError, match="6 columns do not make 4 groups"):
        gated_norm(x, x, weight, weight, settings=GatedNorm(1e-6, 4), impl="reference")


def calls():
    x, weight = torch.zeros(2, 6), torch.zeros(6)
    yield lambda impl: quantise_rows(x, impl=impl)
    yield lambda impl: layer_norm(x, weight, weight, epsilon=1e-6, impl=impl)
    yield lambda impl: layer_norm_quantised(x, weight, weight, epsilon=1e-6, impl=impl)
    yield lambda impl: gated_norm(x, x, weight, weight, settings=GatedNorm(1e-6), impl=impl)


@pytest.mark.parametrize("call", list(calls()))
def test_an_implementation_that_does_not_exist_is_named(call):
    with pytest.raises(NotImplementedError, match="'cuda'"):
        call("cuda")


@pytest.mark.parametrize("call", list(calls()))
def test_triton_never_falls_back_where_it_cannot_run(call):
    pytest.importorskip("triton")
    with pytest.raises(NotImplementedError, match="needs a GPU, the tensors lie on cpu"):
        call("triton")
