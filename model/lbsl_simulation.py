"""How evenly stochastic length and LBSL load many ranks, simulated on real or KuaiRand-27K-like history lengths.

    python -m model.lbsl_simulation                          KuaiRand-27K-like lengths
    python -m model.lbsl_simulation --streams data/streams   the training requests of a built dataset

A step lasts as long as its most loaded rank, so its time is the maximum over ranks of the sum of n^gamma. Writes
bench/lbsl.json, bench/lbsl.svg and a table to the log. Legend: R ranks, B requests of a rank.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import NormalDist

import numpy as np

from features.dataset import open_dataset
from features.errors import DataError
from features.files import atomic_file, write_json
from model.progress import Progress
from model.stage import run_stage
from model.study.svg import Series, line_chart
from model.training.lbsl import lbsl_lengths, weighted_order
from model.training.sampler import TRAIN, history_lengths, index_requests
from model.training.stochastic_length import (
    expected_loads,
    keep_probability,
    loads,
    sampling_length,
    stochastic_lengths,
)

logger = logging.getLogger(__name__)
METHODS = ("none", "sl", "lbsl", "lbsl_fill")
# Events a user in KuaiRand-27K's standard log: the least, five percentiles and the most.
KUAIRAND_27K = {0.0: 100, 0.1: 2188, 0.5: 8594, 0.9: 24591, 0.99: 56232, 1.0: 228000}
KUAIRAND_27K_USERS = 27285
_DECISIONS_TIMED = 200

Lengths = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


@dataclass(frozen=True)
class Settings:
    """What is simulated: `num_steps` measured steps after `warmup_steps` that teach LBSL its target."""

    max_length: int = 16384
    alpha: float = 1.7
    gamma: float = 1.5
    warmup_steps: int = 20
    recalibrate_every: int = 20
    num_steps: int = 60
    seed: int = 7


@dataclass(frozen=True)
class Figures:
    """Means over the measured steps of one method, number of ranks and requests per rank.

    Attributes:
        max_over_mean: load of the most loaded rank over the ranks' mean; 1 is perfect, and what a step waits for.
        max_over_min: the paper's load balance metric; None when a rank had nothing to do in some step.
        mean_load: of a rank, in loads of a history of max_length.
        mean_length: events that a history keeps.
        step_time: of the most loaded rank, in times of a history of max_length.
    """

    method: str
    num_ranks: int
    requests_per_rank: int
    max_over_mean: float
    max_over_min: float | None
    mean_load: float
    mean_length: float
    step_time: float


def kuairand_27k_lengths(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Lengths with KuaiRand-27K's percentiles, nearly log-normal: straight lines between them on log-normal paper.

    Their mean is 11,650, the log's 11,812.
    """
    half_a_user = 0.5 / KUAIRAND_27K_USERS
    knots = [NormalDist().inv_cdf(min(max(q, half_a_user), 1 - half_a_user)) for q in KUAIRAND_27K]
    return np.exp(np.interp(rng.standard_normal(shape), knots, np.log(list(KUAIRAND_27K.values())))).astype(np.int64)


def _training_lengths(streams: Path, stream: str) -> np.ndarray:
    dataset = open_dataset(streams)
    names = dataset.manifest.spec.streams
    if stream not in names:
        raise DataError(f"{streams}: no stream '{stream}', there are {', '.join(names)}")
    return history_lengths(dataset, index_requests(dataset, TRAIN))[:, names.index(stream)]


class Ranks:
    """R ranks that share a target, in one process."""

    def __init__(self, settings: Settings, rng: np.random.Generator) -> None:
        self._settings = settings
        self._rng = rng
        self._target = 0.0
        self._accumulated: list[float] = []

    def observe(self, length_RB: np.ndarray, step: int) -> None:
        """Adds a step's SL loads, and recalibrates after the warm-up and every `recalibrate_every` steps."""
        settings = self._settings
        total = expected_loads(
            length_RB, max_length=settings.max_length, alpha=settings.alpha, gamma=settings.gamma
        ).sum()
        self._accumulated.append(total / len(length_RB))
        if step == settings.warmup_steps or step % settings.recalibrate_every == 0:
            self._target, self._accumulated = float(np.mean(self._accumulated)), []

    def decide(self, method: str, length_RB: np.ndarray) -> np.ndarray:
        """(R, B) lengths that stay."""
        settings = self._settings
        if method == "none":
            return length_RB
        if method == "sl":
            uniform_RB = self._rng.random(length_RB.shape)
            return stochastic_lengths(length_RB, uniform_RB, max_length=settings.max_length, alpha=settings.alpha)
        weight_RB = keep_probability(length_RB, max_length=settings.max_length, alpha=settings.alpha)
        exponential_RB = self._rng.standard_exponential(length_RB.shape)
        return np.stack(
            [
                lbsl_lengths(
                    length_B,
                    weighted_order(weight_B, exponential_B),
                    target=self._target,
                    cut=sampling_length(settings.max_length, settings.alpha),
                    gamma=settings.gamma,
                    exact_fill=method == "lbsl_fill",
                )
                for length_B, weight_B, exponential_B in zip(length_RB, weight_RB, exponential_RB, strict=True)
            ]
        )


