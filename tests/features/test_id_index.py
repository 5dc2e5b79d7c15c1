from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.id_index import IdIndex

INT64 = st.integers(-(2**63), 2**63 - 1)
NEAR = st.integers(-5, 40)
SPACED = st.integers(0, 60).map(lambda number: number << 40)


def array(ids) -> np.ndarray:
    return np.array(ids, np.int64)


@given(
    ids=st.one_of(*(st.lists(some, unique=True, max_size=60) for some in (INT64, NEAR, SPACED))),
    others=st.lists(st.one_of(INT64, NEAR, SPACED), max_size=60),
    data=st.data(),
)
def test_it_finds_what_a_dictionary_finds(ids, others, data):
    wanted = data.draw(st.permutations(ids + others))
    expected = {number: place for place, number in enumerate(ids)}
    found = IdIndex.of(array(ids)).find(array(wanted))
    assert found.dtype == np.int32
    assert found.tolist() == [expected.get(number, -1) for number in wanted]


def test_ids_far_apart_are_hashed_and_close_ones_addressed():
    assert IdIndex.of(array([0, 10])).keys is None
    assert IdIndex.of(array([0, 1 << 50])).keys is not None


@pytest.mark.parametrize("step", [1 << 33, 7919 << 20, 0x61C8864680B583EB])
def test_long_runs_of_slots_are_searched_to_their_end(step):
    with np.errstate(over="ignore"):
        ids = np.arange(5000, dtype=np.int64) * np.int64(step)
    index = IdIndex.of(ids)
    assert index.find(ids).tolist() == list(range(5000))
    assert (index.find(ids + 1) == -1).all()
