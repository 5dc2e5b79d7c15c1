import math
from dataclasses import replace

import pytest
import torch

from model.heads import MultiTaskHeads, Predictions
from model.loss import MAX_WATCH_RATIO, ranking_loss, task_labels, watch_ratio_error


def with_watch_ratio(make_config, weight):
    return make_config(heads={"tasks": ["click", "like"], "hidden_dim": 8, "watch_ratio_weight": weight})


def test_labels_are_the_tasks_bits():
    masks = torch.tensor([0b000, 0b001, 0b110, 1 << 31])
    found = task_labels(masks, ("hate", "click"), ("click", "like", "hate"))
    assert found.tolist() == [[0, 0], [0, 1], [1, 0], [0, 0]]
    actions = tuple(f"action_{bit}" for bit in range(32))
    assert task_labels(masks, ("action_31",), actions)[:, 0].tolist() == [0, 0, 0, 1]


def test_loss_is_the_tasks_mean_cross_entropy(make_config, make_batch, spec):
    candidates = replace(make_batch([], [], []).candidates, action_mask_C=torch.tensor([0b01, 0b10, 0b11]))
    logits = torch.tensor([[0.5, -1.0], [2.0, 0.0], [-0.3, 4.0]], requires_grad=True)
    loss = ranking_loss(Predictions(logits, None), candidates, make_config(), spec)
    labels = [[1, 0], [0, 1], [1, 1]]
    values = logits.tolist()
    expected = [
        sum(math.log1p(math.exp(-values[c][k] if labels[c][k] else values[c][k])) for c in range(3)) / 3
        for k in range(2)
    ]
    torch.testing.assert_close(loss.task_K, torch.tensor(expected))
    torch.testing.assert_close(loss.total, torch.tensor(sum(expected) / 2))
    assert loss.watch_ratio is None
    assert loss.total.requires_grad
    assert not loss.task_K.requires_grad


def test_watch_ratio_is_clipped_and_unknown_ones_are_left_out():
    predicted = torch.tensor([0.5, 9.0, 1.0, 1.0], requires_grad=True)
    error = watch_ratio_error(predicted, torch.tensor([1.0, float("nan"), 50.0, -2.0]))
    assert error.item() == pytest.approx((0.5**2 + (MAX_WATCH_RATIO - 1) ** 2 + 1.0) / 3)
    error.backward()
    assert predicted.grad is not None
    assert predicted.grad[1] == 0
    assert watch_ratio_error(predicted, torch.full((4,), float("nan"))).item() == 0


def test_watch_ratio_joins_the_loss_by_its_weight(make_config, make_batch, spec):
    config = with_watch_ratio(make_config, 0.5)
    candidates = make_batch([1], [0], [4]).candidates
    predictions = MultiTaskHeads(config)(torch.randn(4, 16))
    assert predictions.watch_ratio_C is not None
    loss = ranking_loss(predictions, candidates, config, spec)
    error = watch_ratio_error(predictions.watch_ratio_C, candidates.watch_ratio_C)
    torch.testing.assert_close(loss.total, loss.task_K.mean() + 0.5 * error)
    torch.testing.assert_close(loss.watch_ratio, error.detach())


def test_no_candidates_cost_nothing(make_config, make_batch, spec):
    logits = torch.zeros(0, 2, requires_grad=True)
    config = with_watch_ratio(make_config, 1.0)
    loss = ranking_loss(Predictions(logits, torch.zeros(0)), make_batch([], [], []).candidates, config, spec)
    assert loss.total.item() == 0
    loss.total.backward()


def test_heads_are_independent_mlps(make_config):
    heads = MultiTaskHeads(with_watch_ratio(make_config, 1.0))
    torch.nn.init.normal_(heads.weight)
    values = torch.randn(5, 16)
    predictions = heads(values)
    outputs = [*predictions.logits_CK.unbind(1), predictions.watch_ratio_C]
    for task, found in enumerate(outputs):
        part = slice(8 * task, 8 * task + 8)
        hidden = torch.nn.functional.silu(values @ heads.hidden.weight[part].T + heads.hidden.bias[part])
        torch.testing.assert_close(found, hidden @ heads.weight[task] + heads.bias[task])


def test_base_rates_are_the_first_predictions(make_config):
    heads = MultiTaskHeads(with_watch_ratio(make_config, 1.0))
    torch.nn.init.zeros_(heads.weight)
    heads.set_base_rates(torch.tensor([0.25, 0.0], dtype=torch.float64))
    predictions = heads(torch.randn(3, 16))
    torch.testing.assert_close(predictions.logits_CK.sigmoid()[0], torch.tensor([0.25, 1e-6]))
    assert predictions.watch_ratio_C is not None
    assert (predictions.watch_ratio_C == 0).all()
