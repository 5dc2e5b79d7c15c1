"""Baseline sequence encoders. Each makes one vector per candidate of a stream from the same tokens as HSTU 2.0.

| kind | history | candidate |
|---|---|---|
| transformer | causal self-attention and feed-forward blocks | in the sequence: sees the history and itself |
| sasrec | the same | outside of it: meets the state of the newest event alone |
| din | as embedded | weighs every event by a small network of (event, candidate), and sums |
| stca | a gated feed-forward block a layer, no self-attention | a stack of cross-attentions to it |

SASRec was made to retrieve: its state is the same for every item, and the item's score is a product with it. The
ranking heads need a vector, hence (state, candidate, state x candidate) through a linear layer. Blocks are pre-norm.

STCA after "Make It Long, Keep It Fast" (arXiv 2511.06077): the query of a layer is made of the candidate and the
outputs of all layers before.

DIN after "Deep Interest Network" (arXiv 1706.06978): weights are not normalised. Its sum is divided by the stream's
max_length and normalised as HSTU's attention is. `num_layers` counts the hidden layers of the network that weighs.

No encoder lets a candidate's vector depend on another candidate or on another request.

Legend: B requests, T tokens, C candidates, D width, P pairs of a candidate and an event of its request.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from kernels import concat_jagged
from kernels.jagged import position_of_rows, request_of_rows
from model.baselines.attention import CrossAttention, ResidualStack
from model.config import ModelConfig, StreamConfig
from model.sequence import TokenSequence
from model.tokens import HistoryTokens, JaggedTokens


class Encoder(nn.Module):
    """One stream's encoder; subclasses define `encode`."""

    def __init__(self, config: ModelConfig, stream: StreamConfig) -> None:
        super().__init__()
        self.max_length = stream.max_length
        self.compute = torch.bfloat16 if config.compute == "bf16" else None
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_epsilon)

    def forward(self, contextual: JaggedTokens, history: HistoryTokens, candidates: JaggedTokens) -> Tensor:
        """(C, D), one vector per candidate in batch order.

        Raises:
            ValueError: a history is too long.
        """
        history.check(self.max_length)
        device = candidates.values_TD.device.type
        with torch.autocast(device, dtype=self.compute, enabled=self.compute is not None):
            encoded_CD = self.encode(contextual, history, candidates)
        return self.norm(encoded_CD.to(candidates.values_TD.dtype))

    def encode(self, contextual: JaggedTokens, history: HistoryTokens, candidates: JaggedTokens) -> Tensor:
        """(C, D) before the last norm."""
        raise NotImplementedError


class TransformerEncoder(Encoder):
    """Candidates at the end of a causal sequence, as in HSTU, with softmax attention and feed-forward blocks."""

    def __init__(self, config: ModelConfig, stream: StreamConfig) -> None:
        super().__init__(config, stream)
        self.stack = ResidualStack(config, stream.num_layers)

    def encode(self, contextual: JaggedTokens, history: HistoryTokens, candidates: JaggedTokens) -> Tensor:
        """(C, D) before the last norm."""
        return self.stack(_sequence(contextual, history, candidates)).candidates(candidates.values_TD.shape[0])


class SASRecEncoder(Encoder):
    """A causal sequence of the history alone, whose newest state meets each candidate."""

    def __init__(self, config: ModelConfig, stream: StreamConfig) -> None:
        super().__init__(config, stream)
        self.stack = ResidualStack(config, stream.num_layers)
        self.state_norm = nn.LayerNorm(config.dim, eps=config.norm_epsilon)
        self.match = nn.Linear(3 * config.dim, config.dim)

    def encode(self, contextual: JaggedTokens, history: HistoryTokens, candidates: JaggedTokens) -> Tensor:
        """(C, D) before the last norm."""
        nobody = JaggedTokens(candidates.values_TD[:0], torch.zeros_like(candidates.offsets_B1))
        sequence = self.stack(_sequence(contextual, history, nobody))
        state_BD = self.state_norm(_newest_state(sequence))
        state_CD = state_BD[request_of_rows(candidates.offsets_B1, candidates.values_TD.shape[0])]
        return self.match(torch.cat([state_CD, candidates.values_TD, state_CD * candidates.values_TD], dim=1))


class DINEncoder(Encoder):
    """Target attention by a small network, summed, then two layers on (candidate, contextual, sum, candidate x sum)."""

    def __init__(self, config: ModelConfig, stream: StreamConfig) -> None:
        super().__init__(config, stream)
        dim = config.dim
        self.of_event = nn.Linear(dim, dim)
        self.of_candidate = nn.Linear(dim, dim, bias=False)
        self.of_product = nn.Linear(dim, dim, bias=False)
        self.deeper = nn.ModuleList(nn.Linear(dim, dim) for _ in range(stream.num_layers - 1))
        self.weight = nn.Linear(dim, 1)
        self.sum_norm = nn.LayerNorm(dim, eps=config.norm_epsilon / stream.max_length**2)
        self.hidden = nn.Linear(4 * dim, dim)
        self.output = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(config.dropout)

    def encode(self, contextual: JaggedTokens, history: HistoryTokens, candidates: JaggedTokens) -> Tensor:
        """(C, D) before the last norm."""
        items_CD = candidates.values_TD
        request_C = request_of_rows(candidates.offsets_B1, items_CD.shape[0])
        sum_CD = self.sum_norm(self._weighted_sum(history, candidates))
        profile_CD = _mean(contextual)[request_C]
        hidden_CD = self.hidden(torch.cat([items_CD, profile_CD, sum_CD, items_CD * sum_CD], dim=1))
        return self.output(self.dropout(silu(hidden_CD)))

    def _weighted_sum(self, history: JaggedTokens, candidates: JaggedTokens) -> Tensor:
        """(C, D) sums of the events, each weighed for its candidate.

        The attention network's first layer takes (event, candidate, event x candidate); the first two are products per
        event and per candidate, not per pair.
        """
        events_TD, items_CD = history.values_TD, candidates.values_TD
        request_C = request_of_rows(candidates.offsets_B1, items_CD.shape[0])
        num_events_C = history.offsets_B1.diff()[request_C]
        pair_offsets = torch.cat([num_events_C.new_zeros(1), num_events_C.cumsum(0)])
        num_pairs = int(pair_offsets[-1])
        candidate_P = request_of_rows(pair_offsets, num_pairs)
        event_P = history.offsets_B1[:-1][request_C][candidate_P] + position_of_rows(pair_offsets, num_pairs)
        product_PD = self.of_product(events_TD[event_P] * items_CD[candidate_P])
        hidden_PD = silu(product_PD + self.of_event(events_TD)[event_P] + self.of_candidate(items_CD)[candidate_P])
        for layer in self.deeper:
            hidden_PD = hidden_PD + silu(layer(hidden_PD))
        weighted_PD = (self.weight(hidden_PD) * events_TD[event_P]).to(items_CD.dtype)
        return torch.zeros_like(items_CD).index_add(0, candidate_P, weighted_PD) / self.max_length


