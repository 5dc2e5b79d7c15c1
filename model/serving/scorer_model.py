"""The model of a bundle on a device: quantised tables, cached histories, heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from features.errors import DataError
from features.spec import FeatureSpec
from model.batch import Batch
from model.config import ModelConfig
from model.embeddings import TokenEmbeddings, table_fields
from model.heads import MultiTaskHeads, Predictions
from model.ranker import load_tensors
from model.serving.cached import CachedMixture
from model.serving.precision import Compute
from model.serving.quantize import TableFormat
from model.serving.quantize_tables import Placement, QuantizedTables
from model.tables import EmbeddingTables
from model.transducer import MixtureOfTransducers

# the kinds that HSTUTransducer encodes
CACHEABLE_KINDS = ("ultra_hstu", "hstu")


class ServedModel(nn.Module):
    """Scores batches; nothing of it changes, so threads may share it.

    Its dense parameters have the names that they have in a ranker.
    """

    def __init__(
        self,
        config: ModelConfig,
        spec: FeatureSpec,
        table_format: TableFormat,
        *,
        device: torch.device,
        placement: Placement,
        compute: Compute = "fp32",
    ) -> None:
        """Allocates the model; `load` fills it.

        Args:
            config: the model.
            spec: of the dataset.
            table_format: how embedding rows are stored.
            device: where it computes.
            placement: where large tables' rows lie when the device is a GPU.
            compute: what its layers' products take; sums of embeddings and heads are fp32.

        Raises:
            DataError: the model's kind keeps nothing of a history that could be cached.
        """
        super().__init__()
        check_cacheable(config)
        self.config, self.spec, self.table_format, self.device = config, spec, table_format, device
        fields = table_fields(config, spec)
        self.tables = QuantizedTables(fields, config.dim, table_format, device=device, placement=placement)
        # the embeddings look up through what both kinds of tables have: names, first rows and forward
        tables = cast(EmbeddingTables, self.tables)
        self.embeddings = TokenEmbeddings(config, spec, device=device, tables=tables)
        self.transducers = MixtureOfTransducers(config).to(device)
        self.heads = MultiTaskHeads(config).to(device)
        self.requires_grad_(False)
        self.eval()
        self.compute = compute
        self.cached = CachedMixture(self.transducers, compute)

    def load(self, dense: dict[str, Tensor], segments: Sequence[Tensor]) -> None:
        """Copies dense parameters and what `segment_rows` gave.

        Raises:
            DataError: a name is missing or unknown, or a shape differs.
        """
        load_tensors({name: value.detach() for name, value in self.named_parameters()}, dense, what="dense parameter")
        self.tables.load_rows(segments)
        self.cached = CachedMixture(self.transducers, self.compute)

    @torch.inference_mode()
    def forward(self, batch: Batch, *, micro_batch_size: int) -> Predictions:
        """Predictions for all candidates of a batch, each history encoded once.

        Args:
            batch: on any device.
            micro_batch_size: candidates that go through the layers together, at most.

        Returns:
            Predictions in fp32, on the model's device.
        """
        tokens = self.embeddings(batch.to(self.device))
        cache = self.cached.encode(tokens)
        vectors_CD = self.cached.score(cache, tokens.candidates, micro_batch_size=micro_batch_size)
        return self.heads(vectors_CD.float())


def check_cacheable(config: ModelConfig) -> None:
    """Refuses kinds of models whose encoders leave no keys and values behind.

    Raises:
        DataError: names the kind.
    """
    if config.kind not in CACHEABLE_KINDS:
        raise DataError(
            f"params.yaml: model.kind: the histories of '{config.kind}' cannot be cached; "
            f"exported are {' and '.join(CACHEABLE_KINDS)}"
        )
