"""Floating-point operations of a request, counted from the configuration and its lengths.

Counts matrix products (a multiplication and an addition are two operations), and of attention only the pairs that the
mask lets see each other; norms, activations and embedding sums are left out. Training is three times the forward pass,
for the backward pass makes two products of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kernels import AttentionMask
from model.config import ModelConfig, StreamConfig


@dataclass(frozen=True)
class Flops:
    """Operations of one request with all its candidates: scoring it, and a training step on it."""

    inference: int
    training: int


def request_flops(config: ModelConfig, history_lengths: Mapping[str, int], num_candidates: int) -> Flops:
    """Operations of one request.

    Args:
        config: the model.
        history_lengths: history tokens per configured stream, as the reader delivers them; where training shortens
            histories, ask once for each.
        num_candidates: candidates of the request.
    """
    streams = sum(
        stream_flops(config, stream, num_history=history_lengths[name], num_candidates=num_candidates)
        for name, stream in config.streams.items()
    )
    num_outputs = len(config.heads.tasks) + (config.heads.watch_ratio_weight > 0)
    mixture = 2 * len(config.streams) * config.dim * config.dim
    heads = 2 * num_outputs * config.heads.hidden_dim * (config.dim + 1)
    forward = streams + num_candidates * (mixture + heads)
    return Flops(inference=forward, training=3 * forward)


def stream_flops(config: ModelConfig, stream: StreamConfig, *, num_history: int, num_candidates: int) -> int:
    """Forward operations of one stream's transducer."""
    mask = AttentionMask(stream.local_window, stream.global_window, config.global_axis)
    total_v, total_qk = config.num_heads * config.v_dim, config.num_heads * config.qk_dim
    per_token = 2 * config.dim * (2 * total_v + 2 * total_qk) + 2 * total_v * config.dim
    per_pair = 2 * (total_qk + total_v)
    num_contextual = len(config.contextual)
    keep_after_layer = dict(stream.pyramid)
    total = 0
    for number in range(1, stream.num_layers + 1):
        tokens = num_contextual + num_history + num_candidates
        pairs = mask.num_visible(num_history, num_contextual=num_contextual, num_candidates=num_candidates)
        total += tokens * per_token + pairs * per_pair
        num_history = min(num_history, keep_after_layer.get(number, num_history))
    return total
