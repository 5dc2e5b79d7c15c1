"""Transducers: one per stream makes a vector per candidate from its history; a mixture joins the streams.

Of kind hstu a stream is the public HSTU: two tokens an event, full causal attention in every layer, no truncation. Its
layer is the one of `model.stu`, so that kinds differ in what the paper changes and not in details of a layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kernels import concat_jagged
from model.baselines.encoders import ENCODERS
from model.config import ModelConfig, StreamConfig
from model.embeddings import tokens_per_event
from model.sequence import TokenSequence
from model.stu import STUStack
from model.tokens import EmbeddedTokens, HistoryTokens, JaggedTokens


class HSTUTransducer(nn.Module):
    """The layers of one stream, between its tokens and the candidates' vectors."""

    def __init__(self, config: ModelConfig, stream: StreamConfig) -> None:
        super().__init__()
        self.max_length = stream.max_length
        self.rounded = config.compute == "bf16"
        self.stack = STUStack(config, stream)
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_epsilon)

    def forward(self, contextual: JaggedTokens, history: HistoryTokens, candidates: JaggedTokens) -> Tensor:
        """(C, D), one vector per candidate in batch order."""
        sequence = self.preprocess(contextual, history, candidates)
        encoded_CD = self.stack(sequence).candidates(candidates.values_TD.shape[0])
        return self.norm(encoded_CD.to(self.norm.weight.dtype))

    def preprocess(self, contextual: JaggedTokens, history: HistoryTokens, candidates: JaggedTokens) -> TokenSequence:
        """[contextual | history, newest to oldest | candidates] of every request.

        Raises:
            ValueError: a history is too long.
        """
        history.check(self.max_length)
        parts = (contextual, history, candidates)
        # Rounded before they are joined: half as much to copy, here and in the backward pass.
        rounded = [p.values_TD.to(torch.bfloat16) if self.rounded else p.values_TD for p in parts]
        values_TD, offsets_B1 = concat_jagged(rounded, [p.offsets_B1 for p in parts])
        return TokenSequence(
            values_TD=values_TD,
            offsets_B1=offsets_B1,
            num_contextual=contextual.values_TD.shape[0] // max(len(history.lengths), 1),
            num_candidates_B=candidates.offsets_B1.diff(),
            history_lengths=history.lengths,
        )


def make_encoder(config: ModelConfig, stream: StreamConfig) -> nn.Module:
    """The sequence encoder of a stream: forward(contextual, history, candidates) gives (C, D)."""
    if config.kind == "ultra_hstu":
        return HSTUTransducer(config, stream)
    if config.kind == "hstu":
        return HSTUTransducer(config.model_copy(update={"global_axis": "queries"}), full_causal(config, stream))
    return ENCODERS[config.kind](config, stream)


def full_causal(config: ModelConfig, stream: StreamConfig) -> StreamConfig:
    """The stream without windows and truncation, its lengths in tokens."""
    length = stream.max_length * tokens_per_event(config)
    return stream.model_copy(update={"max_length": length, "local_window": length, "global_window": 0, "pyramid": ()})


class MixtureOfTransducers(nn.Module):
    """A transducer per configured stream; their vectors of a candidate are concatenated and projected."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.transducers = nn.ModuleDict(
            {name: make_encoder(config, stream) for name, stream in config.streams.items()}
        )
        self.projection = nn.Linear(len(config.streams) * config.dim, config.dim)

    def forward(self, tokens: EmbeddedTokens) -> Tensor:
        """(C, D)."""
        outputs = [
            transducer(tokens.contextual, tokens.histories[name], tokens.candidates)
            for name, transducer in self.transducers.items()
        ]
        return self.projection(torch.cat(outputs, dim=1))
