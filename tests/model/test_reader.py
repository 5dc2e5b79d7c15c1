import pickle
import sys
from dataclasses import fields
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from features.errors import DataError
from model.batch import Batch, Candidates, UIHStream
from model.gather import ragged_arange
from model.reader import BatchSource, Reader
from model.training.distributed import World
from model.training.lbsl import LoadBalancer
from model.training.train_config import SamplingConfig

TRAIN, EVALUATION = 0, 1


def assert_same(found, expected):
    """Equal carriers, dtypes and shapes included; NaN equals NaN."""
    if isinstance(expected, Tensor):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    elif isinstance(expected, tuple):
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif expected is None or isinstance(expected, int):
        assert found == expected
    else:
        for part in fields(expected):
            assert_same(getattr(found, part.name), getattr(expected, part.name))


def offsets(rows):
    return torch.tensor([0, *np.cumsum([len(row) for row in rows])], dtype=torch.int64)


def matrix(events, names):
    return torch.tensor([[event[name] for name in names] for event in events], dtype=torch.int32).reshape(
        -1, len(names)
    )


def read_by_hand(content, requests, max_lengths):
    """The batch of `requests`, written as plainly as possible."""
    spec = content.spec
    users = [content.users[request["user_row"]] for request in requests]
    item_names = [field.name for field in spec.item_fields]
    streams = []
    for stream, max_length in zip(spec.streams, max_lengths, strict=True):
        rows = [u[stream][r[f"{stream}_start"] :][:max_length] for u, r in zip(users, requests, strict=True)]
        events = [event for row in rows for event in row]
        streams.append(
            UIHStream(
                offsets_B1=offsets(rows),
                lengths=tuple(map(len, rows)),
                items_TF=matrix(events, item_names),
                timestamp_ms_T=torch.tensor([event["timestamp_ms"] for event in events], dtype=torch.int64),
                action_mask_T=torch.tensor([event["action_mask"] for event in events], dtype=torch.int64),
                intensity_T=torch.tensor([event["intensity"] for event in events], dtype=torch.int32),
                contexts_TX=matrix(events, [field.name for field in spec.token_contexts]),
            )
        )
    events = [event for request in requests for event in request["candidates"]]
    return Batch(
        request_id_B=torch.tensor([r["request_id"] for r in requests], dtype=torch.int64),
        user_id_B=torch.tensor([u["user_id"] for u in users], dtype=torch.int64),
        request_ms_B=torch.tensor([r["request_ms"] for r in requests], dtype=torch.int64),
        users_BF=matrix(users, [field.name for field in spec.user_fields]),
        streams=tuple(streams),
        candidates=Candidates(
            offsets_B1=offsets([request["candidates"] for request in requests]),
            items_CF=matrix(events, item_names),
            contexts_CX=matrix(events, [field.name for field in spec.candidate_contexts]),
            action_mask_C=torch.tensor([event["action_mask"] for event in events], dtype=torch.int64),
            watch_ratio_C=torch.tensor([event["watch_ratio"] for event in events], dtype=torch.float32),
        ),
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("max_lengths", [(1000, 1000), (5, 0), (1, 3)])
@pytest.mark.parametrize("min_mean_slice", [0, 1000], ids=["by slice", "by index"])
def test_batches_equal_plain_reading(
    tmp_path, monkeypatch, make_content, write_dataset, seed, num_shards, max_lengths, min_mean_slice
):
    monkeypatch.setattr("model.gather.MIN_MEAN_SLICE", min_mean_slice)
    content = make_content(seed)
    dataset = write_dataset(tmp_path / "streams", content, num_shards)
    for split in (TRAIN, EVALUATION):
        expected = sorted((r for r in content.requests if r["split"] == split), key=lambda r: r["request_id"])
        batches = list(Reader(dataset, split=split, batch_size=4, max_lengths=max_lengths))
        assert len(batches) == -(-len(expected) // 4)
        for number, batch in enumerate(batches):
            assert_same(batch, read_by_hand(content, expected[4 * number : 4 * number + 4], max_lengths))


def test_shuffled_epochs_hold_every_request_once(tmp_path, make_content, write_dataset):
    content = make_content(seed=3, num_users=40)
    by_id = {request["request_id"]: request for request in content.requests}
    reader = Reader(
        write_dataset(tmp_path / "streams", content, 2), split=TRAIN, batch_size=7, max_lengths=(9, 9), shuffle_seed=1
    )
    orders = []
    for _ in range(2):
        order = []
        for batch in reader:
            requests = [by_id[number] for number in batch.request_id_B.tolist()]
            assert_same(batch, read_by_hand(content, requests, (9, 9)))
            order += batch.request_id_B.tolist()
        assert sorted(order) == sorted(r["request_id"] for r in content.requests if r["split"] == TRAIN)
        orders.append(order)
    assert orders[0] != orders[1]


def test_batches_do_not_depend_on_sharding(tmp_path, make_content, write_dataset):
    content = make_content(seed=4)
    one, three = (
        Reader(write_dataset(tmp_path / str(n), content, n), split=0, batch_size=3, max_lengths=(9, 9), shuffle_seed=1)
        for n in (1, 3)
    )
    for found, expected in zip(one, three, strict=True):
        assert_same(found, expected)


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 7])
def test_state_resumes_at_the_next_batch(tmp_path, make_content, write_dataset, stop):
    dataset = write_dataset(tmp_path / "streams", make_content(seed=5), 2)

    def reader():
        return Reader(dataset, split=TRAIN, batch_size=2, max_lengths=(9, 9), shuffle_seed=1)

    def run(reader, count):
        found = []
        while len(found) < count:
            for batch in reader:
                found.append(batch)
                if len(found) == count:
                    break
        return found

    straight = run(reader(), 12)
    first = reader()
    run(first, stop)
    second = reader()
    second.load_state_dict(first.state_dict())
    for found, expected in zip(run(second, 12 - stop), straight[stop:], strict=True):
        assert_same(found, expected)