def simulate(lengths: Lengths, settings: Settings, *, num_ranks: int, requests_per_rank: int) -> list[Figures]:
    """Runs all methods over the same batches."""
    rng = np.random.default_rng([settings.seed, num_ranks, requests_per_rank])
    ranks = Ranks(settings, rng)
    rows: dict[str, list[tuple[float, ...]]] = {method: [] for method in METHODS}
    for step in range(1, settings.warmup_steps + settings.num_steps + 1):
        length_RB = np.minimum(lengths(rng, (num_ranks, requests_per_rank)), settings.max_length)
        if step > settings.warmup_steps:
            for method in METHODS:
                rows[method].append(_step_figures(ranks.decide(method, length_RB), settings))
        ranks.observe(length_RB, step)
    return [Figures(method, num_ranks, requests_per_rank, *_means(rows[method])) for method in METHODS]


def _means(rows: list[tuple[float, ...]]) -> list:
    return [value if math.isfinite(value) else None for value in np.mean(rows, axis=0).tolist()]


def _step_figures(kept_RB: np.ndarray, settings: Settings) -> tuple[float, ...]:
    """The fields of Figures behind the first three."""
    load_R = loads(kept_RB, settings.gamma).sum(axis=1) / settings.max_length**settings.gamma
    most, least, mean = load_R.max(), load_R.min(), load_R.mean()
    over_least = most / least if least > 0 else math.inf
    return most / mean, over_least, mean, kept_RB.mean(), most


def decision_seconds(lengths: Lengths, settings: Settings, num_requests: int) -> float:
    """Median time of one rank's LBSL decision, order included."""
    rng = np.random.default_rng(settings.seed)
    ranks = Ranks(settings, rng)
    length_RB = np.minimum(lengths(rng, (1, num_requests)), settings.max_length)
    ranks.observe(length_RB, settings.warmup_steps)
    times = []
    for _ in range(_DECISIONS_TIMED):
        started = time.perf_counter()
        ranks.decide("lbsl_fill", length_RB)
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def table_lines(figures: list[Figures]) -> list[str]:
    """A row per method, ranks and requests, with each method's speed-up over SL."""
    sl_time = {(row.num_ranks, row.requests_per_rank): row.step_time for row in figures if row.method == "sl"}
    lines = ["| ranks | requests | method | max / mean | max / min | mean length | mean load | step time | vs SL |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for row in figures:
        speed_up = sl_time[row.num_ranks, row.requests_per_rank] / row.step_time
        lines.append(
            f"| {row.num_ranks} | {row.requests_per_rank} | {row.method} | {row.max_over_mean:.3f} | "
            f"{_cell(row.max_over_min)} | {row.mean_length:.0f} | {row.mean_load:.3f} | {row.step_time:.2f} | "
            f"{speed_up:.2f}x |"
        )
    return lines


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def chart(figures: list[Figures]) -> str:
    """max/mean against the number of ranks, a line per method and requests per rank, as SVG."""
    series = []
    for requests in sorted({row.requests_per_rank for row in figures}, reverse=True):
        for method in METHODS:
            rows = [row for row in figures if (row.method, row.requests_per_rank) == (method, requests)]
            points = [(float(row.num_ranks), row.max_over_mean) for row in rows]
            series.append(Series(f"{method}, {requests} requests a rank", points))
    return line_chart(
        series, title="Load of the most loaded rank over the mean", x_label="ranks", y_label="max / mean", log_x=True
    )


def run(arguments: argparse.Namespace) -> None:
    """Simulates all sizes and writes the outputs."""
    settings = Settings(
        max_length=arguments.max_length, alpha=arguments.alpha, gamma=arguments.gamma, num_steps=arguments.steps
    )
    lengths: Lengths = kuairand_27k_lengths
    if arguments.streams:
        found = _training_lengths(arguments.streams, arguments.stream)
        lengths = partial(_draw, found)
    sizes = [(ranks, requests) for requests in arguments.requests for ranks in arguments.ranks]
    progress = Progress(logger, "lbsl_simulation: size", total=len(sizes))
    figures = []
    for ranks, requests in sizes:
        figures += simulate(lengths, settings, num_ranks=ranks, requests_per_rank=requests)
        progress.advance(ranks=ranks)
        progress.log(f"{ranks} ranks x {requests} requests")
    seconds = decision_seconds(lengths, settings, 256)
    content = {
        "settings": dataclasses.asdict(settings),
        "lengths": str(arguments.streams or "KuaiRand-27K-like"),
        "decision_ms_256_requests": round(1000 * seconds, 4),
        "figures": [dataclasses.asdict(row) for row in figures],
    }
    write_json(arguments.out, content)
    with atomic_file(arguments.out.with_suffix(".svg")) as temporary:
        temporary.write_text(chart(figures))
    for line in table_lines(figures):
        logger.info("%s", line)
    logger.info("a decision for 256 requests takes %.3f ms", 1000 * seconds)


def _draw(values: np.ndarray, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.choice(values, shape)


def main() -> None:
    """Command line."""
    defaults = Settings()
    parser = argparse.ArgumentParser(prog="python -m model.lbsl_simulation", description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=Path, help="draw lengths from this dataset's training requests")
    parser.add_argument("--stream", default="consumption")
    parser.add_argument("--max-length", type=int, default=defaults.max_length)
    parser.add_argument("--alpha", type=float, default=defaults.alpha)
    parser.add_argument("--gamma", type=float, default=defaults.gamma)
    parser.add_argument("--steps", type=int, default=defaults.num_steps)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--requests", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--out", type=Path, default=Path("bench/lbsl.json"))
    arguments = parser.parse_args()
    run_stage(lambda: run(arguments))


if __name__ == "__main__":
    main()
