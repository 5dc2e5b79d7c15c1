"""What attention derives from the lengths of a batch: checked once, computed once, shared by all layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class AttentionPlan:
    """Where the requests of a batch lie and what their tokens are.

    Attributes:
        offsets_B1: (B + 1,) int64, request b owns rows offsets[b] : offsets[b + 1].
        num_candidates_B: (B,) int64, the last rows of each request.
        num_contextual: the first rows of every request.
        total: T, tokens of all requests.

    Layers that see the same tokens pass the same plan, so that the lists of work which an implementation makes from it
    are made once.
    """

    offsets_B1: Tensor
    num_candidates_B: Tensor
    num_contextual: int
    total: int
    _derived: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def derived(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` returned the first time that it was asked for under `key`."""
        if key not in self._derived:
            self._derived[key] = make()
        return self._derived[key]

    def check(self) -> None:
        """Waits for the device once; only a failure looks closer.

        Raises:
            ValueError: offsets and counts do not fit together or to the tokens.
        """
        offsets_B1, num_candidates_B, num_contextual = self.offsets_B1, self.num_candidates_B, self.num_contextual
        _check_shapes(offsets_B1, num_candidates_B)
        history_B = offsets_B1.diff() - num_contextual - num_candidates_B
        fits = (history_B >= 0).all() & (num_candidates_B >= 0).all()
        fits &= (offsets_B1[0] == 0) & (offsets_B1[-1] == self.total)
        if num_contextual >= 0 and bool(fits):
            return
        if int(offsets_B1[0]) != 0 or int(offsets_B1[-1]) != self.total:
            raise ValueError(
                f"offsets run from {int(offsets_B1[0])} to {int(offsets_B1[-1])}, the tokens from 0 to {self.total}"
            )
        if num_contextual < 0 or bool((num_candidates_B < 0).any()):
            raise ValueError("num_contextual and num_candidates must not be negative")
        request = int((history_B < 0).nonzero()[0])
        raise ValueError(
            f"request {request} has {int(offsets_B1.diff()[request])} tokens, fewer than its {num_contextual} "
            f"contextual and {int(num_candidates_B[request])} candidates"
        )


def _check_shapes(offsets_B1: Tensor, num_candidates_B: Tensor) -> None:
    if offsets_B1.dtype != torch.int64 or num_candidates_B.dtype != torch.int64:
        raise ValueError(f"offsets and num_candidates must be int64, not {offsets_B1.dtype}, {num_candidates_B.dtype}")
    if offsets_B1.ndim != 1 or num_candidates_B.shape != (offsets_B1.numel() - 1,):
        raise ValueError(
            f"offsets {tuple(offsets_B1.shape)} must be (B + 1,), num_candidates {tuple(num_candidates_B.shape)} (B,)"
        )
