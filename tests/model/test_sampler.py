import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import DataError
from model.training.sampler import EpochSampler, epoch_order, history_lengths, index_requests

counts = st.integers(0, 60)


@given(counts, st.integers(1, 20), st.one_of(st.none(), st.integers(0, 9)))
def test_every_request_once_an_epoch_and_only_the_last_batch_is_short(num_requests, batch_size, seed):
    batches = list(EpochSampler(num_requests, batch_size, seed))
    assert sorted(np.concatenate([[], *batches]).tolist()) == list(range(num_requests))
    assert all(batch.size == batch_size for batch in batches[:-1])
    assert len(batches) == len(EpochSampler(num_requests, batch_size, seed))


@given(st.integers(1, 60), st.integers(1, 20), st.data())
def test_resuming_continues_where_it_stood(num_requests, batch_size, data):
    straight = EpochSampler(num_requests, batch_size, seed=3)
    seen = []
    for _ in range(2):
        for batch in straight:
            straight.delivered()
            seen.append(batch.tolist())
    stop = data.draw(st.integers(0, len(seen)))
    epoch, position = divmod(stop, len(straight))
    resumed = EpochSampler(num_requests, batch_size, seed=3, epoch=epoch, position=position)
    rest = []
    while resumed.epoch < 2:
        for batch in resumed:
            resumed.delivered()
            rest.append(batch.tolist())
    assert seen[stop:] == rest


def test_order_is_decided_by_seed_and_epoch():
    orders = [epoch_order(500, seed, epoch).tolist() for seed in (1, 2) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] == epoch_order(500, 1, 0).tolist()


def test_shuffle_mixes_the_whole_range():
    order = epoch_order(10_000, seed=7, epoch=0)
    # requests that were neighbours land a third of the range apart on average
    assert abs(np.abs(np.diff(order)).mean() - 10_000 / 3) < 200


def test_index_does_not_depend_on_sharding(tmp_path, make_content, write_dataset):
    content = make_content(seed=1)
    found = []
    for num_shards in (1, 3):
        dataset = write_dataset(tmp_path / str(num_shards), content, num_shards)
        for split in (0, 1):
            index = index_requests(dataset, split)
            places = zip(index.shard_R, index.row_R, strict=True)
            found.append([int(dataset.shards[s].requests.column("request_id")[row]) for s, row in places])
    assert found[0] == found[2] == sorted(r["request_id"] for r in content.requests if r["split"] == 0)
    assert found[1] == found[3] == sorted(r["request_id"] for r in content.requests if r["split"] == 1)


def test_repeated_request_id_is_refused(tmp_path, make_content, write_dataset):
    content = make_content(seed=1)
    content.requests[1]["request_id"] = content.requests[0]["request_id"]
    content.requests[1]["split"] = content.requests[0]["split"]
    dataset = write_dataset(tmp_path / "streams", content, 2)
    with pytest.raises(DataError, match=f"request_id {content.requests[0]['request_id']} is there twice"):
        index_requests(dataset, content.requests[0]["split"])


def test_history_lengths_count_what_is_older_than_the_request(tmp_path, make_content, write_dataset):
    content = make_content(seed=1)
    dataset = write_dataset(tmp_path / "streams", content, 3)
    expected = {
        request["request_id"]: [
            len(content.users[request["user_row"]][stream]) - request[f"{stream}_start"]
            for stream in ("consumption", "interaction")
        ]
        for request in content.requests
    }
    index = index_requests(dataset, 0)
    ids = [
        int(dataset.shards[shard].requests.column("request_id")[row])
        for shard, row in zip(index.shard_R, index.row_R, strict=True)
    ]
    assert history_lengths(dataset, index).tolist() == [expected[request_id] for request_id in ids]
