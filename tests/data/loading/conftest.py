"""A small corpus that the tests of loaders read."""

import pytest

from helpers.media_files import write_corpus
from helpers.small_loader import ROWS


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """Images and speech, training split alone; made once, to be read only."""
    return write_corpus(tmp_path_factory.mktemp("corpus"), rows=ROWS, splits=("train",))
