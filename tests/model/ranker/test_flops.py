import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kernels.reference import dense_mask
from model.flops import request_flops
from model.ranker import Ranker


@pytest.mark.parametrize(("consumption", "interaction", "candidates"), [(24, 8, 3), (3, 0, 1), (0, 0, 0)])
@pytest.mark.parametrize("global_axis", ["queries", "keys"])
def test_count_is_that_of_the_products(
    make_config, make_batch, spec, consumption, interaction, candidates, global_axis
):
    heads = {"tasks": ["click", "like"], "hidden_dim": 8, "watch_ratio_weight": 0.5}
    config = make_config(heads=heads, global_axis=global_axis)
    ranker = Ranker(config, spec).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ranker(make_batch([consumption], [interaction], [candidates]))
    counts = counter.get_flop_counts()["Global"]
    linear = counts.get(torch.ops.aten.addmm, 0) + counts.get(torch.ops.aten.mm, 0)
    # Attention is counted from the mask, since the reference computes hidden pairs too; so is the last product of a
    # head, which is no matrix product there.
    pairs = 0
    for lengths, mask in zip(
        ([consumption, min(consumption, 4)], [interaction, interaction]),
        (t.stack.layers[0].mask for t in ranker.transducers.transducers.values()),
        strict=True,
    ):
        pairs += sum(int(dense_mask(2 + n + candidates, 2, candidates, mask).sum()) for n in lengths)
    attention = pairs * 2 * (2 * 8 + 2 * 8)
    outputs = 2 * candidates * 3 * 8
    flops = request_flops(config, {"consumption": consumption, "interaction": interaction}, candidates)
    assert flops.inference == linear + attention + outputs
    assert flops.training == 3 * flops.inference
