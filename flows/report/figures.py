"""The page's figures as Plotly fragments; the page brings Plotly's code once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

if TYPE_CHECKING:
    # The trends of nights draw with this module and need neither the model nor torch.
    from flows.report.inputs import CalibrationPoint
    from flows.report.lengths import LengthShares
    from flows.report.masks import DrawnMask

INK = "#1f2733"
MUTED = "#66707d"
RULE = "#e4e7eb"
ACCENT = "#2a5c9a"
SECOND = "#c98a2b"
BAD = "#b3473f"
PALE = "#9db4d1"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
SMOOTHING_POINTS = 9


def signed(value: float, digits: int) -> str:
    """A difference with its sign, the minus as wide as the plus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def fragment(figure: go.Figure, name: str) -> str:
    """The figure as HTML; equal figures of equal name give equal bytes."""
    config = {"displayModeBar": False, "responsive": True}
    return figure.to_html(
        full_html=False, include_plotlyjs=False, div_id=f"figure-{name}", config=config, default_height="100%"
    )


def styled(figure: go.Figure, height: int, **margins: int) -> go.Figure:
    """The look that all figures share: fonts, colours, no tools."""
    figure.update_layout(
        height=height,
        margin={"l": 56, "r": 12, "t": 8, "b": 44, **margins},
        font={"family": FONT, "size": 13, "color": INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hoverlabel={"font": {"family": FONT, "size": 13}},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12.5}},
        dragmode=False,
        template="none",
    )
    axis = {"fixedrange": True, "zeroline": False, "linecolor": RULE, "tickcolor": RULE, "ticks": ""}
    figure.update_xaxes(**axis, showgrid=False, showline=True, tickfont={"color": MUTED, "size": 12})
    figure.update_yaxes(**axis, gridcolor=RULE, tickfont={"color": MUTED, "size": 12})
    return figure


def ne_gain_figure(tasks: Sequence[str], gains: Sequence[float]) -> go.Figure:
    """Bars: by how many per cent the model's NE is below the floor's, per task, the first task on top."""
    figure = go.Figure(
        go.Bar(
            y=list(tasks),
            x=[100 * gain for gain in gains],
            orientation="h",
            marker={"color": [ACCENT if gain >= 0 else BAD for gain in gains]},
            hovertemplate="%{y}: %{x:.2f} %<extra></extra>",
        )
    )
    styled(figure, 60 + 34 * len(tasks), l=128, r=64)
    figure.update_yaxes(autorange="reversed", tickfont={"color": INK, "size": 13}, showgrid=False, showline=False)
    low, high = 100 * min([0.0, *gains]), 100 * max([0.0, *gains])
    span = max(high - low, 1e-3)
    figure.update_xaxes(
        range=[low - 0.06 * span if low < 0 else 0, high + 0.12 * span],
        title={"text": "NE below the floor, %", "font": {"size": 12.5, "color": MUTED}},
        showline=False,
    )
    # Right of the bar or of zero: left of a negative bar there may be no room on a phone.
    for task, gain in zip(tasks, gains, strict=True):
        figure.add_annotation(
            x=max(100 * gain, 0), y=task, text=f"{signed(100 * gain, 1)} %", showarrow=False, xanchor="left", xshift=3
        )
    figure.update_layout(bargap=0.38, shapes=[_line(x0=0, x1=0, y0=0, y1=1, yref="paper", color=MUTED)])
    return figure


def _line(*, color: str, dash: str = "solid", **ends: object) -> dict[str, object]:
    return {"type": "line", "line": {"color": color, "width": 1, "dash": dash}, "layer": "below", **ends}


