"""The carriers between reader and model: jagged, newest first, never padded.

Legend: B requests, T history tokens of a stream, C candidates, F fields, X contexts.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class UIHStream:
    """One stream's histories of a batch of requests, concatenated; token 0 of a request is its newest event.

    Request b owns tokens offsets_B1[b] : offsets_B1[b + 1].

    Attributes:
        offsets_B1: (B + 1,) int64.
        lengths: tokens of each request, on the host: for what would have to wait until a GPU tells.
        items_TF: (T, F) int32, columns as FeatureSpec.item_fields.
        timestamp_ms_T: (T,) int64.
        action_mask_T: (T,) int64, one bit per FeatureSpec.actions.
        intensity_T: (T,) uint8 widened to int32.
        contexts_TX: (T, X) int32, columns as FeatureSpec.token_contexts.
    """

    offsets_B1: Tensor
    lengths: tuple[int, ...]
    items_TF: Tensor
    timestamp_ms_T: Tensor
    action_mask_T: Tensor
    intensity_T: Tensor
    contexts_TX: Tensor

    def __post_init__(self) -> None:
        if len(self.lengths) + 1 != self.offsets_B1.numel() or sum(self.lengths) != self.timestamp_ms_T.numel():
            raise ValueError(
                f"a stream's {len(self.lengths)} lengths sum to {sum(self.lengths)}: they do not belong to "
                f"{self.offsets_B1.numel() - 1} histories of {self.timestamp_ms_T.numel()} tokens"
            )


@dataclass(frozen=True)
class Candidates:
    """The items to score, concatenated over requests.

    Attributes:
        offsets_B1: (B + 1,) int64.
        items_CF: (C, F) int32, columns as FeatureSpec.item_fields.
        contexts_CX: (C, X) int32, columns as FeatureSpec.candidate_contexts.
        action_mask_C: (C,) int64, the labels; never an input of the model.
        watch_ratio_C: (C,) float32, NaN where unknown; a label.
    """

    offsets_B1: Tensor
    items_CF: Tensor
    contexts_CX: Tensor
    action_mask_C: Tensor
    watch_ratio_C: Tensor


@dataclass(frozen=True)
class KnownCodes:
    """How many codes of a batch are not 0, on the host: a GPU would have to be asked how many rows a lookup reads.

    Attributes:
        users_F: of each user field.
        fields_S: of all items and contexts in each stream's histories.
        actions_S: of all actions there.
        intensity_S: of all intensities there.
        candidates: of the candidates' items and contexts.
    """

    users_F: tuple[int, ...]
    fields_S: tuple[int, ...]
    actions_S: tuple[int, ...]
    intensity_S: tuple[int, ...]
    candidates: int


@dataclass(frozen=True)
class Batch:
    """B requests.

    Attributes:
        request_id_B: (B,) int64.
        user_id_B: (B,) int64, the raw id: groups GAUC, is never embedded.
        request_ms_B: (B,) int64.
        users_BF: (B, F) int32, columns as FeatureSpec.user_fields.
        streams: one UIHStream per FeatureSpec.streams, in that order.
        candidates: what to score.
        known: counts of these very codes, None where nobody has counted.
    """

    request_id_B: Tensor
    user_id_B: Tensor
    request_ms_B: Tensor
    users_BF: Tensor
    streams: tuple[UIHStream, ...]
    candidates: Candidates
    known: KnownCodes | None = None

    @property
    def num_requests(self) -> int:
        """B."""
        return self.request_id_B.numel()

    @property
    def num_candidates(self) -> int:
        """C."""
        return self.candidates.action_mask_C.numel()

    @property
    def num_tokens(self) -> int:
        """History tokens of all streams and candidates."""
        return sum(stream.timestamp_ms_T.numel() for stream in self.streams) + self.num_candidates

    def counted(self) -> Self:
        """The same batch with its known codes counted; of one that lies on a GPU, this waits."""
        streams, candidates = self.streams, self.candidates
        known = KnownCodes(
            users_F=tuple(map(_num_known, self.users_BF.unbind(1))),
            fields_S=tuple(_num_known(stream.items_TF) + _num_known(stream.contexts_TX) for stream in streams),
            actions_S=tuple(int(np.bitwise_count(s.action_mask_T.cpu().numpy()).sum()) for s in streams),
            intensity_S=tuple(_num_known(stream.intensity_T) for stream in streams),
            candidates=_num_known(candidates.items_CF) + _num_known(candidates.contexts_CX),
        )
        return replace(self, known=known)

    def to(self, device: torch.device, non_blocking: bool = True) -> Self:
        """The same batch on another device."""
        return map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same batch in page-locked host memory."""
        return map_tensors(self, lambda tensor: tensor.pin_memory())


def _num_known(codes: Tensor) -> int:
    return int(np.count_nonzero(codes.cpu().numpy()))


def map_tensors(carrier, function):
    """Applies `function` to every tensor of a carrier and of the carriers inside it; numbers stay as they are."""
    if isinstance(carrier, Tensor):
        return function(carrier)
    if carrier is None or isinstance(carrier, int):
        return carrier
    if isinstance(carrier, tuple):
        return tuple(map_tensors(part, function) for part in carrier)
    return replace(carrier, **{f.name: map_tensors(getattr(carrier, f.name), function) for f in fields(carrier)})
