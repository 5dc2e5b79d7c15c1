"""Scoring with cached histories (M-FALCON): a request's history is encoded once, candidates come in micro-batches.

What a candidate reads of a history is the keys and values of each layer and nothing else, and no history token sees a
candidate. So a history runs through the layers alone, leaving its keys and values behind; the last layer makes just
those, and behind a truncation only the newest tokens go on. A candidate then costs its own products and one look at
the cache, whatever else is scored beside it.

Legend: B requests, T cached tokens, C candidates, H heads, A key dim, V value dim, E = H x dim, D model dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from kernels import AttentionPlan, hstu_attention, hstu_attention_cached
from model.embeddings import EmbeddedTokens, JaggedTokens
from model.sequence import TokenSequence
from model.stu import STULayer
from model.transducer import HSTUTransducer, MixtureOfTransducers


@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer for the contextual and history tokens of B requests.

    Attributes:
        k_THA: (T, H, A).
        v_THV: (T, H, V).
        offsets_B1: (B + 1,) int64, request b owns rows offsets[b] : offsets[b + 1].
        host_offsets: the same on the host: a slice of requests is a slice of rows.
    """

    k_THA: Tensor
    v_THV: Tensor
    offsets_B1: Tensor
    host_offsets: tuple[int, ...]

    def requests(self, begin: int, end: int) -> LayerCache:
        """The cache of requests begin : end, views."""
        first, last = self.host_offsets[begin], self.host_offsets[end]
        host_offsets = tuple(offset - first for offset in self.host_offsets[begin : end + 1])
        offsets_B1 = self.offsets_B1[begin : end + 1] - first
        return LayerCache(self.k_THA[first:last], self.v_THV[first:last], offsets_B1, host_offsets)


StreamCache = tuple[LayerCache, ...]


