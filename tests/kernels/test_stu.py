import itertools
import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import AttentionMask, AttentionPlan, GatedNorm, STUSettings, STUWeights, lengths_to_offsets, stu_layer
from kernels.reference import dense_mask

DIM = 5
SETTINGS = STUSettings(
    num_heads=2, qk_dim=3, v_dim=2, alpha=0.4, scale=1 / 7, mask=AttentionMask(2, 1), epsilon=1e-3, gate=GatedNorm(1e-2)
)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def weights_of(layer, dim=DIM):
    total, gate = sum(layer.sizes), layer.sizes[0]
    shapes = [(dim,), (dim,), (total, dim), (total,), (gate,), (gate,), (dim, gate)]
    return STUWeights(*(random(*shape, seed=seed) for seed, shape in enumerate(shapes)))


def plan_of(counts, num_contextual):
    num_candidates = torch.tensor([c for _, c in counts], dtype=torch.int64)
    lengths = torch.tensor([h for h, _ in counts], dtype=torch.int64) + num_candidates + num_contextual
    return AttentionPlan(lengths_to_offsets(lengths), num_candidates, num_contextual, int(lengths.sum()))


def normal(x, epsilon):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt()


def silu(x):
    return x / (1 + math.exp(-x))


def layer_by_hand(z, w, plan, layer):
    """The paper's equations, a pair of tokens at a time."""
    x = normal(z, layer.epsilon) * w.norm_weight_D + w.norm_bias_D
    projected = x @ w.uvqk_weight_ND.T + w.uvqk_bias_N
    u, v, q, k = (projected / (1 + torch.exp(-projected))).split(layer.sizes, dim=1)
    attention = torch.zeros_like(v)
    bounds, candidates = plan.offsets_B1.tolist(), plan.num_candidates_B.tolist()
    for request, (begin, end) in enumerate(itertools.pairwise(bounds)):
        visible = dense_mask(end - begin, plan.num_contextual, candidates[request], layer.mask)
        for i, j, head in itertools.product(range(end - begin), range(end - begin), range(layer.num_heads)):
            keys = slice(head * layer.qk_dim, (head + 1) * layer.qk_dim)
            values = slice(head * layer.v_dim, (head + 1) * layer.v_dim)
            if visible[i, j]:
                weight = silu(float(layer.alpha * q[begin + i, keys] @ k[begin + j, keys]))
                attention[begin + i, values] += weight * v[begin + j, values] * layer.scale
    groups = attention.unflatten(1, (layer.gate.num_groups, -1))
    y = (normal(groups, layer.gate.epsilon).flatten(1) * w.gate_weight_E + w.gate_bias_E) * u
    return z + y @ w.output_weight_DE.T


@settings(max_examples=20, deadline=None)
@given(
    counts=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2)), max_size=3),
    num_contextual=st.integers(0, 2),
    axis=st.sampled_from(["queries", "keys"]),
    groups=st.sampled_from([1, 2]),
)
def test_layer_is_the_papers_equations(counts, num_contextual, axis, groups):
    plan = plan_of(counts, num_contextual)
    layer = replace(SETTINGS, mask=AttentionMask(2, 1, axis), gate=GatedNorm(1e-2, groups))
    z, weights = random(plan.total, DIM, seed=11), weights_of(layer)
    found = stu_layer(z, weights, plan, layer, impl="reference")
    torch.testing.assert_close(found, layer_by_hand(z, weights, plan, layer))


def test_gradients_are_those_of_finite_differences():
    plan = plan_of([(4, 1), (0, 0), (1, 2)], 1)
    weights = weights_of(SETTINGS)
    leaves = [random(plan.total, DIM, seed=11), *(getattr(weights, field.name) for field in fields(STUWeights))]
    leaves = [x.requires_grad_(True) for x in leaves]
    run = lambda z, *w: stu_layer(z, STUWeights(*w), plan, SETTINGS, impl="reference")  # noqa: E731
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


def test_weights_in_fp32_serve_16_bit_tokens():
    plan = plan_of([(9, 1), (3, 0)], 1)
    weights = weights_of(SETTINGS)
    z = random(plan.total, DIM, seed=11)
    single = STUWeights(*(getattr(weights, field.name).float() for field in fields(STUWeights)))
    found = stu_layer(z.bfloat16(), single, plan, SETTINGS, impl="reference")
    assert found.dtype == torch.bfloat16
    exact = stu_layer(z, weights, plan, SETTINGS, impl="reference")
    # Five stages round one after the other, each by 2 eps in the mean at most.
    assert (found.double() - exact).norm() < 10 * torch.finfo(torch.bfloat16).eps * exact.norm()


def test_what_the_reference_cannot_do_is_named():
    plan = plan_of([(2, 1)], 0)
    z, weights = random(3, DIM), weights_of(SETTINGS)
    with pytest.raises(NotImplementedError, match="fp8"):
        stu_layer(z, weights, plan, replace(SETTINGS, gemm="fp8"), impl="reference")
    with pytest.raises(NotImplementedError, match="'cuda'"):
        stu_layer(z, weights, plan, SETTINGS, impl="cuda")
    with pytest.raises(ValueError, match="4 columns do not make 3 groups"):
        stu_layer(z, weights, plan, replace(SETTINGS, gate=GatedNorm(1e-2, 3)), impl="reference")


def test_triton_never_falls_back_where_it_cannot_run():
    pytest.importorskip("triton")
    plan = plan_of([(2, 1)], 0)
    with pytest.raises(NotImplementedError, match="needs a GPU, the tensors lie on cpu"):
        stu_layer(random(3, DIM).float(), weights_of(SETTINGS), plan, SETTINGS, impl="triton")
