"""The quality gate's page: the table of checks, the distributions before and now, the days. Needs no network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jinja2

from features.drift import Check, Distribution
from features.files import atomic_file
from features.profile import Profile
from pipelines.quality_gate import GateReport, shown

_FOLDER = Path(__file__).parent
_TEMPLATE = "drift.html.j2"
_ORDER = {"drift": 0, "ok": 1, "few": 2}
# Of a distribution with many classes the tail without events is not drawn.
_MAX_CLASSES = 64


@dataclass(frozen=True)
class CheckRow:
    """A check as text, and its two figures as bar widths in per cent of the larger one."""

    check: Check
    before: str
    now: str
    before_width: float
    now_width: float


@dataclass(frozen=True)
class Bar:
    """A class of a distribution: its shares, and the heights of its bars in per cent of the tallest."""

    name: str
    before: float
    now: float
    before_height: float
    now_height: float


@dataclass(frozen=True)
class DistributionView:
    """A distribution as pairs of bars."""

    metric: str
    psi: str
    verdict: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class DayBar:
    """A day's events; `height` in per cent of the busiest day's."""

    day: str
    events: int
    users: int
    height: float
    is_new: bool


def write_drift_page(profile: Profile, report: GateReport, out: Path) -> None:
    """Writes the page of a comparison, or of a first night."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template(_TEMPLATE).render(
        report=report,
        rows=check_rows(report),
        distributions=distribution_views(report),
        days=day_bars(profile, report),
        profile=profile,
        last_day=max(profile.days, default=None),
    )
    with atomic_file(out) as temporary:
        temporary.write_text(page, encoding="utf-8")


def check_rows(report: GateReport) -> list[CheckRow]:
    """The checks, drift first, otherwise in their order."""
    checks = () if report.comparison is None else report.comparison.checks
    return [_row(check) for check in sorted(checks, key=lambda check: _ORDER[check.verdict])]


def _row(check: Check) -> CheckRow:
    figures = [
        abs(figure) if figure is not None and check.kind != "psi" else 0.0 for figure in (check.before, check.now)
    ]
    widths = [100 * figure / max(*figures, 1e-12) for figure in figures] if check.before is not None else [0.0, 0.0]
    return CheckRow(check, shown(check, check.before), shown(check, check.now), widths[0], widths[1])


def distribution_views(report: GateReport) -> list[DistributionView]:
    """The distributions as shares of their sums."""
    if report.comparison is None:
        return []
    checks = {check.metric: check for check in report.comparison.checks}
    return [_view(found, checks[found.metric]) for found in report.comparison.distributions]


def _view(found: Distribution, check: Check) -> DistributionView:
    counts = list(zip(found.classes, found.before, found.now, strict=True))
    used = max((index for index, (_, *pair) in enumerate(counts) if any(pair)), default=0)
    sums = [max(sum(side), 1) for side in (found.before, found.now)]
    pairs = [(name, before / sums[0], now / sums[1]) for name, before, now in counts[: min(used + 1, _MAX_CLASSES)]]
    top = max((share for _, *both in pairs for share in both), default=0.0) or 1.0
    bars = tuple(Bar(name, before, now, 100 * before / top, 100 * now / top) for name, before, now in pairs)
    return DistributionView(found.metric, check.change or check.note, check.verdict, bars)


def day_bars(profile: Profile, report: GateReport) -> list[DayBar]:
    """Events of each day of the dataset."""
    new = set() if report.comparison is None else set(report.comparison.new_days)
    top = max((day.events for day in profile.days.values()), default=1)
    return [
        DayBar(name, day.events, day.users, 100 * day.events / top, name in new) for name, day in profile.days.items()
    ]
