"""Checks of the Triton norms, matrix products and layer against fp64; the tests run it in a process of its own.

    TRITON_INTERPRET=1 python tests/kernels/triton_layer_checks.py cpu
    python tests/kernels/triton_layer_checks.py cuda

Uninitialised memory is NaN throughout.
"""

from dataclasses import fields, replace

import torch
from triton_checks import compare, layout, run_all

from kernels import (
    AttentionMask,
    AttentionPlan,
    GatedNorm,
    QuantisedRows,
    STUSettings,
    STUWeights,
    gated_norm,
    layer_norm,
    layer_norm_quantised,
    linear,
    project_uvqk,
    quantise_rows,
    stu_layer,
)

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32


def randn(*shape, dtype, device):
    return torch.randn(*shape, device=device).to(dtype)


def gradients(run, leaves, weight):
    leaves = [x.detach().requires_grad_(True) for x in leaves]
    out = run(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, weight)]


def strided(rows, columns, dtype, device):
    """A matrix within a wider one that is NaN."""
    buffer = torch.full((rows, columns + 40), float("nan"), dtype=dtype, device=device)
    inside = buffer[:, 16 : 16 + columns]
    inside.copy_(torch.randn(rows, columns, device=device))
    return inside


def check_layer_norm(device, dtype, rows, columns):
    leaves = [
        strided(rows, columns, dtype, device),
        *(randn(columns, dtype=SINGLE, device=device) for _ in range(2)),
    ]
    weight = strided(rows, columns, dtype, device)
    results = []
    for impl, cast in (("triton", lambda x: x), ("reference", torch.Tensor.double)):
        run = lambda x, w, b, impl=impl: layer_norm(x, w, b, epsilon=1e-3, impl=impl)  # noqa: E731
        results.append(gradients(run, [cast(x) for x in leaves], cast(weight)))
    for name, found, exact in zip(("out", "dx", "dweight", "dbias"), *results, strict=True):
        compare(f"layer norm {name}", found, exact, dtype)


def check_gated_norm(device, dtype, rows, columns, groups):
    settings = GatedNorm(1e-4, groups)
    leaves = [
        *(strided(rows, columns, dtype, device) for _ in range(2)),
        *(randn(columns, dtype=SINGLE, device=device) for _ in range(2)),
    ]
    weight = strided(rows, columns, dtype, device)
    results = []
    for impl, cast in (("triton", lambda x: x), ("reference", torch.Tensor.double)):
        run = lambda *x, impl=impl: gated_norm(*x, settings=settings, impl=impl)  # noqa: E731
        results.append(gradients(run, [cast(x) for x in leaves], cast(weight)))
    for name, found, exact in zip(("out", "da", "du", "dweight", "dbias"), *results, strict=True):
        compare(f"gated norm {name}", found, exact, dtype)


def check_dropout(device):
    """The kept elements are scaled, the share of the others fits, and backward drops the same."""
    rows, columns, share = 200, 64, 0.25
    leaves = [randn(rows, columns, dtype=SINGLE, device=device) for _ in range(2)]
    leaves += [torch.ones(columns, device=device), torch.full((columns,), 9.0, device=device)]
    options = {"impl": "triton", "seed": 5}
    plain = gated_norm(*leaves, settings=GatedNorm(1e-4), **options)
    settings = GatedNorm(1e-4, dropout=share)
    ones = torch.ones(rows, columns, device=device)
    out, _, du, *_ = gradients(lambda *x: gated_norm(*x, settings=settings, **options), leaves, ones)
    dropped = out == 0
    # 5 standard deviations of the number of dropped elements, over all and over any column.
    assert abs(dropped.float().mean() - share) < 5 * (share * (1 - share) / dropped.numel()) ** 0.5
    assert ((dropped.float().mean(0) - share).abs() < 5 * (share * (1 - share) / rows) ** 0.5).all()
    torch.testing.assert_close(out[~dropped], plain[~dropped] / (1 - share))
    assert torch.equal(du == 0, dropped)
    other = gated_norm(*leaves, settings=settings, impl="triton", seed=6)
    assert not torch.equal(other == 0, dropped)
    torch.testing.assert_close(out, gated_norm(*leaves, settings=settings, **options))


