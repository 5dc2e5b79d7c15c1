import itertools

import pytest
import torch

from kernels import AttentionMask
from kernels.reference import dense_mask


def visible(
    query: int, key: int, *, length: int, num_contextual: int, num_candidates: int, mask: AttentionMask
) -> bool:
    """The table of kernels/mask.py, read cell by cell."""

    def kind(index: int) -> str:
        if index < num_contextual:
            return "contextual"
        return "candidate" if index >= length - num_candidates else "history"

    cell = (kind(query), kind(key))
    if cell[1] == "candidate":
        return cell[0] == "candidate" and query == key
    if cell[0] != "history" or cell[1] == "contextual":
        return True
    a_query, a_key = query - num_contextual, key - num_contextual
    if mask.global_axis == "queries":
        return a_key >= a_query and (a_key - a_query <= mask.local_window or a_query < mask.global_window)
    return abs(a_key - a_query) <= mask.local_window or a_key < mask.global_window


@pytest.mark.parametrize("global_axis", ["queries", "keys"])
@pytest.mark.parametrize("local_window", [0, 1, 2, 9])
@pytest.mark.parametrize("global_window", [0, 1, 3])
def test_every_cell_follows_the_rule(local_window, global_window, global_axis):
    mask = AttentionMask(local_window, global_window, global_axis)
    for length, num_contextual, num_candidates in itertools.product(range(10), range(3), range(4)):
        if num_contextual + num_candidates > length:
            continue
        layout = {"length": length, "num_contextual": num_contextual, "num_candidates": num_candidates}
        expected = [[visible(q, k, **layout, mask=mask) for k in range(length)] for q in range(length)]
        found = dense_mask(length, num_contextual, num_candidates, mask)
        assert found.tolist() == expected, layout


def test_papers_example_in_newest_first_order():
    # The paper lists its queries oldest to newest: 1, 11, 111, 0111, 11111, 111111. Reversing both axes gives ours.
    rows = ["111111", "011111", "001110", "000111", "000011", "000001"]
    found = dense_mask(6, 0, 0, AttentionMask(2, 2))
    assert ["".join(str(int(cell)) for cell in row) for row in found] == rows


def test_a_window_as_long_as_the_history_is_full_causal():
    found = dense_mask(7, 0, 0, AttentionMask(7, 0))
    assert torch.equal(found, torch.ones(7, 7, dtype=torch.bool).triu())


@pytest.mark.parametrize("arguments", [(-1, 0), (0, -1), (1, 1, "rows")])
def test_nonsense_is_refused(arguments):
    with pytest.raises(ValueError, match="must"):
        AttentionMask(*arguments)


@pytest.mark.parametrize("global_axis", ["queries", "keys"])
def test_counting_visible_pairs_equals_counting_cells(global_axis):
    for length, local, glob, contextual, candidates in itertools.product(
        range(9), (0, 1, 3, 9), (0, 1, 2, 5, 9), (0, 2), (0, 3)
    ):
        mask = AttentionMask(local, glob, global_axis)
        cells = int(dense_mask(contextual + length + candidates, contextual, candidates, mask).sum())
        found = mask.num_visible(length, num_contextual=contextual, num_candidates=candidates)
        assert found == cells, (length, local, glob, contextual, candidates)
