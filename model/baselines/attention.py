"""Softmax attention over jagged sequences, and what its layers share.

Legend: B requests, T tokens, C candidates, D width, H heads, A query and key dim, V value dim, E all heads' dims, G
requests of a group, N and M their longest query and key sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from model.baselines.jagged import length_groups, rows_of, write_back
from model.config import ModelConfig
from model.sequence import TokenSequence

FEED_FORWARD_RATIO = 4


def causal_mask(exists_GN: Tensor, candidates_begin_G: Tensor, num_contextual: int) -> Tensor:
    """(G, N, N) bool: what `kernels.mask` calls full causal HSTU, for sequences [contextual | history | candidates].

    Contextual queries see contextual and history, a history query the contextual and itself and what is older, a
    candidate contextual, history and itself. A row beyond a request's end sees itself, so that its softmax is defined.
    """
    index_N = torch.arange(exists_GN.shape[1], device=exists_GN.device)
    query, key = index_N[:, None], index_N[None, :]
    begin_G11 = candidates_begin_G[:, None, None]
    shared_NN = (key >= query) | (query < num_contextual) | (key < num_contextual)
    return ((key < begin_G11) & (shared_NN | (query >= begin_G11))) | (key == query)


class SelfAttention(nn.Module):
    """A residual branch: pre-norm multi-head softmax attention under `causal_mask`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        total_v, total_qk = config.num_heads * config.v_dim, config.num_heads * config.qk_dim
        self.sizes = (total_qk, total_qk, total_v)
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_epsilon)
        self.qkv = nn.Linear(config.dim, sum(self.sizes))
        self.output = nn.Linear(total_v, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, sequence: TokenSequence) -> TokenSequence:
        """Adds what each token attends to."""
        q_TE, k_TE, v_TE = self.qkv(self.norm(sequence.values_TD)).split(self.sizes, dim=1)
        parts = []
        lengths_B = sequence.offsets_B1.diff()
        for requests_G in length_groups(lengths_B):
            rows = rows_of(sequence.offsets_B1, requests_G)
            begin_G = (lengths_B - sequence.num_candidates_B)[requests_G]
            visible_GNN = causal_mask(rows.exists_GN, begin_G, sequence.num_contextual)
            q, k, v = (self._heads(rows.read(part)) for part in (q_TE, k_TE, v_TE))
            output = scaled_dot_product_attention(q, k, v, attn_mask=visible_GNN[:, None])
            parts.append((output.transpose(1, 2).flatten(2), rows))
        attended_TD = self.dropout(self.output(write_back(parts, like=v_TE)))
        return sequence.with_values(sequence.values_TD + attended_TD)

    def _heads(self, values_GNE: Tensor) -> Tensor:
        return values_GNE.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """A residual branch on each token: pre-norm, four times the width."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_epsilon)
        self.hidden = nn.Linear(config.dim, FEED_FORWARD_RATIO * config.dim)
        self.output = nn.Linear(FEED_FORWARD_RATIO * config.dim, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, sequence: TokenSequence) -> TokenSequence:
        """Adds what the block makes of each token."""
        return sequence.with_values(sequence.values_TD + self.of(sequence.values_TD))

    def of(self, values_TD: Tensor) -> Tensor:
        """What the block adds."""
        return self.dropout(self.output(silu(self.hidden(self.norm(values_TD)))))


class ResidualStack(nn.Module):
    """Residual branches one after another; each ends in a linear `output`, which initialisation scales by depth."""

    def __init__(self, config: ModelConfig, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            branch for _ in range(num_layers) for branch in (SelfAttention(config), FeedForward(config))
        )

    def forward(self, sequence: TokenSequence) -> TokenSequence:
        """All branches."""
        for branch in self.layers:
            sequence = branch(sequence)
        return sequence


class CrossAttention(nn.Module):
    """Multi-head softmax attention of candidates to the keys of their request, without a residual.

    A key of zeros stands beside a request's own, so that attention to an empty history is zero.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        total_v, total_qk = config.num_heads * config.v_dim, config.num_heads * config.qk_dim
        self.sizes = (total_qk, total_v)
        self.query = nn.Linear(config.dim, total_qk)
        self.key_value = nn.Linear(config.dim, total_qk + total_v)
        self.output = nn.Linear(total_v, config.dim)

    def forward(self, query_CD: Tensor, keys_TD: Tensor, *, query_offsets_B1: Tensor, key_offsets_B1: Tensor) -> Tensor:
        """(C, D), what each query finds among its request's keys."""
        q_CE = self.query(query_CD)
        k_TE, v_TE = self.key_value(keys_TD).split(self.sizes, dim=1)
        has_queries_B = query_offsets_B1.diff() > 0
        parts = []
        for requests_G in length_groups(key_offsets_B1.diff() * has_queries_B):
            rows, keys = rows_of(query_offsets_B1, requests_G), rows_of(key_offsets_B1, requests_G)
            q, k, v = (self._heads(part) for part in (rows.read(q_CE), keys.read(k_TE), keys.read(v_TE)))
            visible_GM1 = nn.functional.pad(keys.exists_GN, (0, 1), value=True)
            output = scaled_dot_product_attention(
                q,
                nn.functional.pad(k, (0, 0, 0, 1)),
                nn.functional.pad(v, (0, 0, 0, 1)),
                attn_mask=visible_GM1[:, None, None].expand(-1, 1, q.shape[2], -1),
            )
            parts.append((output.transpose(1, 2).flatten(2), rows))
        return self.output(write_back(parts, like=query_CD.new_zeros(query_CD.shape[0], self.sizes[1])))

    def _heads(self, values_GNE: Tensor) -> Tensor:
        return values_GNE.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
