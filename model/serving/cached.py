"""Scoring with cached histories (M-FALCON): a request's history is encoded once, candidates come in micro-batches.

What a candidate reads of a history is the keys and values of each layer and nothing else, and no history token sees a
candidate. So a history runs through the layers alone, leaving its keys and values behind; the last layer makes just
those, and behind a truncation only the newest tokens go on. A candidate then costs its own products and one look at
the cache, whatever else is scored beside it.

Legend: B requests, T cached tokens, C candidates, H heads, A key dim, V value dim, E = H x dim, D model dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import cast

import torch
from torch import Tensor

from kernels import hstu_attention_cached
from model.sequence import TokenSequence
from model.serving.cached_layer import Products, products_of
from model.serving.precision import Compute
from model.stu import STULayer
from model.tokens import EmbeddedTokens, JaggedTokens
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


class CachedMixture:
    """A mixture of transducers as it is served; its layers' weights are taken over when it is made."""

    def __init__(self, mixture: MixtureOfTransducers, compute: Compute) -> None:
        self._mixture, self._compute = mixture, compute
        self._products = {
            module: products_of(module, compute) for module in mixture.modules() if isinstance(module, STULayer)
        }
        self._dtype = next(iter(self._products.values())).dtype

    @torch.inference_mode()
    def encode(self, tokens: EmbeddedTokens) -> HistoryCache:
        """Runs the histories of a batch through every stream's layers, once."""
        streams = {}
        with self._precision(tokens.candidates.values_TD.device):
            for name, transducer in self._transducers():
                sequence = transducer.preprocess(tokens.contextual, tokens.histories[name], _none_of(tokens.candidates))
                sequence = sequence.with_values(self._tokens(sequence.values_TD))
                streams[name] = tuple(self._encode(transducer, sequence))
        return HistoryCache(streams)

    @torch.inference_mode()
    def score(self, cache: HistoryCache, candidates: JaggedTokens, *, micro_batch_size: int) -> Tensor:
        """The mixture's vector of every candidate.

        Args:
            cache: of the B requests that the candidates belong to.
            candidates: their embedded tokens.
            micro_batch_size: candidates that go through the layers together, at most.

        Returns:
            (C, D) in the order of the candidates; the same to rounding whatever the size.
        """
        offsets = candidates.offsets_B1.tolist()
        total = offsets[-1]
        if total == 0:
            return candidates.values_TD.new_empty(0, self._mixture.projection.out_features)
        outputs = []
        with self._precision(candidates.values_TD.device):
            for begin in range(0, total, micro_batch_size):
                end = min(begin + micro_batch_size, total)
                requests = _touched(offsets, begin, end)
                own = _offsets_within(candidates, requests, begin, end=end)
                part = JaggedTokens(candidates.values_TD[begin:end], own)
                outputs.append(self._micro_batch(cache.requests(*requests), part))
        return torch.cat(outputs)

    def _precision(self, device: torch.device) -> AbstractContextManager[None]:
        return torch.autocast(device.type, torch.bfloat16, enabled=self._compute == "bf16" and self._dtype is None)

    def _tokens(self, values_TD: Tensor) -> Tensor:
        return values_TD if self._dtype is None else values_TD.to(self._dtype)

    def _transducers(self) -> Iterator[tuple[str, HSTUTransducer]]:
        for name, module in self._mixture.transducers.items():
            yield name, cast(HSTUTransducer, module)

    def _layers(self, transducer: HSTUTransducer) -> Iterator[tuple[STULayer, Products]]:
        for module in transducer.stack.layers:
            layer = cast(STULayer, module)
            yield layer, self._products[layer]

    def _encode(self, transducer: HSTUTransducer, sequence: TokenSequence) -> Iterator[LayerCache]:
        keep_after_layer, num_layers = transducer.stack.keep_after_layer, len(transducer.stack.layers)
        for number, (layer, products) in enumerate(self._layers(transducer), start=1):
            if number == num_layers:
                k_TF, v_TE = products.keys_and_values(sequence.values_TD)
                yield _cache(layer, k_TF, v_TE, sequence=sequence)
                return
            u_TE, v_TE, q_TF, k_TF = products.project(sequence.values_TD)
            # copies: a view would keep u and q alive as long as the cache
            yield _cache(layer, k_TF.contiguous(), v_TE.contiguous(), sequence=sequence)
            attention_TE = layer.attend(q_TF, k_TF, v_TE, plan=sequence.plan)
            sequence = sequence.with_values(products.output(attention_TE, u_TE, sequence.values_TD))
            if number in keep_after_layer:
                sequence = sequence.truncated(keep_after_layer[number])

    def _micro_batch(self, cache: HistoryCache, candidates: JaggedTokens) -> Tensor:
        outputs = []
        for name, transducer in self._transducers():
            values_CD = self._tokens(candidates.values_TD)
            for (layer, products), own in zip(self._layers(transducer), cache.streams[name], strict=True):
                u_CE, v_CE, q_CF, k_CF = products.project(values_CD)
                attention_CE = _attend_cache(layer, q_CF, k_CF, v_CE, cache=own, offsets_B1=candidates.offsets_B1)
                values_CD = products.output(attention_CE, u_CE, values_CD)
            outputs.append(transducer.norm(values_CD.float()))
        return self._mixture.projection(torch.cat(outputs, dim=1))


def _none_of(candidates: JaggedTokens) -> JaggedTokens:
    return JaggedTokens(candidates.values_TD[:0], torch.zeros_like(candidates.offsets_B1))


def _cache(layer: STULayer, k_TE: Tensor, v_TE: Tensor, *, sequence: TokenSequence) -> LayerCache:
    lengths = (sequence.num_contextual + length for length in sequence.history_lengths)
    return LayerCache(
        k_TE.unflatten(1, (layer.num_heads, layer.qk_dim)),
        v_TE.unflatten(1, (layer.num_heads, layer.v_dim)),
        sequence.offsets_B1,
        tuple(accumulate(lengths, initial=0)),
    )


def _touched(offsets: list[int], begin: int, end: int) -> tuple[int, int]:
    """First request with a candidate in begin : end, and the one after the last."""
    owners = [number for number, (low, high) in enumerate(pairwise(offsets)) if low < end and high > begin]
    return owners[0], owners[-1] + 1


def _offsets_within(candidates: JaggedTokens, requests: tuple[int, int], begin: int, *, end: int) -> Tensor:
    return candidates.offsets_B1[requests[0] : requests[1] + 1].clamp(begin, end) - begin


def _attend_cache(
    layer: STULayer, q_CF: Tensor, k_CF: Tensor, v_CE: Tensor, *, cache: LayerCache, offsets_B1: Tensor
) -> Tensor:
    """Each candidate over its request's cache and itself."""
    attention_CHV = hstu_attention_cached(
        q_CF.unflatten(1, (layer.num_heads, layer.qk_dim)),
        k_CF.unflatten(1, (layer.num_heads, layer.qk_dim)),
        v_CE.unflatten(1, (layer.num_heads, layer.v_dim)),
        cache.k_THA,
        cache.v_THV,
        candidate_offsets_B1=offsets_B1,
        cache_offsets_B1=cache.offsets_B1,
        alpha=layer.alpha,
        scale=layer.scale,
        impl=layer.impl,
    )
    return attention_CHV.flatten(1)
