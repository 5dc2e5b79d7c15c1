"""What the gate lets through: cases with a known better and a known worse model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import DataError
from flows.nightly.config import GateConfig, RetrainConfig
from flows.nightly.gate import Predictions, judge, slices
from flows.nightly.record import GateReport

ROOT = Path(__file__).parents[3]
TASKS = ("is_click", "is_like")
SIZE = 6000


def config(**changes: object) -> GateConfig:
    """The committed thresholds, for the tasks of these tests."""
    base = RetrainConfig.load(ROOT / "params.yaml").gate
    settings = {"tasks": TASKS, "bootstrap_samples": 60, "min_requests": 100, "min_positives": 20, **changes}
    return base.model_copy(update=settings)


def predictions(
    *, noise: float = 0.5, champion_noise: float | None = 0.5, shift: float = 0.0, spoil: str | None = None
) -> Predictions:
    """Scores of a challenger and a champion that see the truth through noise.

    Args:
        noise, champion_noise: standard deviation of what each adds to the true logit; None for no champion.
        shift: added to the challenger's logits.
        spoil: a slice in which the challenger guesses: `cold` or `surface`.
    """
    rng = np.random.default_rng(3)
    user = rng.integers(0, 400, SIZE)
    surface, cold = rng.choice([2, 3, 4], SIZE, p=[0.5, 0.15, 0.35]), rng.random(SIZE) < 0.15
    columns: dict[str, np.ndarray] = {
        "user_id": user,
        "request_id": np.arange(SIZE) // 3,
        "history": user % 150,
        "cold": cold,
        "surface": surface,
    }
    for task, bias in zip(TASKS, (-0.5, -2.5), strict=True):
        truth = bias + 1.3 * rng.normal(0, 1, SIZE)
        columns[f"label {task}"] = rng.random(SIZE) < 1 / (1 + np.exp(-truth))
        own = truth + rng.normal(0, noise, SIZE) + shift
        if spoil is not None:
            chosen = cold if spoil == "cold" else surface == 3
            own[chosen] = bias + rng.normal(0, 1, chosen.sum())
        columns[f"logit challenger {task}"] = own.astype(np.float32)
        if champion_noise is not None:
            columns[f"logit champion {task}"] = (truth + rng.normal(0, champion_noise, SIZE)).astype(np.float32)
    latency = {"challenger": 2.0} | ({} if champion_noise is None else {"champion": 1.8})
    return Predictions(pa.table(columns), TASKS, latency)


def verdict(found: Predictions, *, num_bytes: int = 1000, **changes: object) -> GateReport:
    return judge(found, config(**changes), champion="c" if found.has_champion else None, num_bytes=num_bytes)


def failed(report: GateReport) -> list[str]:
    return [check.name for check in report.checks if not check.passed]


def test_a_better_model_is_promoted_and_the_interval_says_by_how_much():
    report = verdict(predictions(noise=0.2, champion_noise=0.8))
    assert report.promote, report.reason
    assert report.metric_change is not None
    assert report.metric_change.high < 0
    assert report.metric_change.low <= report.metric_change.middle <= report.metric_change.high


def test_a_worse_model_is_kept_out():
    report = verdict(predictions(noise=0.8, champion_noise=0.2))
    assert not report.promote
    assert "change of mean NE" in failed(report)


def test_a_model_with_itself_is_no_worse():
    found = predictions()
    for task in TASKS:
        column = found.column(f"logit challenger {task}")
        index = found.table.column_names.index(f"logit champion {task}")
        found = Predictions(
            found.table.set_column(index, f"logit champion {task}", pa.array(column)), TASKS, found.latency_ms
        )
    report = verdict(found)
    assert report.promote
    assert report.metric_change is not None
    assert (report.metric_change.low, report.metric_change.high) == (0, 0)


@given(noise=st.floats(0, 1.5), other=st.floats(0, 1.5))
def test_what_is_promoted_is_never_worse_on_the_metric(noise: float, other: float):
    report = verdict(predictions(noise=noise, champion_noise=other), bootstrap_samples=20)
    if report.promote:
        assert report.metric is not None
        assert report.champion_metric is not None
        assert report.metric <= report.champion_metric


def test_the_first_model_need_only_beat_the_base_rate():
    assert verdict(predictions(noise=0.3, champion_noise=None)).reason.startswith("first champion")
    report = verdict(predictions(noise=4.0, champion_noise=None), max_calibration_error=9.0)
    assert failed(report) == ["mean NE"]


def test_a_model_that_is_better_but_spoils_a_slice_is_kept_out():
    report = verdict(predictions(noise=0.1, champion_noise=0.9, spoil="cold"))
    assert failed(report) == ["cold items: change of NE, lower end"]


def test_one_surface_is_enough_to_be_kept_out():
    report = verdict(predictions(noise=0.1, champion_noise=0.9, spoil="surface"))
    assert failed(report) == ["surface 3: change of NE, lower end"]


def test_a_badly_calibrated_model_is_kept_out():
    report = verdict(predictions(noise=0.1, champion_noise=0.9, shift=0.6))
    assert "is_like: calibration, distance from 1" in failed(report)


def test_budgets_hold():
    better = predictions(noise=0.2, champion_noise=0.8)
    assert failed(verdict(better, num_bytes=10**12)) == ["bytes"]
    slow = Predictions(better.table, better.tasks, {"challenger": 9.0, "champion": 1.0})
    assert failed(verdict(slow)) == ["time per request, ratio"]


def test_too_few_requests_judge_nobody():
    report = verdict(predictions(noise=0.2, champion_noise=0.8), min_requests=SIZE)
    assert failed(report) == ["requests"]
    assert not verdict(predictions(), min_positives=SIZE).promote


def test_a_task_without_enough_positives_is_shown_and_not_judged():
    report = verdict(predictions(noise=0.2, champion_noise=0.8), min_positives=1500)
    assert report.tasks["is_click"].judged
    assert not report.tasks["is_like"].judged
    assert report.tasks["is_like"].ne is not None


def test_slices_too_small_to_judge_say_so():
    report = verdict(predictions(noise=0.2, champion_noise=0.8), min_slice_candidates=SIZE)
    notes = [check.note for check in report.checks if check.name == "cold items"]
    assert len(notes) == 1
    assert "too few to judge" in notes[0]


def test_every_slice_is_there():
    found = slices(predictions(), config(new_user_events=5, heavy_user_events=100))
    assert [name.split(" (")[0] for name in found] == [
        "new users",
        "heavy users",
        "cold items",
        "surface 2",
        "surface 3",
        "surface 4",
    ]
    assert sum(found[f"surface {code}"].sum() for code in (2, 3, 4)) == SIZE


def test_a_task_that_no_model_has_is_named():
    with pytest.raises(DataError, match=r"retrain\.gate\.tasks: the model has no task 'is_loud'"):
        verdict(predictions(), tasks=("is_loud",))


def test_predictions_are_read_back(tmp_path: Path):
    found = predictions()
    table = found.table.replace_schema_metadata(
        {b"hstu2": json.dumps({"tasks": found.tasks, "latency_ms": found.latency_ms})}
    )
    path = tmp_path / "predictions.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    assert verdict(Predictions.load(path)) == verdict(found)
    path.write_bytes(b"ARROW")
    with pytest.raises(DataError, match="no predictions"):
        Predictions.load(path)