def test_what_is_prepared_ahead_does_not_count_as_delivered(tmp_path, make_content, write_dataset):
    dataset = write_dataset(tmp_path, make_content(seed=5))
    settings = {"split": TRAIN, "batch_size": 2, "max_lengths": (9, 9), "shuffle_seed": 3}
    expected = list(Reader(dataset, **settings))
    reader, prepared, watched = Reader(dataset, **settings), [], []

    def prepare(batch):
        prepared.append(batch)
        return len(prepared) - 1

    def watch(batches):
        for batch in batches:
            watched.append(batch)
            yield batch

    for number in reader.ahead(prepare, lambda number: number, watch=watch):
        assert_same(prepared[number], expected[number])
        assert len(prepared) == len(watched) == min(number + 2, len(expected))
        if number == 1:
            break
    assert_same(next(iter(reader)), expected[2])


def test_workers_give_the_same_batches_and_resume(tmp_path, make_content, write_dataset):
    dataset = write_dataset(tmp_path / "streams", make_content(seed=6, num_users=30), 2)
    alone, workers = (
        Reader(dataset, split=TRAIN, batch_size=4, max_lengths=(9, 9), shuffle_seed=1, num_workers=n) for n in (0, 2)
    )
    random_state = torch.get_rng_state()
    for _ in range(2):
        for found, expected in zip(workers, alone, strict=True):
            assert_same(found, expected)
            assert workers.state_dict() == alone.state_dict()
    iterator = iter(workers)
    next(iterator)
    # workers read ahead; the position counts what was delivered
    assert workers.state_dict() == {"epoch": 2, "position": 1}
    iterator.close()
    alone.load_state_dict(workers.state_dict())
    for found, expected in zip(workers, alone, strict=True):
        assert_same(found, expected)
    torch.testing.assert_close(torch.get_rng_state(), random_state)


class _PolarsProbe(BatchSource):
    def __getitem__(self, key):
        super().__getitem__(key)
        return "polars" in sys.modules


def test_workers_do_not_load_polars(tmp_path, make_content, write_dataset):
    dataset = write_dataset(tmp_path / "streams", make_content(seed=6), 1)
    reader = Reader(dataset, split=TRAIN, batch_size=100, max_lengths=(9, 9), num_workers=1)
    reader._source.__class__ = _PolarsProbe
    assert list(reader) == [False]


def test_batches_are_writable_and_apart_from_the_file(tmp_path, make_content, write_dataset):
    dataset = write_dataset(tmp_path / "streams", make_content(seed=7), 1)
    reader = Reader(dataset, split=TRAIN, batch_size=1000, max_lengths=(9, 9))
    before = dataset.shards[0].users.list("consumption.item").values.copy()
    [batch] = reader
    for tensor in (batch.users_BF, batch.streams[0].items_TF, batch.candidates.action_mask_C, batch.request_id_B):
        tensor.zero_()
    np.testing.assert_array_equal(dataset.shards[0].users.list("consumption.item").values, before)
    [again] = reader
    assert again.streams[0].items_TF.any()


def test_empty_split_gives_no_batches(tmp_path, make_content, write_dataset):
    content = make_content(seed=8)
    content.requests = [request | {"split": TRAIN} for request in content.requests]
    reader = Reader(write_dataset(tmp_path / "s", content, 3), split=EVALUATION, batch_size=4, max_lengths=(9, 9))
    assert (reader.num_requests, reader.num_batches, list(reader)) == (0, 0, [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"consumption_start": 10_000}, "starts outside its user's stream 'consumption'"),
        ({"interaction_start": -1}, "starts outside its user's stream 'interaction'"),
        ({"user_row": 10_000}, "points at a user that is not there"),
        ({"user_row": -1}, "points at a user that is not there"),
    ],
)
def test_request_that_points_nowhere_is_refused(tmp_path, make_content, write_dataset, change, message):
    content = make_content(seed=9)
    bad = content.requests[2]
    bad.update(change)
    reader = Reader(write_dataset(tmp_path / "s", content), split=bad["split"], batch_size=4, max_lengths=(9, 9))
    with pytest.raises(DataError, match=rf"requests\.arrow: request {bad['request_id']} {message}"):
        list(reader)


