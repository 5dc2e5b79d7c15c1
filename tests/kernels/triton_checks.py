"""Checks of the Triton attention against the fp64 reference; the tests run it in a process of its own.

    TRITON_INTERPRET=1 python tests/kernels/triton_checks.py cpu
    python tests/kernels/triton_checks.py cuda

Triton decides at its import whether it interprets, hence the process. It needs no pytest, so that it runs on any GPU.
Uninitialised memory is NaN throughout, and so is what surrounds the tokens in memory: a value that was not written, or
a neighbour that was read, shows.
"""

import itertools
import random
import sys
import time

import torch

from kernels import AttentionMask, AttentionPlan, hstu_attention, hstu_attention_cached, lengths_to_offsets

ALPHA, SCALE = 0.4, 1 / 7
NAMES = ("out", "dq", "dk", "dv")


def layout(histories, candidates, num_contextual, device):
    num_candidates = torch.tensor(candidates, dtype=torch.int64, device=device)
    lengths = torch.tensor(histories, dtype=torch.int64, device=device) + num_candidates + num_contextual
    return {
        "offsets_B1": lengths_to_offsets(lengths),
        "num_contextual": num_contextual,
        "num_candidates_B": num_candidates,
    }


def fused_views(total, heads, qk_dim, v_dim, dtype, device):
    """q, k and v within one buffer that is NaN everywhere else."""
    width = heads * (2 * qk_dim + v_dim)
    buffer = torch.full((total + 256, width + 24), float("nan"), dtype=dtype, device=device)
    inside = buffer[128 : 128 + total, 8 : 8 + width]
    inside.copy_(torch.randn(inside.shape, device=device))
    parts = inside.split([heads * qk_dim, heads * qk_dim, heads * v_dim], dim=1)
    return [part.unflatten(1, (heads, -1)) for part in parts]


def run(qkv, weight, mask, arguments, impl):
    leaves = [x.detach().requires_grad_(True) for x in qkv]
    out = hstu_attention(*leaves, mask=mask, alpha=ALPHA, scale=SCALE, impl=impl, **arguments)
    return [out.detach(), *torch.autograd.grad(out, leaves, weight)]


def compare(name, found, exact, dtype):
    """Largest error and mean-square error, both in units of the dtype's eps of the exact result's own."""
    error = found.double() - exact
    assert torch.isfinite(found).all(), f"{name} is not finite"
    eps = torch.finfo(dtype).eps
    worst = (error.abs().max() / exact.abs().max().clamp(min=1e-30)).item() / eps
    norm = (error.norm() / exact.norm().clamp(min=1e-30)).item() / eps
    # Scores, weights and results are rounded once each to a 16-bit dtype and summed in fp32: 2 eps in the mean, some
    # eps of the largest element at worst. In fp32 it is the sum that rounds, and its error walks with its length.
    walk = exact.shape[0] ** 0.5 if dtype == torch.float32 else 0.0
    assert worst <= max(8.0, walk), f"{name}: {worst:.2f} eps at worst"
    assert norm <= max(2.0, walk), f"{name}: {norm:.2f} eps in the mean"
    return worst


def check(histories, candidates, num_contextual, mask, device, *, dims=(16, 16), dtype=torch.float32, heads=2):
    arguments = layout(histories, candidates, num_contextual, device)
    total = int(arguments["offsets_B1"][-1])
    qkv = fused_views(total, heads, *dims, dtype, device)
    weight = torch.randn((total, heads, dims[1]), device=device).to(dtype)
    exact = run([x.double() for x in qkv], weight.double(), mask, arguments, "reference")
    found = run(qkv, weight, mask, arguments, "triton")
    assert all(x.dtype == dtype for x in found)
    errors = {name: compare(name, *pair, dtype) for name, *pair in zip(NAMES, found, exact, strict=True)}
    if device == "cuda":
        again = run(qkv, weight, mask, arguments, "triton")
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True)), "a second run differs"
    return errors


def masks():
    for axis, (local, glob) in itertools.product(("queries", "keys"), ((0, 0), (2, 0), (9, 3), (40, 33), (500, 7))):
        yield AttentionMask(local, glob, axis)


def check_short_lengths(device):
    """All mixes of 0 to 4 history tokens and 0 to 2 candidates, with and without contextual tokens."""
    counts = list(itertools.product(range(5), range(3)))
    for axis, contextual in (("queries", 0), ("keys", 2)):
        check([h for h, _ in counts], [c for _, c in counts], contextual, AttentionMask(1, 2, axis), device, heads=1)


def check_ragged(device, examples, longest, **options):
    generator = random.Random(7)
    worst = dict.fromkeys(NAMES, 0.0)
    choices = list(masks())
    for example in range(examples):
        histories = [generator.choice((0, 1, generator.randint(0, longest))) for _ in range(2)] + [longest]
        candidates = [generator.choice((0, 1, 3, 40)) for _ in histories]
        contextual = generator.choice((0, 1, 5, 37))
        errors = check(histories, candidates, contextual, choices[example % len(choices)], device, **options)
        worst = {name: max(worst[name], errors[name]) for name in NAMES}
    print(f"  largest error in eps of the largest element: {', '.join(f'{n} {e:.2f}' for n, e in worst.items())}")


