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


@given(bags=bags, first_row=st.integers(0, 4), num_rows=st.integers(0, 4))
def test_a_sum_has_the_rows_of_its_bag_that_are_there(bags, first_row, num_rows):
    values_UD, base_ND = torch.randn(num_rows, 3, dtype=torch.float64), torch.randn(len(bags), 3, dtype=torch.float64)
    expected = base_ND.clone()
    for bag, rows in enumerate(bags):
        for row in rows:
            if first_row <= row < first_row + num_rows:
                expected[bag] += values_UD[row - first_row]
    options = {"impl": "reference", "first_row": first_row}
    alone = bag_sum(values_UD, *layout(bags), **options)
    torch.testing.assert_close(alone, expected - base_ND)
    assert bag_sum(values_UD, *layout(bags), **options, add_to_ND=base_ND) is base_ND
    torch.testing.assert_close(base_ND, expected)


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
