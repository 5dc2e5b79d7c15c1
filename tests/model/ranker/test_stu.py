import itertools
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import layer_norm, silu

from kernels import lengths_to_offsets
from kernels.reference import dense_mask
from model.sequence import TokenSequence
from model.stu import STULayer, STUStack


def sequence(histories, candidates, num_contextual, *, dim=16, dtype=torch.float64):
    num_candidates = torch.tensor(candidates)
    lengths = torch.tensor(histories) + num_candidates + num_contextual
    values = torch.randn(int(lengths.sum()), dim, dtype=dtype)
    return TokenSequence(values, lengths_to_offsets(lengths), num_contextual, num_candidates, tuple(histories))


def layer_by_hand(layer, sequence, *, max_length):
    """Equations 1 to 5 on dense tensors, a request and a head at a time."""
    outputs = []
    bounds = sequence.offsets_B1.tolist()
    for request, (begin, end) in enumerate(itertools.pairwise(bounds)):
        z = sequence.values_TD[begin:end]
        x = layer_norm(z, z.shape[1:], layer.input_norm.weight, layer.input_norm.bias, layer.input_norm.eps)
        u, v, q, k = silu(x @ layer.uvqk.weight.T + layer.uvqk.bias).chunk(4, dim=1)
        num_candidates = int(sequence.num_candidates_B[request])
        mask = dense_mask(end - begin, sequence.num_contextual, num_candidates, layer.mask).double()
        heads = []
        for q_head, k_head, v_head in zip(q.chunk(2, 1), k.chunk(2, 1), v.chunk(2, 1), strict=True):
            heads.append((silu(q_head @ k_head.T / 8**0.5) * mask) @ v_head / max_length)
        a = torch.cat(heads, dim=1)
        norm = layer.attention_norm
        y = (layer_norm(a, a.shape[1:], norm.weight, norm.bias, 1e-6 / max_length**2) * u) @ layer.output.weight.T
        outputs.append(y + z)
    return torch.cat(outputs)


@pytest.mark.parametrize("global_axis", ["queries", "keys"])
def test_layer_is_equations_1_to_5(make_config, global_axis):
    config = make_config(global_axis=global_axis)
    layer = STULayer(config, config.streams["consumption"]).double()
    torch.nn.init.normal_(layer.attention_norm.weight)
    tokens = sequence([5, 0, 1, 12], [2, 1, 0, 3], 2)
    torch.testing.assert_close(layer(tokens).values_TD, layer_by_hand(layer, tokens, max_length=24))


def test_attention_is_divided_by_the_configured_length(make_config):
    # The norm would hide the divisor, were its epsilon not as large as this.
    config = make_config()
    layer = STULayer(config, config.streams["consumption"]).double()
    layer.attention_norm.eps = 1.0
    tokens = sequence([1], [0], 0)
    u, v, q, k = silu(layer.uvqk(layer.input_norm(tokens.values_TD))).chunk(4, dim=1)
    weight = silu((q * k).unflatten(1, (2, 8)).sum(2) / 8**0.5) / 24
    a = (weight[:, :, None] * v.unflatten(1, (2, 8))).flatten(1)
    expected = tokens.values_TD + layer.output(layer.attention_norm(a) * u)
    torch.testing.assert_close(layer(tokens).values_TD, expected)


