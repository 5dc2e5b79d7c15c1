"""The scaling study: trains a grid of models, each once per seed, and fits how their loss falls with their operations.

python -m model.study        params.yaml and data/streams in, a table and bench/study.json out

A finished cell is a file and is never trained again, so a study that was cut off continues. With --part 0/4 a process
trains every fourth cell alone, so that four share a GPU or a machine; a last run, without --part, finds all of them.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from features.dataset import open_dataset
from features.errors import DataError
from features.files import write_json
from model.config import ModelConfig
from model.stage import run_stage
from model.study.cells import Bench, CellResult, CellStore
from model.study.config import StudyConfig
from model.study.fits import Line, PowerLaw, Spread, gain_line, power_law, spread
from model.study.plan import GRID, Point, plan
from model.training.train_config import EvaluateConfig, TrainConfig

logger = logging.getLogger(__name__)
_REFERENCE_KIND = "hstu"


@dataclass(frozen=True)
class Summary:
    """A point of a figure over its seeds; operations are GFLOP per candidate, cells the names of its cells."""

    figure: str
    label: str
    kind: str
    num_layers: dict[str, int]
    max_length: dict[str, int]
    training_gflops: float
    inference_gflops: float
    seconds: float
    c_ne: Spread | None
    e_ne: Spread | None
    ne: dict[str, Spread | None]
    cells: Sequence[str] = ()


@dataclass(frozen=True)
class Scaling:
    """How C-NE of a kind falls with operations, over the grid; a ratio is this kind's slope over that of kind hstu."""

    training_power: PowerLaw | None
    inference_power: PowerLaw | None
    training_line: Line | None
    inference_line: Line | None
    training_ratio: float | None
    inference_ratio: float | None


@dataclass(frozen=True)
class StudyPaths:
    """Inputs and outputs."""

    params: Path
    streams: Path
    cells: Path
    out: Path


def run_study(paths: StudyPaths, *, part: tuple[int, int] = (0, 1), minutes: float | None = None) -> None:
    """Trains what is missing, then writes the figures of all finished cells, with how many are missing.

    Args:
        paths: inputs and outputs.
        part: (which, of how many): the share of the cells to train.
        minutes: starts no cell that would likely end later than this; None trains all of the part.

    Raises:
        DataError: the settings do not fit each other or the dataset.
    """
    bench = Bench(open_dataset(paths.streams), TrainConfig.load(paths.params), EvaluateConfig.load(paths.params))
    study, config = StudyConfig.load(paths.params), ModelConfig.load(paths.params)
    points = plan(study, config, lambda model: bench.flops(model).training)
    for point in points:
        point.config.check_against(bench.dataset.manifest.spec)
    store = CellStore(paths.cells)
    train_missing(bench, points, study.seeds, store=store, part=part, minutes=minutes)
    results = {
        (point.figure, point.label): [store.read(bench.cell_of(point.config, seed)) for seed in study.seeds]
        for point in points
    }
    known = {key: [cell for cell in cells if cell is not None] for key, cells in results.items()}
    summaries = [summarise(point, cells) for point in points if (cells := known[point.figure, point.label])]
    missing = sum(len(study.seeds) - len(cells) for cells in known.values())
    if not summaries:
        raise DataError(f"{paths.cells}: no cell is finished")
    write_study(paths.out, bench, known, summaries=summaries, missing=missing)
    for line in table_lines(summaries):
        logger.info("%s", line)
    if missing:
        logger.info("study: %d of the figures' cells are not trained yet; run it again", missing)


