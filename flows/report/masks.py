"""The attention mask of each stream, at a scale at which it can be drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels.mask import AttentionMask
from kernels.reference import dense_mask
from model.config import ModelConfig, StreamConfig

DRAWN_HISTORY = 24
DRAWN_CANDIDATES = 4


@dataclass(frozen=True)
class DrawnMask:
    """A mask of [contextual | history | candidates], scaled down.

    Attributes:
        visible: (N, N) bool, row = query, column = key.
        num_contextual, num_history, num_candidates: the parts of N.
        mask: the windows as drawn.
    """

    visible: np.ndarray
    num_contextual: int
    num_history: int
    num_candidates: int
    mask: AttentionMask


def draw_mask(model: ModelConfig, stream: StreamConfig) -> DrawnMask:
    """Shrinks a stream's history to DRAWN_HISTORY tokens and its windows with it; a window above 0 keeps a token."""
    num_history = min(DRAWN_HISTORY, stream.max_length)
    mask = AttentionMask(
        local_window=_shrink(stream.local_window, stream.max_length, num_history),
        global_window=_shrink(stream.global_window, stream.max_length, num_history),
        global_axis=model.global_axis,
    )
    num_contextual = len(model.contextual)
    length = num_contextual + num_history + DRAWN_CANDIDATES
    visible = dense_mask(length, num_contextual, DRAWN_CANDIDATES, mask)
    return DrawnMask(visible.numpy(), num_contextual, num_history, DRAWN_CANDIDATES, mask)


def _shrink(window: int, length: int, drawn: int) -> int:
    return min(drawn, max(round(window * drawn / length), min(window, 1)))
