"""Checks of the operators of `kernels.ops`; the tests run it in a process of its own.

    TRITON_INTERPRET=1 python tests/kernels/triton_ops_checks.py cpu
    python tests/kernels/triton_ops_checks.py cuda

The interpreter compiles with backend "aot_eager", which traces forward and backward and runs what it traced.
"""

from dataclasses import fields, replace

import torch
from triton_checks import fused_views, layout, run_all
from triton_layer_checks import randn, settings_of, weights_of

from kernels import AttentionMask, AttentionPlan, STUWeights, hstu_attention, stu_layer

MASK = AttentionMask(9, 5)
# What the compiled checks see as well is left out where the interpreter would take seconds for it.
OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
COUNTS = ([11, 0, 6], [2, 0, 1], 2)


def operands(device, dtype, dims, heads=2):
    arguments = layout(*COUNTS, device)
    return arguments, fused_views(int(arguments["offsets_B1"][-1]), heads, *dims, dtype, device)


def attend(q, k, v, offsets, num_candidates, shared):
    plan = AttentionPlan(offsets, num_candidates, COUNTS[2], q.shape[0]) if shared else None
    return hstu_attention(
        q, k, v, offsets_B1=offsets, num_contextual=COUNTS[2], num_candidates_B=num_candidates, mask=MASK, alpha=0.4,
        scale=1 / 7, impl="triton", plan=plan,
    )  # fmt: skip


def results(run, leaves):
    leaves = [x.detach().requires_grad_(True) for x in leaves]
    out = run(*leaves)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), leaves)]


def equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def check_attention_operator(device, dtype, dims):
    arguments, qkv = operands(device, dtype, dims)
    tensors = [x.detach().requires_grad_(True) for x in qkv]
    rest = (arguments["offsets_B1"], arguments["num_candidates_B"], COUNTS[2], 9, 5, "keys", 0.4, 1 / 7)
    torch.library.opcheck(torch.ops.hstu2.attention.default, (*tensors, True, *rest), test_utils=OPCHECKS)


def check_compiled_attention(device, dtype, dims, backend):
    arguments, qkv = operands(device, dtype, dims)
    places = (arguments["offsets_B1"], arguments["num_candidates_B"])
    compiled = torch.compile(attend, backend=backend, fullgraph=True)
    for shared in (False, True):
        expected = results(lambda *x, s=shared: attend(*x, *places, s), qkv)
        equal(results(lambda *x, s=shared: compiled(*x, *places, s), qkv), expected)


def check_offsets_are_checked(device, dtype, dims, backend):
    """Compiled code refuses what eager code refuses."""
    arguments, qkv = operands(device, dtype, dims)
    wrong, message = arguments["offsets_B1"] + 1, "none"
    try:
        torch.compile(attend, backend=backend, fullgraph=True)(*qkv, wrong, arguments["num_candidates_B"], False)
    except ValueError as error:
        message = str(error)
    assert "offsets run from 1" in message, f"the error is {message}"


def layer_operands(device, dtype, dims, dim):
    arguments = layout(*COUNTS, device)
    settings = settings_of(MASK, dims, 2)
    z = randn(int(arguments["offsets_B1"][-1]), dim, dtype=dtype, device=device)
    weights = weights_of(settings, dim, device)
    return arguments, settings, [z, *(getattr(weights, field.name) for field in fields(STUWeights))]


def check_layer_operator(device, dtype, dims, dim):
    arguments, settings, (z, *weights) = layer_operands(device, dtype, dims, dim)
    tensors = [x.detach().requires_grad_(True) for x in (z, *weights)]
    rest = (arguments["offsets_B1"], arguments["num_candidates_B"], COUNTS[2], 9, 5, "queries", 0.3, 1 / 50)
    layer = (2, *dims, 1e-6, settings.gate.epsilon, 1, 0.0, "full", 3)
    torch.library.opcheck(
        torch.ops.hstu2.stu_layer.default, (tensors[0], tensors[1:], *rest, *layer), test_utils=OPCHECKS
    )


def check_compiled_layer(device, dtype, dims, dim, backend, dropout):
    """Forward and backward of the compiled layer drop the same elements as the eager one."""
    arguments, settings, leaves = layer_operands(device, dtype, dims, dim)
    settings = replace(settings, gate=replace(settings.gate, dropout=dropout))

    def run(z, *weights):
        plan = AttentionPlan(arguments["offsets_B1"], arguments["num_candidates_B"], COUNTS[2], z.shape[0])
        return stu_layer(z, STUWeights(*weights), plan, settings, impl="triton", seed=5)

    equal(results(torch.compile(run, backend=backend, fullgraph=True), leaves), results(run, leaves))


def checks(device):
    on_cpu = device == "cpu"
    dtype, dims, dim = (torch.float32, (16, 8), 24) if on_cpu else (torch.bfloat16, (128, 128), 256)
    backend = "aot_eager" if on_cpu else "inductor"
    yield "attention, opcheck", lambda: check_attention_operator(device, dtype, dims)
    yield "attention, compiled", lambda: check_compiled_attention(device, dtype, dims, backend)
    yield "attention, refusal", lambda: check_offsets_are_checked(device, dtype, dims, backend)
    yield "layer, opcheck", lambda: check_layer_operator(device, dtype, dims, dim)
    yield "layer, compiled", lambda: check_compiled_layer(device, dtype, dims, dim, backend, 0.25)


if __name__ == "__main__":
    run_all(checks)
