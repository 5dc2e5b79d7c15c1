"""Typed, closed configuration of the `train` and `evaluate` sections of params.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from features.config import Closed, Section

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Group = Literal["consumption", "engagement"]
Tracker = Literal["dvclive", "tensorboard"]


class SamplingConfig(Closed):
    """Stochastic length, see model.stochastic_length and model.lbsl; off in evaluation.

    kind: `none` keeps whole histories, `sl` cuts by a coin per request, `lbsl` to the same load on every rank.
    alpha: of stochastic length; 2 cuts nothing.
    gamma: a history of n events costs n^gamma.
    warmup_steps: steps of plain SL that LBSL starts with, to learn its target load.
    recalibrate_every: steps between two new targets.
    exact_fill: spend what whole histories leave of a rank's load on a part of one.
    """

    kind: Literal["none", "sl", "lbsl"]
    alpha: Annotated[float, Field(gt=1, le=2)]
    gamma: Annotated[float, Field(ge=1, le=2)]
    warmup_steps: Count
    recalibrate_every: Count
    exact_fill: bool


class EarlyStopConfig(Closed):
    """Stops when NE on the newest training requests, which are then not trained on, no longer falls.

    holdout_share: of the training requests, the newest.
    every_steps: steps between two checks.
    patience: checks without an improvement before training stops.
    min_improvement: of the mean NE over the tasks; less does not count.
    """

    holdout_share: Annotated[float, Field(gt=0, lt=1)]
    every_steps: Count
    patience: Count
    min_improvement: NonNegative


class TrainConfig(Section):
    """How the ranker is fitted.

    num_threads: of torch on the CPU. A small model's steps gain little from a second thread, lose most of their time
    when other work shares the cores, and round differently with each count.
    schedule: after the warm-up both learning rates stay (`constant`) or fall to zero at the last step along a line
    (`linear`) or half a cosine (`cosine`).
    batch_size: requests per step, of all ranks together.
    warm_start: a trained model to go on from, see model.warm_start.
    early_stop: None trains to the last step.
    tracking: where figures of the running training go, see model.tracking.
    """

    section: ClassVar[str] = "train"

    seed: Annotated[int, Field(ge=0)]
    device: Literal["cpu", "cuda"]
    num_threads: Count
    num_epochs: Count
    batch_size: Count
    num_workers: Annotated[int, Field(ge=0)]
    dense_learning_rate: Positive
    table_learning_rate: Positive
    weight_decay: NonNegative
    schedule: Literal["constant", "linear", "cosine"]
    warmup_steps: Annotated[int, Field(ge=0)]
    max_gradient_norm: Positive
    sampling: SamplingConfig
    early_stop: EarlyStopConfig | None
    warm_start: Path | None
    tracking: tuple[Tracker, ...]
    checkpoint_every_steps: Count
    log_every_steps: Count


class FloorConfig(Closed):
    """The logistic regression on smoothed rates; `smoothing` rows of prior go into a rate."""

    smoothing: Positive


class EvaluateConfig(Section):
    """How the ranker is judged; C-NE and E-NE are the means over the two groups."""

    section: ClassVar[str] = "evaluate"

    device: Literal["cpu", "cuda"]
    num_threads: Count
    batch_size: Count
    groups: dict[Group, tuple[str, ...]]
    floor: FloorConfig
    calibration_bins: Count
