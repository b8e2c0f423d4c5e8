"""What tests of several folders share."""

import os

# two ranks of a test on two cores, each with its own pool of threads for all cores, would stand in each other's way;
# set before anything imports torch
os.environ.setdefault("OMP_NUM_THREADS", "1")
# the compiler of blocks for the CPU would first compile torch's headers, which takes longer than the few kernels of tests
os.environ.setdefault("TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS", "0")

import pytest
import torch


@pytest.fixture(scope="session")
def digits_corpus(tmp_path_factory):
    """A small digits corpus, at least one sample for each class and split; made once, to be read only."""
    from imp_ds.data.digits import build

    root = tmp_path_factory.mktemp("corpus") / "digits"
    assert build(root, scale=0.03)
    return root


def pytest_collection_modifyitems(items):
    """Tests marked `gpu` are skipped where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
