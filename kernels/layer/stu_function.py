"""The STU layer as one autograd function that recomputes what is cheap.

saved       z, u, attention                                 three (T, D)-wide tensors
recomputed  LayerNorm(z), the projection (what SiLU got, and v q k), Norm(A) * u
gradients   du | dv | dq | dk are written side by side into one buffer; nothing is concatenated
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.carriers import Matrix, Projections, STUSettings, STUWeights
from kernels.hstu.function import Problem, attention_backward, attention_forward, check_supported
from kernels.layer import gemms, norms
from kernels.layer.norms import GatedGradients, GatedInputs
from kernels.plan import AttentionPlan


def stu_layer_triton(
    z_TD: Tensor, weights: STUWeights, plan: AttentionPlan, settings: STUSettings, *, seed: int
) -> Tensor:
    """Z + Y; arguments as `kernels.stu_layer`."""
    layer = _Layer(settings, plan, seed)
    return _STULayer.apply(z_TD, layer, *(getattr(weights, field.name) for field in fields(STUWeights)))


@dataclass(frozen=True)
class _Layer:
    settings: STUSettings
    plan: AttentionPlan
    seed: int

    def problem(self) -> Problem:
        settings = self.settings
        return Problem(self.plan, settings.mask, settings.alpha, settings.scale)

    def heads(self, vqk: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v as (T, H, dim) views of [v | q | k]."""
        settings = self.settings
        v, q, k = vqk.split_with_sizes(settings.sizes[1:], dim=1)
        tokens, heads, qk_dim = vqk.shape[0], settings.num_heads, settings.qk_dim
        return q.view(tokens, heads, qk_dim), k.view(tokens, heads, qk_dim), v.view(tokens, heads, settings.v_dim)


class _STULayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, layer: _Layer, *parameters: Tensor) -> Tensor:
        weights = _rounded(STUWeights(*parameters), z.dtype)
        projections = _project(z, _normal(z, weights, layer.settings), weights, layer.settings, keep_pre=False)
        q, k, v = layer.heads(projections.vqk_TN)
        check_supported(q, k, v)
        attention = attention_forward(q, k, v, layer.problem()).flatten(1)
        ctx.save_for_backward(z, projections.u_TE, attention, *parameters)
        ctx.layer = layer
        inputs = GatedInputs(attention, projections.u_TE, weights.gate_weight_E, weights.gate_bias_E, layer.seed)
        gated, weight = _output_operands(inputs, weights, layer.settings)
        return gemms.linear(gated, weight, dtype=z.dtype, bias_N=None, residual_TN=z)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, u, attention, *parameters = ctx.saved_tensors
        layer, settings, dz = ctx.layer, ctx.layer.settings, grads[0].contiguous()
        weights = _rounded(STUWeights(*parameters), z.dtype)
        buffer = torch.empty(z.shape[0], sum(settings.sizes), dtype=z.dtype, device=z.device)
        du, dvqk = buffer.split_with_sizes([settings.sizes[0], sum(settings.sizes[1:])], dim=1)

        inputs = GatedInputs(attention, u, weights.gate_weight_E, weights.gate_bias_E, layer.seed)
        target = GatedGradients(torch.empty_like(attention), du, torch.empty_like(u))
        dgate = norms.gated_norm_backward(dz @ weights.output_weight_DE, inputs, settings.gate, target)
        doutput = dz.T @ target.y

        normal, operand = _normal_and_operand(z, weights, settings)
        projections = _project(z, operand, weights, settings, keep_pre=True)
        q, k, v = layer.heads(projections.vqk_TN)
        do = target.a.view(z.shape[0], settings.num_heads, settings.v_dim)
        attention_backward((q, k, v), do, layer.heads(dvqk), layer.problem())
        del q, k, v, do, target

        assert projections.pre_TN is not None
        dbias = norms.silu_backward_(buffer, projections.pre_TN)
        del projections
        duvqk = buffer.T @ normal
        del normal, operand
        dnorm = norms.layer_norm_backward(
            buffer @ weights.uvqk_weight_ND, z, weights.norm_weight_D, settings.epsilon, residual=dz
        )
        found = STUWeights(dnorm.weight, dnorm.bias, duvqk, dbias, *dgate, doutput)
        gradients = (getattr(found, field.name) for field in fields(STUWeights))
        return (
            dnorm.input,
            None,
            *(gradient.to(parameter.dtype) for gradient, parameter in zip(gradients, parameters, strict=True)),
        )


def _rounded(weights: STUWeights, dtype: torch.dtype) -> STUWeights:
    """The matrices in the tokens' dtype; norms and biases stay as they are."""
    return replace(
        weights,
        uvqk_weight_ND=weights.uvqk_weight_ND.to(dtype),
        output_weight_DE=weights.output_weight_DE.to(dtype),
    )


def _normal(z: Tensor, weights: STUWeights, settings: STUSettings) -> Matrix:
    """LayerNorm(z), in what the projection multiplies."""
    norm = norms.layer_norm_quantised if settings.gemm == "fp8" else norms.layer_norm_forward
    return norm(z, weights.norm_weight_D, weights.norm_bias_D, settings.epsilon)


def _normal_and_operand(z: Tensor, weights: STUWeights, settings: STUSettings) -> tuple[Tensor, Matrix]:
    """LayerNorm(z) in the tokens' dtype, and in what the projection multiplies."""
    if settings.gemm == "fp8":
        return norms.layer_norm_both(z, weights.norm_weight_D, weights.norm_bias_D, settings.epsilon)
    normal = norms.layer_norm_forward(z, weights.norm_weight_D, weights.norm_bias_D, settings.epsilon)
    return normal, normal


def _project(z: Tensor, normal: Matrix, weights: STUWeights, settings: STUSettings, *, keep_pre: bool) -> Projections:
    weight: Matrix = weights.uvqk_weight_ND
    if settings.gemm == "fp8":
        weight = norms.quantise_rows(weights.uvqk_weight_ND)
    return gemms.project_uvqk(
        normal, weight, weights.uvqk_bias_N, num_gates=settings.sizes[0], dtype=z.dtype, keep_pre=keep_pre
    )


def _output_operands(inputs: GatedInputs, weights: STUWeights, settings: STUSettings) -> tuple[Matrix, Matrix]:
    if settings.gemm == "fp8":
        return norms.gated_norm_quantised(inputs, settings.gate), norms.quantise_rows(weights.output_weight_DE)
    return norms.gated_norm_forward(inputs, settings.gate), weights.output_weight_DE
