from dataclasses import replace

import pytest
import torch

from features.errors import DataError
from model.batch import UIHStream
from model.loss import ranking_loss
from model.ranker import Ranker
from model.training.optim import Optimizer, OptimizerSettings

SETTINGS = OptimizerSettings(dense_learning_rate=0.01, table_learning_rate=0.05, weight_decay=0.0)


@pytest.fixture
def make_ranker(make_config, spec):
    """A ranker whose tokens, attention and heads are all large enough to matter."""

    def make(**changes):
        torch.manual_seed(0)
        ranker = Ranker(make_config(**changes), spec)
        with torch.no_grad():
            for weight in ranker.table_state().values():
                weight.normal_()
            ranker.heads.weight.normal_()
        return ranker.eval()

    return make


def only(batch, request):
    """The batch of one request."""

    def rows(offsets):
        return slice(int(offsets[request]), int(offsets[request + 1]))

    def alone(carrier):
        part = rows(carrier.offsets_B1)
        values = {name: value[part] for name, value in vars(carrier).items() if name not in ("offsets_B1", "lengths")}
        if isinstance(carrier, UIHStream):
            values["lengths"] = (part.stop - part.start,)
        return replace(carrier, offsets_B1=torch.tensor([0, part.stop - part.start]), **values)

    one = slice(request, request + 1)
    return replace(
        batch,
        request_id_B=batch.request_id_B[one],
        user_id_B=batch.user_id_B[one],
        request_ms_B=batch.request_ms_B[one],
        users_BF=batch.users_BF[one],
        streams=tuple(alone(stream) for stream in batch.streams),
        candidates=alone(batch.candidates),
    )


def with_candidates(batch, **changes):
    return replace(batch, candidates=replace(batch.candidates, **changes))


ONE_STREAM = {
    "streams": {
        "interaction": {"max_length": 8, "num_layers": 2, "local_window": 2, "global_window": 1, "pyramid": [[1, 2]]}
    }
}


@pytest.mark.parametrize("changes", [{}, {"global_axis": "keys"}, ONE_STREAM, {"contextual": []}])
def test_a_score_does_not_depend_on_batch_mates(make_ranker, make_batch, changes):
    ranker = make_ranker(**changes)
    batch = make_batch([2, 24, 0, 7], [0, 8, 1, 3], [3, 2, 4, 1])
    together = ranker(batch).logits_CK
    alone = torch.cat([ranker(only(batch, request)).logits_CK for request in range(4)])
    assert together.std() > 0.1
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_a_candidate_does_not_feel_the_others(make_ranker, make_batch):
    ranker = make_ranker()
    batch = make_batch([9], [3], [4])
    items = batch.candidates.items_CF.clone()
    items[2] = (items[2] + 1) % torch.tensor([40, 12], dtype=torch.int32)
    before, after = ranker(batch).logits_CK, ranker(with_candidates(batch, items_CF=items)).logits_CK
    others = torch.tensor([0, 1, 3])
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[2], after[2])


def test_predictions_never_see_the_candidates_actions(make_ranker, make_batch):
    ranker = make_ranker()
    batch = make_batch([5, 0], [2, 0], [3, 2])
    flipped = with_candidates(
        batch, action_mask_C=~batch.candidates.action_mask_C, watch_ratio_C=batch.candidates.watch_ratio_C + 1
    )
    assert torch.equal(ranker(batch).logits_CK, ranker(flipped).logits_CK)


@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize("column", ["items_TF", "action_mask_T", "intensity_T", "contexts_TX", "timestamp_ms_T"])
def test_history_matters(make_ranker, make_batch, stream, column):
    ranker = make_ranker()
    batch = make_batch([4], [4], [2])
    values = getattr(batch.streams[stream], column)
    other = values - 10**7 if column == "timestamp_ms_T" else (values + 1) % 4
    streams = list(batch.streams)
    streams[stream] = replace(streams[stream], **{column: other})
    assert not torch.equal(ranker(batch).logits_CK, ranker(replace(batch, streams=tuple(streams))).logits_CK)


@pytest.mark.parametrize(
    ("consumption", "interaction", "candidates"),
    [([], [], []), ([0], [0], [1]), ([0, 0], [0, 0], [2, 3]), ([5, 1], [1, 0], [0, 0]), ([1], [0], [0])],
)
@pytest.mark.parametrize("changes", [{}, ONE_STREAM, {"contextual": []}])
def test_a_step_on_next_to_nothing(make_ranker, make_batch, spec, consumption, interaction, candidates, changes):
    ranker = make_ranker(**changes).train()
    optimizer = Optimizer(ranker, SETTINGS)
    batch = make_batch(consumption, interaction, candidates)
    predictions = ranker(batch)
    assert predictions.logits_CK.shape == (sum(candidates), 2)
    ranking_loss(predictions, batch.candidates, ranker.config, spec).total.backward()
    optimizer.clip(1.0)
    optimizer.step()
    state = (*ranker.dense_state().values(), *ranker.table_state().values())
    assert all(value.isfinite().all() for value in state)


