import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import AttentionMask, hstu_attention, lengths_to_offsets
from kernels.reference import _PADDED_LENGTHS, dense_mask

ALPHA, SCALE = 0.4, 1 / 7


def layout(histories, candidates, num_contextual):
    num_candidates = torch.tensor(candidates, dtype=torch.int64)
    lengths = torch.tensor(histories, dtype=torch.int64) + num_candidates + num_contextual
    return {
        "offsets_B1": lengths_to_offsets(lengths),
        "num_contextual": num_contextual,
        "num_candidates_B": num_candidates,
    }


def attend(q, k, v, mask, **arguments):
    return hstu_attention(q, k, v, mask=mask, alpha=ALPHA, scale=SCALE, impl="reference", **arguments)


def random_qkv(total, *, heads=2, qk_dim=3, v_dim=4, dtype=torch.float64):
    shapes = ((total, heads, qk_dim), (total, heads, qk_dim), (total, heads, v_dim))
    return tuple(torch.randn(shape, dtype=dtype) for shape in shapes)


def elementwise(q, k, v, mask, *, offsets_B1, num_contextual, num_candidates_B):
    """The formula, one product at a time."""
    out = torch.zeros_like(v)
    bounds = offsets_B1.tolist()
    for begin, end, candidates in zip(bounds[:-1], bounds[1:], num_candidates_B.tolist(), strict=True):
        visible = dense_mask(end - begin, num_contextual, candidates, mask)
        for i, j, head in itertools.product(range(end - begin), range(end - begin), range(q.shape[1])):
            if visible[i, j]:
                score = ALPHA * (q[begin + i, head] @ k[begin + j, head])
                out[begin + i, head] += score * torch.sigmoid(score) * v[begin + j, head] * SCALE
    return out


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3)), max_size=4),
    st.integers(0, 2),
    st.integers(0, 4),
    st.integers(0, 3),
    st.sampled_from(["queries", "keys"]),
)
def test_forward_is_the_formula(counts, num_contextual, local_window, global_window, global_axis):
    arguments = layout([h for h, _ in counts], [c for _, c in counts], num_contextual)
    mask = AttentionMask(local_window, global_window, global_axis)
    q, k, v = random_qkv(int(arguments["offsets_B1"][-1]))
    torch.testing.assert_close(attend(q, k, v, mask, **arguments), elementwise(q, k, v, mask, **arguments))


@pytest.mark.parametrize("global_axis", ["queries", "keys"])
def test_gradients_are_the_formulas(global_axis):
    arguments = layout([0, 1, 6], [0, 1, 2], 1)
    mask = AttentionMask(1, 1, global_axis)
    inputs = random_qkv(int(arguments["offsets_B1"][-1]))
    inputs = tuple(values.requires_grad_(True) for values in inputs)
    assert torch.autograd.gradcheck(lambda *qkv: attend(*qkv, mask, **arguments), inputs)
    expected = torch.autograd.grad(elementwise(*inputs, mask, **arguments).square().sum(), inputs)
    found = torch.autograd.grad(attend(*inputs, mask, **arguments).square().sum(), inputs)
    torch.testing.assert_close(found, expected)


def test_strided_views_equal_contiguous_tensors():
    arguments = layout([3, 30, 0], [2, 1, 4], 2)
    total = int(arguments["offsets_B1"][-1])
    buffer = torch.randn(total, 2 * 16, dtype=torch.float64, requires_grad=True)
    views = [part.unflatten(1, (2, 4)) for part in buffer.split(8, dim=1)[1:]]
    copies = [view.detach().contiguous().requires_grad_(True) for view in views]
    assert not views[0].is_contiguous()
    mask = AttentionMask(4, 2)
    strided, contiguous = attend(*views, mask, **arguments), attend(*copies, mask, **arguments)
    assert torch.equal(strided, contiguous)
    (gradient,) = torch.autograd.grad(strided.square().sum(), buffer)
    parts = torch.autograd.grad(contiguous.square().sum(), copies)
    assert torch.equal(gradient[:, 8:], torch.cat([part.flatten(1) for part in parts], dim=1))


