import pytest
import torch
from torch.nn.functional import embedding_bag

from model.sharded_tables import DeviceBags

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]),
]


@pytest.mark.filterwarnings("ignore:fbgemm")
@pytest.mark.parametrize("device", DEVICES)
def test_bags_and_their_gradients_are_those_of_pytorch(device):
    """With rows that most bags have, rows that none has, empty bags, and another number of rows at every call."""
    generator = torch.Generator().manual_seed(0)
    bags = DeviceBags(16, torch.device(device))
    for num_rows, num_bags in ((40, 3000), (7, 50), (3000, 2000)):
        lengths = torch.randint(0, 9, (num_bags,), generator=generator)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(device)
        total = int(lengths.sum())
        rows = torch.randint(0, num_rows - 1, (total,), generator=generator)
        rows = torch.where(torch.rand(total, generator=generator) < 0.5, 1, rows).to(device)
        weight = torch.randn(num_rows, 16, generator=generator).to(device)
        gradient = torch.randn(num_bags, 16, generator=generator).to(device)
        mine, theirs = weight.clone().requires_grad_(), weight.clone().requires_grad_()
        out = bags(mine, rows, offsets)
        expected = embedding_bag(rows, theirs, offsets, mode="sum", include_last_offset=True)
        out.backward(gradient)
        expected.backward(gradient)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-3)
        assert not mine.grad[num_rows - 1].any()
