import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels import AttentionMask, lengths_to_offsets
from kernels.hstu.schedule import Sequences, key_tiles, query_tiles

BLOCK = 4


def sequences(counts, num_contextual=0):
    candidates = torch.tensor([c for _, c in counts], dtype=torch.int64)
    lengths = torch.tensor([h for h, _ in counts], dtype=torch.int64) + candidates + num_contextual
    return Sequences(lengths_to_offsets(lengths), candidates, num_contextual, int(lengths.sum()))


@pytest.mark.parametrize("make", [query_tiles, key_tiles])
@given(
    counts=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6)), min_size=1, max_size=6),
    num_contextual=st.integers(0, 5),
    axis=st.sampled_from(["queries", "keys"]),
)
def test_every_row_is_in_one_tile(make, counts, num_contextual, axis):
    batch = sequences(counts, num_contextual)
    table = make(batch, AttentionMask(2, 5, axis), BLOCK)
    tiles = [tuple(row) for row in table.tolist() if row[0] >= 0]
    lengths = batch.offsets_B1.diff().tolist()
    assert sorted(tiles) == [(b, first) for b, length in enumerate(lengths) for first in range(0, length, BLOCK)]


def test_tiles_that_read_everything_go_first_and_longer_requests_before_shorter():
    batch = sequences([(3, 1), (16, 1), (6, 0)])
    tiles = [tuple(row) for row in query_tiles(batch, AttentionMask(2, 4), BLOCK).tolist() if row[0] >= 0]
    assert tiles == [(1, 0), (1, 16), (2, 0), (0, 0), (1, 4), (1, 8), (1, 12), (2, 4)]


def test_keys_that_most_queries_see_go_first():
    batch = sequences([(9, 0)])
    tiles = [tuple(row) for row in key_tiles(batch, AttentionMask(9, 0), BLOCK).tolist() if row[0] >= 0]
    assert tiles == [(0, 8), (0, 4), (0, 0)]
