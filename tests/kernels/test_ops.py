"""The operators without Triton: shapes alone. `triton_ops_checks.py` runs them."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from kernels import AttentionMask, AttentionPlan, GatedNorm, STUSettings, STUWeights, hstu_attention, ops, stu_layer

MASK = AttentionMask(4, 2)


class Attention(nn.Module):
    def __init__(self, *, shared):
        super().__init__()
        self.shared = shared

    def forward(self, qkv, offsets, num_candidates):
        q, k, v = qkv.unflatten(1, (2, 16)).split([4, 4, 8], dim=2)
        plan = AttentionPlan(offsets, num_candidates, 1, q.shape[0]) if self.shared else None
        return hstu_attention(
            q, k, v, offsets_B1=offsets, num_contextual=1, num_candidates_B=num_candidates, mask=MASK, alpha=0.5,
            scale=0.1, impl="triton", plan=plan,
        )  # fmt: skip


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        shapes = [(12,), (12,), (48, 12), (48,), (16,), (16,), (12, 16)]
        self.weights = nn.ParameterList(torch.zeros(shape) for shape in shapes)
        self.settings = STUSettings(2, 4, 8, alpha=0.5, scale=0.1, mask=MASK, epsilon=1e-6, gate=GatedNorm(1e-6))

    def forward(self, z, offsets, num_candidates):
        plan = AttentionPlan(offsets, num_candidates, 1, z.shape[0])
        return stu_layer(z, STUWeights(*self.weights), plan, self.settings, impl="triton")


def places():
    return torch.tensor([0, 4, 11]), torch.tensor([1, 2])


def called(graph):
    return [str(node.target) for node in graph.nodes if str(node.target).startswith("hstu2.")]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("module", "width", "operator", "shape"),
    [
        (Attention(shared=False), 32, "attention", (2, 8)),
        (Attention(shared=True), 32, "attention", (2, 8)),
        (Layer(), 12, "stu_layer", (12,)),
    ],
)
def test_export_keeps_the_operator_for_any_number_of_tokens_and_requests(module, width, operator, shape, strict):
    tokens, requests = torch.export.Dim("tokens", min=2), torch.export.Dim("requests", min=2)
    dynamic = ({0: tokens}, {0: requests + 1}, {0: requests})
    exported = torch.export.export(module, (torch.zeros(11, width), *places()), dynamic_shapes=dynamic, strict=strict)
    assert called(exported.graph) == [f"hstu2.{operator}.default"]
    (out,) = [node.meta["val"] for node in exported.graph.nodes if str(node.target).startswith("hstu2.")]
    assert isinstance(out.shape[0], torch.SymInt)
    assert out.shape[1:] == shape


def test_fake_gradients_have_the_shapes_of_what_they_belong_to():
    def gradients(q, k, v, offsets, num_candidates):
        plan = AttentionPlan(offsets, num_candidates, 1, q.shape[0])
        out = ops.attention(q, k, v, plan, MASK, alpha=0.5, scale=0.1, check=False)
        return torch.autograd.grad(out.sum(), (q, k, v))

    with FakeTensorMode():
        buffer = torch.zeros(11, 2, 16, dtype=torch.bfloat16)
        q, k, v = (x.requires_grad_(True) for x in buffer.split([4, 4, 8], dim=2))
        offsets, num_candidates = torch.zeros(3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
        graph = make_fx(gradients)(q, k, v, offsets, num_candidates)
        found = gradients(q, k, v, offsets, num_candidates)
    assert called(graph.graph) == ["hstu2.attention.default", "hstu2.attention_backward.default"]
    for gradient, leaf in zip(found, (q, k, v), strict=True):
        assert (gradient.shape, gradient.dtype, gradient.is_contiguous()) == (leaf.shape, leaf.dtype, True)


def test_fake_layer_gradients_have_the_shapes_of_what_they_belong_to():
    layer = Layer()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        leaves = [mode.from_tensor(x.detach()).requires_grad_(True) for x in (torch.zeros(11, 12), *layer.weights)]
        offsets, num_candidates = (mode.from_tensor(x) for x in places())
        plan = AttentionPlan(offsets, num_candidates, 1, 11)
        out = ops.stu_layer(leaves[0], STUWeights(*leaves[1:]), plan, layer.settings, seed=0)
        found = torch.autograd.grad(out.sum(), leaves)
    assert [x.shape for x in found] == [x.shape for x in leaves]
