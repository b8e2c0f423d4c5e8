"""Ranks that meet between stages: what they share, and who is missed."""

import re

from meeting_worker import meet

from helpers.ranks import run_ranks


def test_ranks_share_and_a_missing_one_is_named_in_time(tmp_path):
    ended = run_ranks(meet, 0.3, 0.5, ranks=3, folder=tmp_path)
    for rank, text in enumerate(ended.outputs):
        assert "shared {'of rank': 0}\ngathered [[0, None], [1, None], [2, None]]\n" in text, text
        assert "True it cannot be planned\n  got:     0\n" in text, text
        missed = "rank 2 did not come to where the others are\n  got:     waiting for: second\n  allowed: 0 s"
        assert (missed in text) == (rank != 2), text
        assert rank == 2 or 0.5 <= float(re.search(r"after ([\d.]+) s", text)[1]) < 5


def test_one_process_alone_meets_nobody(tmp_path):
    (text,) = run_ranks(meet, 0, 0, ranks=1, folder=tmp_path).outputs
    assert text == "shared {'of rank': 0}\ngathered [[0, None]]\nTrue it cannot be planned\n  got:     0\n"
