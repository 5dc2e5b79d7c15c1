"""Typed, closed configuration of the `validate` section of params.yaml."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from features.config import Closed, Section
from features.drift import Thresholds


class Acceptance(Closed):
    """Drift that somebody has looked at: it holds for data whose last day is `until` and for no other night."""

    until: datetime.date
    reason: Annotated[str, Field(min_length=1)]


class ValidateConfig(Section):
    """The quality gate: the profile to compare with, what may change, and what was accepted."""

    section: ClassVar[str] = "validate"

    baseline: Path | None
    accept: Acceptance | None
    drift: Thresholds
