"""Typed, closed configuration of the `retrain` section of params.yaml. No stage reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from features.config import Closed, Section

Count = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class GateConfig(Closed):
    """When a challenger takes the champion's place. NE is better when lower, AUC when higher.

    tasks: whose mean NE is the gate's metric; a task with fewer than `min_positives` positives is left out.
    min_requests: fewer in the evaluation window judge nobody.
    bootstrap_samples, confidence: of the paired bootstrap over users.
    max_ne_increase: the upper end of the mean's interval may lie so far above the champion's; its middle never above.
    max_task_ne_increase, max_task_auc_decrease: no task may be worse by more, with that confidence.
    slices: limits for the candidates of new users (histories of at most `new_user_events`), heavy users (at least
    `heavy_user_events`), cold items (unknown to the vocabulary) and each surface.
    max_calibration_error: distance from 1 of mean prediction over mean label, per task.
    max_model_bytes, max_latency_ratio: size on disk; time per request against the champion's in the same process.
    """

    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    min_requests: Count
    min_positives: Count
    bootstrap_samples: Annotated[int, Field(ge=20)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    max_ne_increase: NonNegative
    max_task_ne_increase: NonNegative
    max_task_auc_decrease: NonNegative
    min_slice_candidates: Count
    max_slice_ne_increase: NonNegative
    new_user_events: Annotated[int, Field(ge=0)]
    heavy_user_events: Count
    max_calibration_error: Positive
    max_model_bytes: Count
    max_latency_ratio: Positive


class RetrainConfig(Section):
    """How a night goes.

    logs: folder in which new logs land. Files whose name matches `day_pattern` (glob with strftime's %Y, %m, %d) belong
    to that day, all others are side tables and go with every day.
    window_days: days of logs of a model, the data date included.
    lag_days: the data date is that many days before the UTC date of the night.
    deadline_minutes: how long after the end of the local day to wait for its logs.
    settle_seconds: a file has arrived when it did not change for so long.
    when_busy: what a retrain does that finds another one at work.
    warm_start: whether training goes on from the champion's weights. When those do not fit, for settings of the model
    or the features have changed, `always` fails the night, `possible` trains from scratch and says why.
    keep_days: how long a model that was never promoted is kept.
    push_attempts: of the upload to the DVC remote.
    """

    section: ClassVar[str] = "retrain"

    logs: Path
    day_pattern: str
    window_days: Count
    lag_days: Annotated[int, Field(ge=0)]
    deadline_minutes: NonNegative
    poll_seconds: Positive
    settle_seconds: NonNegative
    when_busy: Literal["exit", "wait"]
    warm_start: Literal["never", "possible", "always"]
    stage_timeout_minutes: Positive
    push_attempts: Count
    keep_days: Count
    gate: GateConfig

    @field_validator("day_pattern")
    @classmethod
    def _names_a_day(cls, pattern: str) -> str:
        missing = [code for code in ("%Y", "%m", "%d") if pattern.count(code) != 1]
        if missing:
            raise ValueError(f"write {missing[0]} once, as in log_standard_%Y%m%d.csv")
        return pattern
