"""What the report reads: the stages' figures, checked on the way in, and the settings of the run."""

from __future__ import annotations

import csv
import datetime
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from features.config import DataConfig, FeaturesConfig, describe
from features.errors import DataError
from features.files import read_json
from features.manifest import Manifest, read_manifest
from model.config import ModelConfig
from model.serving.parity_table import ParityTable
from model.training.train_config import EvaluateConfig

T = TypeVar("T")
Number = int | float


class Figures(BaseModel):
    """A group of figures of which the report needs the declared ones."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class FileAccount(Figures):
    """One log file: read = kept + outside (of the window) + quarantined."""

    file: str
    read: int
    kept: int
    outside: int = 0
    quarantined: int
    reasons: dict[str, int]


class EventsStats(Figures):
    """data/events/stats.json."""

    first_day: datetime.date
    last_day: datetime.date
    read: int
    kept: int
    outside: int = 0
    quarantined: int
    reasons: dict[str, int]
    days: dict[datetime.date, int]
    files: tuple[FileAccount, ...]


class SideCounts(Figures):
    """Events on one side of the evaluation cut whose value has no vocabulary row."""

    events: int
    unknown_share: float


class FieldStats(Figures):
    """One vocabulary field of data/vocab/stats.json."""

    size: int
    train: SideCounts
    eval: SideCounts


class RequestCounts(Figures):
    """Requests by split."""

    train: int
    eval: int


class StreamStats(Figures):
    """One stream: its events, the users that have any, and how many events carry each action."""

    events: int
    users: int
    actions: dict[str, int]


class StreamsStats(Figures):
    """data/streams/stats.json."""

    read: int
    events: int
    duplicates: int
    users: int
    candidates: int
    requests: RequestCounts
    streams: dict[str, StreamStats]


class TaskFigures(Figures):
    """One task of metrics/evaluate.json; null where the evaluation days have one class only."""

    ne: float | None
    auc: float | None
    gauc: float | None
    positives: int
    base_rate: float
    num_candidates: int
    floor_ne: float | None
    floor_auc: float | None


class Evaluation(Figures):
    """metrics/evaluate.json."""

    tasks: dict[str, TaskFigures]
    c_ne: float | None
    e_ne: float | None
    floor_c_ne: float | None
    floor_e_ne: float | None
    num_requests: int
    num_candidates: int


@dataclass(frozen=True)
class CalibrationPoint:
    """One bin of metrics/calibration.csv."""

    mean_predicted: float
    mean_label: float
    count: int


@dataclass(frozen=True)
class ReportPaths:
    """Where the stages left their outputs."""

    params: Path = Path("params.yaml")
    events: Path = Path("data/events")
    vocab: Path = Path("data/vocab")
    streams: Path = Path("data/streams")
    validation: Path = Path("data/validation.json")
    metrics: Path = Path("metrics")


@dataclass(frozen=True)
class ReportInputs:
    """Everything on the page but the sequence lengths.

    Attributes:
        params: text of params.yaml.
        validation, train: scalars of the two files, by dotted name.
        losses: columns of metrics/loss.csv by name; `step` and `loss` are among them.
        calibration: bins by task, ascending by prediction.
        serving: precisions of the exported model side by side.
    """

    params: str
    data: DataConfig
    features: FeaturesConfig
    model: ModelConfig
    evaluate: EvaluateConfig
    events: EventsStats
    vocab: dict[str, FieldStats]
    streams: StreamsStats
    manifest: Manifest
    validation: dict[str, Any]
    train: dict[str, Any]
    losses: dict[str, list[float]]
    evaluation: Evaluation
    calibration: dict[str, list[CalibrationPoint]]
    serving: ParityTable


def read_inputs(paths: ReportPaths) -> ReportInputs:
    """Reads and checks every input.

    Raises:
        DataError: names the file that is missing or the key or column in it that is not as expected.
    """
    data, features = DataConfig.load(paths.params), FeaturesConfig.load(paths.params)
    return ReportInputs(
        params=paths.params.read_text(encoding="utf-8"),
        data=data,
        features=features,
        model=ModelConfig.load(paths.params),
        evaluate=EvaluateConfig.load(paths.params),
        events=_figures(EventsStats, paths.events / "stats.json"),
        vocab=_figures(dict[str, FieldStats], paths.vocab / "stats.json"),
        streams=_figures(StreamsStats, paths.streams / "stats.json"),
        manifest=read_manifest(paths.streams),
        validation=scalars(read_json(paths.validation)),
        train=scalars(read_json(paths.metrics / "train.json")),
        losses=read_losses(paths.metrics / "loss.csv"),
        evaluation=_figures(Evaluation, paths.metrics / "evaluate.json"),
        calibration=read_calibration(paths.metrics / "calibration.csv"),
        serving=_figures(ParityTable, paths.metrics / "inference.json"),
    )


def _figures(kind: type[T], path: Path) -> T:
    try:
        return TypeAdapter(kind).validate_python(read_json(path))
    except ValidationError as error:
        raise DataError(describe(error, path, path.stem)) from None


def scalars(document: Any, prefix: str = "") -> dict[str, Any]:
    """Numbers, words and truths of a nested document by dotted name, in its order; lists of them as one text."""
    if isinstance(document, dict):
        parts = [scalars(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in document.items()]
        return {name: value for part in parts for name, value in part.items()}
    if isinstance(document, list) and any(isinstance(value, dict | list) for value in document):
        return scalars({str(number): value for number, value in enumerate(document)}, prefix)
    if isinstance(document, list):
        return {prefix: ", ".join(str(value) for value in document)}
    return {prefix: document}


def read_rows(path: Path, required: tuple[str, ...]) -> list[dict[str, str]]:
    """Rows of a CSV file that has the required columns.

    Raises:
        DataError: names the file and what it lacks.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [name for name in required if name not in (reader.fieldnames or [])]
            if missing:
                raise DataError(f"{path}: column '{missing[0]}' is missing")
            return list(reader)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None


def number_in(row: dict[str, str], column: str, path: Path) -> float:
    """A cell as a number; an empty one is NaN.

    Raises:
        DataError: names the file, the column and the cell.
    """
    text = row[column]
    try:
        return float(text) if text else math.nan
    except (TypeError, ValueError):
        raise DataError(f"{path}: column '{column}' has {text!r}, a number is expected") from None


def read_losses(path: Path) -> dict[str, list[float]]:
    """Columns of loss.csv; there are at least `step` and `loss`."""
    rows = read_rows(path, ("step", "loss"))
    columns = list(rows[0]) if rows else ["step", "loss"]
    return {name: [number_in(row, name, path) for row in rows] for name in columns}


def read_calibration(path: Path) -> dict[str, list[CalibrationPoint]]:
    """Bins of calibration.csv by task."""
    points: dict[str, list[CalibrationPoint]] = {}
    for row in read_rows(path, ("task", "mean_predicted", "mean_label", "count")):
        predicted, label, count = (number_in(row, name, path) for name in ("mean_predicted", "mean_label", "count"))
        points.setdefault(row["task"], []).append(CalibrationPoint(predicted, label, int(count)))
    return {task: sorted(bins, key=lambda point: point.mean_predicted) for task, bins in points.items()}
