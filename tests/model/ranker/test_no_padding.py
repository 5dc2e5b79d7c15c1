"""No step makes a tensor as large as a padded batch: what costs is the tokens that there are."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.loss import ranking_loss
from model.ranker import Ranker
from model.training.optim import Optimizer, OptimizerSettings

NUM_SHORT, LONGEST = 300, 24


class Allocations(TorchDispatchMode):
    """Remembers the largest tensor that an operation returned, forward or backward."""

    def __init__(self):
        super().__init__()
        self.largest, self.operation = 0, None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and value.numel() > self.largest:
                self.largest, self.operation = value.numel(), (func, tuple(value.shape))
        return result


def test_a_step_over_one_long_and_many_short_histories_makes_nothing_padded(make_config, make_batch, spec):
    config = make_config()
    ranker = Ranker(config, spec).train()
    optimizer = Optimizer(ranker, OptimizerSettings(0.01, 0.05, 0.0))
    batch = make_batch([LONGEST] + [1] * NUM_SHORT, [2] + [0] * NUM_SHORT, [1] * (NUM_SHORT + 1))
    longest = LONGEST + len(config.contextual) + 1
    padded = (NUM_SHORT + 1) * longest * config.dim
    with Allocations() as allocations:
        ranking_loss(ranker(batch), batch.candidates, config, spec).total.backward()
        optimizer.clip(1.0)
        optimizer.step()
    # the widest thing per token is the projection to u, v, q and k, 4 dims
    tokens = LONGEST + NUM_SHORT + (NUM_SHORT + 1) * (len(config.contextual) + 1)
    assert tokens * 4 * config.dim <= allocations.largest < padded, allocations.operation


def test_the_measure_sees_a_padded_batch():
    with Allocations() as allocations:
        torch.zeros(NUM_SHORT, LONGEST, 16) + 1
    assert allocations.largest == NUM_SHORT * LONGEST * 16