class STCALayer(nn.Module):
    """Gated feed-forward block on the history, then cross-attention of the query to it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_epsilon)
        self.gate = nn.Linear(config.dim, 2 * config.dim)
        self.down = nn.Linear(config.dim, config.dim)
        self.key_norm = nn.LayerNorm(config.dim, eps=config.norm_epsilon)
        self.attention = CrossAttention(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, query_CD: Tensor, history: JaggedTokens, query_offsets_B1: Tensor) -> Tensor:
        """(C, D), what the queries find in the layer's view of the history."""
        gate_TD, up_TD = self.gate(self.norm(history.values_TD)).chunk(2, dim=1)
        keys_TD = self.key_norm(self.down(silu(gate_TD) * up_TD))
        attended_CD = self.attention(
            query_CD, keys_TD, query_offsets_B1=query_offsets_B1, key_offsets_B1=history.offsets_B1
        )
        return self.dropout(attended_CD)


class STCAEncoder(Encoder):
    """Stacked target-to-history cross-attention."""

    def __init__(self, config: ModelConfig, stream: StreamConfig) -> None:
        super().__init__(config, stream)
        self.layers = nn.ModuleList(STCALayer(config) for _ in range(stream.num_layers))
        self.query_norm = nn.LayerNorm(config.dim, eps=config.norm_epsilon)
        self.fuse = nn.ModuleList(
            nn.Linear((2 + number) * config.dim, config.dim) for number in range(stream.num_layers)
        )

    def encode(self, contextual: JaggedTokens, history: HistoryTokens, candidates: JaggedTokens) -> Tensor:
        """(C, D) before the last norm."""
        keys_TD, offsets_B1 = concat_jagged(
            [contextual.values_TD, history.values_TD], [contextual.offsets_B1, history.offsets_B1]
        )
        keys = JaggedTokens(keys_TD, offsets_B1)
        query_CD, found = candidates.values_TD, [candidates.values_TD]
        for layer, fuse in zip(self.layers, self.fuse, strict=True):
            found.append(layer(self.query_norm(query_CD), keys, candidates.offsets_B1))
            query_CD = fuse(torch.cat(found, dim=1))
        return query_CD


def _sequence(contextual: JaggedTokens, history: HistoryTokens, candidates: JaggedTokens) -> TokenSequence:
    """[contextual | history, newest to oldest | candidates] of every request."""
    parts = (contextual, history, candidates)
    values_TD, offsets_B1 = concat_jagged([part.values_TD for part in parts], [part.offsets_B1 for part in parts])
    num_requests = offsets_B1.numel() - 1
    return TokenSequence(
        values_TD=values_TD,
        offsets_B1=offsets_B1,
        num_contextual=contextual.values_TD.shape[0] // max(num_requests, 1),
        num_candidates_B=candidates.offsets_B1.diff(),
        history_lengths=history.lengths,
    )


def _newest_state(sequence: TokenSequence) -> Tensor:
    """(B, D), the newest event's token; of a request without events the first contextual token, or zeros."""
    lengths_B = sequence.offsets_B1.diff()
    if sequence.values_TD.shape[0] == 0:
        return sequence.values_TD.new_zeros(lengths_B.numel(), sequence.values_TD.shape[1])
    has_history_B = lengths_B > sequence.num_contextual
    position_B = torch.where(has_history_B, sequence.num_contextual, 0)
    rows_B = (sequence.offsets_B1[:-1] + position_B).clamp(max=sequence.values_TD.shape[0] - 1)
    return torch.where((lengths_B > 0)[:, None], sequence.values_TD[rows_B], 0.0)


def _mean(tokens: JaggedTokens) -> Tensor:
    """(B, D) means of each request's tokens, zeros where there are none."""
    lengths_B = tokens.offsets_B1.diff()
    total = tokens.values_TD.shape[0]
    sums_BD = tokens.values_TD.new_zeros(lengths_B.numel(), tokens.values_TD.shape[1])
    sums_BD = sums_BD.index_add(0, request_of_rows(tokens.offsets_B1, total), tokens.values_TD)
    return sums_BD / lengths_B.clamp(min=1)[:, None]


ENCODERS: dict[str, type[Encoder]] = {
    "transformer": TransformerEncoder,
    "sasrec": SASRecEncoder,
    "din": DINEncoder,
    "stca": STCAEncoder,
}
