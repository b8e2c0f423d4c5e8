"""What tests of several folders share."""

import os

# two ranks of a test on two cores, each with its own pool of threads for all cores, would stand in each other's way;
# set before anything imports torch
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


@pytest.fixture(scope="session")
def digits_corpus(tmp_path_factory):
    """A small digits corpus, at least one sample for each class and split; made once, to be read only."""
    from imp_ds.data.digits import build

    root = tmp_path_factory.mktemp("corpus") / "digits"
    assert build(root, scale=0.03)
    return root


@pytest.fixture(scope="session")
def talk_corpus(tmp_path_factory):
    """A small corpus talk, whose images, films and speech are those of `digits_corpus`; made once, to be read only."""
    from imp_ds.data.talk import build

    root = tmp_path_factory.mktemp("corpus") / "talk"
    assert build(root, scale=0.03)
    return root


def pytest_collection_modifyitems(items):
    """Tests marked `gpu` are skipped where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
