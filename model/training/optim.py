"""One optimizer over the two kinds of parameters: AdamW for dense ones, fbgemm's fused row-wise Adagrad for tables.

The tables update inside backward(): their learning rate is the one set before their lookup, clipping does not reach
them, and `step` is for the dense parameters alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.ranker import Ranker, load_tensors
from model.training.distributed import World
from model.training.sharded_tables import ShardedEmbeddingTables

_BETAS = (0.9, 0.999)
_EPSILON = 1.0e-8
_ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class OptimizerSettings:
    """Learning rates of dense parameters and tables; decoupled weight decay of dense matrices."""

    dense_learning_rate: float
    table_learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class _Sum:
    """A sum over ranks that has begun.

    Attributes:
        flat: all gradients, which of them are there, and figures.
        present: of each parameter, whether this rank has its gradient.
        finish: ends it.
    """

    flat: Tensor
    present: list[bool]
    finish: Callable[[], None]


def backward(loss: Tensor) -> None:
    """The backward pass of a training step, in the thread that calls.

    Autograd would give a GPU's to a thread of its own. The layers' backward is Python that launches kernels, half as
    slow again there on one host of an H100; and transfers that it begins have one order with the others here.
    """
    with torch.autograd.set_multithreading_enabled(False):
        loss.backward()


def _present(parameters: Sequence[Tensor]) -> list[bool]:
    return [parameter.grad is not None for parameter in parameters]


class Optimizer:
    """A training step is: set_schedule, zero_grad, forward, update; update is backward, sum_over_ranks, clip, step.

    The tables' lookup begins behind set_schedule: it takes the learning rate along.
    """

    def __init__(self, ranker: Ranker, settings: OptimizerSettings) -> None:
        self._ranker = ranker
        self._settings = settings
        self._sum: _Sum | None = None
        # Listed once: to walk a model's modules takes its time.
        self._parameters = parameters = list(ranker.dense_parameters().values())
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
        """Multiplies both configured learning rates, for lookups that begin from now on and the next step()."""
        for group in self._adamw.param_groups:
            group["lr"] = self._settings.dense_learning_rate * factor
        self._ranker.embeddings.tables.set_learning_rate(self._settings.table_learning_rate * factor)

    def zero_grad(self) -> None:
        """Forgets the dense gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def update(self, loss: Tensor, world: World, figures_X: Tensor, *, max_norm: float) -> Tensor:
        """The backward pass, and everything that follows from it.

        Of several ranks the dense part begins when its gradients are there, beside the tables' transfers.

        Args:
            loss: scalar, of this rank.
            world: the ranks.
            figures_X: taken along.
            max_norm: as clip's.

        Returns:
            the sum of figures_X over ranks.
        """
        tables, summed = self._ranker.embeddings.tables, []

        def update_dense() -> None:
            summed.append(self.sum_over_ranks(world, figures_X))
            self.clip(max_norm)
            self.step()

        if isinstance(tables, ShardedEmbeddingTables):
            tables.call_in_backward(lambda: self._start_sum(world, figures_X), update_dense)
        backward(loss)
        if not summed:
            update_dense()
        return summed[0]

    @torch.no_grad()
    def sum_over_ranks(self, world: World, figures_X: Tensor) -> Tensor:
        """Replaces the dense gradients by their sum over ranks, in one transfer that takes `figures_X` along.

        Returns:
            the sum of figures_X over ranks.
        """
        if world.size == 1:
            return figures_X
        if self._sum is None:
            self._start_sum(world, figures_X)
        begun, self._sum = self._sum, None
        parameters = self._parameters
        if begun is None or begun.present != _present(parameters):
            raise RuntimeError("a dense gradient came after the sum over ranks had begun")
        begun.finish()
        *gradients, present_P, summed_X = begun.flat.split(
            [p.numel() for p in parameters] + [len(parameters), len(figures_X)]
        )
        anywhere = begun.present if all(begun.present) else (present_P > 0).tolist()
        for parameter, gradient, kept in zip(parameters, gradients, anywhere, strict=True):
            parameter.grad = gradient.view_as(parameter) if kept else None
        return summed_X

    @torch.no_grad()
    def _start_sum(self, world: World, figures_X: Tensor) -> None:
        parameters = self._parameters
        # A rank without requests may lack a gradient that others have; what nobody has stays without one.
        present = _present(parameters)
        present_P = figures_X.new_ones(len(parameters)) if all(present) else figures_X.new_tensor(present)
        parts = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters]
        flat = torch.cat([*parts, present_P, figures_X])
        self._sum = _Sum(flat, present, world.start_sum(flat))

    def clip(self, max_norm: float) -> Tensor:
        """Scales the dense gradients to a total norm of at most `max_norm`; returns the norm before."""
        return torch.nn.utils.clip_grad_norm_(self._parameters, max_norm)

    def step(self) -> None:
        """Updates the dense parameters; backward() has updated the tables."""
        self._adamw.step()

    def dense_state(self) -> dict[str, Tensor]:
        """AdamW's state, flat: `<kind>/<parameter>`; shares memory. Empty before the first step."""
        return {
            f"{kind}/{name}": self._adamw.state[parameter][kind]
            for name, parameter in self._ranker.dense_parameters().items()
            if parameter in self._adamw.state
            for kind in _ADAM_STATE
        }

    def table_state(self) -> dict[str, Tensor]:
        """(rows held by this rank,) sums of squared gradients of each table; shares memory."""
        return self._ranker.embeddings.tables.accumulators()

    def load_state(self, dense: dict[str, Tensor], tables: dict[str, Tensor]) -> None:
        """Copies what dense_state and table_state gave.

        Raises:
            DataError: an entry is missing or unknown, or a shape differs.
        """
        self.load_dense_state(dense)
        load_tensors(self.table_state(), tables, what="optimizer state")

    def load_dense_state(self, dense: dict[str, Tensor]) -> None:
        """Copies what dense_state gave.

        Raises:
            DataError: an entry is missing or unknown, or a shape differs.
        """
        parameters = self._ranker.dense_parameters()
        for name in {key.partition("/")[2] for key in dense} & parameters.keys():
            parameter = parameters[name]
            self._adamw.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        load_tensors(self.dense_state(), dense, what="optimizer state")
