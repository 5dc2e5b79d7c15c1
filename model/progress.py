"""One log line now and then for anything that takes more than a few seconds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable


class Progress:
    """Counts work and logs done/total, rates and the time left.

    Rates are those since the previous line, so that a slow start does not blur them.
    """

    def __init__(
        self,
        logger: logging.Logger,
        label: str,
        *,
        total: int,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts the clock.

        Args:
            logger: where lines go.
            label: first words of each line.
            total: steps in all.
            done: steps already behind us, of a resumed run.
            clock: seconds.
        """
        self._logger, self._label, self._total, self._clock = logger, label, total, clock
        self._first, self._done = done, done
        self._started = self._last = clock()
        self._pending: dict[str, int] = {}

    def advance(self, **amounts: int) -> None:
        """Counts a step and what it processed, by unit: `advance(requests=256, tokens=9000)`."""
        self._done += 1
        for unit, amount in amounts.items():
            self._pending[unit] = self._pending.get(unit, 0) + amount

    def log(self, note: str = "") -> None:
        """Writes a line."""
        now = self._clock()
        interval = max(now - self._last, 1e-9)
        rates = [f"{_short(amount / interval)} {unit}/s" for unit, amount in self._pending.items()]
        behind = max(self._done - self._first, 1)
        left = (now - self._started) / behind * (self._total - self._done)
        parts = [
            f"{self._label} {self._done}/{self._total}",
            *([note] if note else []),
            *rates,
            f"{_clock_text(left)} left",
        ]
        self._logger.info(", ".join(parts))
        self._last, self._pending = now, {}


def _short(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:.0f}"


def _clock_text(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
