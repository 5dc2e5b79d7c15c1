"""Which models a study trains: the points of its figures, each a configuration with a label."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from features.errors import DataError
from model.config import Kind, ModelConfig
from model.study.config import EqualFlopsConfig, GridConfig, StudyConfig, at_depth_and_length, changed

GRID, EQUAL_FLOPS, ABLATIONS = "grid", "equal_flops", "ablations"
TrainingFlops = Callable[[ModelConfig], float]


@dataclass(frozen=True)
class Point:
    """A model of a figure, trained with every seed."""

    figure: str
    label: str
    config: ModelConfig


def plan(study: StudyConfig, config: ModelConfig, training_flops: TrainingFlops) -> list[Point]:
    """All points, in the order in which they are trained.

    Args:
        study: the section.
        config: the section model, which every point is a change of.
        training_flops: operations per candidate of a configuration.

    Raises:
        DataError: the study names what the model does not have, or asks for nothing.
    """
    points = []
    if study.equal_flops is not None:
        points += equal_flops_points(study.equal_flops, config, training_flops)
    if study.grid is not None:
        points += grid_points(study.grid, config)
    points += [
        Point(ABLATIONS, name, changed(config, changes, key=f"study.ablations.{name}"))
        for name, changes in study.ablations.items()
    ]
    if not points:
        raise DataError("params.yaml: study: no grid, no equal_flops and no ablations; there is nothing to train")
    return points


def grid_points(grid: GridConfig, config: ModelConfig) -> list[Point]:
    """Every kind at every depth and length."""
    return [
        Point(
            GRID,
            f"{kind} {depth} x {length}",
            at_depth_and_length(of_kind(config, kind), grid.stream, num_layers=depth, max_length=length),
        )
        for kind in grid.kinds
        for length in grid.lengths
        for depth in grid.depths
    ]


def equal_flops_points(settings: EqualFlopsConfig, config: ModelConfig, training_flops: TrainingFlops) -> list[Point]:
    """The section's own model, and each kind at the depths that bring it nearest in training operations."""
    target = training_flops(config)
    points = [Point(EQUAL_FLOPS, config.kind, config)]
    for kind in settings.kinds:
        candidates = [of_depths(of_kind(config, kind), depths) for depths in _depths(config, settings.max_depth)]
        nearest = min(candidates, key=lambda other: abs(math.log(training_flops(other) / target)))
        points.append(Point(EQUAL_FLOPS, kind, nearest))
    return points


def _depths(config: ModelConfig, max_depth: int) -> list[tuple[int, ...]]:
    """Depths per stream in proportions as near to the configuration's as whole layers allow."""
    layers = [stream.num_layers for stream in config.streams.values()]
    deepest = max(layers)
    return [tuple(max(1, round(depth * own / deepest)) for own in layers) for depth in range(1, max_depth + 1)]


def of_kind(config: ModelConfig, kind: Kind) -> ModelConfig:
    """The configuration with another encoder."""
    return changed(config, {"kind": kind}, key="study")


def of_depths(config: ModelConfig, depths: tuple[int, ...]) -> ModelConfig:
    """The configuration with other depths, a stream each."""
    for (name, stream), depth in zip(config.streams.items(), depths, strict=True):
        config = at_depth_and_length(config, name, num_layers=depth, max_length=stream.max_length)
    return config
