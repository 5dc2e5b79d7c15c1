"""Masks and the names of their bits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from features.actions import decode_actions, mask_of


@given(st.lists(st.text(min_size=1), min_size=1, max_size=32, unique=True), st.data())
def test_a_mask_holds_the_names_it_was_made_of(actions: list[str], data: st.DataObject):
    names = data.draw(st.lists(st.sampled_from(actions), unique=True))
    mask = mask_of(names, actions)
    assert set(decode_actions(mask, actions)) == set(names)
    assert mask == sum(1 << bit for bit, action in enumerate(actions) if action in names)
