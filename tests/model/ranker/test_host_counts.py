"""What the host knows of a batch is enough for a step that asks the device nothing, and is checked by it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import lengths_to_offsets, truncate_jagged
from model.embeddings import TokenEmbeddings
from model.loss import ranking_loss
from model.ranker import Ranker
from model.sequence import TokenSequence

ASKS = {"aten::nonzero", "aten::_local_scalar_dense", "aten::masked_select"}
TWO_STEPS = {"max_length": 24, "num_layers": 3, "local_window": 3, "global_window": 2, "pyramid": [[1, 6], [2, 2]]}
REQUESTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=6)
CPU = torch.device("cpu")
CONFIGS = {
    "as configured": {},
    "action types": {"action_encoding": "type"},
    "no actions": {"action_encoding": "none"},
    "two tokens an event": {"kind": "hstu"},
    "no contextual tokens": {"contextual": []},
    "some user fields": {"contextual": [["city"]]},
}
COUNTS = [([3, 0, 20], [1, 2, 0], [2, 1, 0]), ([0, 0], [0, 0], [1, 0]), ([], [], [])]


class Asked(TorchDispatchMode):
    """Collects the operators for whose result a GPU's host would wait."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket._qualified_op_name
        picks = name == "aten::index" and any(index is not None and index.dtype == torch.bool for index in args[1])
        if picks or name in ASKS:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def sequence_of(requests, num_contextual):
    histories, candidates = ([row[part] for row in requests] for part in range(2))
    lengths = torch.tensor([num_contextual + sum(row) for row in requests], dtype=torch.int64)
    total = int(lengths.sum())
    values = torch.arange(2 * total, dtype=torch.float32).view(total, 2)
    counts = torch.tensor(candidates, dtype=torch.int64)
    return TokenSequence(values, lengths_to_offsets(lengths), num_contextual, counts, tuple(histories))


@given(REQUESTS, st.integers(0, 2), st.lists(st.integers(0, 10), min_size=1, max_size=3))
def test_sequences_are_truncated_as_if_the_device_were_asked(requests, num_contextual, keeps):
    sequence = sequence_of(requests, num_contextual)
    values, offsets = sequence.values_TD, sequence.offsets_B1
    for keep in keeps:
        asked = Asked()
        with asked:
            sequence = sequence.truncated(keep)
        assert asked.names == []
        values, offsets = truncate_jagged(
            values, offsets, num_contextual=num_contextual, num_candidates_B=sequence.num_candidates_B, keep=keep
        )
        assert torch.equal(sequence.values_TD, values)
        assert torch.equal(sequence.offsets_B1, offsets)
        scored = torch.tensor([row[1] for row in requests], dtype=torch.int64)
        assert list(sequence.history_lengths) == (offsets.diff() - scored - num_contextual).tolist()


@pytest.mark.parametrize("lengths", [(9, 3), (1, 11), (2, 5), (12, 12)])
def test_lengths_that_are_not_those_of_the_device_stop_the_step(lengths):
    sequence = replace(sequence_of([(6, 1), (6, 2)], 1), history_lengths=lengths)
    with pytest.raises(RuntimeError, match="total is not the number of rows that stay"):
        sequence.truncated(4)


@pytest.mark.parametrize(
    "changes",
    [{}, {"streams": {"consumption": TWO_STEPS, "interaction": TWO_STEPS}}, {"kind": "hstu"}, {"contextual": []}],
    ids=["two streams", "two steps of the pyramid", "hstu", "no contextual tokens"],
)
@pytest.mark.parametrize("counts", [([24, 0, 3], [8, 1, 0], [2, 1, 0]), ([0, 0], [0, 0], [1, 1]), ([], [], [])])
def test_layers_loss_and_backward_ask_the_device_nothing(make_config, make_batch, spec, changes, counts):
    ranker = Ranker(make_config(**changes), spec).train()
    batch = make_batch(*counts)
    tokens = ranker.embeddings(batch)
    asked = Asked()
    with asked:
        loss = ranking_loss(ranker.heads(ranker.transducers(tokens)), batch.candidates, ranker.config, spec)
        # Not the tables' update: it sorts rows in ways of its own.
        torch.autograd.grad(loss.total, [tokens.candidates.values_TD])
    assert asked.names == []


@pytest.mark.parametrize("lengths", [(3, 1, 1), (4, 2), (3,), (4, 1, 0)])
def test_a_stream_refuses_lengths_of_another(make_batch, lengths):
    stream = make_batch([3, 2], [0, 0], [1, 1]).streams[0]
    with pytest.raises(ValueError, match="do not belong to 2 histories of 5 tokens"):
        replace(stream, lengths=lengths)


def test_lengths_go_where_the_batch_goes(make_batch):
    batch = make_batch([3, 0], [1, 2], [1, 1])
    assert [stream.lengths for stream in batch.to(torch.device("cpu")).streams] == [(3, 0), (1, 2)]


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def embeddings(request, make_config, spec):
    module = TokenEmbeddings(make_config(**request.param), spec, device=CPU)
    for weight in module.tables.weights().values():
        weight.normal_()
    return module


@pytest.mark.parametrize("counts", COUNTS)
def test_counts_give_the_rows_of_the_lookup(embeddings, make_batch, counts):
    read = []
    embeddings.tables.lookup.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].numel()))
    batch = make_batch(*counts)
    assert embeddings.num_rows(batch) is None
    asked, told = embeddings(batch), embeddings(batch.counted())
    assert read == [embeddings.num_rows(batch.counted())] * 2
    for name, tokens in asked.histories.items():
        assert torch.equal(tokens.values_TD, told.histories[name].values_TD)
    assert torch.equal(asked.candidates.values_TD, told.candidates.values_TD)
    assert torch.equal(asked.contextual.values_TD, told.contextual.values_TD)


@pytest.mark.parametrize("excess", [-1, 1])
def test_counts_of_another_batch_stop_the_step(embeddings, make_batch, excess):
    batch = make_batch([3], [2], [2]).counted()
    known = replace(batch.known, candidates=batch.known.candidates + excess)
    with pytest.raises(RuntimeError, match="codes were counted of another batch"):
        embeddings(replace(batch, known=known))


def test_counts_go_where_the_batch_goes(make_batch):
    batch = make_batch([3, 2], [1, 0], [1, 1]).counted()
    assert batch.known is not None
    assert batch.to(CPU).known == batch.known


def test_a_counted_batch_is_embedded_without_asking_the_device(embeddings, make_batch, monkeypatch):
    # fbgemm's lookup for CPUs reads numbers of its own.
    monkeypatch.setattr(embeddings.tables, "sum_rows", lambda bags: torch.zeros(bags.offsets_N1.numel() - 1, 16))
    batch = make_batch([3, 0, 20], [1, 2, 0], [2, 1, 0])
    found = []
    for one in (batch, batch.counted()):
        with Asked() as asked:
            embeddings(one)
        found.append(asked.names)
    assert found == [["aten::index"], []]