def check_nothing(device):
    for histories in ([], [0, 0]):
        arguments = layout(histories, [0] * len(histories), 0, device)
        qkv = fused_views(0, 2, 16, 16, torch.float32, device)
        results = run(qkv, torch.zeros(0, 2, 16, device=device), AttentionMask(1, 1), arguments, "triton")
        assert all(x.shape == (0, 2, 16) for x in results)


def check_unseen_keys_are_not_read(device):
    """A NaN among the values reaches only tiles with a query that sees near it, and its gradient twin likewise."""
    arguments = layout([420], [0], 0, device)
    q, k, v = fused_views(420, 1, 16, 16, torch.float32, device)
    weight = torch.randn(420, 1, 16, device=device)
    mask = AttentionMask(4, 0)
    clean = run((q, k, v), weight, mask, arguments, "triton")
    v[200] = float("nan")
    weight[200] = float("nan")
    poisoned = run((q, k, v), weight, mask, arguments, "triton")
    # 64 or fewer rows a tile and 64 or fewer keys a block, which start at the tile's first row.
    for name, a, b in zip(NAMES, clean, poisoned, strict=True):
        for far in (slice(0, 64), slice(332, 420)):
            assert torch.equal(a[far], b[far]), f"{name} was reached by a row that nobody there sees"


def check_work_lists(device):
    """Every row is in one tile, every key of it in one part, and where slots run out the first part takes all."""
    from kernels.hstu.plan import key_items, query_items

    generator = random.Random(5)
    for example in range(12 if device == "cpu" else 60):
        contextual = generator.choice((0, 3, 40))
        counts = [(generator.randint(0, 90), generator.choice((0, 1, 20, 40))) for _ in range(generator.randint(1, 5))]
        arguments = layout([h for h, _ in counts], [c for _, c in counts], contextual, device)
        plan = AttentionPlan(**arguments, total=int(arguments["offsets_B1"][-1]))
        mask = AttentionMask(2, generator.choice((0, 5, 33)), generator.choice(("queries", "keys")))
        few_slots = (1 << 22) if example % 2 else 1
        queries = query_items(plan, mask, block=16, chunk=32, slot_elements=few_slots)
        keys = key_items(plan, mask, 16)
        starts = arguments["offsets_B1"].tolist()
        for work in (queries, keys):
            items = [x for x in work.items_I[: int(work.counts[0])].tolist() if x[0] >= 0]
            seen = {}
            for start, length, history_end, first, end_row, lo, hi, slot, query_start in items:
                request = max(b for b, x in enumerate(starts[:-1]) if x == start and starts[b + 1] - x == length)
                assert (query_start, history_end) == (start, length - counts[request][1]), "another extent"
                assert slot < work.num_slots
                assert (slot >= 0) == ((lo, hi) != (0, length)), "a part without a slot"
                for row in range(first, end_row):
                    seen.setdefault(start + row, []).append((lo, hi))
            assert sorted(seen) == list(range(plan.total)), "rows are missing or of another request"
            for row, ranges in seen.items():
                ranges.sort()
                ends = [0] + [hi for _, hi in ranges]
                assert [lo for lo, _ in ranges] == ends[:-1], f"row {row} reads {ranges}"
            slots = [x[7] for x in items if x[7] >= 0]
            assert len(slots) == len(set(slots)), "two parts share a slot"


def check_cached(device, dtype=torch.float32, dims=(16, 16), longest=150):
    generator = random.Random(11)
    for _ in range(4):
        cached = [generator.choice((0, 1, generator.randint(0, longest), longest)) for _ in range(3)]
        candidates = [generator.choice((0, 1, 5, 90)) for _ in cached]
        q, k, v = fused_views(sum(candidates), 2, *dims, dtype, device)
        _, cache_k, cache_v = fused_views(sum(cached), 2, *dims, dtype, device)
        options = {
            "candidate_offsets_B1": lengths_to_offsets(torch.tensor(candidates, device=device)),
            "cache_offsets_B1": lengths_to_offsets(torch.tensor(cached, device=device)),
            "alpha": ALPHA,
            "scale": SCALE,
        }
        found = hstu_attention_cached(q, k, v, cache_k, cache_v, **options, impl="triton")
        doubles = [x.double() for x in (q, k, v, cache_k, cache_v)]
        exact = hstu_attention_cached(*doubles, **options, impl="reference")
        if exact.numel() > 0:
            compare("cached", found, exact, dtype)


