"""Probes from events to predictions: nothing that happens with or after a request may change its scores."""

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml

from features.config import FeaturesConfig
from features.schema import EVENTS
from features.shard import ShardEncoder, build_shard
from features.side import SideCodes
from features.spec import CategoricalField, FeatureSpec
from features.vocabulary import Vocabulary, VocabularySet
from model.config import ModelConfig
from model.ranker import Ranker
from model.reader import Reader
from model.stage import max_lengths

PARAMS = Path(__file__).parents[2] / "params.yaml"
CUT_MS = 400_000
LATER_MS = 800_000


@pytest.fixture
def features():
    document = yaml.safe_load(PARAMS.read_text())["features"]
    return FeaturesConfig.model_validate(document | {"item_categories": [], "user_categories": []})


@pytest.fixture
def encoder(features):
    fields = {"user": range(20), "item": range(30), "surface": range(3)}
    keys = {field: pa.array(list(values), pa.int64()) for field, values in fields.items()}
    return ShardEncoder(
        features=features,
        timezone="Asia/Shanghai",
        cut_ms=CUT_MS,
        vocabularies=VocabularySet(tuple(Vocabulary(f, k, np.ones(len(k), np.int64)) for f, k in keys.items())),
        items=SideCodes(np.zeros(0, np.int64), ()),
        users=SideCodes(np.zeros(0, np.int64), ()),
    )


def random_events(seed, num_rows, times):
    """Rows of EVENTS; a coarse clock makes pages that share a timestamp."""
    rng = random.Random(seed)
    rows = []
    for number in range(num_rows):
        row = {"user_id": rng.randrange(12), "item_id": rng.randrange(35), "timestamp_ms": rng.choice(times)}
        row |= {
            "action_mask": rng.choice([0, 1, 3, 64, 65, 67]),
            "watch_ms": rng.randrange(30_000),
            "duration_ms": 9000,
        }
        rows.append(row | {"value": None, "surface": rng.randrange(4), "source_order": number + (seed << 40)})
    return rows


@pytest.fixture
def predict(tmp_path, features, encoder, write_tables):
    """A function from events to {request_id: logits}, by one untrained model with every kind of token."""
    document = yaml.safe_load(PARAMS.read_text())["model"]
    config = ModelConfig.model_validate(document | {"dim": 16, "qk_dim": 8, "v_dim": 8, "contextual": [["user"]]})

    def fields(**sizes):
        return tuple(CategoricalField(name=name, size=size) for name, size in sizes.items())

    spec = FeatureSpec(
        actions=features.actions,
        streams=tuple(features.streams),
        item_fields=fields(item=32),
        user_fields=fields(user=22),
        token_contexts=fields(surface=5, hour=25, weekday=8, duration=64, gap=32),
        candidate_contexts=fields(surface=5, hour=25, weekday=8, duration=64),
        intensity_size=64,
    )
    torch.manual_seed(0)
    ranker = Ranker(config, spec).eval()
    with torch.no_grad():
        for weight in (*ranker.table_state().values(), ranker.heads.weight):
            weight.normal_()

    @torch.no_grad()
    def predict(rows, until_ms):
        tables = build_shard(pa.Table.from_pylist(rows, EVENTS), encoder)
        directory = tmp_path / f"streams-{len(list(tmp_path.iterdir()))}"
        dataset = write_tables(directory, [(tables.users, tables.requests)], spec)
        found = {}
        for split in (0, 1):
            # one request a batch: another batch shape may round differently
            reader = Reader(dataset, split=split, batch_size=1, max_lengths=max_lengths(config, spec))
            for batch in reader:
                if batch.request_ms_B.item() <= until_ms:
                    found[batch.request_id_B.item()] = ranker(batch).logits_CK
        return found

    return predict


def assert_bit_identical(found, expected):
    assert found.keys() == expected.keys()
    for request_id, logits in expected.items():
        assert torch.equal(found[request_id], logits), f"request {request_id}"


def test_later_events_change_no_earlier_prediction(predict):
    past = random_events(1, 300, times=range(0, LATER_MS, 20_000))
    future = random_events(2, 200, times=range(LATER_MS, 2 * LATER_MS, 20_000))
    before = predict(past, until_ms=LATER_MS - 1)
    assert len(before) > 100
    assert_bit_identical(predict(past + future, until_ms=LATER_MS - 1), before)


@pytest.mark.parametrize("from_ms", [200_000, LATER_MS - 20_000])
def test_flipping_the_actions_of_candidates_changes_no_prediction_up_to_them(predict, from_ms):
    rows = random_events(1, 300, times=range(0, LATER_MS, 20_000))

    def flipped(row):
        changed = {"action_mask": row["action_mask"] ^ 0b1111, "watch_ms": 29_000 - row["watch_ms"] // 2}
        return row | changed if row["timestamp_ms"] >= from_ms else row

    # every event from there on is a candidate, the newest page of each user included
    before = predict(rows, until_ms=from_ms)
    assert_bit_identical(predict([flipped(row) for row in rows], until_ms=from_ms), before)


def test_the_probe_sees_history(predict):
    rows = random_events(1, 300, times=range(0, LATER_MS, 20_000))
    changed = [row | {"action_mask": row["action_mask"] ^ 1} if row["timestamp_ms"] == 0 else row for row in rows]
    before, after = predict(rows, until_ms=LATER_MS), predict(changed, until_ms=LATER_MS)
    assert any(not torch.equal(before[request_id], after[request_id]) for request_id in before)
