from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kernels import AttentionMask
from kernels.reference import dense_mask
from model.config import Kind, ModelConfig
from model.flops import mean_flops, request_flops
from model.ranker import Ranker
from model.training.stochastic_length import sampling_length, stochastic_lengths

KINDS = get_args(Kind)
HEADS = {"tasks": ["click", "like"], "hidden_dim": 8, "watch_ratio_weight": 0.5}
NUM_CONTEXTUAL = 2
PAIR = 2 * (2 * 8 + 2 * 8)


def counted(config, spec, batch):
    """Operations of torch's own counter: of plain products, and of batched ones, which attention alone makes."""
    ranker = Ranker(config, spec).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        ranker(batch)
    counts = counter.get_flop_counts()["Global"]
    plain = counts.get(torch.ops.aten.addmm, 0) + counts.get(torch.ops.aten.mm, 0)
    return plain, counts.get(torch.ops.aten.bmm, 0)


def visible(length, candidates, mask):
    total = NUM_CONTEXTUAL + length + candidates
    return int(dense_mask(total, NUM_CONTEXTUAL, candidates, mask).sum())


def attention_flops(config, lengths, candidates):
    """Attention's operations by listing its pairs one by one, for the references compute hidden pairs too."""
    total = 0
    for (name, stream), length in zip(config.streams.items(), lengths, strict=True):
        del name
        if config.kind == "ultra_hstu":
            mask = AttentionMask(stream.local_window, stream.global_window, config.global_axis)
            kept = min(length, dict(stream.pyramid).get(1, length))
            total += PAIR * (visible(length, candidates, mask) + visible(kept, candidates, mask))
        elif config.kind == "hstu":
            total += PAIR * stream.num_layers * visible(2 * length, candidates, AttentionMask(1000, 0))
        elif config.kind in ("transformer", "sasrec"):
            scored = candidates if config.kind == "transformer" else 0
            total += PAIR * stream.num_layers * visible(length, scored, AttentionMask(1000, 0))
        elif config.kind == "stca":
            total += PAIR * stream.num_layers * candidates * (NUM_CONTEXTUAL + length)
        else:
            # the weighted sum is an indexed addition
            total += 2 * 16 * candidates * length
    return total


@pytest.mark.parametrize(("consumption", "interaction", "candidates"), [(24, 8, 3), (3, 0, 1), (0, 0, 0)])
@pytest.mark.parametrize(
    ("kind", "global_axis"), [*((kind, "queries") for kind in KINDS), ("ultra_hstu", "keys"), ("hstu", "keys")]
)
def test_count_is_that_of_the_products(
    make_config, make_batch, spec, consumption, interaction, candidates, kind, global_axis
):
    config = make_config(kind=kind, heads=HEADS, global_axis=global_axis)
    plain, _ = counted(config, spec, make_batch([consumption], [interaction], [candidates]))
    # the last product of a head is a sum of elementwise products there
    outputs = 2 * candidates * 3 * 8
    flops = request_flops(config, {"consumption": consumption, "interaction": interaction}, candidates)
    assert flops.inference == plain + attention_flops(config, (consumption, interaction), candidates) + outputs
    assert flops.training == 3 * flops.inference


def test_where_every_pair_is_visible_the_counter_sees_attention_too(make_config, make_batch, spec):
    config = make_config(kind="stca", heads=HEADS)
    plain, attention = counted(config, spec, make_batch([20], [7], [3]))
    # a key of zeros stands beside the contextual and the events in each of two layers
    zeros = PAIR * 3 * 2 * len(config.streams)
    flops = request_flops(config, {"consumption": 20, "interaction": 7}, 3)
    assert flops.inference == plain + attention - zeros + 2 * 3 * 3 * 8


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_step_computes_about_three_forward_passes(make_config, make_batch, spec, kind):
    config = make_config(kind=kind, heads=HEADS)
    ranker = Ranker(config, spec).train()
    batch = make_batch([24], [8], [3])
    with FlopCounterMode(display=False) as forward:
        predictions = ranker(batch)
    with FlopCounterMode(display=False) as backward:
        (predictions.logits_CK.sum() + predictions.watch_ratio_C.sum()).backward()
    assert backward.get_total_flops() / forward.get_total_flops() == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize("kind", KINDS)
@given(st.lists(st.tuples(st.integers(0, 24), st.integers(0, 8), st.integers(0, 5)), min_size=1, max_size=6))
@settings(max_examples=20, deadline=None)
def test_the_mean_is_that_of_single_requests(kind, requests):
    config = small_config(kind)
    consumption, interaction, candidates = zip(*requests, strict=True)
    mean = mean_flops(config, {"consumption": consumption, "interaction": interaction}, candidates)
    single = [request_flops(config, {"consumption": a, "interaction": b}, m) for a, b, m in requests]
    assert mean.inference == pytest.approx(np.mean([flops.inference for flops in single]), abs=0.51)
    assert mean.training == pytest.approx(np.mean([flops.training for flops in single]), abs=0.51)


@pytest.mark.parametrize("kind", KINDS)
def test_stochastic_length_costs_what_its_draws_cost_on_average(kind):
    config = small_config(kind)
    alpha, rng = 1.2, np.random.default_rng(3)
    lengths = rng.integers(0, 25, 4000)
    candidates = [2] * lengths.size
    none = [0] * lengths.size
    expected = mean_flops(config, {"consumption": lengths, "interaction": none}, candidates, alpha=alpha)
    kept = stochastic_lengths(lengths, rng.random(lengths.size), max_length=24, alpha=alpha)
    drawn = mean_flops(config, {"consumption": kept, "interaction": none}, candidates)
    assert kept.mean() < lengths.mean()
    assert sampling_length(24, alpha) < 24
    assert expected.training == pytest.approx(drawn.training, rel=0.02)
    assert expected.inference > drawn.inference


def small_config(kind):
    stream = {"num_layers": 2, "local_window": 3, "global_window": 2}
    return ModelConfig.model_validate(
        {
            "kind": kind,
            "action_encoding": "heterogeneous",
            "dim": 16,
            "num_heads": 2,
            "qk_dim": 8,
            "v_dim": 8,
            "dropout": 0.0,
            "norm_epsilon": 1e-6,
            "global_axis": "queries",
            "impl": "reference",
            "compute": "fp32",
            "gemm": "bf16",
            "streams": {
                "consumption": {**stream, "max_length": 24, "pyramid": [[1, 4]]},
                "interaction": {**stream, "max_length": 8, "pyramid": []},
            },
            "contextual": [["user"]],
            "heads": HEADS,
        }
    )