def check_product(device, dtype, rows, depth, columns):
    x, weight = (strided(n, depth, dtype, device) for n in (rows, columns))
    bias, residual = randn(columns, dtype=SINGLE, device=device), strided(rows, columns, dtype, device)
    for options in ({}, {"bias_N": bias}, {"bias_N": bias, "residual_TN": residual}):
        found = linear(x, weight, impl="triton", dtype=dtype, **options)
        exact = linear(
            x.double(), weight.double(), impl="reference", dtype=torch.float64,
            **{name: y.double() for name, y in options.items()},
        )  # fmt: skip
        compare("product", found, exact, dtype)
    for gates in (columns // 4, columns // 4 + 3):
        for keep_pre in (False, True):
            options = {"num_gates": gates, "keep_pre": keep_pre}
            found = project_uvqk(x, weight, bias, impl="triton", dtype=dtype, **options)
            exact = project_uvqk(
                x.double(), weight.double(), bias.double(), impl="reference", dtype=torch.float64, **options
            )
            for name in ("vqk_TN", "pre_TN" if keep_pre else "u_TE"):
                compare(name, getattr(found, name), getattr(exact, name), dtype)


def settings_of(mask, dims, heads, gemm="full", groups=1, dropout=0.0):
    return STUSettings(
        heads, *dims, alpha=0.3, scale=1 / 50, mask=mask, epsilon=1e-6,
        gate=GatedNorm(1e-6 / 50**2, groups, dropout), gemm=gemm,
    )  # fmt: skip


def weights_of(settings, dim, device):
    total = sum(settings.sizes)
    gate = settings.sizes[0]
    shapes = [(dim,), (dim,), (total, dim), (total,), (gate,), (gate,), (dim, gate)]
    values = [randn(*shape, dtype=SINGLE, device=device) for shape in shapes]
    values[0], values[4] = values[0] / 10 + 1, values[4] / 10 + 1
    values[2], values[6] = values[2] / dim**0.5, values[6] / gate**0.5
    return STUWeights(*values)


def layer_results(z, weights, plan, settings, weight, impl):
    names = [field.name for field in fields(STUWeights)]
    run = lambda z, *w: stu_layer(z, STUWeights(*w), plan, settings, impl=impl)  # noqa: E731
    return ["out", "dz", *names], gradients(run, [z, *(getattr(weights, name) for name in names)], weight)


def check_layer(device, dtype, dim, dims, heads, counts, groups=1):
    arguments = layout([h for h, _ in counts], [c for _, c in counts], 2, device)
    plan = AttentionPlan(**arguments, total=int(arguments["offsets_B1"][-1]))
    settings = settings_of(AttentionMask(9, 5), dims, heads, groups=groups)
    weights = weights_of(settings, dim, device)
    z, weight = (randn(plan.total, dim, dtype=dtype, device=device) for _ in range(2))
    names, found = layer_results(z, weights, plan, settings, weight, "triton")
    doubles = STUWeights(*(getattr(weights, field.name).double() for field in fields(STUWeights)))
    _, exact = layer_results(z.double(), doubles, plan, settings, weight.double(), "reference")
    eps = torch.finfo(dtype).eps
    for name, a, b in zip(names, found, exact, strict=True):
        assert torch.isfinite(a).all(), f"{name} is not finite"
        error = ((a.double() - b).norm() / b.norm()).item() / eps
        # Five stages round in a row (norm, projection, attention, gate, product), twice that in the backward; each
        # adds at most 2 eps in the mean, and fp32 sums walk with their length.
        assert error < max(20.0, 4 * plan.total**0.5 if dtype == SINGLE else 0), f"layer {name}: {error:.1f} eps"


def check_saved(device):
    """What stays between forward and backward: z, u and the attention."""
    arguments = layout([60, 30], [3, 4], 2, device)
    plan = AttentionPlan(**arguments, total=int(arguments["offsets_B1"][-1]))
    settings = settings_of(AttentionMask(9, 5), (16, 16), 2)
    weights = weights_of(settings, 32, device)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    z = randn(plan.total, 32, dtype=SINGLE, device=device).requires_grad_(True)
    parameters = {getattr(weights, field.name).untyped_storage().data_ptr() for field in fields(STUWeights)}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        stu_layer(z, weights, plan, settings, impl="triton").sum().backward()
    held = sum(size for pointer, size in kept.items() if pointer not in parameters)
    assert held <= 3 * plan.total * 32 * 4, f"{held} bytes are kept, of {3 * plan.total * 32 * 4}"


def check_quantised(device):
    """Values are within a rounding of e4m3 (2^-4 of themselves, or half its smallest step), zero rows stay zero."""
    x = randn(37, 96, dtype=BRAIN, device=device) * torch.logspace(-6, 6, 37, device=device)[:, None].to(BRAIN)
    x[5] = 0
    weight, bias = (randn(96, dtype=SINGLE, device=device) for _ in range(2))
    pairs = [(quantise_rows(x, impl="triton"), x.double())]
    exact = layer_norm(x.double(), weight.double(), bias.double(), epsilon=1e-3, impl="reference")
    pairs.append((layer_norm_quantised(x, weight, bias, epsilon=1e-3, impl="triton"), exact))
    for found, exact in pairs:
        assert torch.isfinite(found.values_TD.float()).all()
        assert torch.isfinite(found.scale_T).all()
        step = found.scale_T[:, None].double() * 2**-10
        error = (found.values_TD.double() * found.scale_T.double()[:, None] - exact).abs()
        assert (error <= exact.abs() * 2**-4 + step + 1e-4 * exact.abs().amax(1, keepdim=True)).all()
    assert (pairs[0][0].values_TD[5].float() == 0).all()
    assert pairs[0][0].scale_T[5] == 0


def check_quantised_product(device):
    """The product of quantised operands equals that of their exact values."""
    x = quantise_rows(randn(300, 512, dtype=BRAIN, device=device), impl="triton")
    weight = quantise_rows(randn(256, 512, dtype=BRAIN, device=device), impl="triton")
    residual = randn(300, 256, dtype=BRAIN, device=device)
    found = linear(x, weight, impl="triton", dtype=BRAIN, residual_TN=residual)
    exact = double(x) @ double(weight).T + residual.double()
    # Tensor cores add e4m3 products in about 14 bits, 2^-13 a step of 32, below bf16's rounding of the result.
    compare("fp8 product", found, exact, BRAIN)


def double(x: QuantisedRows):
    return x.values_TD.double() * x.scale_T.double()[:, None]


def check_quantised_layer(device):
    """FP8 gives the bf16 layer with the noise of e4m3's 2^-4 a value, which averages over a row."""
    arguments = layout([700, 90, 0, 301], [20, 3, 1, 0], 2, device)
    plan = AttentionPlan(**arguments, total=int(arguments["offsets_B1"][-1]))
    full = settings_of(AttentionMask(60, 50), (128, 128), 4)
    weights = weights_of(full, 512, device)
    z, weight = (randn(plan.total, 512, dtype=BRAIN, device=device) for _ in range(2))
    names, exact = layer_results(z, weights, plan, full, weight, "triton")
    _, found = layer_results(z, weights, plan, replace(full, gemm="fp8"), weight, "triton")
    for name, a, b in zip(names, found, exact, strict=True):
        error = ((a.double() - b.double()).norm() / b.double().norm()).item()
        print(f"  fp8 against bf16, {name}: {error:.4f}")
        assert error < 2**-3, f"{name} is off by {error:.3f}"


def checks(device):
    yield "layer norm fp32", lambda: check_layer_norm(device, SINGLE, 37, 48)
    yield "gated norm fp32", lambda: check_gated_norm(device, SINGLE, 37, 48, 1)
    yield "gated norm fp32, 4 groups", lambda: check_gated_norm(device, SINGLE, 21, 48, 4)
    yield "dropout", lambda: check_dropout(device)
    yield "product fp32", lambda: check_product(device, SINGLE, 70, 40, 44)
    yield "layer fp32", lambda: check_layer(device, SINGLE, 24, (16, 8), 2, [(20, 2), (0, 0), (35, 1)])
    yield "saved tensors", lambda: check_saved(device)
    if device == "cpu":
        return
    for dtype in (BRAIN, HALF):
        yield f"layer norm {dtype}", lambda dtype=dtype: check_layer_norm(device, dtype, 5000, 512)
        yield f"gated norm {dtype}", lambda dtype=dtype: check_gated_norm(device, dtype, 5000, 512, 1)
        yield f"gated norm {dtype}, 4 groups", lambda dtype=dtype: check_gated_norm(device, dtype, 3000, 512, 4)
        yield f"product {dtype}", lambda dtype=dtype: check_product(device, dtype, 1000, 512, 768)
        yield f"product {dtype}, odd", lambda dtype=dtype: check_product(device, dtype, 333, 72, 88)
    counts = [(700, 20), (0, 3), (1500, 1), (64, 0)]
    yield "layer bf16", lambda: check_layer(device, BRAIN, 512, (128, 128), 4, counts)
    yield "layer bf16, group norm", lambda: check_layer(device, BRAIN, 256, (64, 64), 4, counts, groups=4)
    yield "layer fp16, dims 48 and 96", lambda: check_layer(device, HALF, 192, (48, 96), 2, counts)
    yield "quantised", lambda: check_quantised(device)
    yield "quantised product", lambda: check_quantised_product(device)
    yield "quantised layer", lambda: check_quantised_layer(device)


if __name__ == "__main__":
    run_all(checks)
