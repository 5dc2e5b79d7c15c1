import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score
from torchmetrics.functional.classification import binary_auroc

from model.loss import entropy
from model.metrics import AUC, GroupedAUC, NormalizedEntropy, group_mean, grouped_auc, rank_auc


def pairwise_auc(scores, labels):
    pairs = [
        (a > b) + 0.5 * (a == b)
        for (a, x), (b, y) in itertools.product(zip(scores, labels, strict=True), repeat=2)
        if x and not y
    ]
    return sum(pairs) / len(pairs) if pairs else math.nan


# few distinct scores, so that ties are the rule
rows = st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.integers(0, 4)), min_size=1, max_size=40)


@given(rows)
def test_rank_auc_counts_every_pair_and_half_of_the_ties(table):
    scores, labels, _ = (np.array(column) for column in zip(*table, strict=True))
    assert rank_auc(scores.astype(np.float32), labels) == pytest.approx(pairwise_auc(scores, labels), nan_ok=True)


@given(rows)
def test_grouped_auc_weights_users_by_rows_and_counts_the_skipped(table):
    scores, labels, users = (np.array(column) for column in zip(*table, strict=True))
    expected, weights, skipped = [], [], 0
    for user in set(users):
        mine = users == user
        auc = pairwise_auc(scores[mine], labels[mine])
        if math.isnan(auc):
            skipped += 1
        else:
            expected.append(auc)
            weights.append(mine.sum())
    found = grouped_auc(scores, labels, users)
    assert (found.num_groups, found.num_skipped) == (len(expected), skipped)
    assert found.value == pytest.approx(np.average(expected, weights=weights) if expected else math.nan, nan_ok=True)


@given(rows, st.integers(1, 7))
@settings(deadline=None)
def test_metrics_do_not_depend_on_how_rows_were_batched(table, batch):
    scores, labels, users = (torch.tensor(column) for column in zip(*table, strict=True))
    logits, labels = torch.stack([scores.float(), -scores.float()], 1), torch.stack([labels, labels], 1)
    whole, parts = [(NormalizedEntropy(2), AUC(), GroupedAUC()) for _ in range(2)]
    for metrics, size in ((whole, len(table)), (parts, batch)):
        for start in range(0, len(table), size):
            rows = slice(start, start + size)
            metrics[0].update(logits[rows], labels[rows])
            metrics[1].update(logits[rows], labels[rows])
            metrics[2].update(logits[rows], labels[rows], users[rows])
    torch.testing.assert_close(whole[0].compute(), parts[0].compute(), rtol=1e-12, atol=0, equal_nan=True)
    torch.testing.assert_close(whole[1].compute(), parts[1].compute(), rtol=0, atol=0, equal_nan=True)
    np.testing.assert_array_equal(whole[2].compute(), parts[2].compute())


def test_against_scikit_learn_and_torchmetrics():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(5000, 2)).astype(np.float32)
    labels = generator.random((5000, 2)) < 1 / (1 + np.exp(-logits))
    ne, auc = NormalizedEntropy(2), AUC()
    ne.update(torch.tensor(logits), torch.tensor(labels))
    auc.update(torch.tensor(logits), torch.tensor(labels))
    for task in range(2):
        probability = 1 / (1 + np.exp(-logits[:, task].astype(np.float64)))
        base = np.full(5000, labels[:, task].mean())
        expected = log_loss(labels[:, task], probability) / log_loss(labels[:, task], base)
        assert ne.compute()[task].item() == pytest.approx(expected, rel=1e-12)
        assert auc.compute()[task].item() == pytest.approx(roc_auc_score(labels[:, task], logits[:, task]), rel=1e-12)
        torch_auc = binary_auroc(torch.tensor(probability), torch.tensor(labels[:, task]).long())
        assert auc.compute()[task].item() == pytest.approx(torch_auc.item(), abs=1e-6)


def test_predicting_the_base_rate_gives_one():
    labels = torch.tensor([[1], [0], [0], [0]])
    ne = NormalizedEntropy(1)
    ne.update(torch.full((4, 1), math.log(0.25 / 0.75)), labels)
    assert ne.compute().item() == pytest.approx(1, abs=1e-7)


def test_extreme_logits_stay_finite_and_distinct():
    logits = torch.tensor([[80.0], [90.0], [-200.0], [-1000.0]])
    labels = torch.tensor([[1], [0], [0], [1]])
    ne, auc = NormalizedEntropy(1), AUC()
    ne.update(logits, labels)
    auc.update(logits, labels)
    assert ne.compute().item() == pytest.approx((90 + 1000) / 4 / math.log(2))
    # 80 < 90 is a lost pair, which a float32 sigmoid would turn into a tie
    assert auc.compute().item() == 0.25


def test_single_class_task_is_undefined():
    for label in (0, 1):
        ne, auc, gauc = NormalizedEntropy(1), AUC(), GroupedAUC()
        logits, labels = torch.randn(3, 1), torch.full((3, 1), label)
        ne.update(logits, labels)
        auc.update(logits, labels)
        gauc.update(logits, labels, torch.tensor([5, 5, 6]))
        assert torch.isnan(ne.compute()).all()
        assert torch.isnan(auc.compute()).all()
        assert math.isnan(gauc.compute()[0].value)
        assert gauc.compute()[0].num_skipped == 2


def test_all_positive_user_is_skipped_not_scored_zero():
    found = grouped_auc(np.array([0.9, 0.1, 0.5]), np.array([1, 0, 1]), np.array([1, 1, 2]))
    assert (found.value, found.num_groups, found.num_skipped) == (1.0, 1, 1)


def test_entropy_at_the_ends():
    assert entropy(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)).tolist() == pytest.approx([0, math.log(2), 0])


def test_group_mean_leaves_out_tasks_without_a_value():
    assert group_mean({"a": 0.8, "b": None, "c": 0.6}, ["a", "b", "c"]) == pytest.approx(0.7)
    assert group_mean({"a": 0.8, "b": None}, ["b"]) is None
