"""The layer of HSTU 2.0 (paper Eq. 1-5) and its stack with attention truncation.

    X = LayerNorm(Z)                              (T, D)
    U, V, Q, K = SiLU(X W1 + b1)                  (T, H V), (T, H V), (T, H A), (T, H A)
    A = (SiLU(alpha Q K^T) * M) V / max_length    (T, H V)
    Y = Dropout(LayerNorm(A) * U) W2              (T, D)
    Z = Y + Z

No bias in W2 (the residual takes its place), no feed-forward block, and no position bias in the attention, for
position and age are part of the tokens.

alpha is 1 / sqrt(A). There is no softmax to sharpen what a smaller factor flattens: with 1 / A the products of fresh
weights stay near 0, where SiLU is a straight line and attention hardly tells events apart.

LayerNorm(A) undoes the division by max_length except for its epsilon, which would swamp the quotient: a short history
under a max_length of thousands has a variance far below 1e-6. Its epsilon is therefore divided by max_length^2, so
that `norm_epsilon` means the same for tokens and for attention, whatever the stream.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from kernels import AttentionMask, AttentionPlan, GatedNorm, STUSettings, STUWeights, hstu_attention, stu_layer
from model.config import ModelConfig, StreamConfig
from model.sequence import TokenSequence


class STULayer(nn.Module):
    """One layer; it changes tokens, never the layout."""

    def __init__(self, config: ModelConfig, stream: StreamConfig) -> None:
        super().__init__()
        self.num_heads, self.qk_dim, self.v_dim = config.num_heads, config.qk_dim, config.v_dim
        self.alpha = config.qk_dim**-0.5
        self.scale = 1.0 / stream.max_length
        self.mask = AttentionMask(stream.local_window, stream.global_window, config.global_axis)
        self.impl = config.impl
        self.gemm: Literal["full", "fp8"] = "fp8" if config.gemm == "fp8" else "full"
        total_v, total_qk = config.num_heads * config.v_dim, config.num_heads * config.qk_dim
        self.sizes = (total_v, total_v, total_qk, total_qk)
        self.input_norm = nn.LayerNorm(config.dim, eps=config.norm_epsilon)
        self.uvqk = nn.Linear(config.dim, sum(self.sizes))
        self.attention_norm = nn.LayerNorm(total_v, eps=config.norm_epsilon * self.scale**2)
        self.output = nn.Linear(total_v, config.dim, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, sequence: TokenSequence) -> TokenSequence:
        """Z to Y + Z."""
        drops = self.training and self.dropout.p > 0
        values_TD = stu_layer(
            sequence.values_TD,
            self._weights(),
            sequence.plan,
            self._settings(dropout=self.dropout.p if drops else 0.0),
            impl=self.impl,
            seed=int(torch.randint(1 << 31, ())) if drops and self.impl == "triton" else 0,
        )
        return sequence.with_values(values_TD)

    def attend(self, q_TE: Tensor, k_TE: Tensor, v_TE: Tensor, *, plan: AttentionPlan) -> Tensor:
        """(T, H V) attention alone, for whoever computes the rest of the layer in pieces."""
        attention_THV = hstu_attention(
            q_TE.unflatten(1, (self.num_heads, self.qk_dim)),
            k_TE.unflatten(1, (self.num_heads, self.qk_dim)),
            v_TE.unflatten(1, (self.num_heads, self.v_dim)),
            offsets_B1=plan.offsets_B1,
            num_contextual=plan.num_contextual,
            num_candidates_B=plan.num_candidates_B,
            mask=self.mask,
            alpha=self.alpha,
            scale=self.scale,
            impl=self.impl,
            plan=plan,
        )
        return attention_THV.flatten(1)

    def _settings(self, *, dropout: float) -> STUSettings:
        return STUSettings(
            num_heads=self.num_heads,
            qk_dim=self.qk_dim,
            v_dim=self.v_dim,
            alpha=self.alpha,
            scale=self.scale,
            mask=self.mask,
            epsilon=self.input_norm.eps,
            gate=GatedNorm(self.attention_norm.eps, dropout=dropout),
            gemm=self.gemm,
        )

    def _weights(self) -> STUWeights:
        return STUWeights(
            norm_weight_D=self.input_norm.weight,
            norm_bias_D=self.input_norm.bias,
            uvqk_weight_ND=self.uvqk.weight,
            uvqk_bias_N=self.uvqk.bias,
            gate_weight_E=self.attention_norm.weight,
            gate_bias_E=self.attention_norm.bias,
            output_weight_DE=self.output.weight,
        )


class STUStack(nn.Module):
    """The layers of a stream, with the pyramid's truncation between them."""

    def __init__(self, config: ModelConfig, stream: StreamConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(STULayer(config, stream) for _ in range(stream.num_layers))
        self.keep_after_layer = dict(stream.pyramid)

    def forward(self, sequence: TokenSequence) -> TokenSequence:
        """All layers; the sequence that comes out has lost what the pyramid truncates."""
        for number, layer in enumerate(self.layers, start=1):
            sequence = layer(sequence)
            if number in self.keep_after_layer:
                sequence = sequence.truncated(self.keep_after_layer[number])
        return sequence
