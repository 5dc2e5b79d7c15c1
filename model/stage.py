"""What the stages `train` and `evaluate` share: command-line behaviour, devices, CSV files."""

from __future__ import annotations

import csv
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from features.errors import DataError
from features.files import atomic_file
from features.spec import FeatureSpec
from model.config import ModelConfig

_LOGGERS = ("model", "__main__")


def run_stage(stage: Callable[[], None]) -> None:
    """Runs a stage's command: progress to stderr, a DataError as its own text and exit status 1."""
    log_to_stderr()
    try:
        stage()
    except DataError as error:
        sys.exit(f"error: {error}")


def log_to_stderr() -> None:
    """Shows the progress of our own modules and the warnings of all."""
    # Importing fbgemm sets up the root logger and says much at INFO: hence force, and INFO for our own loggers alone.
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)


def quiet_unless_first(is_first: bool) -> None:
    """Lets only the first rank's progress through; warnings come from all."""
    for name in _LOGGERS if not is_first else ():
        logging.getLogger(name).setLevel(logging.WARNING)


def device_of(name: str, key: str) -> torch.device:
    """The device that params.yaml asks for.

    Raises:
        DataError: it is not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise DataError(f"params.yaml: {key}: cuda is not available here, use cpu")
    return torch.device(name)


def max_lengths(config: ModelConfig, spec: FeatureSpec) -> tuple[int, ...]:
    """History tokens per stream of the dataset; 0 for a stream that the model does without."""
    return tuple(config.streams[name].max_length if name in config.streams else 0 for name in spec.streams)


def write_csv(target: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Writes a table atomically; None becomes an empty cell."""
    with atomic_file(target) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
