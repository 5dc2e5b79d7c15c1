"""The quality gate: tonight's profile against the baseline's, as a verdict, a table and files."""

from __future__ import annotations

from typing import Literal

from features.config import Closed
from features.drift import Check
from features.drift_checks import Comparison, compare
from features.errors import DataError
from features.profile import Profile
from pipelines.validate_config import ValidateConfig

Verdict = Literal["passed", "drifted", "accepted", "no baseline"]
_HEADER = ("metric", "before", "now", "change", "limit", "verdict")
_MAX_NAMED = 6


class GateReport(Closed):
    """What the gate found; `data/drift.json`.

    Attributes:
        baseline: name of the profile that was compared with.
        until: last day of the dataset.
        reason: why drift was accepted.
    """

    verdict: Verdict
    baseline: str | None
    until: str
    reason: str | None
    comparison: Comparison | None

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that found drift."""
        return () if self.comparison is None else self.comparison.failed


def judge(now: Profile, baseline: Profile | None, config: ValidateConfig) -> GateReport:
    """Compares and decides; drift passes when it was accepted for this very last day."""
    name = None if config.baseline is None else config.baseline.name
    until = now.window[1]
    if baseline is None:
        return GateReport(verdict="no baseline", baseline=None, until=until, reason=None, comparison=None)
    comparison = compare(baseline, now, config.drift)
    accepted = config.accept is not None and config.accept.until.isoformat() == until
    reason = config.accept.reason if comparison.failed and config.accept is not None and accepted else None
    verdict: Verdict = "passed" if not comparison.failed else "drifted" if reason is None else "accepted"
    return GateReport(verdict=verdict, baseline=name, until=until, reason=reason, comparison=comparison)


def summary(report: GateReport) -> dict[str, object]:
    """What validation.json keeps of it."""
    return {
        "verdict": report.verdict,
        "baseline": report.baseline,
        "reason": report.reason,
        "drifted": [check.metric for check in report.failed],
    }


def require_no_drift(report: GateReport) -> None:
    """Stops the run when the gate is shut.

    Raises:
        DataError: names the metrics and what to do.
    """
    if report.verdict != "drifted":
        return
    lines = [_failure(check) for check in report.failed[:_MAX_NAMED]]
    if len(report.failed) > _MAX_NAMED:
        lines.append(f"and {len(report.failed) - _MAX_NAMED} more")
    raise DataError(
        f"the data up to {report.until} has drifted since {report.baseline} ({len(report.failed)} checks failed);"
        " see data/drift.html, then mend the logs or run `hstu2 run --accept-drift REASON`\n" + "\n".join(lines)
    )


def _failure(check: Check) -> str:
    figures = (
        f"before {shown(check, check.before)}, now {shown(check, check.now)}, " if check.before is not None else ""
    )
    return f"{check.metric}: {figures}{check.change}, {check.limit}" + (f" ({check.note})" if check.note else "")


def table(report: GateReport) -> list[str]:
    """The comparison as lines of text, one row per check, drift first."""
    if report.comparison is None:
        return ["nothing to compare with: validate.baseline is not set"]
    order = {"drift": 0, "few": 2}
    checks = sorted(report.comparison.checks, key=lambda check: order.get(check.verdict, 1))
    rows = [_HEADER, *(_row(check) for check in checks)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(check: Check) -> tuple[str, ...]:
    verdict = {"drift": "DRIFT", "few": "-", "ok": "ok"}[check.verdict]
    note = f" ({check.note})" if check.note else ""
    return (
        check.metric,
        shown(check, check.before),
        shown(check, check.now),
        check.change,
        check.limit,
        verdict + note,
    )


def shown(check: Check, figure: float | None) -> str:
    """A figure as people read it."""
    if figure is None or check.kind == "psi":
        return "-"
    if check.kind == "share":
        return f"{100 * figure:.3g} %" if figure else "0 %"
    return f"{figure:,.0f}"
