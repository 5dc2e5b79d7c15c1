"""The gate: whether a challenger takes the champion's place, from both models' scores of the same candidates."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from features.errors import DataError
from flows.nightly import statistics
from flows.nightly.config import GateConfig
from flows.nightly.record import Check, GateReport, Interval, TaskComparison
from flows.nightly.statistics import Resampling

CHALLENGER, CHAMPION = "challenger", "champion"
_METADATA = b"hstu2"
_SEED = 20240229


@dataclass(frozen=True)
class Predictions:
    """The evaluation window as `model.predict` wrote it.

    Attributes:
        table: a row per candidate.
        tasks: names.
        latency_ms: per model and request.
    """

    table: pa.Table
    tasks: tuple[str, ...]
    latency_ms: dict[str, float]

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Reads the file.

        Raises:
            DataError: it is missing or damaged.
        """
        try:
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_file(source).read_all()
            metadata = json.loads(table.schema.metadata[_METADATA])
        except (OSError, pa.ArrowException, KeyError, TypeError) as error:
            raise DataError(f"{path}: no predictions: {error}") from None
        return cls(table, tuple(metadata["tasks"]), metadata["latency_ms"])

    def column(self, name: str) -> np.ndarray:
        """A column."""
        return self.table.column(name).to_numpy()

    @property
    def has_champion(self) -> bool:
        """Whether there is somebody to compare with."""
        return CHAMPION in self.latency_ms


@dataclass(frozen=True)
class _Task:
    """A task's labels and both models' logits, and its comparison."""

    name: str
    labels_C: np.ndarray
    logits_C: np.ndarray
    champion_C: np.ndarray | None
    ne_change_S: np.ndarray | None
    comparison: TaskComparison


def judge(predictions: Predictions, config: GateConfig, *, champion: str | None, num_bytes: int) -> GateReport:
    """Decides.

    Args:
        predictions: of the challenger, and of the champion unless there is none.
        config: the thresholds.
        champion: its id.
        num_bytes: size of the challenger.

    Raises:
        DataError: a task of the gate is none of the model's.
    """
    for task in config.tasks:
        if task not in predictions.tasks:
            raise DataError(f"params.yaml: retrain.gate.tasks: the model has no task '{task}'")
    drawn = Resampling.of_users(predictions.column("user_id"), config.bootstrap_samples, _SEED)
    tasks = [_compare(predictions, task, drawn, config) for task in predictions.tasks]
    judged = [task for task in tasks if task.comparison.judged]
    metric, reference, change = _mean(judged, config)
    num_requests = len(np.unique(predictions.column("request_id")))
    checks = [
        _at_least("requests", num_requests, config.min_requests),
        _at_least("judged tasks", len(judged), 1),
        *_metric_checks(metric, change, config, has_champion=predictions.has_champion),
        *(check for task in judged for check in _task_checks(task, config)),
        *_slice_checks(predictions, judged, config),
        *_budget_checks(predictions, config, num_bytes),
    ]
    failed = [check for check in checks if not check.passed]
    return GateReport(
        promote=not failed,
        reason=_reason(failed, metric, reference, change),
        champion=champion,
        metric=metric,
        champion_metric=reference,
        metric_change=change,
        num_requests=num_requests,
        tasks={task.name: task.comparison for task in tasks},
        checks=tuple(checks),
    )


def _compare(predictions: Predictions, name: str, drawn: Resampling, config: GateConfig) -> _Task:
    labels = predictions.column(f"label {name}").astype(bool)
    own = predictions.column(f"logit {CHALLENGER} {name}")
    other = predictions.column(f"logit {CHAMPION} {name}") if predictions.has_champion else None
    positives = int(labels.sum())
    judged = name in config.tasks and config.min_positives <= positives <= labels.size - config.min_positives
    ne_change, auc_change, ne_change_S = None, None, None
    if other is not None and judged:
        ne_change_S = statistics.ne_samples(own, labels, drawn) - statistics.ne_samples(other, labels, drawn)
        auc_change_S = statistics.auc_samples(own, labels, drawn) - statistics.auc_samples(other, labels, drawn)
        middle = statistics.ne(own, labels) - statistics.ne(other, labels)
        ne_change = statistics.interval(middle, ne_change_S, config.confidence)
        middle = statistics.auc(own, labels) - statistics.auc(other, labels)
        auc_change = statistics.interval(middle, auc_change_S, config.confidence)
    comparison = TaskComparison(
        positives=positives,
        judged=judged,
        ne=_known(statistics.ne(own, labels)),
        champion_ne=None if other is None else _known(statistics.ne(other, labels)),
        ne_change=ne_change,
        auc=_known(statistics.auc(own, labels)),
        champion_auc=None if other is None else _known(statistics.auc(other, labels)),
        auc_change=auc_change,
        calibration=_known(statistics.calibration(own, labels)),
    )
    return _Task(name, labels, own, other, ne_change_S, comparison)


def _mean(judged: list[_Task], config: GateConfig) -> tuple[float | None, float | None, Interval | None]:
    """The gate's metric of both models, and the interval of their difference."""
    own = _mean_known([task.comparison.ne for task in judged])
    other = _mean_known([task.comparison.champion_ne for task in judged])
    changes = [task.ne_change_S for task in judged if task.ne_change_S is not None]
    if own is None or other is None or not changes:
        return own, other, None
    return own, other, statistics.interval(own - other, np.mean(changes, axis=0), config.confidence)


