"""The HSTU 2.0 ranker: tokens, a transducer per stream, multi-task heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from features.errors import DataError
from features.spec import FeatureSpec
from model.baselines.attention import ResidualStack
from model.batch import Batch
from model.config import ModelConfig
from model.embeddings import TokenEmbeddings, table_fields
from model.heads import MultiTaskHeads, Predictions
from model.stu import STUStack
from model.tables import EmbeddingTables
from model.tokens import TokenRows
from model.training.distributed import World
from model.training.sharded_tables import ShardedEmbeddingTables
from model.transducer import MixtureOfTransducers

TABLE_STD = 0.02
_TABLES_PREFIX = "embeddings.tables."


class Ranker(nn.Module):
    """Scores the candidates of a batch of requests.

    It holds two kinds of parameters: dense ones, and embedding tables that update themselves during backward().
    """

    def __init__(
        self,
        config: ModelConfig,
        spec: FeatureSpec,
        *,
        device: torch.device | None = None,
        world: World | None = None,
    ) -> None:
        """Builds and initialises the model; seeded by torch.manual_seed.

        Args:
            config: section `model` of params.yaml.
            spec: of the dataset.
            device: where the model lives, the CPU unless given; the tables cannot be moved later.
            world: the ranks that share the tables' rows; this process holds all of them unless given.

        Raises:
            DataError: the configuration names what the dataset or the device does not have.
        """
        super().__init__()
        config.check_against(spec)
        device = device or torch.device("cpu")
        config.check_device(device.type)
        self.config = config
        self.spec = spec
        self.embeddings = TokenEmbeddings(config, spec, device=device, tables=_tables(config, spec, device, world))
        self.transducers = MixtureOfTransducers(config).to(device)
        self.heads = MultiTaskHeads(config).to(device)
        initialise(self)

    def forward(self, batch: Batch, rows: TokenRows | None = None) -> Predictions:
        """Predictions for batch.candidates, in their order; `rows` as in TokenEmbeddings."""
        return self.heads(self.transducers(self.embeddings(batch, rows)))

    def set_base_rates(self, rate_K: Tensor) -> None:
        """Starts each task's output at its base rate; see MultiTaskHeads.set_base_rates."""
        self.heads.set_base_rates(rate_K)

    def dense_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that the dense optimizer trains, by name."""
        return {name: value for name, value in self.named_parameters() if not name.startswith(_TABLES_PREFIX)}

    def dense_state(self) -> dict[str, Tensor]:
        """Dense parameters by name, detached; they share memory with the model."""
        return {name: value.detach() for name, value in self.dense_parameters().items()}

    def table_state(self) -> dict[str, Tensor]:
        """(rows held by this rank, D) weights of each table by name; they share memory with the model."""
        return self.embeddings.tables.weights()

    @torch.no_grad()
    def load_state(self, dense: dict[str, Tensor], tables: dict[str, Tensor]) -> None:
        """Copies what dense_state and table_state gave.

        Raises:
            DataError: a name is missing or unknown, or a shape differs.
        """
        load_tensors(self.dense_state(), dense, what="dense parameter")
        load_tensors(self.table_state(), tables, what="embedding table")


def _tables(config: ModelConfig, spec: FeatureSpec, device: torch.device, world: World | None) -> EmbeddingTables:
    fields = table_fields(config, spec)
    if world is None or world.size == 1:
        return EmbeddingTables(fields, config.dim, device=device)
    return ShardedEmbeddingTables(fields, config.dim, device=device, world=world)


@torch.no_grad()
def load_tensors(targets: dict[str, Tensor], sources: dict[str, Tensor], *, what: str) -> None:
    """Copies each source into the target of its name; refuses anything but the same names and shapes."""
    unknown = sorted(targets.keys() ^ sources.keys())
    if unknown:
        side = "lacks" if unknown[0] in targets else "has an unknown"
        raise DataError(f"checkpoint {side} {what} '{unknown[0]}': it belongs to another model configuration")
    for name, target in targets.items():
        if sources[name].shape != target.shape:
            raise DataError(
                f"checkpoint's {what} '{name}' is {tuple(sources[name].shape)}, the model's {tuple(target.shape)}: "
                "it belongs to another model configuration or vocabulary"
            )
    for name, target in targets.items():
        target.copy_(sources[name])


@torch.no_grad()
def initialise(ranker: Ranker) -> None:
    """Sets every weight.

    | parameter | value |
    |---|---|
    | embedding tables | normal, std 0.02: about one step of their row-wise Adagrad; row 0 of a field is never read |
    | linear layers | Xavier normal |
    | output projection of a residual branch | Xavier normal / sqrt(2 x the stream's): depth must not drown the tokens |
    | heads' output weights | normal, std 0.02, so that a first prediction is its bias: the base rate |
    | biases | 0 |
    | layer norms | 1 and 0 |
    """
    ranker.embeddings.tables.initialise(TABLE_STD)
    for module in ranker.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for stack in ranker.modules():
        if isinstance(stack, STUStack | ResidualStack):
            for layer in stack.layers:
                layer.get_parameter("output.weight").mul_((2 * len(stack.layers)) ** -0.5)
    nn.init.normal_(ranker.heads.weight, std=0.02)
    nn.init.zeros_(ranker.heads.bias)