@dataclass(frozen=True)
class HistoryCache:
    """Everything that the candidates of B requests read, an entry per configured stream and in it one per layer."""

    streams: dict[str, StreamCache]

    def requests(self, begin: int, end: int) -> HistoryCache:
        """The cache of requests begin : end, views."""
        return HistoryCache(
            {name: tuple(layer.requests(begin, end) for layer in layers) for name, layers in self.streams.items()}
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of all keys and values."""
        layers = [layer for stream in self.streams.values() for layer in stream]
        return sum(part.nbytes for layer in layers for part in (layer.k_THA, layer.v_THV))


@torch.inference_mode()
def encode_histories(mixture: MixtureOfTransducers, tokens: EmbeddedTokens) -> HistoryCache:
    """Runs the histories of a batch through every stream's layers, once."""
    streams = {}
    for name, module in mixture.transducers.items():
        transducer = cast(HSTUTransducer, module)
        sequence = transducer.preprocess(tokens.contextual, tokens.histories[name], _none_of(tokens.candidates))
        streams[name] = tuple(_encode(transducer, sequence))
    return HistoryCache(streams)


def _none_of(candidates: JaggedTokens) -> JaggedTokens:
    return JaggedTokens(candidates.values_TD[:0], torch.zeros_like(candidates.offsets_B1))


def _encode(transducer: HSTUTransducer, sequence: TokenSequence) -> Iterator[LayerCache]:
    stack = transducer.stack
    lengths = sequence.offsets_B1.diff().tolist()
    plan = _plan(sequence)
    for number, module in enumerate(stack.layers, start=1):
        layer = cast(STULayer, module)
        if number == len(stack.layers):
            yield _cache(layer, *_keys_and_values(layer, sequence.values_TD), sequence=sequence, lengths=lengths)
            return
        u_TE, v_TE, q_TE, k_TE = _project(layer, sequence.values_TD)
        # copies: a view would keep u and q alive as long as the cache
        yield _cache(layer, k_TE.contiguous(), v_TE.contiguous(), sequence=sequence, lengths=lengths)
        attention_TE = _attend(layer, q_TE, k_TE, v_TE, plan=plan)
        sequence = sequence.with_values(_output(layer, attention_TE, u_TE, sequence.values_TD))
        if number in stack.keep_after_layer:
            keep = stack.keep_after_layer[number]
            sequence = sequence.truncated(keep)
            lengths = [min(length, sequence.num_contextual + keep) for length in lengths]
            plan = _plan(sequence)


def _plan(sequence: TokenSequence) -> AttentionPlan:
    """Shared by the layers that see the same tokens."""
    return AttentionPlan(
        sequence.offsets_B1, sequence.num_candidates_B, sequence.num_contextual, sequence.values_TD.shape[0]
    )


def _project(layer: STULayer, values_TD: Tensor) -> tuple[Tensor, ...]:
    """u, v, q, k of tokens."""
    return silu(layer.uvqk(layer.input_norm(values_TD))).split(layer.sizes, dim=1)


def _attend(layer: STULayer, q_TE: Tensor, k_TE: Tensor, v_TE: Tensor, *, plan: AttentionPlan) -> Tensor:
    """History among itself."""
    attention_THV = hstu_attention(
        q_TE.unflatten(1, (layer.num_heads, layer.qk_dim)),
        k_TE.unflatten(1, (layer.num_heads, layer.qk_dim)),
        v_TE.unflatten(1, (layer.num_heads, layer.v_dim)),
        offsets_B1=plan.offsets_B1,
        num_contextual=plan.num_contextual,
        num_candidates_B=plan.num_candidates_B,
        mask=layer.mask,
        alpha=layer.alpha,
        scale=layer.scale,
        impl=layer.impl,
        plan=plan,
    )
    return attention_THV.flatten(1)


def _keys_and_values(layer: STULayer, values_TD: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values alone, from their rows of the joint projection u, v, q, k."""
    total_v, total_qk = layer.sizes[0], layer.sizes[2]
    x_TD = layer.input_norm(values_TD)
    parts = (slice(2 * total_v + total_qk, None), slice(total_v, 2 * total_v))
    k_TE, v_TE = (silu(linear(x_TD, layer.uvqk.weight[part], layer.uvqk.bias[part])) for part in parts)
    return k_TE, v_TE


def _cache(layer: STULayer, k_TE: Tensor, v_TE: Tensor, *, sequence: TokenSequence, lengths: list[int]) -> LayerCache:
    return LayerCache(
        k_TE.unflatten(1, (layer.num_heads, layer.qk_dim)),
        v_TE.unflatten(1, (layer.num_heads, layer.v_dim)),
        sequence.offsets_B1,
        tuple(accumulate(lengths, initial=0)),
    )


def _output(layer: STULayer, attention_TE: Tensor, u_TE: Tensor, residual_TD: Tensor) -> Tensor:
    return layer.output(layer.attention_norm(attention_TE) * u_TE) + residual_TD


@torch.inference_mode()
def score_cached(
    mixture: MixtureOfTransducers, cache: HistoryCache, candidates: JaggedTokens, *, micro_batch_size: int
) -> Tensor:
    """The mixture's vector of every candidate.

    Args:
        mixture: the model's transducers.
        cache: of the B requests that the candidates belong to.
        candidates: their embedded tokens.
        micro_batch_size: candidates that go through the layers together, at most.

    Returns:
        (C, D) in the order of the candidates; the same to fp32 rounding whatever the size.
    """
    offsets = candidates.offsets_B1.tolist()
    total = offsets[-1]
    if total == 0:
        return candidates.values_TD.new_empty(0, mixture.projection.out_features)
    outputs = []
    for begin in range(0, total, micro_batch_size):
        end = min(begin + micro_batch_size, total)
        requests = _touched(offsets, begin, end)
        part = JaggedTokens(candidates.values_TD[begin:end], _offsets_within(candidates, requests, begin, end=end))
        outputs.append(_micro_batch(mixture, cache.requests(*requests), part))
    return torch.cat(outputs)


def _touched(offsets: list[int], begin: int, end: int) -> tuple[int, int]:
    """First request with a candidate in begin : end, and the one after the last."""
    owners = [number for number, (low, high) in enumerate(pairwise(offsets)) if low < end and high > begin]
    return owners[0], owners[-1] + 1


def _offsets_within(candidates: JaggedTokens, requests: tuple[int, int], begin: int, *, end: int) -> Tensor:
    return candidates.offsets_B1[requests[0] : requests[1] + 1].clamp(begin, end) - begin


def _micro_batch(mixture: MixtureOfTransducers, cache: HistoryCache, candidates: JaggedTokens) -> Tensor:
    outputs = []
    for name, module in mixture.transducers.items():
        transducer = cast(HSTUTransducer, module)
        values_CD = candidates.values_TD
        for layer, layer_cache in zip(transducer.stack.layers, cache.streams[name], strict=True):
            values_CD = _candidate_layer(cast(STULayer, layer), values_CD, candidates.offsets_B1, cache=layer_cache)
        outputs.append(transducer.norm(values_CD))
    return mixture.projection(torch.cat(outputs, dim=1))


def _candidate_layer(layer: STULayer, values_CD: Tensor, offsets_B1: Tensor, *, cache: LayerCache) -> Tensor:
    """One layer for candidates alone: each sees its request's cache and itself."""
    u_CE, v_CE, q_CE, k_CE = _project(layer, values_CD)
    attention_CHV = hstu_attention_cached(
        q_CE.unflatten(1, (layer.num_heads, layer.qk_dim)),
        k_CE.unflatten(1, (layer.num_heads, layer.qk_dim)),
        v_CE.unflatten(1, (layer.num_heads, layer.v_dim)),
        cache.k_THA,
        cache.v_THV,
        candidate_offsets_B1=offsets_B1,
        cache_offsets_B1=cache.offsets_B1,
        alpha=layer.alpha,
        scale=layer.scale,
        impl=layer.impl,
    )
    return _output(layer, attention_CHV.flatten(1), u_CE, values_CD)
