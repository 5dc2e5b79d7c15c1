"""Which implementations there are, and the refusal of one that cannot run."""

from __future__ import annotations

from torch import Tensor

IMPLEMENTATIONS = ("reference", "triton")


def check_impl(impl: str, x: Tensor) -> None:
    """Refuses an implementation that does not exist, or that cannot run where the tensor lies.

    Raises:
        NotImplementedError: naming it.
    """
    if impl not in IMPLEMENTATIONS:
        raise NotImplementedError(f"no implementation {impl!r}, only {', '.join(IMPLEMENTATIONS)}")
    if impl == "triton" and x.device.type != "cuda":
        from kernels.hstu.function import interpreted

        if not interpreted():
            raise NotImplementedError(f'impl "triton" needs a GPU, the tensors lie on {x.device}')