def train_missing(
    bench: Bench,
    points: Sequence[Point],
    seeds: Sequence[int],
    *,
    store: CellStore,
    part: tuple[int, int] = (0, 1),
    minutes: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Trains the cells of a part that have no file yet, all models with one seed before the next seed."""
    cells: dict[str, tuple[Point, int]] = {}
    for seed in seeds:
        for point in points:
            cells.setdefault(bench.cell_of(point.config, seed), (point, seed))
    mine = [entry for number, entry in enumerate(cells.items()) if number % part[1] == part[0]]
    todo = [(cell, point, seed) for cell, (point, seed) in mine if store.read(cell) is None]
    started, longest = clock(), 0.0
    for number, (_, point, seed) in enumerate(todo, start=1):
        begun = clock()
        if minutes is not None and begun - started + longest > 60 * minutes:
            logger.info("study: out of time, %d of %d cells trained", number - 1, len(todo))
            return
        result = bench.run(point.config, seed)
        store.write(result)
        longest = max(longest, clock() - begun)
        left = (clock() - started) / number * (len(todo) - number)
        logger.info(
            "study: cell %d/%d, %s: %s, seed %d: C-NE %s, %.0f s, %.0f min left",
            *(number, len(todo), point.figure, point.label, seed, _cell_text(result.c_ne), result.seconds, left / 60),
        )


def summarise(point: Point, cells: Sequence[CellResult]) -> Summary:
    """A point over its seeds."""
    first = cells[0]
    return Summary(
        figure=point.figure,
        label=point.label,
        kind=first.kind,
        num_layers=first.num_layers,
        max_length=first.max_length,
        training_gflops=first.training_flops / 1e9,
        inference_gflops=first.inference_flops / 1e9,
        seconds=sum(cell.seconds for cell in cells) / len(cells),
        c_ne=spread([cell.c_ne for cell in cells]),
        e_ne=spread([cell.e_ne for cell in cells]),
        ne={task: spread([cell.ne[task] for cell in cells]) for task in first.ne},
        cells=[cell.cell for cell in cells],
    )


def scaling_of(summaries: Sequence[Summary]) -> dict[str, Scaling]:
    """Fits of each kind of the grid; a gain of 0 is the cheapest model of kind hstu, or of the first kind."""
    grid = [(point, point.c_ne.mean) for point in summaries if point.figure == GRID and point.c_ne is not None]
    kinds = list(dict.fromkeys(point.kind for point, _ in grid))
    if not kinds:
        return {}
    base = _REFERENCE_KIND if _REFERENCE_KIND in kinds else kinds[0]
    reference = min((point.training_gflops, loss) for point, loss in grid if point.kind == base)[1]
    lines: dict[str, tuple[Line | None, Line | None]] = {}
    powers: dict[str, tuple[PowerLaw | None, PowerLaw | None]] = {}
    for kind in kinds:
        mine = [(point, loss) for point, loss in grid if point.kind == kind]
        losses = [loss for _, loss in mine]
        training = [point.training_gflops for point, _ in mine]
        inference = [point.inference_gflops for point, _ in mine]
        lines[kind] = gain_line(training, losses, reference), gain_line(inference, losses, reference)
        powers[kind] = power_law(training, losses), power_law(inference, losses)
    return {
        kind: Scaling(
            *powers[kind],
            *lines[kind],
            training_ratio=_ratio(lines[kind][0], lines[base][0]),
            inference_ratio=_ratio(lines[kind][1], lines[base][1]),
        )
        for kind in kinds
    }


def _ratio(line: Line | None, base: Line | None) -> float | None:
    """Of two slopes; without meaning unless both models gain from operations."""
    if line is None or base is None or line.slope <= 0 or base.slope <= 0:
        return None
    return line.slope / base.slope


def write_study(
    out: Path,
    bench: Bench,
    cells: Mapping[tuple[str, str], Sequence[CellResult]],
    *,
    summaries: Sequence[Summary],
    missing: int,
) -> None:
    """Writes every figure; cells are listed once."""
    unique = {cell.cell: cell for some in cells.values() for cell in some}
    manifest = bench.dataset.manifest
    write_json(
        out,
        {
            "dataset": {
                "content_checksum": manifest.content_checksum,
                "users": sum(shard.users for shard in manifest.shards),
                "events": sum(shard.events for shard in manifest.shards),
                "requests": sum(shard.requests for shard in manifest.shards),
            },
            "torch": torch.__version__,
            "loss_window": bench.train.log_every_steps,
            "missing": missing,
            "summaries": [asdict(summary) for summary in summaries],
            "scaling": {kind: asdict(scaling) for kind, scaling in scaling_of(summaries).items()},
            "cells": [asdict(cell) for cell in unique.values()],
        },
    )


def table_lines(summaries: Sequence[Summary]) -> list[str]:
    """A table for the log: operations in MFLOP per candidate, NE with its spread over seeds."""
    lines = [f"{'figure':>12} {'model':>32} {'train':>9} {'infer':>9} {'s':>6} {'C-NE':>16} {'E-NE':>16}"]
    for point in summaries:
        lines.append(
            f"{point.figure:>12} {point.label:>32} {1e3 * point.training_gflops:9.3f} "
            f"{1e3 * point.inference_gflops:9.3f} {point.seconds:6.0f} "
            f"{_spread_text(point.c_ne):>16} {_spread_text(point.e_ne):>16}"
        )
    return lines


def _spread_text(value: Spread | None) -> str:
    return "-" if value is None else f"{value.mean:.4f} ± {value.std:.4f}"


def _cell_text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _part(text: str) -> tuple[int, int]:
    which, _, count = text.partition("/")
    if not (which.isdigit() and count.isdigit() and int(which) < int(count)):
        raise DataError(f"--part {text}: write it as 0/4, the first of four")
    return int(which), int(count)


def main() -> None:
    """Command line; every setting is in params.yaml."""
    parser = argparse.ArgumentParser(prog="python -m model.study", description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--streams", type=Path, default=Path("data/streams"))
    parser.add_argument("--cells", type=Path, default=Path("data/study"))
    parser.add_argument("--out", type=Path, default=Path("bench/study.json"))
    parser.add_argument("--part", default="0/1", help="train every n-th cell only, e.g. 0/4")
    parser.add_argument("--minutes", type=float, help="start no cell that would likely end later")
    given = parser.parse_args()
    paths = StudyPaths(given.params, given.streams, given.cells, given.out)
    run_stage(lambda: run_study(paths, part=_part(given.part), minutes=given.minutes))
