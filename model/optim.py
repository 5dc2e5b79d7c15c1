"""One optimizer over the two kinds of parameters: AdamW for dense ones, fbgemm's fused row-wise Adagrad for tables.

The tables update inside backward(): their learning rate is the one set before it, clipping does not reach them, and
`step` is for the dense parameters alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.ranker import Ranker, load_tensors

_BETAS = (0.9, 0.999)
_EPSILON = 1.0e-8
_ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class OptimizerSettings:
    """Learning rates of dense parameters and tables; decoupled weight decay of dense matrices."""

    dense_learning_rate: float
    table_learning_rate: float
    weight_decay: float


class Optimizer:
    """A training step is: set_schedule, zero_grad, forward, backward, clip, step."""

    def __init__(self, ranker: Ranker, settings: OptimizerSettings) -> None:
        self._ranker = ranker
        self._settings = settings
        parameters = ranker.dense_parameters().values()
        self._adamw = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=settings.dense_learning_rate,
            betas=_BETAS,
            eps=_EPSILON,
            fused=True,
        )
        self.set_schedule(1.0)

    def set_schedule(self, factor: float) -> None:
        """Multiplies both configured learning rates, from the next backward() on."""
        for group in self._adamw.param_groups:
            group["lr"] = self._settings.dense_learning_rate * factor
        self._ranker.embeddings.tables.set_learning_rate(self._settings.table_learning_rate * factor)

    def zero_grad(self) -> None:
        """Forgets the dense gradients."""
        self._adamw.zero_grad(set_to_none=True)

    def clip(self, max_norm: float) -> Tensor:
        """Scales the dense gradients to a total norm of at most `max_norm`; returns the norm before."""
        return torch.nn.utils.clip_grad_norm_(self._ranker.dense_parameters().values(), max_norm)

    def step(self) -> None:
        """Updates the dense parameters; backward() has updated the tables."""
        self._adamw.step()

    def state_dict(self) -> dict[str, Tensor]:
        """Everything an exact resume needs, flat: `<kind>/<parameter>` and `adagrad/<table>`; shares memory.

        Before the first step there are no entries of dense parameters.
        """
        state = {
            f"{kind}/{name}": self._adamw.state[parameter][kind]
            for name, parameter in self._ranker.dense_parameters().items()
            if parameter in self._adamw.state
            for kind in _ADAM_STATE
        }
        tables = self._ranker.embeddings.tables.accumulators()
        return state | {f"adagrad/{name}": sums for name, sums in tables.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copies what state_dict gave.

        Raises:
            DataError: an entry is missing or unknown, or a shape differs.
        """
        if any(not key.startswith("adagrad/") for key in state):
            for parameter in self._ranker.dense_parameters().values():
                self._adamw.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        load_tensors(self.state_dict(), state, what="optimizer state")
