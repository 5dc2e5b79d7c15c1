"""Attention: equal and skewed lengths, other widths and windows, many candidates, and candidates over a cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.attention import hstu_attention
from kernels.bench.timing import DTYPE, Rulers, Shape, Timing, checked, compute_row, cool_down, median_ms, recorded
from kernels.cached import hstu_attention_cached
from kernels.hstu import function, plan
from kernels.jagged import lengths_to_offsets
from kernels.mask import AttentionMask
from kernels.plan import AttentionPlan

_FULL = 1 << 20


@dataclass(frozen=True)
class Case:
    """Lengths, candidates, a mask and the heads."""

    name: str
    lengths: tuple[int, ...]
    mask: AttentionMask
    num_heads: int
    dim: int
    num_candidates: int

    def tflop(self) -> float:
        """Of one forward: two products over the pairs that see each other; the backward's five are 2.5 times that."""
        pairs = sum(
            self.mask.num_visible(length - self.num_candidates, num_contextual=0, num_candidates=self.num_candidates)
            for length in self.lengths
        )
        return 4 * self.dim * self.num_heads * pairs / 1e12


def cases(shape: Shape) -> list[Case]:
    """The main four, then what differs from them in one thing."""
    generator = torch.Generator().manual_seed(0)
    skewed = tuple((torch.rand(64, generator=generator) ** 3 * (shape.length - 384) + 64).long().tolist())
    equal = (shape.length,) * shape.num_requests
    semi_local, full = AttentionMask(shape.local_window, shape.global_window), AttentionMask(_FULL, 0)
    what = f"{shape.length:,} x {shape.num_requests}"
    main = Case(f"semi-local, {what}", equal, semi_local, shape.num_heads, shape.head_dim, shape.num_candidates)
    keys = AttentionMask(shape.local_window, shape.global_window, "keys")
    total = shape.num_heads * shape.head_dim
    # The full mask heats the card, so it comes last.
    return [
        main,
        replace(main, name="semi-local, 64 skewed", lengths=skewed),
        replace(main, name="semi-local, D 64", dim=64, num_heads=total // 64),
        replace(main, name="semi-local, D 256", dim=256, num_heads=total // 256),
        replace(main, name="semi-local, keys axis", mask=keys),
        replace(main, name="semi-local, K1 300, K2 200", mask=AttentionMask(300, 200)),
        replace(main, name="semi-local, 512 candidates", num_candidates=512),
        replace(main, name=f"full, {what}", mask=full),
        replace(main, name="full, 64 skewed", lengths=skewed, mask=full),
        replace(main, name="full, D 64", mask=full, dim=64, num_heads=total // 64),
        replace(main, name="full, D 256", mask=full, dim=256, num_heads=total // 256),
    ]


@dataclass(frozen=True)
class Inputs:
    """A case on the device; q, k and v are views of one buffer."""

    case: Case
    qkv: tuple[Tensor, ...]
    plan: AttentionPlan
    gradient: Tensor

    @classmethod
    def of(cls, case: Case) -> Inputs:
        """Random tokens."""
        generator = torch.Generator(device="cuda").manual_seed(1)
        size = (sum(case.lengths), case.num_heads, case.dim)
        buffer = torch.randn(size[0], 4, *size[1:], device="cuda", generator=generator).to(DTYPE)
        lengths_B = torch.tensor(case.lengths, device="cuda")
        batch = AttentionPlan(
            lengths_to_offsets(lengths_B), torch.full_like(lengths_B, case.num_candidates), 0, size[0]
        )
        qkv = tuple(buffer[:, part].requires_grad_(True) for part in (1, 2, 3))
        return cls(case, qkv, batch, torch.randn(size, device="cuda", generator=generator).to(DTYPE))

    def attend(self) -> Tensor:
        """The public call."""
        return _attend(self.qkv, self.plan, self.case, impl="triton")


def _attend(qkv: tuple[Tensor, ...], batch: AttentionPlan, case: Case, *, impl: str) -> Tensor:
    return hstu_attention(
        *qkv,
        offsets_B1=batch.offsets_B1,
        num_contextual=batch.num_contextual,
        num_candidates_B=batch.num_candidates_B,
        mask=case.mask,
        alpha=case.dim**-0.5,
        scale=1 / max(case.lengths),
        impl=impl,
        plan=batch,
    )


def largest_error(inputs: Inputs) -> float:
    """Largest error of the output and the gradients on the longest request's last head, in eps of the largest element.

    Raises:
        ValueError: beyond the budget.
    """
    case = inputs.case
    request = case.lengths.index(max(case.lengths))
    rows = slice(sum(case.lengths[:request]), sum(case.lengths[: request + 1]))
    out = inputs.attend()
    found = (out.detach(), *torch.autograd.grad(out, inputs.qkv, inputs.gradient))
    exact_qkv = tuple(x.detach()[rows, -1:].double().requires_grad_(True) for x in inputs.qkv)
    length = case.lengths[request]
    one = AttentionPlan(torch.tensor([0, length], device="cuda"), inputs.plan.num_candidates_B[:1], 0, length)
    exact_out = _attend(exact_qkv, one, case, impl="reference")
    exact = (exact_out.detach(), *torch.autograd.grad(exact_out, exact_qkv, inputs.gradient[rows, -1:].double()))
    pairs = zip(("out", "dq", "dk", "dv"), found, exact, strict=True)
    return max(checked(f"{case.name}: {name}", mine[rows, -1:], other) for name, mine, other in pairs)


def time_cases(shape: Shape, rulers: Rulers) -> Iterator[Timing]:
    """Checks and times each case."""
    for case in cases(shape):
        yield from _time_case(Inputs.of(case), rulers)
        torch.cuda.empty_cache()


def _time_case(inputs: Inputs, rulers: Rulers) -> Iterator[Timing]:
    case = inputs.case
    error = largest_error(inputs)
    torch.cuda.empty_cache()
    forward, backward = _kernels(inputs)
    out = inputs.attend()

    def gradients() -> object:
        return torch.autograd.grad(out, inputs.qkv, inputs.gradient, retain_graph=True)

    for part, kernels, call, tflop in (
        ("forward", forward, inputs.attend, case.tflop()),
        ("backward", backward, gradients, 2.5 * case.tflop()),
    ):
        cool_down()
        yield compute_row(case.name, part, median_ms(kernels), tflop, rulers, call_ms=median_ms(call), error_eps=error)


def _kernels(inputs: Inputs) -> tuple[Callable[[], object], Callable[[], object]]:
    """The kernels alone, forward and backward, with their work listed beforehand."""
    case = inputs.case
    q, k, v = (x.detach() for x in inputs.qkv)
    problem = function.Problem(inputs.plan, case.mask, case.dim**-0.5, 1 / max(case.lengths))
    tiles = function.tile_set(q, v, case.mask)
    work = [
        function.query_work(problem, part, num_heads=q.shape[1], dim=case.dim) for part in (tiles.forward, tiles.dq)
    ]
    keys = plan.key_items(problem.plan, case.mask, tiles.dkdv.block_n)
    out, dq, dk, dv = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(4))

    def backward() -> None:
        function.launch_dq((q, k, v, inputs.gradient, dq), problem, tiles, work[1])
        function.launch_dkdv((q, k, v, inputs.gradient, dk, dv), problem, tiles, keys)

    return lambda: function.launch_forward((q, k, v, out), problem, tiles, work[0]), backward


def time_plan(shape: Shape, rulers: Rulers) -> Iterator[Timing]:
    """The three lists of work of a batch: host time until they are queued, and the device's."""
    inputs = Inputs.of(cases(shape)[1])
    q, _, v = inputs.qkv
    mask = inputs.case.mask
    tiles = function.tile_set(q, v, mask)

    def make() -> None:
        batch = replace(inputs.plan, _derived={})
        problem = function.Problem(batch, mask, 1.0, 1.0)
        for part in (tiles.forward, tiles.dq):
            function.query_work(problem, part, num_heads=q.shape[1], dim=inputs.case.dim)
        plan.key_items(batch, mask, tiles.dkdv.block_n)

    make()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(100):
        make()
    host_ms = (time.perf_counter() - begin) * 10
    torch.cuda.synchronize()
    device_ms = median_ms(recorded(make).replay)
    yield Timing("the batch's work, 64 skewed", "plan", device_ms, 1e3 / device_ms, "batches/s", call_ms=host_ms)


def time_cached(shape: Shape, rulers: Rulers) -> Iterator[Timing]:
    """512 candidates over one cached history, and over each of several."""
    for num_requests in (1, shape.num_requests):
        yield _time_cached(shape, num_requests, rulers)
        torch.cuda.empty_cache()


def _time_cached(shape: Shape, num_requests: int, rulers: Rulers) -> Timing:
    candidates_B = torch.full((num_requests,), 512, device="cuda")
    size = (shape.num_heads, shape.head_dim)
    own = [torch.randn(512 * num_requests, *size, device="cuda", dtype=DTYPE) for _ in range(3)]
    cache = [torch.randn(shape.length * num_requests, *size, device="cuda", dtype=DTYPE) for _ in range(2)]
    candidate_offsets_B1, cache_offsets_B1 = (
        lengths_to_offsets(lengths_B) for lengths_B in (candidates_B, torch.full_like(candidates_B, shape.length))
    )

    def attend(*tensors: Tensor, impl: str = "triton") -> Tensor:
        return hstu_attention_cached(
            *tensors,
            candidate_offsets_B1=candidate_offsets_B1,
            cache_offsets_B1=cache_offsets_B1,
            alpha=shape.head_dim**-0.5,
            scale=1 / shape.length,
            impl=impl,
        )

    exact = attend(*(x.double() for x in (*own, *cache)), impl="reference")
    error = checked("cached", attend(*own, *cache), exact)
    tflop = 4 * shape.head_dim * shape.num_heads * 512 * num_requests * shape.length / 1e12
    ms, call_ms = median_ms(recorded(lambda: attend(*own, *cache)).replay), median_ms(lambda: attend(*own, *cache))
    name = f"cached, 512 candidates x {num_requests}"
    return compute_row(name, "forward", ms, tflop, rulers, call_ms=call_ms, error_eps=error)
