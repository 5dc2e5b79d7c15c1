"""The page of trends, and what is said of a night."""

from __future__ import annotations

from pathlib import Path

from flows.nightly.record import Check, GateReport, Interval, TaskComparison
from flows.nightly.report import decision_text, events_of, metric_rows
from flows.nightly.trends import MAX_DATES, render, trend_rows, write_trends

from .test_plan import DATE, DAY, record

REPORT = GateReport(
    promote=True,
    reason="mean NE 0.8 against 0.9",
    champion="c",
    metric=0.8,
    champion_metric=0.9,
    metric_change=Interval(middle=-0.1, low=-0.12, high=-0.08),
    num_requests=1000,
    tasks={
        "is_click": TaskComparison(
            positives=300, judged=True, ne=0.8, champion_ne=0.9, ne_change=None, auc=0.7, champion_auc=0.6,
            auc_change=None, calibration=1.01,
        )
    },
    checks=(Check(name="change of mean NE", value=-0.1, limit=0.0, passed=True),),
)  # fmt: skip


def test_the_last_thirty_dates_are_shown_with_those_that_were_not_run():
    records = {DATE - number * DAY: record(DATE - number * DAY) for number in range(50) if number != 3}
    rows = trend_rows(records)
    assert [row.date for row in rows] == [DATE - number * DAY for number in range(MAX_DATES)]
    assert [row.date for row in rows if row.record is None] == [DATE - 3 * DAY]
    assert len(trend_rows({DATE: record(DATE)})) == 1
    assert trend_rows({}) == []


def test_the_page_tells_every_outcome_and_needs_nothing_else(tmp_path: Path):
    records = {
        DATE - 2 * DAY: record(DATE - 2 * DAY, "failed", reason="ingest: <b>row</b> 7\nand more", step="ingest"),
        DATE - DAY: record(DATE - DAY, "kept", reason="change of mean NE 0.02, limit 0"),
        DATE: record(DATE, "promoted", reason=REPORT.reason, gate=REPORT, resumed="process 7 was killed in step train"),
    }
    write_trends(records, None, tmp_path / "index.html")
    page = (tmp_path / "index.html").read_text()
    for text in ("ingest: &lt;b&gt;row&lt;/b&gt; 7", "change of mean NE 0.02", "Taken up: process 7", "is_click"):
        assert text in page
    assert "and more" not in page
    assert 'src="http' not in page
    assert render(records, None) == render(dict(reversed(records.items())), None)


def test_a_page_without_a_night_says_so():
    assert "No night has been run yet." in render({}, None)


def test_a_decision_is_told_with_every_check():
    text = decision_text(record(DATE, "promoted", reason=REPORT.reason, gate=REPORT, tag="retrain/2024-03-01"))
    assert text.startswith("# 2024-03-01: promoted")
    assert "| change of mean NE | -0.1 | 0 | yes |" in text
    assert metric_rows(record(DATE, gate=REPORT))[0]["champion's NE"] == 0.9


def test_drift_is_an_event_of_its_own():
    assert events_of(record(DATE, "failed", step="validate")) == ["failed", "drift"]
    assert events_of(record(DATE, "failed", step="train")) == ["failed"]
    assert events_of(record(DATE, "kept")) == ["kept"]
