"""Where the tests of Triton's kernels run: on a CUDA device, else in Triton's interpreter (TRITON_INTERPRET=1), else not."""

import importlib
import os
from types import ModuleType

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"


def import_kernels(name: str) -> ModuleType:
    """The module of that name, which starts kernels; skips the test file where none can run."""
    pytest.importorskip("triton")
    if not torch.cuda.is_available() and not INTERPRETED:
        pytest.skip("neither a CUDA device nor TRITON_INTERPRET=1", allow_module_level=True)
    return importlib.import_module(name)
