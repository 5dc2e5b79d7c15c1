import json
import sys

import numpy as np
import pytest
import torch

from features.errors import DataError
from model.study.cells import window_means
from model.study.curves import comparison_of, main
from model.study.run import StudyPaths, run_study


def study_of(curves):
    """A study with two ablations; curves are lists of losses by label and seed."""
    cells = [
        {"cell": f"{label}{seed}", "seed": seed, "losses": losses, "device": "cpu", "ne": {"x": 0.9}}
        for label, by_seed in curves.items()
        for seed, losses in by_seed.items()
    ]
    summaries = [
        {"figure": "ablations", "label": label, "cells": [f"{label}{seed}" for seed in by_seed]}
        for label, by_seed in curves.items()
    ]
    return {"summaries": summaries, "cells": cells, "torch": "x", "loss_window": 10}


def test_a_mean_is_compared_with_the_other_models_seeds():
    curves = {
        "bf16": {7: [3.0, 2.0, 1.0], 8: [3.2, 2.2, 1.2]},
        "fp8": {8: [3.1, 2.4, 1.0], 7: [3.2, 2.6, 1.1]},
    }
    found = comparison_of(study_of(curves), "bf16", "fp8")
    assert found.seeds == [7, 8]
    assert [point.step for point in found.points] == [10, 20, 30]
    assert [point.within for point in found.points] == [True, False, True]
    assert found.share_within == pytest.approx(2 / 3)
    assert found.points[1].second == pytest.approx(2.5)
    # of each seed: 1.1 - 1.0 and 1.0 - 1.2
    assert found.paired == pytest.approx(-0.05)
    assert found.paired_spread == pytest.approx(np.std([0.1, -0.2], ddof=1))
    assert found.seed_spread == pytest.approx(np.std([1.0, 1.2], ddof=1))


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({"bf16": {7: [1.0]}}, "no ablation 'fp8'"),
        ({"bf16": {7: [1.0], 8: [1.0]}, "fp8": {7: [1.0]}}, "share fewer than two finished seeds"),
        ({"bf16": {7: [], 8: []}, "fp8": {7: [], 8: []}}, "have no loss curves"),
    ],
)
def test_what_cannot_be_compared_is_named(curves, message):
    with pytest.raises(DataError, match=message):
        comparison_of(study_of(curves), "bf16", "fp8")


def test_windows_leave_an_incomplete_end_out():
    assert window_means(torch.tensor([1.0, 3.0, 5.0, 7.0, 100.0]), 2) == [2.0, 6.0]
    assert window_means(torch.tensor([1.0]), 2) == []


def test_curves_of_a_trained_study(tmp_path, make_content, write_dataset, write_params, monkeypatch):
    write_dataset(tmp_path / "streams", make_content(3, num_users=20))
    ablations = {"one": {}, "other": {"action_encoding": "none"}}
    study = {"seeds": [1, 2], "grid": None, "equal_flops": None, "ablations": ablations}
    params = write_params(tmp_path / "params.yaml", train={"num_epochs": 1, "log_every_steps": 2}, study=study)
    paths = StudyPaths(params, tmp_path / "streams", tmp_path / "cells", tmp_path / "study.json")
    run_study(paths)
    monkeypatch.setattr(sys, "argv", ["study_curves", "--study", str(paths.out), "--first", "one", "--second", "other"])
    main()
    found = json.loads((tmp_path / "study_curves.json").read_text())
    assert found["seeds"] == [1, 2]
    assert found["points"][0]["step"] == 2
    assert (tmp_path / "study_curves.svg").read_text().count("<polyline") == 4