def smooth(values: Sequence[float], width: int = SMOOTHING_POINTS) -> list[float]:
    """Mean of each value and as many neighbours on either side, fewer towards the ends."""
    last = len(values) - 1
    halves = (min(width // 2, index, last - index) for index in range(len(values)))
    windows = (values[index - half : index + half + 1] for index, half in enumerate(halves))
    return [sum(window) / len(window) for window in windows]


def loss_figure(steps: Sequence[float], losses: Sequence[float]) -> go.Figure:
    """The logged losses, faint, and their moving mean."""
    figure = go.Figure()
    figure.add_scatter(
        x=list(steps),
        y=list(losses),
        mode="lines",
        line={"color": PALE, "width": 1},
        name="logged",
        hovertemplate="step %{x}: %{y:.4f}<extra></extra>",
    )
    if len(losses) > 2 * SMOOTHING_POINTS:
        figure.add_scatter(
            x=list(steps),
            y=smooth(losses),
            mode="lines",
            line={"color": ACCENT, "width": 2.2},
            name=f"mean of {SMOOTHING_POINTS} neighbours",
            hoverinfo="skip",
        )
    else:
        figure.update_traces(line={"color": ACCENT, "width": 2.2})
    styled(figure, 300, t=34)
    figure.update_xaxes(title={"text": "step", "font": {"size": 12.5, "color": MUTED}})
    figure.update_yaxes(title={"text": "training loss", "font": {"size": 12.5, "color": MUTED}}, nticks=6)
    return figure


def lengths_figure(shares: LengthShares, max_length: int | None) -> go.Figure:
    """Bars of users and requests by length class, and where the model cuts."""
    figure = go.Figure()
    for values, name, color in (
        (shares.users, "users, whole stream", PALE),
        (shares.requests, "requests, history", ACCENT),
    ):
        figure.add_bar(
            x=list(shares.labels),
            y=[100 * value for value in values],
            name=name,
            marker={"color": color},
            hovertemplate="%{x} events: %{y:.1f} %<extra>" + name + "</extra>",
        )
    styled(figure, 300, t=34, b=72)
    figure.update_xaxes(
        type="category", tickangle=-40, title={"text": "events", "font": {"size": 12.5, "color": MUTED}}
    )
    figure.update_yaxes(ticksuffix=" %", nticks=5, range=[0, 115 * max([*shares.users, *shares.requests])])
    figure.update_layout(bargap=0.25, bargroupgap=0.05)
    place = None if max_length is None else math.log2(max_length) + 0.5
    if place is not None and place < len(shares.labels) - 0.5:
        figure.add_shape(_line(x0=place, x1=place, y0=0, y1=1, yref="paper", color=BAD, dash="dot"))
        figure.add_annotation(
            x=place,
            y=1,
            yref="paper",
            text=f"model reads {max_length:,}",
            showarrow=False,
            xanchor="right",
            yanchor="top",
            xshift=-5,
            font={"size": 12, "color": BAD},
        )
    return figure


def mask_figure(drawn: DrawnMask) -> go.Figure:
    """The mask as a grid: filled where the row's query sees the column's key, shaded by the kind of key."""
    length = len(drawn.visible)
    contextual, end = drawn.num_contextual, drawn.num_contextual + drawn.num_history
    kind = np.where(np.arange(length) < contextual, 2, np.where(np.arange(length) < end, 1, 3))
    cells = np.where(drawn.visible, kind[None, :], 0)
    scale = [(0, "#f1f3f5"), (1, ACCENT), (2, PALE), (3, SECOND)]
    figure = go.Figure(
        go.Heatmap(
            z=cells.tolist(),
            zmin=-0.5,
            zmax=3.5,
            colorscale=[(edge / 4, color) for code, color in scale for edge in (code, code + 1)],
            showscale=False,
            xgap=1,
            ygap=1,
            hoverinfo="skip",
        )
    )
    styled(figure, 380, l=92, t=30, b=8, r=8)
    parts = [(0, contextual, "contextual"), (contextual, end, "history, newest first"), (end, length, "candidates")]
    ticks = [(low + high - 1) / 2 for low, high, _ in parts if high > low]
    labels = [name for low, high, name in parts if high > low]
    figure.update_xaxes(
        side="top", tickvals=ticks, ticktext=["ctx" if name == "contextual" else name for name in labels]
    )
    figure.update_yaxes(
        autorange="reversed", tickvals=ticks, ticktext=[name.replace(", ", ",<br>") for name in labels], showgrid=False
    )
    for axis in (figure.update_xaxes, figure.update_yaxes):
        axis(showline=False, tickfont={"size": 11.5, "color": MUTED})
    low, high = -0.5, length - 0.5
    for border in (contextual - 0.5, end - 0.5):
        for line in (
            _line(x0=border, x1=border, y0=low, y1=high, color=INK),
            _line(x0=low, x1=high, y0=border, y1=border, color=INK),
        ):
            figure.add_shape({**line, "layer": "above"})
    return figure


def calibration_figure(points: Sequence[CalibrationPoint]) -> go.Figure:
    """Observed rate against mean prediction of each bin, beside the diagonal."""
    predicted, observed = [point.mean_predicted for point in points], [point.mean_label for point in points]
    top = 1.08 * max([*predicted, *observed, 1e-6])
    figure = go.Figure()
    figure.add_scatter(
        x=[0, top], y=[0, top], mode="lines", line={"color": MUTED, "width": 1, "dash": "dot"}, hoverinfo="skip"
    )
    figure.add_scatter(
        x=predicted,
        y=observed,
        mode="lines+markers",
        line={"color": PALE, "width": 1.5},
        marker={"size": 5.5, "color": ACCENT},
        customdata=[point.count for point in points],
        hovertemplate="predicted %{x:.4f}, observed %{y:.4f}, %{customdata:,} candidates<extra></extra>",
    )
    styled(figure, 210, l=44, r=8, t=4, b=34)
    figure.update_layout(showlegend=False)
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(range=[0, top], nticks=4, tickangle=0, tickfont={"color": MUTED, "size": 11})
    return figure