def check_far_addresses(device):
    """Elements beyond 2^31: the last request of a buffer of 4.6 GB gives what it gives alone."""
    length, num_requests = 2_200, 512
    buffer = torch.empty(length * num_requests, 4, 4, 128, dtype=torch.bfloat16, device=device).normal_()
    assert buffer.numel() > 2**31
    mask, rows = AttentionMask(200, 100), slice(length * (num_requests - 1), None)
    results = []
    for qkv, count in (
        ([buffer[:, i] for i in range(1, 4)], num_requests),
        ([buffer[rows, i] for i in range(1, 4)], 1),
    ):
        arguments = layout([length - 7] * count, [7] * count, 0, device)
        weight = torch.ones(len(qkv[0]), 4, 128, dtype=torch.bfloat16, device=device)
        results.append([x[-length:].clone() for x in run(qkv, weight, mask, arguments, "triton")])
    for name, found, alone in zip(NAMES, *results, strict=True):
        compare(f"far {name}", found, alone.double(), torch.bfloat16)


def check_expanded_gradient(device):
    """sum() hands back a gradient without strides."""
    arguments = layout([40], [2], 1, device)
    qkv = [x.requires_grad_(True) for x in fused_views(43, 2, 16, 16, torch.float32, device)]
    results = [
        torch.autograd.grad(
            hstu_attention(*qkv, mask=AttentionMask(8, 4), alpha=ALPHA, scale=SCALE, impl=impl, **arguments).sum(), qkv
        )
        for impl in ("triton", "reference")
    ]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def check_refusals(device):
    arguments = layout([3], [1], 0, device)
    q, k, v = (torch.randn(4, 2, 16, device=device) for _ in range(3))
    wide = torch.randn(4, 2, 272, device=device)
    crossed = torch.randn(4, 16, 2, device=device).transpose(1, 2)
    cases = (
        ((q.double(), k.double(), v.double()), "torch.float64"),
        ((wide, wide, v), "(4, 2, 272)"),
        ((q, k, crossed), "v has strides"),
    )
    for tensors, message in cases:
        refusal = ""
        try:
            hstu_attention(*tensors, mask=AttentionMask(1, 1), alpha=1.0, scale=1.0, impl="triton", **arguments)
        except NotImplementedError as error:
            refusal = str(error)
        assert message in refusal, f"{message} was not refused: {refusal!r}"


def checks(device):
    yield "refusals", lambda: check_refusals(device)
    yield "no tokens", lambda: check_nothing(device)
    yield "short lengths", lambda: check_short_lengths(device)
    yield "unseen keys", lambda: check_unseen_keys_are_not_read(device)
    yield "work lists", lambda: check_work_lists(device)
    yield "cached fp32", lambda: check_cached(device)
    yield "expanded gradient", lambda: check_expanded_gradient(device)
    if device == "cpu":
        yield "ragged fp32", lambda: check_ragged(device, 10, 70, heads=1)
        yield "ragged fp32, dims 12 and 24", lambda: check_ragged(device, 2, 40, dims=(12, 24), heads=1)
        return
    yield "ragged fp32", lambda: check_ragged(device, 40, 500)
    yield "ragged bf16, dims 128", lambda: check_ragged(device, 40, 1500, dims=(128, 128), dtype=torch.bfloat16)
    half, brain = torch.float16, torch.bfloat16
    yield "cached bf16", lambda: check_cached(device, brain, (128, 128), 9000)
    cases = (
        (half, (64, 32)),
        (brain, (32, 128)),
        (brain, (48, 96)),
        (half, (128, 64)),
        (brain, (256, 64)),
        (brain, (160, 256)),
    )
    for dtype, dims in (*cases, (half, (20, 8))):
        options = {"dims": dims, "dtype": dtype}
        yield f"ragged {dtype}, dims {dims}", lambda options=options: check_ragged(device, 10, 700, **options)
    yield "far addresses", lambda: check_far_addresses(device)
    long = {"dims": (128, 128), "dtype": brain}
    for axis in ("queries", "keys"):
        mask = AttentionMask(100, 300, axis)
        yield (
            f"long {axis}",
            lambda mask=mask: check([9000, 4096, 0, 4097, 63, 2048], [20, 200, 5, 0, 1, 64], 3, mask, device, **long),
        )
    for axis in ("queries", "keys"):
        full = AttentionMask(1 << 40, 0, axis)
        options = {"dims": (128, 128), "dtype": torch.bfloat16}
        yield (
            f"full {axis}",
            lambda full=full, options=options: check([3000, 1, 130], [20, 0, 3], 2, full, device, **options),
        )


def run_all(checks):
    """Runs the checks of the device on the command line, one after the other."""
    device = sys.argv[1]
    # Fills uninitialised memory with NaN; some sums of integers would else be refused, hence warn_only.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(3)
    for name, run_check in checks(device):
        begin = time.monotonic()
        run_check()
        print(f"ok {name}, {time.monotonic() - begin:.1f} s", flush=True)
    print(f"all checks hold on {torch.cuda.get_device_name() if device == 'cuda' else 'the interpreter'}")


if __name__ == "__main__":
    run_all(checks)
