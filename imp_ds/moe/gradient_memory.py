"""Memory for the gradients of stacked weights, kept from one step to the next.

malloc hands a block of such a size back to the kernel as soon as it is freed, and the kernel gives it again page by page, zeroed,
which can take a tenth of the layer's step. Gradients of the same sizes are freed in every step and asked for in the next.
"""

import weakref
from collections import defaultdict

import numpy as np
import torch

SMALLEST_BYTES = 1 << 20  # malloc is good at what is smaller


class GradientMemory:
    """Hands out uninitialised tensors, and takes their memory back when autograd and optimizer have let go of them.

    It never holds more than was in use at one time. It knows of no model: what a gradient was, it may be again for another.
    """

    def __init__(self):
        self._free: dict[int, list[np.ndarray]] = defaultdict(list)

    def empty_like(self, weight: torch.Tensor) -> torch.Tensor:
        """A contiguous tensor on the CPU of the weight's shape and type; its elements are whatever was there."""
        size = weight.numel() * weight.element_size()
        if size < SMALLEST_BYTES:
            return weight.new_empty(weight.shape)
        free = self._free[size]
        try:
            block = free.pop()
        except IndexError:
            block = np.empty(size, np.uint8)
        lease = block.view()  # the tensor's storage holds it, so it ends when the last tensor on it does
        weakref.finalize(lease, free.append, block).atexit = False
        return torch.frombuffer(lease, dtype=weight.dtype).view(weight.shape)
