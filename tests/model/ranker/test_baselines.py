from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from kernels import AttentionMask, lengths_to_offsets
from kernels.reference import dense_mask
from model.baselines.attention import causal_mask
from model.baselines.jagged import length_groups, rows_of, write_back
from model.batch import UIHStream
from model.config import Kind
from model.loss import ranking_loss
from model.ranker import Ranker
from model.training.optim import Optimizer, OptimizerSettings

KINDS = get_args(Kind)
SETTINGS = OptimizerSettings(dense_learning_rate=0.01, table_learning_rate=0.05, weight_decay=0.0)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def make_ranker(make_config, spec):
    """A ranker whose tokens and heads are large enough to matter."""

    def make(**changes):
        torch.manual_seed(0)
        ranker = Ranker(make_config(**changes), spec)
        with torch.no_grad():
            for weight in ranker.table_state().values():
                weight.normal_()
            ranker.heads.weight.normal_()
        return ranker.eval()

    return make


def requests_of(batch, chosen):
    """The batch of some of its requests, in the given order."""

    def some(carrier):
        offsets = carrier.offsets_B1.tolist()
        rows = torch.tensor([row for b in chosen for row in range(offsets[b], offsets[b + 1])], dtype=torch.int64)
        lengths = carrier.offsets_B1.diff()[chosen]
        values = {name: value[rows] for name, value in vars(carrier).items() if name not in ("offsets_B1", "lengths")}
        if isinstance(carrier, UIHStream):
            values["lengths"] = tuple(lengths.tolist())
        return replace(carrier, offsets_B1=lengths_to_offsets(lengths), **values)

    return replace(
        batch,
        request_id_B=batch.request_id_B[chosen],
        user_id_B=batch.user_id_B[chosen],
        request_ms_B=batch.request_ms_B[chosen],
        users_BF=batch.users_BF[chosen],
        streams=tuple(some(stream) for stream in batch.streams),
        candidates=some(batch.candidates),
    )


LENGTHS = st.lists(st.tuples(st.integers(0, 24), st.integers(0, 8), st.integers(0, 4)), min_size=1, max_size=5)


@given(lengths=LENGTHS, data=st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("contextual", [[["user"], ["level", "city"]], []])
def test_a_score_does_not_depend_on_batch_mates(kind, contextual, make_ranker, make_batch, lengths, data):
    ranker = make_ranker(kind=kind, contextual=contextual)
    batch = make_batch(*(list(column) for column in zip(*lengths, strict=True)))
    order = data.draw(st.permutations(range(len(lengths))))
    chosen = order[: data.draw(st.integers(1, len(order)))]
    together = ranker(batch).logits_CK.split(batch.candidates.offsets_B1.diff().tolist())
    alone = ranker(requests_of(batch, chosen)).logits_CK
    expected = torch.cat([together[request] for request in chosen])
    torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-4)


def test_a_candidate_does_not_feel_the_others(kind, make_ranker, make_batch):
    ranker = make_ranker(kind=kind)
    batch = make_batch([9, 3], [3, 0], [4, 2])
    items = batch.candidates.items_CF.clone()
    items[2] = (items[2] + 1) % torch.tensor([40, 12], dtype=torch.int32)
    changed = replace(batch, candidates=replace(batch.candidates, items_CF=items))
    before, after = ranker(batch).logits_CK, ranker(changed).logits_CK
    others = torch.tensor([0, 1, 3, 4, 5])
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[2], after[2])


def test_predictions_never_see_the_candidates_actions(kind, make_ranker, make_batch):
    ranker = make_ranker(kind=kind)
    batch = make_batch([5, 0], [2, 0], [3, 2])
    labels = {
        "action_mask_C": ~batch.candidates.action_mask_C,
        "watch_ratio_C": batch.candidates.watch_ratio_C + 1,
    }
    flipped = replace(batch, candidates=replace(batch.candidates, **labels))
    assert torch.equal(ranker(batch).logits_CK, ranker(flipped).logits_CK)


@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize("column", ["items_TF", "action_mask_T", "intensity_T", "contexts_TX", "timestamp_ms_T"])
def test_history_matters(kind, make_ranker, make_batch, stream, column):
    ranker = make_ranker(kind=kind)
    batch = make_batch([4], [4], [2])
    values = getattr(batch.streams[stream], column)
    other = values - 10**7 if column == "timestamp_ms_T" else (values + 1) % 4
    streams = list(batch.streams)
    streams[stream] = replace(streams[stream], **{column: other})
    changed = ranker(replace(batch, streams=tuple(streams))).logits_CK
    assert not torch.allclose(ranker(batch).logits_CK, changed, atol=1e-6)


