"""A rank whose twin does the same: for this one process, and so one card, is enough.

What the twin holds and wants equals what this rank holds and wants, so that row r of two ranks is row r // 2 of one.
"""

from __future__ import annotations

import pytest
import torch

from features.spec import CategoricalField
from model.tables import EmbeddingTables
from model.training.distributed import World
from model.training.sharded_tables import ShardedEmbeddingTables

NUM_ITEMS, NUM_ACTIONS = 5000, 4


class WorldOfTwins(World):
    """Rank 0 of 2; the other sends what it is sent."""

    def start_exchange(self, values_V, send_counts, receive_counts, *, into=None):
        assert sum(send_counts) == sum(receive_counts) == len(values_V)
        return lambda: values_V.clone() if into is None else into.copy_(values_V)


def tables_of(device, divisor, **options):
    sizes = {"item": NUM_ITEMS // divisor, "action": NUM_ACTIONS // divisor}
    fields = tuple(CategoricalField(name=name, size=size) for name, size in sizes.items())
    kind = ShardedEmbeddingTables if "world" in options else EmbeddingTables
    tables = kind(fields, 64, device=device, **options)
    tables.set_learning_rate(0.1)
    return tables


def step_of(tables, rows_NF):
    """One lookup and update."""
    num_bags, width = rows_NF.shape
    plan = tables.plan(rows_NF.flatten(), torch.arange(0, width * num_bags + 1, width, device=rows_NF.device))
    out_ND = tables(tables.begin(plan))
    (out_ND**2).mean().backward()
    return out_ND.detach()


def check_twins(device):
    twins, one = tables_of(device, 1, world=WorldOfTwins(0, 2)), tables_of(device, 2)
    twins.initialise(0.5)
    for name, weight_RD in one.weights().items():
        weight_RD.copy_(twins.weights()[name])
    for num_bags in (3000, 1, 0, 700):
        items_N3 = torch.randint(-1, NUM_ITEMS, (num_bags, 3), device=device)
        actions_N2 = torch.randint(-1, NUM_ACTIONS, (num_bags, 2), device=device)
        actions_N2 = torch.where(actions_N2 >= 0, actions_N2 + twins.first_row["action"], -1)
        rows_NF = torch.cat([items_N3, actions_N2], dim=1)
        expected_ND = step_of(one, torch.where(rows_NF >= 0, rows_NF // 2, -1))
        torch.testing.assert_close(step_of(twins, rows_NF), expected_ND, rtol=1e-5, atol=1e-5)
    for kind in ("weights", "accumulators"):
        for name, expected_RD in getattr(one, kind)().items():
            torch.testing.assert_close(getattr(twins, kind)()[name], expected_RD, rtol=1e-4, atol=1e-5)


def test_twins_do_what_one_rank_does():
    check_twins(torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_twins_do_what_one_rank_does_on_the_gpu():
    check_twins(torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_lookup_waits_for_nothing_but_its_counts():
    from model.bench.step_clock import host_waits

    tables = tables_of(torch.device("cuda"), 1, world=WorldOfTwins(0, 2))
    tables.initialise(0.5)
    rows_NF = torch.randint(0, NUM_ITEMS, (300, 3), device="cuda")
    step_of(tables, rows_NF)
    # HostCopy waits for an event, which PyTorch does not report.
    assert host_waits(lambda: step_of(tables, rows_NF)) == {}