def _metric_checks(
    metric: float | None, change: Interval | None, config: GateConfig, *, has_champion: bool
) -> Iterator[Check]:
    if not has_champion:
        yield Check(
            name="mean NE",
            value=metric,
            limit=1.0,
            passed=metric is not None and metric < 1,
            note="no champion yet: better than the base rate is enough",
        )
        return
    middle, high = (None, None) if change is None else (change.middle, change.high)
    yield Check(name="change of mean NE", value=middle, limit=0.0, passed=middle is not None and middle <= 0)
    yield _at_most("change of mean NE, upper end", high, config.max_ne_increase)


def _task_checks(task: _Task, config: GateConfig) -> Iterator[Check]:
    """What would be worse for sure: the better end of the interval is beyond the limit."""
    found = task.comparison
    if found.ne_change is not None:
        yield _at_most(f"{task.name}: change of NE, lower end", found.ne_change.low, config.max_task_ne_increase)
    if found.auc_change is not None:
        yield _at_least(f"{task.name}: change of AUC, upper end", found.auc_change.high, -config.max_task_auc_decrease)
    error = None if found.calibration is None else abs(found.calibration - 1)
    yield _at_most(f"{task.name}: calibration, distance from 1", error, config.max_calibration_error)


def slices(predictions: Predictions, config: GateConfig) -> dict[str, np.ndarray]:
    """Which candidates belong to each slice, (C,) bool."""
    history, surface = predictions.column("history"), predictions.column("surface")
    found = {
        f"new users (at most {config.new_user_events} events)": history <= config.new_user_events,
        f"heavy users (at least {config.heavy_user_events} events)": history >= config.heavy_user_events,
        "cold items": predictions.column("cold").astype(bool),
    }
    return found | {f"surface {code}": surface == code for code in np.unique(surface).tolist()}


def _slice_checks(predictions: Predictions, judged: list[_Task], config: GateConfig) -> Iterator[Check]:
    """Mean over tasks of the change in cross-entropy within a slice, as NE of the slice; lower end of its interval."""
    if not predictions.has_champion or not judged:
        return
    users = predictions.column("user_id")
    for name, chosen in slices(predictions, config).items():
        size = int(chosen.sum())
        if size < config.min_slice_candidates:
            note = f"{size} candidates are too few to judge"
            yield Check(name=name, value=None, limit=config.max_slice_ne_increase, passed=True, note=note)
            continue
        drawn = Resampling.of_users(users[chosen], config.bootstrap_samples, _SEED)
        changes = []
        for task in judged:
            assert task.champion_C is not None
            labels = task.labels_C[chosen]
            if min(labels.sum(), (~labels).sum()) >= config.min_positives:
                own, other = task.logits_C[chosen], task.champion_C[chosen]
                samples = statistics.ne_samples(own, labels, drawn) - statistics.ne_samples(other, labels, drawn)
                changes.append((statistics.ne(own, labels) - statistics.ne(other, labels), samples))
        if not changes:
            yield Check(
                name=name,
                value=None,
                limit=config.max_slice_ne_increase,
                passed=True,
                note="too few positives to judge",
            )
            continue
        middle = float(np.mean([change for change, _ in changes]))
        found = statistics.interval(middle, np.mean([samples for _, samples in changes], axis=0), config.confidence)
        note = f"{size:,} candidates, {len(changes)} tasks, change {middle:+.4f}"
        yield _at_most(
            f"{name}: change of NE, lower end", found.low if found else None, config.max_slice_ne_increase, note
        )


def _budget_checks(predictions: Predictions, config: GateConfig, num_bytes: int) -> Iterator[Check]:
    yield _at_most("bytes", num_bytes, config.max_model_bytes)
    if predictions.has_champion:
        ratio = predictions.latency_ms[CHALLENGER] / max(predictions.latency_ms[CHAMPION], 1e-9)
        note = f"{predictions.latency_ms[CHALLENGER]:.2f} ms a request"
        yield _at_most("time per request, ratio", ratio, config.max_latency_ratio, note)


def _at_most(name: str, value: float | None, limit: float, note: str = "") -> Check:
    return Check(name=name, value=value, limit=limit, passed=value is not None and value <= limit, note=note)


def _at_least(name: str, value: float, limit: float) -> Check:
    return Check(name=name, value=value, limit=limit, passed=value >= limit)


def _reason(failed: list[Check], metric: float | None, reference: float | None, change: Interval | None) -> str:
    if failed:
        first = failed[0]
        value = "unknown" if first.value is None else f"{first.value:.4g}"
        more = f"; {len(failed) - 1} more checks fail" if len(failed) > 1 else ""
        return f"{first.name} {value}, limit {first.limit:.4g}{more}"
    if change is None:
        return f"first champion, mean NE {metric:.4f}"
    return f"mean NE {metric:.4f} against {reference:.4f} ({change.low:+.4f} to {change.high:+.4f})"


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _mean_known(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def not_judged(reason: str, champion: str) -> GateReport:
    """The report of a challenger that no figures were needed to refuse."""
    return GateReport(
        promote=False,
        reason=reason,
        champion=champion,
        metric=None,
        champion_metric=None,
        metric_change=None,
        num_requests=0,
        tasks={},
        checks=(),
    )
