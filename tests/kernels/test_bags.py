import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels import bag_sum, bag_sum_gradient, lengths_to_offsets
from kernels.jagged import request_of_rows

bags = st.lists(st.lists(st.integers(-1, 9), max_size=6), max_size=6)


def layout(bags):
    rows_K = torch.tensor([row for bag in bags for row in bag], dtype=torch.int64)
    return rows_K, lengths_to_offsets(torch.tensor([len(bag) for bag in bags], dtype=torch.int64))


@given(bags=bags, num_rows=st.integers(0, 8), num_more=st.none() | st.integers(0, 4))
def test_a_sum_has_the_rows_of_its_bag_that_are_there(bags, num_rows, num_more):
    values_UD = torch.randn(num_rows + (num_more or 0), 3, dtype=torch.float64)
    expected = torch.zeros(len(bags), 3, dtype=torch.float64)
    for bag, rows in enumerate(bags):
        for row in rows:
            if 0 <= row < len(values_UD):
                expected[bag] += values_UD[row]
    more_WD = None if num_more is None else values_UD[num_rows:]
    found = bag_sum(values_UD[:num_rows], *layout(bags), impl="reference", more_WD=more_WD)
    torch.testing.assert_close(found, expected)


@given(bags=bags, first_row=st.integers(0, 4))
def test_the_gradient_is_autograds(bags, first_row):
    rows_K, offsets_N1 = layout(bags)
    numbered, rows_K = rows_K.unique(return_inverse=True)
    values_UD = torch.randn(len(numbered), 3, dtype=torch.float64, requires_grad=True)
    gradient_ND = torch.randn(len(bags), 3, dtype=torch.float64)
    bag_sum(values_UD, rows_K, offsets_N1, impl="reference").backward(gradient_ND)
    rows_M, order_M = rows_K.sort(stable=True)
    out_UD = torch.full((len(numbered), 3), torch.nan, dtype=torch.float64)
    bags_M = request_of_rows(offsets_N1, len(rows_K))[order_M]
    bag_sum_gradient(gradient_ND, bags_M, rows_M + first_row, out_UD=out_UD, impl="reference", first_row=first_row)
    torch.testing.assert_close(out_UD, values_UD.grad)


def test_triton_needs_a_gpu():
    rows_K, offsets_N1 = layout([[0]])
    with pytest.raises(NotImplementedError, match="needs a GPU"):
        bag_sum(torch.ones(1, 4), rows_K, offsets_N1, impl="triton")