@pytest.mark.parametrize(
    ("encoding", "heard", "unheard"),
    [
        ("heterogeneous", ("action_mask_T", "intensity_T"), ()),
        ("type", ("action_mask_T",), ("intensity_T",)),
        ("none", (), ("action_mask_T", "intensity_T")),
    ],
)
@pytest.mark.parametrize("kind", ["ultra_hstu", "hstu"])
def test_the_action_encoding_tells_no_more_than_it_says(kind, encoding, heard, unheard, make_ranker, make_batch):
    ranker = make_ranker(kind=kind, action_encoding=encoding)
    batch = make_batch([4], [4], [2])
    before = ranker(batch).logits_CK
    for column in (*heard, *unheard):
        streams = tuple(replace(stream, **{column: (getattr(stream, column) + 1) % 4}) for stream in batch.streams)
        assert torch.equal(before, ranker(replace(batch, streams=streams)).logits_CK) == (column in unheard)


@pytest.mark.parametrize(
    ("consumption", "interaction", "candidates"),
    [([], [], []), ([0], [0], [1]), ([0, 0], [0, 0], [2, 3]), ([5, 1], [1, 0], [0, 0]), ([1], [0], [0])],
)
@pytest.mark.parametrize("contextual", [[["user"], ["level", "city"]], []])
def test_a_step_on_next_to_nothing(
    kind, make_ranker, make_batch, spec, consumption, interaction, candidates, contextual
):
    ranker = make_ranker(kind=kind, contextual=contextual).train()
    optimizer = Optimizer(ranker, SETTINGS)
    batch = make_batch(consumption, interaction, candidates)
    predictions = ranker(batch)
    assert predictions.logits_CK.shape == (sum(candidates), 2)
    ranking_loss(predictions, batch.candidates, ranker.config, spec).total.backward()
    optimizer.clip(1.0)
    optimizer.step()
    state = (*ranker.dense_state().values(), *ranker.table_state().values())
    assert all(value.isfinite().all() for value in state)


def test_more_history_than_the_maximum_is_refused(kind, make_ranker, make_batch):
    with pytest.raises(ValueError, match="longer than the stream's max_length"):
        make_ranker(kind=kind)(make_batch([25], [1], [1]))


def test_every_parameter_learns(kind, make_ranker, make_batch, spec):
    ranker = make_ranker(kind=kind).train()
    optimizer = Optimizer(ranker, SETTINGS)
    batch = make_batch([24, 12, 3] * 20, [8, 5, 1] * 20, [6, 2, 3] * 20)
    dense = {name: value.clone() for name, value in ranker.dense_state().items()}
    ranking_loss(ranker(batch), batch.candidates, ranker.config, spec).total.backward()
    optimizer.step()
    for name, value in ranker.dense_state().items():
        # A key's bias moves all logits of a softmax alike: its gradient is rounding, which may be 0.
        if not (kind in ("transformer", "sasrec", "stca") and name.endswith(("qkv.bias", "key_value.bias"))):
            assert (value != dense[name]).float().mean() > 0.9, name


def test_one_batch_is_learnt_by_heart(kind, make_config, make_batch, spec):
    torch.manual_seed(0)
    ranker = Ranker(make_config(kind=kind), spec).train()
    optimizer = Optimizer(ranker, SETTINGS)
    batch = make_batch([24, 3, 0, 11] * 4, [2, 8, 1, 0] * 4, [3, 1, 2, 2] * 4)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = ranking_loss(ranker(batch), batch.candidates, ranker.config, spec)
        loss.total.backward()
        optimizer.step()
        losses.append(loss.total.item())
    assert losses[0] == pytest.approx(0.693, abs=0.02)
    assert losses[-1] < 0.1 * losses[0]


def test_a_misspelt_kind_is_refused(make_config):
    with pytest.raises(ValidationError, match="kind"):
        make_config(kind="sasrek")


@given(
    num_contextual=st.integers(0, 3),
    shape=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=4),
)
@settings(max_examples=50, deadline=None)
def test_the_causal_mask_is_that_of_full_causal_hstu(num_contextual, shape):
    lengths = torch.tensor([num_contextual + history + candidates for history, candidates in shape])
    if int(lengths.max()) == 0:
        return
    begin = torch.tensor([num_contextual + history for history, _ in shape])
    exists = torch.arange(int(lengths.max())) < lengths[:, None]
    masks = causal_mask(exists, begin, num_contextual)
    for (history, candidates), mask in zip(shape, masks, strict=True):
        length = num_contextual + history + candidates
        expected = dense_mask(length, num_contextual, candidates, AttentionMask(length, 0))
        assert torch.equal(mask[:length, :length], expected)
        assert not mask[:length, length:].any()
        assert mask.any(dim=1).all()


@given(st.lists(st.integers(0, 70), max_size=8))
@settings(max_examples=50, deadline=None)
def test_groups_read_each_row_once_and_write_it_back(lengths):
    offsets = lengths_to_offsets(torch.tensor(lengths, dtype=torch.int64))
    values = torch.arange(1.0, 2 * sum(lengths) + 1).reshape(-1, 2)
    parts = []
    for requests in length_groups(offsets.diff()):
        rows = rows_of(offsets, requests)
        read = rows.read(values)
        assert (read[~rows.exists_GN] == 0).all()
        parts.append((read, rows))
    assert torch.equal(write_back(parts, like=values), values)
