"""HSTU attention in plain PyTorch: the definition that every other implementation is compared with.

Legend: B requests, T tokens of all requests, H heads, A query and key dim, V value dim, N padded length, G requests of
a group. Runs in the dtype it is given, on any device, with PyTorch's own autograd.

Requests of similar length form a group, are padded to that group's length and go through dense masked products, so
one long request costs its own square and not the batch's. Padding is zeros written here, never another's tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from kernels.jagged import lengths_to_offsets
from kernels.mask import AttentionMask

# 8, then multiples of 16 up to 256, since products of odd sizes run slower than of the aligned size above, then eighth
# octaves.
_PADDED_LENGTHS = (
    8,
    *(16 * multiple for multiple in range(1, 16)),
    *(steps << octave for octave in range(5, 40) for steps in range(8, 16)),
)


def dense_mask(length: int, num_contextual: int, num_candidates: int, mask: AttentionMask) -> Tensor:
    """The mask M of one sequence [contextual | history, newest to oldest | candidates].

    Returns:
        (length, length) bool, True where the row's query sees the column's key.
    """
    candidates_begin = torch.tensor([length - num_candidates])
    return _group_mask(length, candidates_begin, num_contextual, mask)[0]


def hstu_attention_reference(
    q_THA: Tensor,
    k_THA: Tensor,
    v_THV: Tensor,
    *,
    offsets_B1: Tensor,
    num_contextual: int,
    num_candidates_B: Tensor,
    mask: AttentionMask,
    alpha: float,
    scale: float,
) -> Tensor:
    """(SiLU(alpha q k^T) * M) v * scale for every request; arguments as `kernels.hstu_attention`."""
    lengths_B = offsets_B1.diff()
    padded_B = _padded_lengths(lengths_B)
    sorted_B, order_B = padded_B.sort(stable=True)
    unique, counts = torch.unique_consecutive(sorted_B, return_counts=True)
    group_lengths, group_sizes = unique.tolist(), counts.tolist()
    slots_T = _slots(offsets_B1, sorted_B, order_B, total=q_THA.shape[0])
    group_slots = [length * size for length, size in zip(group_lengths, group_sizes, strict=True)]

    def grouped(values: Tensor) -> tuple[Tensor, ...]:
        padded = values.new_zeros((sum(group_slots), *values.shape[1:]))
        return padded.index_copy_(0, slots_T, values).split(group_slots)

    candidates_begin = (lengths_B - num_candidates_B)[order_B].split(group_sizes)
    outputs = [
        _dense_attention(q, k, v, _group_mask(length, begin_G, num_contextual, mask))
        for length, begin_G, q, k, v in zip(
            group_lengths, candidates_begin, grouped(q_THA * alpha), grouped(k_THA), grouped(v_THV), strict=True
        )
    ]
    return torch.cat([v_THV[:0], *outputs]).index_select(0, slots_T) * scale


def _padded_lengths(lengths_B: Tensor) -> Tensor:
    """Each length rounded up to its group's; 0 stays 0."""
    steps = torch.tensor(_PADDED_LENGTHS, device=lengths_B.device)
    return torch.where(lengths_B > 0, steps[torch.bucketize(lengths_B, steps)], 0)


def _slots(offsets_B1: Tensor, sorted_B: Tensor, order_B: Tensor, *, total: int) -> Tensor:
    """(T,) row of each token in the padded layout, which lists the requests by padded length."""
    begin_B = torch.empty_like(sorted_B)
    begin_B[order_B] = lengths_to_offsets(sorted_B)[:-1]
    shift_T = (begin_B - offsets_B1[:-1]).repeat_interleave(offsets_B1.diff(), output_size=total)
    return shift_T + torch.arange(total, device=shift_T.device)


def _group_mask(length: int, candidates_begin_G: Tensor, num_contextual: int, mask: AttentionMask) -> Tensor:
    """(G, N, N) bool; only the place where candidates begin differs between the requests of a group."""
    index = torch.arange(length, device=candidates_begin_G.device)
    query, key = index[:, None], index[None, :]
    older = key - query
    if mask.global_axis == "queries":
        history = (older >= 0) & ((older <= mask.local_window) | (query - num_contextual < mask.global_window))
    else:
        history = (older.abs() <= mask.local_window) | (key - num_contextual < mask.global_window)
    shared_NN = history | (query < num_contextual) | (key < num_contextual)
    begin_G11 = candidates_begin_G[:, None, None]
    visible_GNN = (key < begin_G11) & (shared_NN | (query >= begin_G11))
    return visible_GNN | (older == 0)


def _dense_attention(q: Tensor, k: Tensor, v: Tensor, mask_GNN: Tensor) -> Tensor:
    """One group's attention, (G * N, H, A) or (G * N, H, V) in and (G * N, H, V) out."""
    shape = mask_GNN.shape[:2]
    q_GHNA = q.unflatten(0, shape).transpose(1, 2)
    k_GHAN = k.unflatten(0, shape).permute(0, 2, 3, 1)
    v_GHNV = v.unflatten(0, shape).transpose(1, 2)
    # A product with 0 and 1 vectorises, where masked_fill and where do not: an eighth of their time on a CPU.
    weights_GHNN = silu(q_GHNA @ k_GHAN) * mask_GNN[:, None].to(q.dtype)
    return (weights_GHNN @ v_GHNV).transpose(1, 2).flatten(0, 1)