def test_a_short_history_is_not_swamped_by_the_epsilon(make_config):
    settings = make_config().streams["consumption"].model_dump() | {"pyramid": ()}
    outputs = []
    for max_length in (32, 16384):
        config = make_config(streams={"consumption": settings | {"max_length": max_length}})
        torch.manual_seed(3)
        layer = STULayer(config, config.streams["consumption"]).double()
        torch.manual_seed(4)
        outputs.append(layer(sequence([3], [1], 1)).values_TD)
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("global_axis", ["queries", "keys"])
@pytest.mark.parametrize("local_window", [1, 24])
@pytest.mark.parametrize("global_window", [0, 2])
@pytest.mark.parametrize(("num_layers", "num_contextual"), [(1, 2), (3, 0)])
def test_newer_events_never_change_older_positions(
    make_config, global_axis, local_window, global_window, num_layers, num_contextual
):
    # True of the axis `queries`. Contextual tokens read the whole history, so from the second layer on they tell older
    # tokens of newer ones: that is the mask's intent, and why more layers are tried without them.
    windows = {"local_window": local_window, "global_window": global_window}
    stream = {"max_length": 24, "num_layers": num_layers, "pyramid": [], **windows}
    config = make_config(global_axis=global_axis, streams={"consumption": stream})
    stack = STUStack(config, config.streams["consumption"]).double()
    tokens = sequence([8], [2], num_contextual)
    newer = tokens.values_TD.clone()
    newer[num_contextual : num_contextual + 3] += 1.0
    before, after = stack(tokens).values_TD, stack(tokens.with_values(newer)).values_TD
    older = slice(num_contextual + 3, num_contextual + 8)
    candidates = slice(num_contextual + 8, None)
    assert torch.equal(before[older], after[older]) == (global_axis == "queries")
    assert not torch.equal(before[candidates], after[candidates])


def test_pyramid_keeps_contextual_newest_and_candidates(make_config):
    tokens = sequence([0, 3, 4, 9], [1, 0, 2, 3], 2)
    bounds = tokens.offsets_B1.tolist()
    kept, scored = [], []
    for request, (begin, end) in enumerate(itertools.pairwise(bounds)):
        candidates_begin = end - int(tokens.num_candidates_B[request])
        kept += [row for row in range(begin, end) if row < begin + 2 + 4 or row >= candidates_begin]
        scored += range(candidates_begin, end)
    truncated = tokens.truncated(4)
    assert torch.equal(truncated.values_TD, tokens.values_TD[kept])
    assert truncated.offsets_B1.diff().tolist() == [2 + 0 + 1, 2 + 3 + 0, 2 + 4 + 2, 2 + 4 + 3]
    assert truncated.history_lengths == (0, 3, 4, 4)
    assert torch.equal(tokens.candidates(6), tokens.values_TD[scored])
    assert torch.equal(truncated.candidates(6), tokens.values_TD[scored])


def test_stack_truncates_after_the_configured_layers(make_config):
    settings = {"max_length": 24, "num_layers": 3, "local_window": 3, "global_window": 2, "pyramid": [[1, 6], [2, 2]]}
    config = make_config(streams={"consumption": settings})
    stack = STUStack(config, config.streams["consumption"]).double()
    tokens = sequence([0, 4, 9], [1, 2, 3], 1)
    by_hand = stack.layers[2](stack.layers[1](stack.layers[0](tokens).truncated(6)).truncated(2))
    found = stack(tokens)
    assert torch.equal(found.values_TD, by_hand.values_TD)
    assert found.offsets_B1.diff().tolist() == [2, 5, 6]


def test_what_truncation_drops_changes_nothing_after_it(make_config):
    settings = {"max_length": 24, "num_layers": 2, "local_window": 0, "global_window": 0, "pyramid": [[1, 2]]}
    config = make_config(streams={"consumption": settings})
    stack = STUStack(config, config.streams["consumption"]).double()
    tokens = sequence([5], [1], 0)
    # After layer 1 the candidate has seen all; the history tokens see only themselves.
    changed = tokens.values_TD.clone()
    changed[3:5] = 7.0
    first = stack.layers[0](tokens.with_values(changed)).values_TD
    kept = replace(tokens, values_TD=first).truncated(2)
    assert torch.equal(stack(tokens.with_values(changed)).values_TD, stack.layers[1](kept).values_TD)
    assert torch.equal(stack(tokens).values_TD[:2], stack(tokens.with_values(changed)).values_TD[:2])
