"""Attention kernels beside their PyTorch references. A leaf: torch and triton only."""

from kernels.attention import IMPLEMENTATIONS, hstu_attention
from kernels.cached import hstu_attention_cached
from kernels.jagged import concat_jagged, lengths_to_offsets, split_jagged, truncate_jagged
from kernels.mask import AttentionMask
from kernels.plan import AttentionPlan

__all__ = [
    "IMPLEMENTATIONS",
    "AttentionMask",
    "AttentionPlan",
    "concat_jagged",
    "hstu_attention",
    "hstu_attention_cached",
    "lengths_to_offsets",
    "split_jagged",
    "truncate_jagged",
]
