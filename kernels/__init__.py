"""Attention kernels beside their PyTorch references. A leaf: torch and triton only."""

from kernels.attention import hstu_attention
from kernels.bags import bag_sum, bag_sum_gradient
from kernels.cached import hstu_attention_cached
from kernels.carriers import GatedNorm, Projections, QuantisedRows, STUSettings, STUWeights
from kernels.gemm import linear, project_uvqk
from kernels.impl import IMPLEMENTATIONS
from kernels.jagged import concat_jagged, lengths_to_offsets, split_jagged, truncate_jagged
from kernels.mask import AttentionMask
from kernels.norm import gated_norm, layer_norm, layer_norm_quantised, quantise_rows
from kernels.plan import AttentionPlan
from kernels.stu import stu_layer

__all__ = [
    "IMPLEMENTATIONS",
    "AttentionMask",
    "AttentionPlan",
    "GatedNorm",
    "Projections",
    "QuantisedRows",
    "STUSettings",
    "STUWeights",
    "bag_sum",
    "bag_sum_gradient",
    "concat_jagged",
    "gated_norm",
    "hstu_attention",
    "hstu_attention_cached",
    "layer_norm",
    "layer_norm_quantised",
    "lengths_to_offsets",
    "linear",
    "project_uvqk",
    "quantise_rows",
    "split_jagged",
    "stu_layer",
    "truncate_jagged",
]
