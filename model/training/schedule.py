"""How the learning rates change over a training."""

from __future__ import annotations

import math
from typing import Literal


def schedule_factor(
    step: int, total_steps: int, *, warmup_steps: int, schedule: Literal["constant", "linear", "cosine"]
) -> float:
    """What the learning rates are multiplied with at a step (from 0): a linear warm-up, then the schedule."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    if schedule == "linear":
        return 1 - progress
    if schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    return 1.0
