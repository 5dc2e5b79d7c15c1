import threading

import pytest
import torch

from features.errors import DataError
from model.loss import ranking_loss
from model.ranker import Ranker
from model.training.optim import Optimizer, OptimizerSettings, backward

SETTINGS = OptimizerSettings(dense_learning_rate=0.01, table_learning_rate=0.05, weight_decay=0.1)


@pytest.fixture
def make_pair(make_config, spec):
    def make(seed=0):
        torch.manual_seed(seed)
        ranker = Ranker(make_config(), spec).train()
        return ranker, Optimizer(ranker, SETTINGS)

    return make


def train(ranker, optimizer, batches):
    for batch in batches:
        optimizer.zero_grad()
        ranking_loss(ranker(batch), batch.candidates, ranker.config, ranker.spec).total.backward()
        optimizer.clip(1.0)
        optimizer.step()


def state_of(ranker, optimizer):
    sums = {f"adagrad/{name}": value for name, value in optimizer.table_state().items()}
    return ranker.dense_state() | ranker.table_state() | optimizer.dense_state() | sums


def test_five_and_five_steps_are_ten(make_pair, make_batch):
    batches = [make_batch([7, 2, 0], [3, 0, 1], [2, 2, 1], seed=seed) for seed in range(10)]
    straight = make_pair()
    train(*straight, batches)
    first = make_pair()
    train(*first, batches[:5])
    saved = [
        {name: value.clone() for name, value in state.items()}
        for state in (first[0].dense_state(), first[0].table_state(), first[1].dense_state(), first[1].table_state())
    ]
    second = make_pair(seed=1)
    second[0].load_state(saved[0], saved[1])
    second[1].load_state(saved[2], saved[3])
    train(*second, batches[5:])
    expected, found = state_of(*straight), state_of(*second)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


def test_backward_stays_in_its_thread():
    threads = []
    x = torch.ones((), requires_grad=True)
    doubled = 2 * x
    # On a CPU it does anyway; what tells is what autograd was told.
    doubled.register_hook(lambda _: threads.append((threading.get_ident(), torch._C._is_multithreading_enabled())))
    backward(doubled)
    assert x.grad == 2
    assert threads == [(threading.get_ident(), False)]
    assert torch._C._is_multithreading_enabled()


def test_state_before_the_first_step_loads(make_pair):
    _, optimizer = make_pair()
    assert optimizer.dense_state() == {}
    make_pair(seed=1)[1].load_state(optimizer.dense_state(), optimizer.table_state())


def test_incomplete_state_is_refused(make_pair, make_batch):
    ranker, optimizer = make_pair()
    train(ranker, optimizer, [make_batch([2], [1], [2])])
    state = dict(optimizer.dense_state())
    del state["exp_avg/heads.bias"]
    with pytest.raises(DataError, match=r"lacks optimizer state 'exp_avg/heads\.bias'"):
        make_pair()[1].load_state(state, optimizer.table_state())


def test_schedule_reaches_both_kinds_of_parameters(make_pair, make_batch):
    batch = make_batch([4], [2], [3])
    moved = []
    for factor in (0.0, 0.5, 1.0):
        ranker, optimizer = make_pair()
        optimizer.set_schedule(factor)
        dense = {name: value.clone() for name, value in ranker.dense_state().items()}
        tables = {name: value.clone() for name, value in ranker.table_state().items()}
        train(ranker, optimizer, [batch])
        moved.append(
            (
                sum((value - dense[name]).abs().sum() for name, value in ranker.dense_state().items()),
                sum((value - tables[name]).abs().sum() for name, value in ranker.table_state().items()),
            )
        )
    for kind in range(2):
        assert moved[0][kind] == 0
        torch.testing.assert_close(2 * moved[1][kind], moved[2][kind], rtol=1e-3, atol=0)
        assert moved[2][kind] > 0


def test_only_dense_matrices_decay(make_pair):
    ranker, optimizer = make_pair()
    before = {name: value.clone() for name, value in ranker.dense_state().items()}
    tables = {name: value.clone() for name, value in ranker.table_state().items()}
    for parameter in ranker.dense_parameters().values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, value in ranker.dense_state().items():
        factor = 1 - 0.01 * 0.1 if value.ndim > 1 else 1.0
        torch.testing.assert_close(value, before[name] * factor)
    assert all(torch.equal(value, tables[name]) for name, value in ranker.table_state().items())


def test_clip_reports_the_norm_and_bounds_the_gradient(make_pair):
    ranker, optimizer = make_pair()
    parameters = list(ranker.dense_parameters().values())
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    norm = sum(parameter.numel() for parameter in parameters) ** 0.5
    assert float(optimizer.clip(1.0)) == pytest.approx(norm, rel=1e-5)
    clipped = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
    assert clipped.norm().item() == pytest.approx(1.0, rel=1e-3)


def test_tables_are_no_dense_parameters(make_pair):
    names = make_pair()[0].dense_parameters()
    assert "heads.bias" in names
    assert not any("tables" in name or "lookup" in name for name in names)