def test_a_request_does_not_feel_its_batch_mates():
    mask = AttentionMask(4, 2)
    alone, beside = layout([5], [2], 1), layout([5, 300, 0], [2, 3, 1], 1)
    q, k, v = random_qkv(int(beside["offsets_B1"][-1]), dtype=torch.float32)
    together = attend(q, k, v, mask, **beside)
    torch.testing.assert_close(together[:8], attend(q[:8], k[:8], v[:8], mask, **alone), rtol=1e-6, atol=1e-7)
    # Poison in everyone else: neither padding nor grouping lets it through.
    for values in (q, k, v):
        values[8:] = float("nan")
    assert torch.equal(attend(q, k, v, mask, **beside)[:8], together[:8])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_stays_near_fp64(dtype):
    arguments = layout([40, 3], [2, 2], 1)
    q, k, v = random_qkv(int(arguments["offsets_B1"][-1]), qk_dim=16, v_dim=16)
    mask = AttentionMask(8, 4)
    exact = attend(q, k, v, mask, **arguments)
    found = attend(q.to(dtype), k.to(dtype), v.to(dtype), mask, **arguments)
    assert found.dtype == dtype
    error = (found.double() - exact).abs().max() / exact.abs().max()
    assert error < 8 * torch.finfo(dtype).eps


def test_padding_holds_any_length_and_stays_small():
    lengths = torch.arange(1, 70_000)
    padded = torch.tensor(_PADDED_LENGTHS)[torch.bucketize(lengths, torch.tensor(_PADDED_LENGTHS))]
    assert (padded >= lengths).all()
    assert (padded - lengths <= torch.maximum(lengths // 8, torch.tensor(15))).all()


def test_skewed_batch_does_not_cost_the_longest_squared_for_all():
    # Dense padding of this batch would need 2000 x 3000 x 3000 scores, 72 GB.
    arguments = layout([3000] + [2] * 2000, [1] * 2001, 0)
    q, k, v = random_qkv(int(arguments["offsets_B1"][-1]), heads=1, dtype=torch.float32)
    out = attend(q, k, v, AttentionMask(8, 4), **arguments)
    assert out.shape == v.shape


@pytest.mark.parametrize("histories", [[], [0], [0, 0, 0]])
def test_nothing_to_attend_to(histories):
    arguments = layout(histories, [0] * len(histories), 0)
    q, k, v = (values.requires_grad_(True) for values in random_qkv(0))
    out = attend(q, k, v, AttentionMask(1, 1), **arguments)
    assert out.shape == v.shape
    out.sum().backward()
    assert v.grad is not None


def bad_arguments():
    good = layout([2, 3], [1, 1], 1)
    offsets = good["offsets_B1"]
    yield "run from", good | {"offsets_B1": offsets + 1}
    yield "run from", good | {"offsets_B1": torch.tensor([0, 4, 10])}
    yield "request 1 has 0 tokens", good | {"offsets_B1": torch.tensor([0, 9, 9])}
    yield "request 0 has -1 tokens", good | {"offsets_B1": torch.tensor([0, -1, 9])}
    yield "negative", good | {"num_candidates_B": torch.tensor([-1, 1])}
    yield "negative", good | {"num_contextual": -1}
    yield "must be", good | {"num_candidates_B": torch.tensor([1, 1, 1])}
    yield "int64", good | {"offsets_B1": offsets.int()}


@pytest.mark.parametrize(("message", "arguments"), list(bad_arguments()))
def test_arguments_that_do_not_fit_are_refused(message, arguments):
    q, k, v = random_qkv(9)
    with pytest.raises(ValueError, match=message):
        attend(q, k, v, AttentionMask(1, 1), **arguments)


def test_tensors_that_do_not_fit_are_refused():
    arguments = layout([2, 3], [1, 1], 1)
    q, k, v = random_qkv(9)
    for values in ((q[:, :, :2], k, v), (q, k, v[:5]), (q, k, v.float())):
        with pytest.raises(ValueError, match="must"):
            attend(*values, AttentionMask(1, 1), **arguments)


def test_an_implementation_is_never_replaced_by_another():
    q, k, v = random_qkv(2)
    arguments = layout([2], [0], 0)
    with pytest.raises(NotImplementedError, match="triton"):
        hstu_attention(q, k, v, mask=AttentionMask(1, 1), alpha=ALPHA, scale=SCALE, impl="triton", **arguments)
