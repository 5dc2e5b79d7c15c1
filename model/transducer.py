"""Transducers: one per stream makes a vector per candidate from its history; a mixture joins the streams."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kernels import concat_jagged
from model.config import ModelConfig, StreamConfig
from model.embeddings import EmbeddedTokens, JaggedTokens
from model.sequence import TokenSequence
from model.stu import STUStack


class HSTUTransducer(nn.Module):
    """Preprocess, compute, postprocess of one stream."""

    def __init__(self, config: ModelConfig, stream: StreamConfig) -> None:
        super().__init__()
        self.max_length = stream.max_length
        self.stack = STUStack(config, stream)
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_epsilon)

    def forward(self, contextual: JaggedTokens, history: JaggedTokens, candidates: JaggedTokens) -> Tensor:
        """(C, D), one vector per candidate in batch order."""
        sequence = self.preprocess(contextual, history, candidates)
        return self.postprocess(self.stack(sequence))

    def preprocess(self, contextual: JaggedTokens, history: JaggedTokens, candidates: JaggedTokens) -> TokenSequence:
        """[contextual | history, newest to oldest | candidates] of every request."""
        length_B = history.offsets_B1.diff()
        torch._assert_async((length_B <= self.max_length).all(), "a history is longer than the stream's max_length")
        parts = (contextual, history, candidates)
        values_TD, offsets_B1 = concat_jagged([p.values_TD for p in parts], [p.offsets_B1 for p in parts])
        return TokenSequence(
            values_TD=values_TD,
            offsets_B1=offsets_B1,
            num_contextual=contextual.values_TD.shape[0] // max(length_B.numel(), 1),
            num_candidates_B=candidates.offsets_B1.diff(),
        )

    def postprocess(self, sequence: TokenSequence) -> Tensor:
        """The candidates' tokens, normalised."""
        return self.norm(sequence.candidates())


class MixtureOfTransducers(nn.Module):
    """A transducer per configured stream; their vectors of a candidate are concatenated and projected."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.transducers = nn.ModuleDict(
            {name: HSTUTransducer(config, stream) for name, stream in config.streams.items()}
        )
        self.projection = nn.Linear(len(config.streams) * config.dim, config.dim)

    def forward(self, tokens: EmbeddedTokens) -> Tensor:
        """(C, D)."""
        outputs = [
            transducer(tokens.contextual, tokens.histories[name], tokens.candidates)
            for name, transducer in self.transducers.items()
        ]
        return self.projection(torch.cat(outputs, dim=1))
