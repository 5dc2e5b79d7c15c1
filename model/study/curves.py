"""Compares the loss curves of two models of a study, seed by seed: does one lie within the spread of the other's seeds?

python -m model.study.curves --study bench/precision.json      bench/precision_curves.json, its .svg and a table out

Cells of one seed see the same requests in the same order. Legend: N seeds, W windows of steps.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features.errors import DataError
from features.files import atomic_file, read_json, write_json
from model.stage import run_stage
from model.study.plan import ABLATIONS
from model.study.svg import Series, line_chart

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CurvePoint:
    """A window of steps.

    Attributes:
        step: its last step.
        first, second: mean over the seeds of each model's loss.
        spread: standard deviation of the first model's seeds.
        low, high: least and largest loss of the first model's seeds.
        within: whether `second` lies between low and high.
    """

    step: int
    first: float
    second: float
    spread: float
    low: float
    high: float
    within: bool


@dataclass(frozen=True)
class CurveComparison:
    """Two models over the same seeds.

    Attributes:
        seeds: of both.
        points: the curve.
        share_within: of the points.
        paired: mean over seeds of the second's loss minus the first's, over the last quarter of the steps.
        paired_spread: standard deviation of that over the seeds.
        seed_spread: standard deviation of the first model's seeds, over the same steps.
        ne: per task, the models' NE on the evaluation window by seed.
    """

    seeds: list[int]
    points: list[CurvePoint]
    share_within: float
    paired: float
    paired_spread: float
    seed_spread: float
    ne: dict[str, dict[str, list[float | None]]]


def compare(loss_first_NW: np.ndarray, loss_second_NW: np.ndarray, *, window: int) -> list[CurvePoint]:
    """The curves window by window.

    Args:
        loss_first_NW, loss_second_NW: (N, W), a row per seed, at least two.
        window: steps of a window.
    """
    points = []
    for number, (first_N, second_N) in enumerate(zip(loss_first_NW.T, loss_second_NW.T, strict=True), start=1):
        low, high, second = float(first_N.min()), float(first_N.max()), float(second_N.mean())
        points.append(
            CurvePoint(
                step=number * window,
                first=float(first_N.mean()),
                second=second,
                spread=float(first_N.std(ddof=1)),
                low=low,
                high=high,
                within=low <= second <= high,
            )
        )
    return points


def comparison_of(study: dict[str, Any], first: str, second: str, *, source: str = "the study") -> CurveComparison:
    """Compares two ablations.

    Args:
        study: what model.study wrote.
        first, second: labels of the ablations.
        source: name of the study, for messages.

    Raises:
        DataError: the study lacks one, they do not share two seeds, or its cells have no curves.
    """
    cells = {label: _cells(study, label, source) for label in (first, second)}
    seeds = sorted(cells[first].keys() & cells[second].keys())
    if len(seeds) < 2:
        raise DataError(f"{source}: '{first}' and '{second}' share fewer than two finished seeds")
    curves = {label: np.array([cells[label][seed]["losses"] for seed in seeds]) for label in cells}
    if not curves[first].size or curves[first].shape != curves[second].shape:
        raise DataError(f"{source}: its cells have no loss curves, or of different lengths; train them again")
    points = compare(curves[first], curves[second], window=study["loss_window"])
    end = slice(-max(len(points) // 4, 1), None)
    last = {label: curve[:, end].mean(axis=1) for label, curve in curves.items()}
    difference_N = last[second] - last[first]
    return CurveComparison(
        seeds=seeds,
        points=points,
        share_within=sum(point.within for point in points) / len(points),
        paired=float(difference_N.mean()),
        paired_spread=float(difference_N.std(ddof=1)),
        seed_spread=float(last[first].std(ddof=1)),
        ne={
            task: {label: [cells[label][seed]["ne"][task] for seed in seeds] for label in cells}
            for task in cells[first][seeds[0]]["ne"]
        },
    )


def _cells(study: dict[str, Any], label: str, source: str) -> dict[int, dict[str, Any]]:
    """The finished cells of an ablation by seed."""
    names = [s["cells"] for s in study["summaries"] if (s["figure"], s["label"]) == (ABLATIONS, label)]
    if not names:
        raise DataError(f"{source}: no ablation '{label}'")
    return {cell["seed"]: cell for cell in study["cells"] if cell["cell"] in names[0]}


def chart(comparison: CurveComparison, first: str, second: str) -> str:
    """The curves as SVG: means of both, and the first model's least and largest."""
    points = comparison.points[:: max(len(comparison.points) // 10, 1)]

    def series(name: str, values: Sequence[float]) -> Series:
        return Series(name, [(point.step, value) for point, value in zip(points, values, strict=True)])

    return line_chart(
        [
            series(f"{first}, mean", [point.first for point in points]),
            series(f"{second}, mean", [point.second for point in points]),
            series(f"{first}, least seed", [point.low for point in points]),
            series(f"{first}, largest seed", [point.high for point in points]),
        ],
        title="training loss",
        x_label="step",
        y_label="loss",
    )


def table_lines(comparison: CurveComparison, first: str, second: str) -> list[str]:
    """The curve and the evaluation, for the log."""
    lines = [f"{'step':>8} {first:>8} {second:>8} {'spread':>8} {'within':>7}"]
    lines += [
        f"{p.step:8d} {p.first:8.4f} {p.second:8.4f} {p.spread:8.4f} {'yes' if p.within else 'no':>7}"
        for p in comparison.points
    ]
    lines.append(
        f"{second} within the seeds of {first} in {comparison.share_within:.0%} of the windows; over the last quarter "
        f"{comparison.paired:+.5f} ± {comparison.paired_spread:.5f}, spread of the seeds {comparison.seed_spread:.5f}"
    )
    for task, by_label in comparison.ne.items():
        figures = "; ".join(
            f"{label} " + " ".join("-" if value is None else f"{value:.4f}" for value in values)
            for label, values in by_label.items()
        )
        lines.append(f"NE {task}: {figures}")
    return lines


def run(arguments: argparse.Namespace) -> None:
    """Compares, draws and writes."""
    study, first, second = read_json(arguments.study), arguments.first, arguments.second
    comparison = comparison_of(study, first, second, source=str(arguments.study))
    out = arguments.study.with_name(f"{arguments.study.stem}_curves.json")
    device = next(iter(study["cells"]))["device"]
    write_json(out, {"device": device, "torch": study["torch"], "first": first, "second": second} | asdict(comparison))
    with atomic_file(out.with_suffix(".svg")) as temporary:
        temporary.write_text(chart(comparison, first, second))
    for line in table_lines(comparison, first, second):
        logger.info("%s", line)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m model.study.curves", description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, default=Path("bench/precision.json"))
    parser.add_argument("--first", default="bf16", help="label of the ablation whose seeds give the spread")
    parser.add_argument("--second", default="fp8", help="label of the other")
    arguments = parser.parse_args()
    run_stage(lambda: run(arguments))


if __name__ == "__main__":
    main()
