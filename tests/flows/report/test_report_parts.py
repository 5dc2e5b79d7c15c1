"""The report's parts: length classes, drawn masks, and how figures become words."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.report.figures import smooth
from flows.report.inputs import scalars
from flows.report.lengths import class_label, length_class
from flows.report.masks import DRAWN_CANDIDATES, draw_mask
from flows.report.page import period, relative_gain, sections_text
from model.config import ModelConfig

PARAMS = Path(__file__).parents[3] / "params.yaml"


@given(st.integers(0, 2**40))
def test_a_length_lies_in_its_class(length: int) -> None:
    label = class_label(int(length_class(np.array([length]))[0])).replace(",", "")
    low, _, high = label.partition("–")
    assert int(low) <= length <= int(high or low)


@given(
    max_length=st.integers(1, 400),
    local=st.integers(0, 500),
    newest=st.integers(0, 500),
    axis=st.sampled_from(["queries", "keys"]),
)
def test_drawn_masks_keep_the_written_rule(max_length: int, local: int, newest: int, axis: str) -> None:
    model = ModelConfig.load(PARAMS)
    changes = {"max_length": max_length, "local_window": local, "global_window": newest, "pyramid": ()}
    stream = model.streams["consumption"].model_copy(update=changes)
    drawn = draw_mask(model.model_copy(update={"global_axis": axis}), stream)
    assert drawn.num_history == min(24, max_length)
    assert drawn.mask.local_window <= drawn.num_history
    assert (drawn.mask.local_window > 0) == (local > 0)
    assert (drawn.mask.global_window > 0) == (newest > 0)
    begin, end = drawn.num_contextual, drawn.num_contextual + drawn.num_history
    assert len(drawn.visible) == end + DRAWN_CANDIDATES
    for query in range(len(drawn.visible)):
        for key in range(len(drawn.visible)):
            if key >= end:
                expected = query == key
            elif query < begin or key < begin or query >= end:
                expected = True
            elif axis == "queries":
                near = key - query <= drawn.mask.local_window or query - begin < drawn.mask.global_window
                expected = key >= query and near
            else:
                expected = abs(key - query) <= drawn.mask.local_window or key - begin < drawn.mask.global_window
            assert drawn.visible[query, key] == expected


def test_a_full_causal_setting_is_drawn_full() -> None:
    model = ModelConfig.load(PARAMS)
    stream = model.streams["consumption"]
    drawn = draw_mask(model, stream.model_copy(update={"local_window": stream.max_length, "global_window": 0}))
    history = slice(drawn.num_contextual, drawn.num_contextual + drawn.num_history)
    assert (drawn.visible[history, history] == np.triu(np.ones((drawn.num_history,) * 2, bool))).all()


@pytest.mark.parametrize(
    ("value", "floor", "expected"), [(0.9, 1.0, 0.1), (1.1, 1.0, -0.1), (None, 1.0, None), (0.9, None, None)]
)
def test_relative_gain(value: float | None, floor: float | None, expected: float | None) -> None:
    assert relative_gain(value, floor) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("first", "last", "words"),
    [
        ((2022, 4, 25), (2022, 4, 28), "25 to 28 April 2022"),
        ((2022, 4, 25), (2022, 5, 8), "25 April to 8 May 2022"),
        ((2021, 12, 30), (2022, 1, 2), "30 December 2021 to 2 January 2022"),
        ((2022, 5, 8), (2022, 5, 8), "8 May 2022"),
    ],
)
def test_period(first: tuple[int, int, int], last: tuple[int, int, int], words: str) -> None:
    assert period(datetime.date(*first), datetime.date(*last)) == words


def test_sections_are_cut_out_with_their_comments() -> None:
    text = "# top\na:\n  x: 1  # why\n\nb: {y: 2}\nc:\n  # inside\n  z: 3\n"
    assert sections_text(text, ("a", "c")) == "a:\n  x: 1  # why\n\nc:\n  # inside\n  z: 3"


def test_scalars_flattens_in_order() -> None:
    document = {"a": 1, "b": {"c": [1, 2], "d": [{"e": True}]}, "f": None}
    assert scalars(document) == {"a": 1, "b.c": "1, 2", "b.d.0.e": True, "f": None}


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=40), st.sampled_from([1, 3, 9]))
def test_smoothing_stays_within_and_keeps_the_ends(values: list[float], width: int) -> None:
    smoothed = smooth(values, width)
    assert len(smoothed) == len(values)
    assert (smoothed[0], smoothed[-1]) == (values[0], values[-1])
    assert min(values) - 1e-9 <= min(smoothed)
    assert max(smoothed) <= max(values) + 1e-9
