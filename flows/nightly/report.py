"""What a night leaves for those who watch: the page of trends, Prefect artifacts, events for automations."""

from __future__ import annotations

from typing import Any

from flows.models import ModelStore
from flows.nightly.record import NightRecord, Records
from flows.nightly.trends import write_trends
from flows.nightly.workspace import NightlyPlaces

EVENT_PREFIX = "hstu2.retrain"


def write_page(places: NightlyPlaces) -> None:
    """Writes the page of trends from all records."""
    write_trends(Records(places.folder).all(), ModelStore(places.models).champion(), places.page)


def announce(record: NightRecord, places: NightlyPlaces) -> None:
    """Leaves the night's artifacts with Prefect and tells its automations how it ended."""
    from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
    from prefect.events import emit_event

    if record.gate is not None and record.gate.tasks:
        create_table_artifact(metric_rows(record), key="retrain-metrics", description=f"Tasks of {record.date}")
    create_markdown_artifact(decision_text(record), key="retrain-decision", description=f"Decision on {record.date}")
    create_link_artifact(places.page.as_uri(), key="retrain-trends", link_text="Trends of the last nights")
    for name in events_of(record):
        emit_event(
            f"{EVENT_PREFIX}.{name}",
            resource={"prefect.resource.id": f"{EVENT_PREFIX}.{record.date}", "prefect.resource.name": "retrain"},
            payload={"date": str(record.date), "outcome": record.outcome, "reason": record.reason},
        )


def events_of(record: NightRecord) -> list[str]:
    """The events of a night: its outcome, and `drift` when the quality gate of the data stopped it."""
    return [record.outcome, *(["drift"] if record.step == "validate" else [])]


def metric_rows(record: NightRecord) -> list[dict[str, Any]]:
    """A row per task."""
    assert record.gate is not None
    return [
        {
            "task": name,
            "NE": task.ne,
            "champion's NE": task.champion_ne,
            "AUC": task.auc,
            "champion's AUC": task.champion_auc,
            "calibration": task.calibration,
            "positives": task.positives,
            "judged": "yes" if task.judged else "no",
        }
        for name, task in record.gate.tasks.items()
    ]


def decision_text(record: NightRecord) -> str:
    """The decision and every check, as Markdown."""
    lines = [f"# {record.date}: {record.outcome}", "", record.reason, ""]
    if record.tag:
        lines += [f"Commit `{record.tag}`, model `{record.model}`, champion `{record.champion}`.", ""]
    if record.gate is not None and record.gate.checks:
        lines += ["| check | value | limit | holds |", "|---|---|---|---|"]
        for check in record.gate.checks:
            value = "–" if check.value is None else f"{check.value:.4g}"
            limit = "–" if check.limit is None else f"{check.limit:.4g}"
            lines.append(f"| {check.name} | {value} | {limit} | {'yes' if check.passed else '**no**'} |")
    return "\n".join(lines)
