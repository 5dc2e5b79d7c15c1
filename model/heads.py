"""Multi-task heads: a small MLP per task on a candidate's vector."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from model.config import ModelConfig


@dataclass(frozen=True)
class Predictions:
    """What the model says about C candidates.

    Attributes:
        logits_CK: (C, K) float32, a column per task.
        watch_ratio_C: (C,) float32, or None when the regression is left out.
    """

    logits_CK: Tensor
    watch_ratio_C: Tensor | None


class MultiTaskHeads(nn.Module):
    """One hidden layer and one output per task; with a watch-ratio weight, one task more.

    The hidden layers of all tasks are one product, their outputs one batched product.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_tasks = len(config.heads.tasks)
        self.has_watch_ratio = config.heads.watch_ratio_weight > 0
        num_outputs = self.num_tasks + self.has_watch_ratio
        self.hidden = nn.Linear(config.dim, num_outputs * config.heads.hidden_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.weight = nn.Parameter(torch.empty(num_outputs, config.heads.hidden_dim))
        self.bias = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, candidates_CD: Tensor) -> Predictions:
        """(C, D) candidates to their predictions."""
        hidden_COE = self.dropout(silu(self.hidden(candidates_CD))).unflatten(1, self.weight.shape)
        output_CO = (hidden_COE * self.weight).sum(dim=2) + self.bias
        return Predictions(
            logits_CK=output_CO[:, : self.num_tasks],
            watch_ratio_C=output_CO[:, self.num_tasks] if self.has_watch_ratio else None,
        )

    @torch.no_grad()
    def set_base_rates(self, rate_K: Tensor) -> None:
        """Starts each task at its base rate, so that a rare action does not spend its first steps on finding it.

        Args:
            rate_K: (K,) share of positives among the training candidates; kept away from 0 and 1.
        """
        self.bias[: self.num_tasks] = torch.logit(rate_K.to(self.bias), eps=1e-6)
