"""Checks of the Triton sums over bags against fp64; the tests run it in a process of its own.

    TRITON_INTERPRET=1 python tests/kernels/triton_bags_checks.py cpu
    python tests/kernels/triton_bags_checks.py cuda

How far fp32 may be from the exact sum follows from how the kernels add. A value that goes through h additions takes
part in h roundings, of at most u = eps / 2 of what each gives, so that a sum is off by no more than h u / (1 - h u)
times the sum of the values' sizes, whatever they are, and one value alone is not off at all. h is at most the number of
values less one, and where there are thousands, what the kernels' loops and trees make of them. A sum of 65,000
gradients may thus be off by 0.6, where a missing one shows by 3, the largest of its 512 elements. A random walk would
be nearer, but equal values, as a bag with one row many times has, do not round at random.

Uninitialised memory is NaN throughout, and so is what surrounds the rows in memory.
"""

import random
from dataclasses import dataclass

import torch
from torch import Tensor
from triton_checks import run_all

from kernels import bag_sum, bag_sum_gradient, lengths_to_offsets
from kernels.bag_sum import sums
from kernels.jagged import request_of_rows

UNIT = torch.finfo(torch.float32).eps / 2


@dataclass(frozen=True)
class Exact:
    """Sums in fp64, (N, D) both, and the sums of their values' sizes; (N,) how many values each has."""

    sums: Tensor
    sizes: Tensor
    counts: Tensor


def between_nans(*shape, device):
    """A matrix with NaN before and behind it."""
    buffer = torch.full((shape[0] + 2, *shape[1:]), float("nan"), device=device)
    buffer[1:-1] = torch.randn(*shape, device=device)
    return buffer[1:-1]


def rows_of(lengths, num_rows, device):
    """Rows of the slots: a few rows in most bags, others once or never, some of no interest."""
    total = sum(lengths)
    spread = torch.randint(-2, num_rows + 3, (total,), device=device)
    common = torch.randint(0, min(num_rows, 2) + 1, (total,), device=device)
    return torch.where(torch.rand(total, device=device) < 0.5, spread, common)


def exactly(terms, owners, num_sums):
    """(M, D) terms added up by their owners."""
    starts, terms = terms.new_zeros(num_sums, terms.shape[1], dtype=torch.float64), terms.double()
    return Exact(
        starts.index_add(0, owners, terms),
        starts.index_add(0, owners, terms.abs()),
        torch.bincount(owners, minlength=num_sums),
    )


def exact_bags(values, rows, offsets):
    bags = request_of_rows(offsets, rows.numel())
    here = (rows >= 0) & (rows < len(values))
    return exactly(values[rows[here]], bags[here], offsets.numel() - 1)


def additions_of_bags(lengths_N):
    """Slots at once, in whatever order, then one after the other."""
    return sums.SLOTS - 1 + ceil_div(lengths_N, sums.SLOTS)


def additions_of_rows(counts_U):
    """One after the other in a chunk, then chunks at once in whatever order, then one after the other."""
    chunks = ceil_div(counts_U, sums.CHUNK) + 1
    return sums.CHUNK - 1 + sums.SHARES - 1 + ceil_div(chunks, sums.SHARES)


def ceil_div(a, b):
    return (a + b - 1) // b


def check_sum(device, lengths, num_rows, dim, *, num_more=0, dtype=torch.int64):
    values, more = between_nans(num_rows, dim, device=device), between_nans(num_more, dim, device=device)
    rows = rows_of(lengths, num_rows + num_more, device)
    offsets = lengths_to_offsets(torch.tensor(lengths, dtype=torch.int64, device=device))
    additions = additions_of_bags(offsets.diff())
    found = bag_sum(values, rows.to(dtype), offsets, impl="triton", more_WD=more)
    matches("sum of rows in two places", found, exact_bags(torch.cat([values, more]), rows, offsets), additions)
    alone = bag_sum(values, rows.to(dtype), offsets, impl="triton")
    matches("sum", alone, exact_bags(values, rows, offsets), additions)


def check_gradient(device, counts, num_bags, dim, *, first_row=0, dtype=torch.int64):
    """`counts` says how often each row occurs."""
    count_U = torch.tensor(counts, dtype=torch.int64, device=device)
    rows = torch.arange(len(counts), device=device).repeat_interleave(count_U)
    bags = torch.randint(0, num_bags, (sum(counts),), device=device)
    gradient = between_nans(num_bags, dim, device=device)
    outs = [torch.full((len(counts), dim), float("nan"), device=device) for _ in range(2)]
    for out in outs:
        given = (rows + first_row).to(dtype)
        result = bag_sum_gradient(gradient, bags.to(dtype), given, out_UD=out, impl="triton", first_row=first_row)
        assert result is out
    assert torch.equal(*outs), "a second run differs"
    matches("gradient", outs[0], exactly(gradient[bags], rows, len(counts)), additions_of_rows(count_U))


def matches(name, found, exact, additions_N):
    """Each element is as near to the exact one as its additions allow."""
    assert found.shape == exact.sums.shape
    assert torch.isfinite(found).all(), f"{name} is not finite"
    steps_N = torch.minimum(additions_N, exact.counts - 1).clamp(min=0).double() * UNIT
    allowed = (steps_N / (1 - steps_N))[:, None] * exact.sizes
    error = (found.double() - exact.sums).abs()
    for row, column in (error > allowed).nonzero()[:1].tolist():
        off, limit, count = error[row, column], allowed[row, column], int(exact.counts[row])
        raise AssertionError(f"{name}: {off:.3g} off, {limit:.3g} allowed, in sum {row} of {count} values")


