"""The page of trends: the last thirty data dates, what became of each and how the figures move."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from features.files import atomic_file
from flows.models import Promotion
from flows.nightly.record import NightRecord
from flows.report import figures
from flows.report.figures import ACCENT, BAD, MUTED, PALE, SECOND, styled

FOLDER = Path(__file__).parent / "page"
STYLE = Path(figures.__file__).with_name("style.css")
MAX_DATES = 30
COLORS = (ACCENT, SECOND, "#2f7a55", "#7d5ba6", BAD, "#4c9aa8", "#8a6d3b", MUTED)
OUTCOME_COLORS = {"promoted": "#2f7a55", "kept": PALE, "failed": BAD}
# Bars of the time figure; a step of none of them is called by its own name.
STEPS = {
    "data": ("ingest", "vocab", "streams", "validate"),
    "train": ("train",),
    "evaluate, export, score": ("evaluate", "export", "score", "report"),
    "gate": ("gate",),
    "freeze, commit, push": ("freeze logs", "configure", "commit", "push", "promote"),
    "waiting for logs": ("wait for logs",),
}
STEP_COLORS = (ACCENT, SECOND, PALE, "#2f7a55", "#b9c0c8", "#e4e7eb")


@dataclass(frozen=True)
class TrendRow:
    """A date as the table shows it; `record` is None for one that was never run."""

    date: datetime.date
    record: NightRecord | None
    seconds: float | None
    change: str


def trend_rows(records: Mapping[datetime.date, NightRecord]) -> list[TrendRow]:
    """The last dates, newest first, those between them that were never run included."""
    if not records:
        return []
    last, first = max(records), min(records)
    span = min((last - first).days + 1, MAX_DATES)
    return [_row(last - datetime.timedelta(days=number), records) for number in range(span)]


def _row(date: datetime.date, records: Mapping[datetime.date, NightRecord]) -> TrendRow:
    record = records.get(date)
    if record is None:
        return TrendRow(date, None, None, "")
    change = None if record.gate is None else record.gate.metric_change
    text = "" if change is None else f"{figures.signed(change.middle, 4)}"
    return TrendRow(date, record, sum(record.seconds.values()), text)


def ne_figure(records: Sequence[NightRecord]) -> go.Figure:
    """NE of each judged task on the date's own evaluation days: the challenger's points, the champion's line dotted."""
    figure = go.Figure()
    judged = [record for record in records if record.gate is not None and record.gate.tasks]
    names = sorted({name for record in judged for name, task in record.gate.tasks.items() if task.judged})  # type: ignore[union-attr]
    for name, color in zip(names, COLORS, strict=False):
        dates = [record.date for record in judged]
        tasks = [record.gate.tasks.get(name) for record in judged]  # type: ignore[union-attr]
        figure.add_scatter(
            x=dates,
            y=[None if task is None else task.ne for task in tasks],
            mode="lines+markers",
            name=name,
            line={"color": color, "width": 2},
            marker={
                "size": 6,
                "color": [OUTCOME_COLORS[record.outcome] for record in judged],
                "line": {"color": color, "width": 1.5},
            },
            hovertemplate=f"%{{x}} {name}: %{{y:.4f}}<extra></extra>",
        )
        figure.add_scatter(
            x=dates,
            y=[None if task is None else task.champion_ne for task in tasks],
            mode="lines",
            showlegend=False,
            line={"color": color, "width": 1, "dash": "dot"},
            hovertemplate=f"%{{x}} {name}, champion: %{{y:.4f}}<extra></extra>",
        )
    styled(figure, 340, t=34)
    figure.update_yaxes(title={"text": "NE, lower is better", "font": {"size": 12.5, "color": MUTED}})
    return figure


def volume_figure(records: Sequence[NightRecord]) -> go.Figure:
    """Events that each night kept and rows that it put into quarantine."""
    figure = go.Figure()
    known = [record for record in records if record.data is not None and record.data.events is not None]
    for name, color in (("events", ACCENT), ("quarantined", BAD)):
        figure.add_bar(
            x=[record.date for record in known],
            y=[getattr(record.data, name) for record in known],
            name=name,
            marker={"color": color},
            hovertemplate=f"%{{x}} {name}: %{{y:,}}<extra></extra>",
        )
    styled(figure, 300, t=34, b=84)
    figure.update_layout(barmode="stack", bargap=0.3)
    return figure


def duration_figure(records: Sequence[NightRecord]) -> go.Figure:
    """Seconds by group of steps, stacked."""
    figure = go.Figure()
    known = {step for steps in STEPS.values() for step in steps}
    others = dict.fromkeys(step for record in records for step in record.seconds if step not in known)
    groups = STEPS | {step: (step,) for step in others}
    for number, (name, steps) in enumerate(groups.items()):
        figure.add_bar(
            x=[record.date for record in records],
            y=[sum(record.seconds.get(step, 0.0) for step in steps) for record in records],
            name=name,
            marker={"color": STEP_COLORS[number % len(STEP_COLORS)]},
            hovertemplate=f"%{{x}} {name}: %{{y:.1f}} s<extra></extra>",
        )
    styled(figure, 300, t=34, b=84)
    figure.update_layout(barmode="stack", bargap=0.3)
    figure.update_layout(legend={"y": -0.16, "yanchor": "top", "traceorder": "normal"})
    figure.update_yaxes(ticksuffix=" s")
    return figure


def render(records: Mapping[datetime.date, NightRecord], champion: Promotion | None) -> str:
    """The page; equal records give equal bytes."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows = trend_rows(records)
    shown = [row.record for row in reversed(rows) if row.record is not None]
    counts = {outcome: sum(record.outcome == outcome for record in shown) for outcome in OUTCOME_COLORS}
    newest = next((record for record in reversed(shown) if record.gate is not None and record.gate.tasks), None)
    return environment.get_template("trends.html.j2").render(
        rows=rows,
        counts=counts,
        champion=champion,
        newest=newest,
        ne=figures.fragment(ne_figure(shown), "ne"),
        volume=figures.fragment(volume_figure(shown), "volume"),
        durations=figures.fragment(duration_figure(shown), "durations"),
        style=STYLE.read_text(encoding="utf-8"),
        plotly=get_plotlyjs(),
    )


def write_trends(records: Mapping[datetime.date, NightRecord], champion: Promotion | None, out: Path) -> None:
    """Writes the page."""
    page = render(records, champion)
    with atomic_file(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
