import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels import concat_jagged, lengths_to_offsets, split_jagged, truncate_jagged
from kernels.jagged import position_of_rows, request_of_rows

lengths = st.lists(st.integers(0, 6), max_size=7)


def jagged(rows: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.tensor([value for row in rows for value in row]).reshape(-1, 1).expand(-1, 3).contiguous()
    return values, lengths_to_offsets(torch.tensor([len(row) for row in rows], dtype=torch.int64))


def unjagged(values: torch.Tensor, offsets: torch.Tensor) -> list[list[float]]:
    assert offsets.dtype == torch.int64
    assert (values == values[:, :1]).all()
    bounds = offsets.tolist()
    assert bounds[0] == 0
    assert bounds[-1] == values.shape[0]
    return [values[begin:end, 0].tolist() for begin, end in itertools.pairwise(bounds)]


def numbered(counts: list[int], start: int) -> list[list[float]]:
    numbers = iter(range(start, start + sum(counts)))
    return [[float(next(numbers)) for _ in range(count)] for count in counts]


@given(lengths)
def test_rows_know_their_request_and_position(counts):
    offsets = lengths_to_offsets(torch.tensor(counts, dtype=torch.int64))
    total = sum(counts)
    expected = [(request, position) for request, count in enumerate(counts) for position in range(count)]
    found = zip(request_of_rows(offsets, total).tolist(), position_of_rows(offsets, total).tolist(), strict=True)
    assert list(found) == expected


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), max_size=6))
def test_concat_joins_each_request_and_split_takes_it_apart(counts):
    parts = [numbered([row[part] for row in counts], 100 * part) for part in range(3)]
    inputs = [jagged(part) for part in parts]
    values, offsets = concat_jagged([v for v, _ in inputs], [o for _, o in inputs])
    assert unjagged(values, offsets) == [a + b + c for a, b, c in zip(*parts, strict=True)]
    left, right = split_jagged(values, offsets, torch.tensor([a + b for a, b, _ in counts], dtype=torch.int64))
    assert torch.equal(right, inputs[2][0])
    assert left[:, 0].tolist() == [x for a, b in zip(parts[0], parts[1], strict=True) for x in a + b]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), max_size=6), st.integers(0, 2), st.integers(0, 7))
def test_truncation_keeps_contextual_newest_history_and_candidates(counts, num_contextual, keep):
    rows = numbered([num_contextual + history + candidates for history, candidates in counts], 0)
    values, offsets = jagged(rows)
    candidates = torch.tensor([c for _, c in counts], dtype=torch.int64)
    total = sum(num_contextual + min(history, keep) + scored for history, scored in counts)
    asked, told = (
        truncate_jagged(
            values, offsets, num_contextual=num_contextual, num_candidates_B=candidates, keep=keep, total=known
        )
        for known in (None, total)
    )
    expected = [
        row[: num_contextual + min(history, keep)] + row[num_contextual + history :]
        for row, (history, _) in zip(rows, counts, strict=True)
    ]
    assert unjagged(*asked) == unjagged(*told) == expected


@pytest.mark.parametrize("total", [0, 6, 8, 100])
def test_a_wrong_total_is_an_error(total):
    values, offsets = jagged(numbered([5, 3, 0], 0))
    candidates = torch.tensor([1, 1, 0])
    with pytest.raises(RuntimeError, match="total is not the number of rows that stay"):
        truncate_jagged(values, offsets, num_contextual=1, num_candidates_B=candidates, keep=2, total=total)


def test_gradients_pass_through():
    first = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    second = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    offsets = (torch.tensor([0, 2, 2, 3]), torch.tensor([0, 1, 3, 4]))
    candidates = torch.tensor([1, 1, 1])

    def cut(a, b):
        values, joined = concat_jagged([a, b], offsets)
        kept, kept_offsets = truncate_jagged(values, joined, num_contextual=0, num_candidates_B=candidates, keep=1)
        return split_jagged(kept, kept_offsets, candidates)

    assert torch.autograd.gradcheck(cut, (first, second))
