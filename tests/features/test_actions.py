from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from features.actions import decode_actions, encode_actions, mask_of


@given(st.integers(1, 32), st.data())
def test_masks_round_trip(num_actions, data):
    actions = [f"action_{index}" for index in range(num_actions)]
    rows = data.draw(st.lists(st.sets(st.sampled_from(actions)), min_size=1, max_size=5))
    masks = encode_actions([np.array([action in row for row in rows]) for action in actions])
    assert masks.dtype == np.uint32
    assert [set(decode_actions(int(mask), actions)) for mask in masks] == rows
    assert masks.tolist() == [mask_of(row, actions) for row in rows]
