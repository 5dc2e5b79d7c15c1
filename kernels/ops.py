"""The Triton attention and STU layer as operators of PyTorch, which torch.compile and torch.export keep whole.

`kernels.hstu_attention` and `kernels.stu_layer` call them while they are being compiled. No plan crosses an operator's
border: every call lists its work anew, and the layer's backward runs its forward again for want of a place to save in.
Eager layers share one plan and save three tensors.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from kernels.mask import AttentionMask
from kernels.plan import AttentionPlan

if TYPE_CHECKING:
    from kernels.carriers import STUSettings, STUWeights
    from kernels.hstu.function import Problem

_ATTENTION = (
    "Tensor offsets, Tensor num_candidates, SymInt num_contextual, SymInt local_window, SymInt global_window, "
    "str global_axis, float alpha, float scale"
)
_LAYER = (
    f"{_ATTENTION}, SymInt num_heads, SymInt qk_dim, SymInt v_dim, float epsilon, float gate_epsilon, "
    "SymInt num_groups, float dropout, str gemm, SymInt seed"
)


class _Attention(NamedTuple):
    """The arguments of schema _ATTENTION."""

    offsets: Tensor
    num_candidates: Tensor
    num_contextual: int
    local_window: int
    global_window: int
    global_axis: Any
    alpha: float
    scale: float

    @classmethod
    def of(cls, plan: AttentionPlan, mask: AttentionMask, alpha: float, scale: float) -> _Attention:
        windows = (mask.local_window, mask.global_window, mask.global_axis)
        return cls(plan.offsets_B1, plan.num_candidates_B, plan.num_contextual, *windows, alpha, scale)

    def problem(self, total: int) -> Problem:
        from kernels.hstu.function import Problem

        plan = AttentionPlan(self.offsets, self.num_candidates, self.num_contextual, total)
        mask = AttentionMask(self.local_window, self.global_window, self.global_axis)
        return Problem(plan, mask, self.alpha, self.scale)


class _Layer(NamedTuple):
    """What _LAYER adds to _ATTENTION."""

    num_heads: int
    qk_dim: int
    v_dim: int
    epsilon: float
    gate_epsilon: float
    num_groups: int
    dropout: float
    gemm: Any
    seed: int

    def settings(self, problem: Problem) -> STUSettings:
        from kernels.carriers import GatedNorm, STUSettings

        return STUSettings(
            num_heads=self.num_heads,
            qk_dim=self.qk_dim,
            v_dim=self.v_dim,
            alpha=problem.alpha,
            scale=problem.scale,
            mask=problem.mask,
            epsilon=self.epsilon,
            gate=GatedNorm(self.gate_epsilon, self.num_groups, self.dropout),
            gemm=self.gemm,
        )


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: AttentionPlan,
    mask: AttentionMask,
    *,
    alpha: float,
    scale: float,
    check: bool,
) -> Tensor:
    """`kernels.hstu_attention` as one operator; `check` looks at the plan when it runs, which waits for the device."""
    return _attention(q, k, v, check, *_Attention.of(plan, mask, alpha, scale))


def stu_layer(z: Tensor, weights: STUWeights, plan: AttentionPlan, settings: STUSettings, *, seed: int) -> Tensor:
    """`kernels.stu_layer` as one operator."""
    s, gate = settings, settings.gate
    layer = _Layer(s.num_heads, s.qk_dim, s.v_dim, s.epsilon, gate.epsilon, gate.num_groups, gate.dropout, s.gemm, seed)
    tensors = [getattr(weights, field.name) for field in fields(weights)]
    return _stu_layer(z, tensors, *_Attention.of(plan, s.mask, s.alpha, s.scale), *layer)


@torch.library.custom_op(
    "hstu2::attention", mutates_args=(), schema=f"(Tensor q, Tensor k, Tensor v, bool check, {_ATTENTION}) -> Tensor"
)
def _attention(q: Tensor, k: Tensor, v: Tensor, check: bool, *rest: Any) -> Tensor:
    from kernels.hstu.function import hstu_attention_triton

    problem = _Attention(*rest).problem(len(q))
    if check:
        problem.plan.check()
    with torch.no_grad():
        return hstu_attention_triton(q, k, v, problem)


@torch.library.custom_op(
    "hstu2::attention_backward",
    mutates_args=(),
    schema=f"(Tensor do, Tensor q, Tensor k, Tensor v, {_ATTENTION}) -> (Tensor, Tensor, Tensor)",
)
def _attention_backward(do: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    from kernels.hstu.function import attention_backward

    gradients = tuple(_empty(x) for x in (q, k, v))
    attention_backward((q, k, v), do, gradients, _Attention(*rest).problem(len(q)))
    return gradients


@torch.library.custom_op(
    "hstu2::stu_layer", mutates_args=(), schema=f"(Tensor z, Tensor[] weights, {_LAYER}) -> Tensor"
)
def _stu_layer(z: Tensor, weights: list[Tensor], *rest: Any) -> Tensor:
    with torch.no_grad():
        return _run_layer(z, weights, rest)


@torch.library.custom_op(
    "hstu2::stu_layer_backward",
    mutates_args=(),
    schema=f"(Tensor gradient, Tensor z, Tensor[] weights, {_LAYER}) -> Tensor[]",
)
def _stu_layer_backward(gradient: Tensor, z: Tensor, weights: list[Tensor], *rest: Any) -> list[Tensor]:
    """Gradients of z and the weights."""
    leaves = [x.detach().requires_grad_(True) for x in (z, *weights)]
    with torch.enable_grad():
        out = _run_layer(leaves[0], leaves[1:], rest)
    dz, *others = torch.autograd.grad(out, leaves, gradient)
    # Those of a norm's weight and bias lie in one tensor, which an operator must not return twice.
    return [dz, *(x.clone() for x in others)]


def _run_layer(z: Tensor, weights: list[Tensor], rest: tuple[Any, ...]) -> Tensor:
    from kernels.carriers import STUWeights
    from kernels.layer.stu_function import stu_layer_triton

    split = len(_Attention._fields)
    problem, layer = _Attention(*rest[:split]).problem(len(z)), _Layer(*rest[split:])
    return stu_layer_triton(z, STUWeights(*weights), problem.plan, layer.settings(problem), seed=layer.seed)


def _empty(like: Tensor) -> Tensor:
    """Without memory that a caller can see, contiguous."""
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)


_attention.register_fake(lambda q, k, v, *_: _empty(v))
_attention_backward.register_fake(lambda do, q, k, v, *_: (_empty(q), _empty(k), _empty(v)))
_stu_layer.register_fake(lambda z, *_: _empty(z))
_stu_layer_backward.register_fake(lambda gradient, z, weights, *_: [_empty(x) for x in (z, *weights)])


def _save_attention(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, v, _, offsets, num_candidates, *ctx.rest = inputs
    ctx.save_for_backward(q, k, v, offsets, num_candidates)


def _attention_gradients(ctx: Any, do: Tensor) -> tuple[Any, ...]:
    return *_attention_backward(do, *ctx.saved_tensors, *ctx.rest), *[None] * (len(_Attention._fields) + 1)


def _save_layer(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, weights, offsets, num_candidates, *ctx.rest = inputs
    ctx.save_for_backward(z, offsets, num_candidates, *weights)


def _layer_gradients(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    z, offsets, num_candidates, *weights = ctx.saved_tensors
    found = _stu_layer_backward(gradient, z, weights, offsets, num_candidates, *ctx.rest)
    return found[0], found[1:], *[None] * (len(ctx.rest) + 2)


_attention.register_autograd(_attention_gradients, setup_context=_save_attention)
_stu_layer.register_autograd(_layer_gradients, setup_context=_save_layer)
