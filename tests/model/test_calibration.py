import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.calibration import calibration_bins


@given(st.lists(st.tuples(st.floats(-1000, 1000, width=32), st.booleans()), max_size=60), st.integers(1, 25))
def test_bins_are_equal_and_keep_every_candidate(rows, num_bins):
    logits, labels = np.array([row[0] for row in rows]), np.array([row[1] for row in rows], bool)
    bins = calibration_bins(logits, labels, num_bins)
    counts = [part.count for part in bins]
    assert sum(counts) == len(rows)
    assert len(bins) == min(num_bins, len(rows))
    assert max(counts, default=0) - min(counts, default=0) <= 1
    assert [part.mean_predicted for part in bins] == sorted(part.mean_predicted for part in bins)
    assert sum(part.mean_label * part.count for part in bins) == pytest.approx(labels.sum())
    assert all(0 <= part.mean_predicted <= 1 for part in bins)


def test_means_of_a_small_example():
    logits = np.log(np.array([0.8, 0.1, 0.2, 0.6]) / np.array([0.2, 0.9, 0.8, 0.4]))
    low, high = calibration_bins(logits, np.array([1, 0, 1, 0]), num_bins=2)
    assert (low.mean_predicted, low.mean_label, low.count) == pytest.approx((0.15, 0.5, 2))
    assert (high.mean_predicted, high.mean_label, high.count) == pytest.approx((0.7, 0.5, 2))
