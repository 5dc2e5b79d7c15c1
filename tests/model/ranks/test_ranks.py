import numpy as np
import pytest
import torch

from model.training.checkpoint import load_checkpoint
from tests.model.ranks.rank_functions import (
    collectives,
    gradients_of,
    losses_of,
    scores_of,
    tables_of,
    transfers_of,
)


@pytest.fixture
def arguments(tmp_path, make_content, write_dataset, write_params):
    """A dataset and settings without dropout, whose loss is then the same on any number of ranks up to rounding."""
    write_dataset(tmp_path / "streams", make_content(seed=1, num_users=40), 2)
    params = write_params(
        tmp_path / "params.yaml",
        train={"batch_size": 5},
        model={"dropout": 0.0},
    )
    return {"streams": tmp_path / "streams", "params": params}


def test_what_ranks_tell_each_other(run_ranks):
    found = run_ranks(collectives, 2)
    for rank in range(2):
        assert found[rank]["gathered"] == [[0, 10], [1, 10]]
        assert found[rank]["summed"] == [1, 20]
        assert found[rank]["tensor"] == [3]
        assert found[rank]["first"] == "rank 0"
        assert found[rank]["objects"] == [0, 1]
        assert found[rank]["exchanged"] == found[rank]["into"] == [0.0] * 1 + [1.0] * 2
    assert [found[rank]["part"] for rank in range(2)] == [[0, 1, 2], [3, 4, 5, 6]]


def test_a_missing_gradient_counts_as_zero_unless_all_miss_it(run_ranks):
    for found in run_ranks(gradients_of, 2):
        assert found == {"figures": [2, 1], "first": [5, 5], "all": [3, 3], "nobody": None}


def test_dense_gradients_travel_before_those_of_the_tables(run_ranks, arguments):
    counts_of_two_batches, lookup = ["all_to_all_single"] * 2, ["all_to_all_single"] * 2
    order = [*counts_of_two_batches, *lookup, "all_reduce", "all_to_all_single"]
    assert run_ranks(transfers_of, 2, arguments) == [order] * 2


@pytest.mark.parametrize("size", [2, 3])
def test_dealt_out_tables_do_what_whole_tables_do(run_ranks, size):
    [whole], parts = run_ranks(tables_of, 1, size), run_ranks(tables_of, size, size)
    for step, expected in enumerate(whole["outputs"]):
        found = torch.cat([part["outputs"][step] for part in parts])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for kind in ("weights", "sums"):
        for name, expected in whole[kind].items():
            for rank, part in enumerate(parts):
                torch.testing.assert_close(part[kind][name], expected[rank::size], rtol=1e-5, atol=1e-6)


def test_two_ranks_have_the_losses_of_one(run_ranks, arguments):
    [one], two = run_ranks(losses_of, 1, arguments), run_ranks(losses_of, 2, arguments)
    assert torch.equal(two[0], two[1])
    assert len(one) == 10
    torch.testing.assert_close(two[0], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "before", "after"), [("none", 2, 2), ("none", 2, 1), ("none", 1, 3), ("sl", 2, 1), ("lbsl", 2, 2)]
)
def test_checkpoint_continues_on_another_number_of_ranks(
    run_ranks, arguments, write_params, tmp_path, kind, before, after
):
    """Not with LBSL, whose decisions depend on who shares a batch; on as many ranks they are the same ones."""
    sampling = {
        "kind": kind,
        "alpha": 1.3,
        "gamma": 1.5,
        "warmup_steps": 3,
        "recalibrate_every": 2,
        "exact_fill": False,
    }
    write_params(arguments["params"], train={"batch_size": 5, "sampling": sampling}, model={"dropout": 0.0})
    straight = run_ranks(losses_of, before, arguments)[0]
    saved = tmp_path / "checkpoint"
    run_ranks(losses_of, before, arguments | {"until_step": 7, "save": saved})
    resumed = run_ranks(losses_of, after, arguments | {"resume": saved})[0]
    assert len(resumed) == len(straight)
    if before == after:
        assert torch.equal(resumed, straight)
    else:
        torch.testing.assert_close(resumed, straight, rtol=1e-4, atol=1e-5)


def test_checkpoint_of_two_ranks_reads_as_one(run_ranks, arguments, tmp_path):
    run_ranks(losses_of, 1, arguments | {"until_step": 3, "save": tmp_path / "one"})
    run_ranks(losses_of, 2, arguments | {"until_step": 3, "save": tmp_path / "two"})
    names = {path.name for path in (tmp_path / "two").iterdir()}
    assert {f"tables-{rank}-of-2.safetensors" for rank in range(2)} < names
    one, two = (load_checkpoint(tmp_path / name) for name in ("one", "two"))
    assert one.header == two.header
    for group in ("dense", "tables", "adagrad", "optimizer"):
        assert one.tensors[group].keys() == two.tensors[group].keys()
        for name, expected in one.tensors[group].items():
            torch.testing.assert_close(two.tensors[group][name], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("size", [2, 3])
def test_every_evaluation_candidate_counts_once_in_the_same_order(run_ranks, arguments, size):
    """Batches of two requests leave a third rank without any."""
    arguments |= {"batch_size": 2}
    [one], parts = run_ranks(scores_of, 1, arguments), run_ranks(scores_of, size, arguments)
    for found in parts:
        assert torch.equal(found["users"], one["users"])
        assert torch.equal(found["labels"], one["labels"])
        np.testing.assert_allclose(found["logits"], one["logits"], rtol=1e-4, atol=1e-5)
