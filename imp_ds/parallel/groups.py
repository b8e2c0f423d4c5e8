"""Rank and world size, with or without a process group."""

import torch.distributed as dist


def rank() -> int:
    """This process among all; 0 when there is no process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are; 1 when there is no process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process speaks for all: it alone prints, draws and writes what is written once."""
    return rank() == 0
