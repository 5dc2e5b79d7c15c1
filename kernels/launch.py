"""What launches share on the host, where they happen a hundred times a step and the GPU waits for slow ones.

Triton's own cdiv and next_power_of_2 are made for kernels too: on the host they take longer than a small PyTorch call.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


def cdiv(number: int, divisor: int) -> int:
    """number / divisor, rounded up."""
    return -(-number // divisor)


def next_power_of_2(number: int) -> int:
    """The smallest power of two that is not below a positive number."""
    return 1 << (number - 1).bit_length()


@cache
def num_multiprocessors(device: torch.device) -> int:
    """Of a GPU; where an interpreter stands in for it, a few."""
    if device.type != "cuda":
        return 4
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def block_descriptor(
    base: Tensor, shape: Sequence[int], strides: Sequence[int], block: Sequence[int]
) -> TensorDescriptor:
    """Blocks of a matrix for the tensor memory accelerator.

    The caller has seen to what it asks for: at least one element, columns side by side, base and rows at 16 bytes. The
    constructor would check that again, which takes half as long as the launch.
    """
    descriptor = object.__new__(TensorDescriptor)
    descriptor.base, descriptor.shape, descriptor.strides, descriptor.block_shape = base, shape, strides, block
    return descriptor
