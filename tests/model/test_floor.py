import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.floor import Impressions, encode, floor_logits, read_impressions, smoothed_rates
from model.metrics import rank_auc

labelled_keys = st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=30)


@given(labelled_keys, st.lists(st.integers(-2, 6), max_size=10), st.sampled_from([1.0, 20.0]))
def test_rates_leave_the_own_row_out(rows, evaluation, smoothing):
    keys, labels = (np.array(column) for column in zip(*rows, strict=True))
    labels = labels.astype(float)
    train, held_out = smoothed_rates(encode(keys, np.array(evaluation, int)), labels, smoothing)
    for row in range(len(rows)):
        others = np.arange(len(rows)) != row
        same = others & (keys == keys[row])
        expected = (labels[same].sum() + smoothing * labels[others].mean()) / (same.sum() + smoothing)
        assert train[row] == pytest.approx(expected)
    for row, key in enumerate(evaluation):
        same = keys == key
        expected = (labels[same].sum() + smoothing * labels.mean()) / (same.sum() + smoothing)
        assert held_out[row] == pytest.approx(expected)


def impressions(generator, num_rows, rates):
    """Items with the given rates; users are noise."""
    item = generator.integers(len(rates), size=num_rows)
    labels = generator.random(num_rows) < rates[item]
    return Impressions((generator.integers(num_rows, size=num_rows), item), labels.astype(np.int64))


def test_floor_finds_item_rates_and_is_not_misled_by_users_seen_once():
    generator = np.random.default_rng(0)
    rates = generator.uniform(0.02, 0.4, size=30)
    train, evaluation = (impressions(generator, 8000, rates) for _ in range(2))
    [logits] = floor_logits(train, evaluation, [0], smoothing=20.0)
    best = rank_auc(rates[evaluation.keys[1]], evaluation.labels(0))
    assert rank_auc(logits, evaluation.labels(0)) > best - 0.01
    # calibrated: rates of training rows that held their own label would be too extreme
    assert (1 / (1 + np.exp(-logits))).mean() == pytest.approx(evaluation.labels(0).mean(), rel=0.1)


def test_nothing_can_be_fitted_without_both_classes():
    generator = np.random.default_rng(0)
    few = Impressions((np.arange(50),), np.array([1] + [0] * 49))
    none = Impressions((np.arange(0),), np.zeros(0, np.int64))
    evaluation = impressions(generator, 10, np.array([0.5]))
    evaluation = Impressions(evaluation.keys[:1], evaluation.action_mask_C)
    assert floor_logits(few, evaluation, [0, 1], smoothing=20.0) == [None, None]
    assert floor_logits(none, evaluation, [0], smoothing=20.0) == [None]


def test_impressions_are_every_candidate_in_reader_order_whatever_the_sharding(tmp_path, make_content, write_dataset):
    content = make_content(seed=2)
    for num_shards in (1, 3):
        dataset = write_dataset(tmp_path / str(num_shards), content, num_shards)
        for split in (0, 1):
            requests = sorted((r for r in content.requests if r["split"] == split), key=lambda r: r["request_id"])
            rows = [(r, event) for r in requests for event in r["candidates"]]
            found = read_impressions(dataset, split)
            users, items, surfaces = found.keys
            assert users.tolist() == [content.users[r["user_row"]]["user_id"] for r, _ in rows]
            assert items.tolist() == [event["item_id"] for _, event in rows]
            assert surfaces.tolist() == [event["surface"] for _, event in rows]
            assert found.action_mask_C.tolist() == [event["action_mask"] for _, event in rows]
            like = [float(event["action_mask"] & 2 > 0) for _, event in rows]
            assert found.labels(1).tolist() == like
