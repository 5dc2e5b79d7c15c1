"""What the ranks of the tests do; imported by their processes, so it holds no tests."""

from __future__ import annotations

import os
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist

from features.dataset import open_dataset
from features.spec import CategoricalField
from model.config import ModelConfig
from model.evaluation import score_candidates
from model.reader import Reader
from model.stage import max_lengths
from model.tables import EmbeddingTables
from model.train import build_trainer
from model.training.checkpoint import load_checkpoint, save_checkpoint
from model.training.distributed import joined_world
from model.training.optim import Optimizer, OptimizerSettings
from model.training.sharded_tables import ShardedEmbeddingTables
from model.training.train_config import TrainConfig

CPU = torch.device("cpu")
FIELDS = (
    CategoricalField(name="item", size=23),
    CategoricalField(name="hour", size=1),
    CategoricalField(name="x", size=8),
)


@contextmanager
def rank_of(rank, size, port):
    """The environment that torchrun gives to a rank, and the world that it makes of it."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }
    torch.set_num_threads(1)
    if size == 1:
        del os.environ["TORCHELASTIC_RUN_ID"]
    with joined_world(CPU) as world:
        yield world


def collectives(world, _):
    mine = np.array([world.rank, 10.0])
    tensor = torch.tensor([1.0 + world.rank])
    world.start_sum(tensor)()
    send = [world.rank + 1] * world.size
    receive = [rank + 1 for rank in range(world.size)]
    rows = torch.full((sum(send), 2), float(world.rank))
    return {
        "gathered": world.gather_host(mine).tolist(),
        "summed": world.for_reader().sum_host(mine).tolist(),
        "tensor": tensor.tolist(),
        "first": world.from_first(f"rank {world.rank}"),
        "objects": world.gather_objects(world.rank),
        "exchanged": world.exchange(rows, send, receive)[:, 0].tolist(),
        "into": _received_into(world, rows, send, receive),
        "part": list(range(7))[world.part(7)],
    }


def _received_into(world, rows, send, receive):
    into = torch.full((sum(receive), 2), torch.nan)
    assert world.start_exchange(rows, send, receive, into=into)() is into
    return into[:, 1].tolist()


def bags_of(step, rank):
    """Codes and offsets of a rank's bags, different in size; rank 1 has none in step 1, nobody in step 2."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    lengths = [[30, 0, 2] if rank == 0 else [4], [3] if rank == 0 else [], [], [5, 40]][step]
    return torch.randint(0, 23, (sum(lengths),), generator=generator), torch.tensor([0, *np.cumsum(lengths)])


def tables_of(world, num_bag_ranks):
    """Four steps of lookups and updates; with one rank, of the bags of `num_bag_ranks` ranks together."""
    torch.manual_seed(3)
    if world.size == 1:
        tables = EmbeddingTables(FIELDS, 8, device=CPU)
    else:
        tables = ShardedEmbeddingTables(FIELDS, 8, device=CPU, world=world)
    tables.initialise(0.5)
    tables.set_learning_rate(0.1)
    outputs = []
    for step in range(4):
        ranks = range(num_bag_ranks) if world.size == 1 else [world.rank]
        bags = [bags_of(step, rank) for rank in ranks]
        codes = torch.cat([codes for codes, _ in bags])
        lengths = torch.cat([offsets.diff() for _, offsets in bags])
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        rows = torch.where(codes > 0, codes + tables.first_row["item"], -1)
        out = tables(tables.begin(tables.plan(rows, offsets)))
        (out**2).sum().backward()
        outputs.append(out.detach())
    return {
        "outputs": outputs,
        "weights": {name: value.clone() for name, value in tables.weights().items()},
        "sums": {name: value.clone() for name, value in tables.accumulators().items()},
    }


def trainer_of(world, arguments):
    dataset = open_dataset(arguments["streams"])
    config = TrainConfig.load(arguments["params"])
    return build_trainer(dataset, config, ModelConfig.load(arguments["params"]), world=world)[0]


def losses_of(world, arguments):
    """Losses of a run, perhaps from a checkpoint on, perhaps saving one."""
    trainer = trainer_of(world, arguments)
    if "resume" in arguments:
        trainer.restore(load_checkpoint(arguments["resume"]))
    trainer.fit(until_step=arguments.get("until_step"))
    if "save" in arguments:
        save_checkpoint(arguments["save"], trainer.capture(), world)
    return trainer.losses()


def scores_of(world, arguments):
    """Scores of the evaluation requests."""
    trainer = trainer_of(world, arguments)
    dataset = open_dataset(arguments["streams"])
    lengths = max_lengths(trainer.ranker.config, dataset.manifest.spec)
    reader = Reader(dataset, split=1, batch_size=arguments["batch_size"], max_lengths=lengths, world=world)
    scores = score_candidates(trainer.ranker, reader, CPU, world=world)
    return {"logits": scores.logits_CK, "labels": scores.labels_CK, "users": scores.user_id_C}


def gradients_of(world, _):
    """What sum_over_ranks makes of a gradient that only rank 0 has, one that all have, and one that nobody has."""
    weights = {name: torch.nn.Parameter(torch.ones(2)) for name in ("first", "all", "nobody")}

    class Ranker:
        class embeddings:  # noqa: N801
            class tables:  # noqa: N801
                set_learning_rate = staticmethod(lambda rate: None)

        @staticmethod
        def dense_parameters():
            return weights

    optimizer = Optimizer(Ranker, OptimizerSettings(0.1, 0.1, 0.0))
    weights["all"].grad = torch.full((2,), 1.0 + world.rank)
    if world.rank == 0:
        weights["first"].grad = torch.full((2,), 5.0)
    figures = optimizer.sum_over_ranks(world, torch.tensor([1.0, world.rank]))
    return {"figures": figures.tolist()} | {
        name: None if weight.grad is None else weight.grad.tolist() for name, weight in weights.items()
    }


def transfers_of(world, arguments):
    """The collectives of the model's tensors in one step, in order."""
    trainer, order = trainer_of(world, arguments), []
    for name in ("all_reduce", "all_to_all_single"):
        call = getattr(dist, name)

        def recorded(*given, name=name, call=call, **named):
            order.append(name)
            return call(*given, **named)

        setattr(dist, name, recorded)
    trainer.fit(until_step=1)
    return order