def check_ragged(device, examples, longest):
    generator = random.Random(3)
    for example in range(examples):
        dim = generator.choice((1, 4, 24, 128, 200))
        dtype = (torch.int64, torch.int32)[example % 2]
        lengths = [generator.choice((0, 1, generator.randint(0, longest))) for _ in range(generator.randint(1, 9))]
        num_rows, num_more = generator.choice((0, 1, 7, 40)), generator.choice((0, 1, 9))
        check_sum(device, lengths, num_rows, dim, num_more=num_more, dtype=dtype)
        counts = [
            generator.choice((1, 2, 5, generator.randint(1, 12 * longest))) for _ in range(generator.randint(1, 9))
        ]
        first_row = generator.choice((0, 5))
        check_gradient(device, counts, generator.choice((1, 2, 30)), dim, first_row=first_row, dtype=dtype)


def check_chunks(device):
    """Rows that end, begin and go on where chunks do."""
    c = sums.CHUNK
    for counts in (
        (c, c),
        (c - 1, 1, c),
        (c + 1, c - 1),
        (2 * c, 1),
        (1, 3 * c - 1),
        (c - 2, c + 4, 3),
        (1,) * (c + 3),
    ):
        check_gradient(device, counts, 5, 8)
    at_once, sums.SHARES = sums.SHARES, 2
    for number in (3, 5):
        check_gradient(device, (2, number * c, 2), 5, 8)
    sums.SHARES = at_once


def check_nothing(device):
    check_sum(device, [], 3, 8)
    check_sum(device, [0, 0, 0], 3, 8)
    check_sum(device, [2, 0, 5], 0, 8)
    check_gradient(device, [], 3, 8)


def check_wide(device):
    check_sum(device, [3, 0, 9], 6, 1100)
    check_gradient(device, [sums.CHUNK + 2, 1, 2], 4, 1100)


def check_refusals(device):
    offsets = torch.tensor([0, 1], device=device)
    rows = torch.zeros(1, dtype=torch.int64, device=device)
    for values, message in (
        (torch.ones(2, 8, dtype=torch.float64, device=device), "torch.float64"),
        (torch.ones(8, 2, device=device).T, "strides (1, 2)"),
    ):
        refusal = ""
        try:
            bag_sum(values, rows, offsets, impl="triton")
        except NotImplementedError as error:
            refusal = str(error)
        assert message in refusal, f"{message} was not refused: {refusal!r}"


def check_large(device):
    """What a rank of a training step asks another for: a few rows in a third of all bags each, most in 1 to 5."""
    num_bags, num_rows, dim, slots = 131_072, 110_000, 512, 9
    rows = torch.randint(0, num_rows, (num_bags, slots), device=device)
    rows[:, :3] = torch.randint(0, 6, (num_bags, 3), device=device)
    rows[:, 3:5] = -1
    rows[:, 5][torch.rand(num_bags, device=device) < 0.5] = num_rows + 7
    rows[:num_rows, 8] = torch.arange(num_rows, device=device)
    flat, offsets = rows.flatten(), torch.arange(num_bags + 1, device=device) * slots
    values, gradient = (torch.randn(n, dim, device=device) for n in (num_rows, num_bags))
    found = bag_sum(values[:70_000], flat, offsets, impl="triton", more_WD=values[70_000:].clone())
    ordered, order = flat.sort(stable=True)
    here = (ordered >= 0) & (ordered < num_rows)
    bags, ordered = (order // slots)[here], ordered[here]
    out = torch.full_like(values, float("nan"))
    bag_sum_gradient(gradient, bags, ordered, out_UD=out, impl="triton")
    for columns in (slice(begin, begin + 64) for begin in range(0, dim, 64)):
        exact = exactly(values[ordered, columns], bags, num_bags)
        matches("large sum", found[:, columns], exact, additions_of_bags(offsets.diff()))
        exact = exactly(gradient[bags, columns], ordered, num_rows)
        matches("large gradient", out[:, columns], exact, additions_of_rows(exact.counts))


def check_far_addresses(device):
    """Elements beyond 2^31."""
    num_rows, dim = (1 << 22) + 9, 512
    values = torch.ones(num_rows, dim, device=device)
    rows = torch.tensor([num_rows - 1, 0, num_rows - 1], device=device)
    found = bag_sum(values, rows, torch.tensor([0, 2, 3], device=device), impl="triton")
    assert found.sum(1).tolist() == [2 * dim, dim]
    bags, out = torch.tensor([num_rows - 1] * 3, device=device), torch.empty(1, dim, device=device)
    bag_sum_gradient(values, bags, torch.zeros_like(bags), out_UD=out, impl="triton")
    assert (out == 3).all()


def checks(device):
    yield "refusals", lambda: check_refusals(device)
    yield "nothing", lambda: check_nothing(device)
    yield "chunks", lambda: check_chunks(device)
    yield "wide rows", lambda: check_wide(device)
    yield "ragged", lambda: check_ragged(device, 8 if device == "cpu" else 60, 12 if device == "cpu" else 900)
    if device == "cuda":
        yield "large", lambda: check_large(device)
        yield "far addresses", lambda: check_far_addresses(device)


if __name__ == "__main__":
    run_all(checks)