def test_source_pickles_without_the_mapped_arrays(tmp_path, make_content, write_dataset):
    dataset = write_dataset(tmp_path / "streams", make_content(seed=7, num_users=200), 1)
    source = BatchSource(dataset)
    size = len(pickle.dumps(source))
    _ = source._shards
    assert len(pickle.dumps(source)) == size
    assert size < Path(dataset.shards[0].users.path).stat().st_size


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 6)), max_size=12))
def test_ragged_arange_concatenates_ranges(rows):
    begin, length = (np.array([row[i] for row in rows], np.int64) for i in (0, 1))
    expected = [value for start, count in rows for value in range(start, start + count)]
    assert ragged_arange(begin, length).tolist() == expected


def balancer(kind, max_lengths, num_ranks=1):
    config = SamplingConfig(kind=kind, alpha=1.2, gamma=1.5, warmup_steps=2, recalibrate_every=3, exact_fill=True)
    return LoadBalancer(config, max_lengths, seed=3, num_ranks=num_ranks)


def read_all(reader, epochs=2):
    return [batch for _ in range(epochs) for batch in reader]


@pytest.mark.parametrize("kind", ["sl", "lbsl"])
def test_rule_cuts_histories_to_their_newest_events(tmp_path, make_content, write_dataset, kind):
    content = make_content(seed=8, num_users=40)
    dataset = write_dataset(tmp_path / "streams", content, 2)
    settings = {"split": TRAIN, "batch_size": 7, "max_lengths": (25, 12), "shuffle_seed": 1}
    whole = read_all(Reader(dataset, **settings))
    cut = read_all(Reader(dataset, **settings, rule=balancer(kind, (25, 12))))
    assert len(whole) == len(cut)
    num_cut = 0
    for one, other in zip(whole, cut, strict=True):
        assert one.request_id_B.tolist() == other.request_id_B.tolist()
        for long, short in zip(one.streams, other.streams, strict=True):
            kept_B = short.offsets_B1.diff()
            assert (kept_B <= long.offsets_B1.diff()).all()
            num_cut += int((kept_B < long.offsets_B1.diff()).sum())
            rows = [range(begin, begin + kept) for begin, kept in zip(long.offsets_B1, kept_B, strict=False)]
            newest = torch.tensor([row for part in rows for row in part], dtype=torch.int64)
            assert short.items_TF.tolist() == long.items_TF[newest].tolist()
    assert num_cut > 10


def test_rule_decides_the_same_with_workers_and_after_an_interruption(tmp_path, make_content, write_dataset):
    dataset = write_dataset(tmp_path / "streams", make_content(seed=8, num_users=40), 2)

    def reader(num_workers):
        return Reader(
            dataset,
            split=TRAIN,
            batch_size=5,
            max_lengths=(25, 12),
            shuffle_seed=1,
            num_workers=num_workers,
            rule=balancer("lbsl", (25, 12)),
        )

    expected = read_all(reader(0))
    for num_workers in (0, 1):
        stopped, found = reader(num_workers), []
        for batch in stopped:
            found.append(batch)
            if len(found) == 4:
                break
        resumed = reader(num_workers)
        resumed.load_state_dict(stopped.state_dict())
        resumed.rule_state = stopped.rule_state
        found += read_all(resumed)
        assert_same(tuple(found), tuple(expected))


@pytest.mark.parametrize("num_ranks", [2, 5])
def test_ranks_share_each_batch_in_order(tmp_path, make_content, write_dataset, num_ranks):
    dataset = write_dataset(tmp_path / "streams", make_content(seed=8, num_users=30), 2)

    def requests_of(world):
        reader = Reader(
            dataset,
            split=TRAIN,
            batch_size=4,
            max_lengths=(9, 9),
            shuffle_seed=1,
            world=world,
            rule=balancer("sl", (9, 9)),
        )
        return [
            list(zip(batch.request_id_B.tolist(), batch.streams[0].offsets_B1.diff().tolist(), strict=True))
            for batch in reader
        ]

    whole = requests_of(World())
    parts = [requests_of(World(rank, num_ranks)) for rank in range(num_ranks)]
    assert [list(chain(*step)) for step in zip(*parts, strict=True)] == whole
    assert num_ranks == 2 or all(any(not rank[step] for rank in parts) for step in range(len(whole)))
