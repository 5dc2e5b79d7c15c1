"""Attention kernels beside their PyTorch references. A leaf: torch and triton only."""

from kernels.attention import IMPLEMENTATIONS, hstu_attention
from kernels.jagged import concat_jagged, lengths_to_offsets, split_jagged, truncate_jagged
from kernels.mask import AttentionMask

__all__ = [
    "IMPLEMENTATIONS",
    "AttentionMask",
    "concat_jagged",
    "hstu_attention",
    "lengths_to_offsets",
    "split_jagged",
    "truncate_jagged",
]