def test_more_history_than_the_maximum_is_refused(make_ranker, make_batch):
    with pytest.raises(ValueError, match="longer than the stream's max_length"):
        make_ranker()(make_batch([25], [1], [1]))


def test_every_parameter_learns(make_ranker, make_batch, spec):
    heads = {"tasks": ["click", "like"], "hidden_dim": 8, "watch_ratio_weight": 0.5}
    ranker = make_ranker(heads=heads).train()
    optimizer = Optimizer(ranker, SETTINGS)
    batch = make_batch([24, 12, 3] * 20, [8, 5, 1] * 20, [6, 2, 3] * 20)
    dense = {name: value.clone() for name, value in ranker.dense_state().items()}
    tables = {name: value.clone() for name, value in ranker.table_state().items()}
    ranking_loss(ranker(batch), batch.candidates, ranker.config, spec).total.backward()
    optimizer.step()
    for name, value in ranker.dense_state().items():
        assert (value != dense[name]).float().mean() > 0.95, name
    for name, value in ranker.table_state().items():
        changed = (value != tables[name]).any(dim=1)
        if name.endswith((".position", ".age")):
            # Only the buckets that this batch's lengths and ages fall into.
            assert changed.sum() > 5, name
        else:
            assert changed[1:].float().mean() > 0.9, name
            assert name.endswith(".action") or not changed[0], name


@pytest.mark.parametrize("changes", [{}, {"global_axis": "keys"}, ONE_STREAM])
def test_one_batch_is_learnt_by_heart(make_config, make_batch, spec, changes):
    torch.manual_seed(0)
    ranker = Ranker(make_config(**changes), spec).train()
    optimizer = Optimizer(ranker, SETTINGS)
    batch = make_batch([24, 3, 0, 11] * 4, [2, 8, 1, 0] * 4, [3, 1, 2, 2] * 4)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = ranking_loss(ranker(batch), batch.candidates, ranker.config, spec)
        loss.total.backward()
        optimizer.step()
        losses.append(loss.total.item())
    assert losses[0] == pytest.approx(0.693, abs=0.02)
    assert losses[-1] < 0.1 * losses[0]


def test_same_seed_same_model(make_config, make_batch, spec):
    def trained():
        torch.manual_seed(5)
        ranker = Ranker(make_config(dropout=0.2), spec).train()
        optimizer = Optimizer(ranker, SETTINGS)
        for seed in range(3):
            batch = make_batch([7, 2], [3, 0], [2, 2], seed=seed)
            optimizer.zero_grad()
            ranking_loss(ranker(batch), batch.candidates, ranker.config, spec).total.backward()
            optimizer.step()
        return ranker.dense_state() | ranker.table_state()

    first, second = trained(), trained()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_fp32_agrees_with_fp64(make_ranker, make_batch):
    ranker = make_ranker()
    batch = make_batch([24, 3], [8, 0], [3, 2])
    tokens = ranker.embeddings(batch)
    single = ranker.heads(ranker.transducers(tokens)).logits_CK

    def double(part):
        return replace(part, values_TD=part.values_TD.double())

    histories = {name: double(part) for name, part in tokens.histories.items()}
    tokens = replace(
        tokens, contextual=double(tokens.contextual), histories=histories, candidates=double(tokens.candidates)
    )
    exact = ranker.heads.double()(ranker.transducers.double()(tokens)).logits_CK
    assert exact.dtype == torch.float64
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-5)


def test_scoring_without_autograd_gives_the_same(make_ranker, make_batch):
    ranker = make_ranker()
    batch = make_batch([5, 0], [2, 1], [3, 1])
    expected = ranker(batch).logits_CK
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(ranker(batch).logits_CK, expected)


def test_state_moves_to_another_model(make_ranker, make_config, make_batch, spec):
    ranker = make_ranker()
    torch.manual_seed(9)
    other = Ranker(make_config(), spec).eval()
    batch = make_batch([5], [2], [3])
    assert not torch.equal(other(batch).logits_CK, ranker(batch).logits_CK)
    other.load_state(ranker.dense_state(), ranker.table_state())
    assert torch.equal(other(batch).logits_CK, ranker(batch).logits_CK)


def test_state_of_another_model_is_refused(make_ranker):
    ranker, other = make_ranker(), make_ranker(**ONE_STREAM)
    with pytest.raises(DataError, match="dense parameter 'transducers"):
        ranker.load_state(other.dense_state(), other.table_state())
    tables = ranker.table_state() | {"item.item": torch.zeros(41, 16)}
    with pytest.raises(DataError, match=r"'item\.item' is \(41, 16\), the model's \(40, 16\)"):
        ranker.load_state(ranker.dense_state(), tables)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"impl": "triton"}, r"model\.impl: 'triton' needs the device cuda"),
        ({"compute": "bf16"}, r"model\.compute: 'bf16' needs the device cuda; the CPU runs 'fp32'"),
        ({"compute": "bf16", "gemm": "fp8"}, r"model\.gemm: 'fp8' needs the device cuda; the CPU runs 'bf16'"),
    ],
)
def test_what_the_device_cannot_compute_is_refused_at_once(make_config, spec, changes, message):
    with pytest.raises(DataError, match=message):
        Ranker(make_config(**changes), spec)
