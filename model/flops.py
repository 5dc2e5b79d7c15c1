"""Floating-point operations of a request, counted from the configuration and its lengths.

Counts matrix products (a multiplication and an addition are two operations), and of attention only the pairs that the
mask lets see each other; norms, activations and embedding sums are left out. Training is three times the forward pass,
for the backward pass makes two products of each.

Legend: D width, E all heads' dims, n history tokens, c contextual tokens, m candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kernels import AttentionMask
from model.baselines.attention import FEED_FORWARD_RATIO
from model.config import ModelConfig, StreamConfig
from model.embeddings import tokens_per_event
from model.reader import Reader
from model.training.stochastic_length import keep_probability, sampling_length
from model.transducer import full_causal

_SAMPLED_REQUESTS = 2000


@dataclass(frozen=True)
class Flops:
    """Operations of one request with all its candidates: scoring it, and a training step on it."""

    inference: int
    training: int


def request_flops(config: ModelConfig, history_lengths: Mapping[str, int], num_candidates: int) -> Flops:
    """Operations of one request whose history is whole in training too.

    Args:
        config: the model.
        history_lengths: events per configured stream, as the reader delivers them.
        num_candidates: candidates of the request.
    """
    streams = sum(
        stream_flops(config, stream, num_history=history_lengths[name], num_candidates=num_candidates)
        for name, stream in config.streams.items()
    )
    forward = streams + num_candidates * head_flops(config)
    return Flops(inference=forward, training=3 * forward)


def mean_flops(
    config: ModelConfig,
    history_lengths: Mapping[str, Sequence[int]],
    num_candidates: Sequence[int],
    *,
    alpha: float | None = None,
) -> Flops:
    """Operations per request, the mean over many.

    Args:
        config: the model.
        history_lengths: events per configured stream and request, as the reader delivers them.
        num_candidates: candidates per request.
        alpha: of stochastic length in training, balanced or not: each history is whole or cut with the probabilities
            that it has on average. None where training sees all of every history.
    """
    num_requests = max(len(num_candidates), 1)
    heads = sum(num_candidates) * head_flops(config)
    inference = training = float(heads)
    for name, stream in config.streams.items():
        lengths = history_lengths[name]
        whole = _per_request(config, stream, lengths, num_candidates=num_candidates)
        inference += sum(whole)
        if alpha is None:
            training += sum(whole)
            continue
        keep = keep_probability(np.asarray(lengths), max_length=stream.max_length, alpha=alpha)
        cut = sampling_length(stream.max_length, alpha)
        short = _per_request(config, stream, np.minimum(lengths, cut), num_candidates=num_candidates)
        training += float(np.dot(keep, whole) + np.dot(1 - keep, short))
    return Flops(inference=round(inference / num_requests), training=round(3 * training / num_requests))


def _per_request(
    config: ModelConfig, stream: StreamConfig, lengths: Iterable[int], *, num_candidates: Sequence[int]
) -> list[int]:
    return [
        stream_flops(config, stream, num_history=int(n), num_candidates=m)
        for n, m in zip(lengths, num_candidates, strict=True)
    ]


def reader_flops(config: ModelConfig, reader: Reader, *, alpha: float | None = None) -> Flops:
    """Operations per request of a reader's split, the mean over an evenly spaced sample of the requests.

    Args:
        config: the model.
        reader: of the split.
        alpha: see mean_flops.
    """
    batch = reader.sample(_SAMPLED_REQUESTS)
    streams = reader.spec.streams
    lengths = {name: batch.streams[streams.index(name)].offsets_B1.diff().tolist() for name in config.streams}
    return mean_flops(config, lengths, batch.candidates.offsets_B1.diff().tolist(), alpha=alpha)


def head_flops(config: ModelConfig) -> int:
    """Forward operations per candidate behind the streams: the mixture and the heads."""
    num_outputs = len(config.heads.tasks) + (config.heads.watch_ratio_weight > 0)
    mixture = 2 * len(config.streams) * config.dim * config.dim
    return mixture + 2 * num_outputs * config.heads.hidden_dim * (config.dim + 1)


def stream_flops(config: ModelConfig, stream: StreamConfig, *, num_history: int, num_candidates: int) -> int:
    """Forward operations of one stream's encoder.

    Args:
        config: the model.
        stream: the stream.
        num_history: events.
        num_candidates: candidates of the request.
    """
    return _COUNTS[config.kind](config, stream, num_history, num_candidates)


def _ultra_hstu(config: ModelConfig, stream: StreamConfig, num_history: int, num_candidates: int) -> int:
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


def _hstu(config: ModelConfig, stream: StreamConfig, num_history: int, num_candidates: int) -> int:
    causal = config.model_copy(update={"global_axis": "queries"})
    return _ultra_hstu(causal, full_causal(config, stream), num_history * tokens_per_event(config), num_candidates)


def _transformer(config: ModelConfig, stream: StreamConfig, num_history: int, num_candidates: int) -> int:
    total_v, total_qk = config.num_heads * config.v_dim, config.num_heads * config.qk_dim
    projections = 2 * config.dim * (2 * total_qk + 2 * total_v)
    feed_forward = 2 * 2 * config.dim * FEED_FORWARD_RATIO * config.dim
    num_contextual = len(config.contextual)
    pairs = AttentionMask(num_history, 0).num_visible(
        num_history, num_contextual=num_contextual, num_candidates=num_candidates
    )
    tokens = num_contextual + num_history + num_candidates
    return stream.num_layers * (tokens * (projections + feed_forward) + pairs * 2 * (total_qk + total_v))


def _sasrec(config: ModelConfig, stream: StreamConfig, num_history: int, num_candidates: int) -> int:
    return _transformer(config, stream, num_history, 0) + num_candidates * 2 * 3 * config.dim * config.dim


def _din(config: ModelConfig, stream: StreamConfig, num_history: int, num_candidates: int) -> int:
    square = 2 * config.dim * config.dim
    # of a pair: the attention network's layers and weight, and its share of the weighted sum
    per_pair = stream.num_layers * square + 2 * config.dim + 2 * config.dim
    per_candidate = square * (1 + 4 + 1)
    return num_history * square + num_candidates * per_candidate + num_history * num_candidates * per_pair


def _stca(config: ModelConfig, stream: StreamConfig, num_history: int, num_candidates: int) -> int:
    total_v, total_qk = config.num_heads * config.v_dim, config.num_heads * config.qk_dim
    keys = len(config.contextual) + num_history
    per_key = 2 * config.dim * (2 * config.dim + config.dim + total_qk + total_v)
    per_candidate = 2 * config.dim * (total_qk + total_v)
    per_pair = 2 * (total_qk + total_v)
    layer = keys * per_key + num_candidates * per_candidate + keys * num_candidates * per_pair
    fused_widths = sum(2 + number for number in range(stream.num_layers))
    return stream.num_layers * layer + num_candidates * 2 * fused_widths * config.dim * config.dim


_COUNTS: dict[str, Callable[[ModelConfig, StreamConfig, int, int], int]] = {
    "ultra_hstu": _ultra_hstu,
    "hstu": _hstu,
    "transformer": _transformer,
    "sasrec": _sasrec,
    "din": _din,
    "stca": _stca,
}
