"""What the steps of a night have found so far, and the marker on disk that tells where it is."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from flows.models import StoredModel
from flows.nightly.plan import Window
from flows.nightly.record import GateReport, Records, Running


@dataclass
class Progress:
    """What the steps of a night found, for its record; the marker on disk tells where it is.

    Attributes:
        start: what training begins with.
        unfit: why it does not begin with the champion's weights, though it was to.
    """

    records: Records
    date: datetime.date
    started_at: datetime.datetime = field(default_factory=lambda: datetime.datetime.now(datetime.UTC))
    seconds: dict[str, float] = field(default_factory=dict)
    step: str = "start"
    resumed: str | None = None
    window: Window | None = None
    profile: str | None = None
    start: str | None = None
    unfit: str | None = None
    model: StoredModel | None = None
    report: GateReport | None = None
    tag: str | None = None
    pushed: bool = False

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Names the step on disk and takes its time."""
        self.step = step
        self.records.mark(Running(date=self.date, pid=os.getpid(), started_at=self.started_at, step=step))
        self.records.log(self.date, "begins", step=step)
        start = time.monotonic()
        try:
            yield
        finally:
            seconds = round(time.monotonic() - start, 2)
            self.seconds[step] = round(self.seconds.get(step, 0.0) + seconds, 2)
            self.records.log(self.date, "ends", step=step, seconds=seconds)
