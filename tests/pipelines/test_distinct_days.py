from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.increment_logs import distinct_days


@given(st.lists(st.integers(-400_000, 400_000), max_size=30))
def test_days_are_numpys_distinct_values(days: list[int]) -> None:
    found, place = distinct_days(np.array(days, np.int64))
    expected, inverse = np.unique(np.array(days, np.int64), return_inverse=True)
    assert found.tolist() == expected.tolist()
    assert place.tolist() == inverse.tolist()
