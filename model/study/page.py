"""A study's figures as one page: NE against operations, depth against depth, ablations.

python -m model.study.page         bench/study.json in, reports/study.html out; needs neither the data nor a GPU
"""

from __future__ import annotations

import argparse
import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from features.errors import DataError
from features.files import atomic_file, read_json
from model.stage import run_stage
from model.study.plan import ABLATIONS, EQUAL_FLOPS, GRID

_COLOURS = {
    "ultra_hstu": "#2a5c9a",
    "hstu": "#c98a2b",
    "transformer": "#6b4fa0",
    "sasrec": "#4f8a5b",
    "din": "#8a8f98",
    "stca": "#b3473f",
}
_DASHES = ("solid", "dash", "dot")
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Scaling study</title>
<style>
body {{ font: 15px/1.5 {font}; color: #1f2733; max-width: 980px; margin: 32px auto; padding: 0 20px; }}
h1 {{ font-size: 24px; }} h2 {{ font-size: 17px; margin: 32px 0 4px; }} p {{ color: #66707d; margin: 4px 0 8px; }}
table {{ border-collapse: collapse; font-size: 13px; }} td, th {{ padding: 3px 14px 3px 0; text-align: right; }}
td:first-child, th:first-child, td:nth-child(2), th:nth-child(2) {{ text-align: left; }}
th {{ color: #66707d; font-weight: 500; border-bottom: 1px solid #e4e7eb; }}
</style>
<h1>Scaling study</h1>
<p>{lead}</p>
{sections}
</html>
"""

Summary = dict[str, Any]


def write_page(source: Path, out: Path) -> None:
    """Draws what a study found.

    Raises:
        DataError: the file is missing or is not a study.
    """
    study = read_json(source)
    if not isinstance(study, dict) or "summaries" not in study:
        raise DataError(f"{source}: not a study; run `python -m model.study`")
    with atomic_file(out) as temporary:
        temporary.write_text(page(study))


def page(study: dict[str, Any]) -> str:
    """The page's HTML; Plotly's code is in it, so it opens offline."""
    summaries: list[Summary] = study["summaries"]
    sections, script = [], True
    figures: list[tuple[str, str, Callable[[Sequence[Summary]], go.Figure | None]]] = [
        ("NE against operations", "Each point is a model, its bar the spread over seeds.", scaling_figure),
        ("Depth", "Gain over the shallowest model of the same kind and length.", depth_figure),
        ("Ablations", "C-NE against the model as configured; to the right is worse.", ablation_figure),
    ]
    for title, note, draw in figures:
        figure = draw(summaries)
        if figure is not None:
            text = figure.to_html(
                full_html=False, include_plotlyjs=script, config={"displayModeBar": False, "responsive": True}
            )
            sections.append(f"<h2>{title}</h2><p>{note}</p>{text}")
            script = False
    sections.append(f"<h2>All models</h2>{table(summaries)}")
    dataset = study["dataset"]
    lead = f"{dataset['events']:,} events of {dataset['users']:,} users, torch {html.escape(study['torch'])}."
    return _PAGE.format(font=_FONT, lead=lead, sections="\n".join(sections))


def scaling_figure(summaries: Sequence[Summary]) -> go.Figure | None:
    """C-NE against training operations by kind, with the power law of each kind over its models of the grid."""
    figure = go.Figure()
    for kind, points in _by_kind([point for point in summaries if point["figure"] != ABLATIONS]).items():
        flops = [1e3 * point["training_gflops"] for point in points]
        figure.add_scatter(
            x=flops,
            y=[point["c_ne"]["mean"] for point in points],
            error_y={"array": [point["c_ne"]["std"] for point in points], "thickness": 1, "width": 3},
            mode="markers",
            name=kind,
            marker={"color": _COLOURS[kind], "size": 9},
            text=[_shape(point) for point in points],
            hovertemplate="%{text}<br>%{x:.4g} MFLOP, C-NE %{y:.4f}<extra></extra>",
        )
        grid = [point for point in points if point["figure"] == GRID]
        flops = [1e3 * point["training_gflops"] for point in grid]
        if len(set(flops)) > 2:
            slope, intercept = np.polyfit(np.log(flops), np.log([point["c_ne"]["mean"] for point in grid]), 1)
            line = np.geomspace(min(flops), max(flops), 40)
            figure.add_scatter(
                x=line,
                y=np.exp(intercept) * line**slope,
                mode="lines",
                showlegend=False,
                hoverinfo="skip",
                line={"color": _COLOURS[kind], "width": 1},
            )
    if not figure.data:
        return None
    return _styled(figure, "training, MFLOP per candidate", "C-NE", log_x=True)


def depth_figure(summaries: Sequence[Summary]) -> go.Figure | None:
    """Gain in C-NE by depth, a line per kind and length of the grid."""
    lines: dict[tuple[str, str], list[Summary]] = {}
    for point in summaries:
        if point["figure"] == GRID and point["c_ne"]:
            lines.setdefault((point["kind"], str(max(point["max_length"].values()))), []).append(point)
    lengths = list(dict.fromkeys(length for _, length in lines))
    figure = go.Figure()
    for (kind, length), points in lines.items():
        points = sorted(points, key=lambda point: max(point["num_layers"].values()))
        if len(points) < 2:
            continue
        first = points[0]["c_ne"]["mean"]
        figure.add_scatter(
            x=[max(point["num_layers"].values()) for point in points],
            y=[100 * (first - point["c_ne"]["mean"]) / first for point in points],
            error_y={"array": [100 * point["c_ne"]["std"] / first for point in points], "thickness": 1, "width": 3},
            mode="lines+markers",
            name=f"{kind}, {length} events",
            line={"color": _COLOURS[kind], "dash": _DASHES[lengths.index(length) % len(_DASHES)]},
        )
    if not figure.data:
        return None
    return _styled(figure, "layers", "gain in C-NE, %", log_x=False).update_xaxes(dtick=1)


def ablation_figure(summaries: Sequence[Summary]) -> go.Figure | None:
    """Change of C-NE in per cent against the first ablation, which is the model as it is configured."""
    points = [point for point in summaries if point["figure"] == ABLATIONS and point["c_ne"]]
    if len(points) < 2:
        return None
    base, others = points[0]["c_ne"]["mean"], points[1:]
    figure = go.Figure(
        go.Bar(
            y=[point["label"] for point in others],
            x=[100 * (point["c_ne"]["mean"] - base) / base for point in others],
            error_x={"array": [100 * point["c_ne"]["std"] / base for point in others], "thickness": 1, "width": 3},
            orientation="h",
            marker={"color": "#9db4d1"},
        )
    )
    figure.update_yaxes(autorange="reversed")
    _styled(figure, "change of C-NE, %", "", log_x=False)
    return figure.update_layout(height=90 + 36 * len(others), margin={"l": 170})


def table(summaries: Sequence[Summary]) -> str:
    """All figures as HTML."""
    head = ("figure", "model", "layers", "train MFLOP", "infer MFLOP", "C-NE", "E-NE")
    rows = [
        (
            point["figure"],
            point["label"],
            " + ".join(str(layers) for layers in point["num_layers"].values()),
            f"{1e3 * point['training_gflops']:.3f}",
            f"{1e3 * point['inference_gflops']:.3f}",
            _spread(point["c_ne"]),
            _spread(point["e_ne"]),
        )
        for point in sorted(summaries, key=lambda point: (EQUAL_FLOPS, GRID, ABLATIONS).index(point["figure"]))
    ]
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>{body}</table>"


def _by_kind(points: Sequence[Summary]) -> dict[str, list[Summary]]:
    kinds: dict[str, list[Summary]] = {}
    for point in points:
        if point["c_ne"]:
            kinds.setdefault(point["kind"], []).append(point)
    return kinds


def _shape(point: Summary) -> str:
    layers = " + ".join(str(layers) for layers in point["num_layers"].values())
    return f"{point['label']}: {layers} layers"


def _spread(value: dict[str, float] | None) -> str:
    return "-" if value is None else f"{value['mean']:.4f} ± {value['std']:.4f}"


def _styled(figure: go.Figure, x: str, y: str, *, log_x: bool) -> go.Figure:
    figure.update_layout(
        height=420,
        margin={"l": 70, "r": 12, "t": 12, "b": 48},
        font={"family": _FONT, "size": 13, "color": "#1f2733"},
        plot_bgcolor="rgba(0,0,0,0)",
        template="none",
        dragmode=False,
    )
    figure.update_xaxes(title=x, type="log" if log_x else "linear", linecolor="#e4e7eb", gridcolor="#f0f2f4")
    figure.update_yaxes(title=y, linecolor="#e4e7eb", gridcolor="#e4e7eb", zerolinecolor="#c5cbd3")
    return figure


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m model.study.page", description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, default=Path("bench/study.json"))
    parser.add_argument("--out", type=Path, default=Path("reports/study.html"))
    given = parser.parse_args()
    run_stage(lambda: write_page(given.study, given.out))


if __name__ == "__main__":
    main()
