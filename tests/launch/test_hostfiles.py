"""The shipped hostfiles: our check and DeepSpeed's launcher read the same hosts from them, and filters do what is said."""

import pytest
from deepspeed.launcher.runner import fetch_hostfile, parse_inclusion_exclusion

from imp_ds.doctor import check_hostfile
from processes import ROOT

HOSTFILES = {"one_node": 8, "two_nodes": 16, "eight_nodes_of_8": 64}


def test_all_shipped_hostfiles_are_known_here():
    assert {path.name for path in (ROOT / "hostfiles").iterdir()} == set(HOSTFILES)


@pytest.mark.parametrize("name, ranks", HOSTFILES.items())
def test_hostfile_is_read_alike(name, ranks):
    path = ROOT / "hostfiles" / name
    hosts = dict(check_hostfile(path))
    assert hosts == dict(fetch_hostfile(str(path)))
    assert sum(hosts.values()) == ranks


@pytest.mark.parametrize(
    "include, exclude, ranks",
    [  # the examples of eight_nodes_of_8, and what it says of them
        ("node1@node2", "", 16),
        ("node1@node2:0,1,2,3", "", 12),
        ("", "node5", 56),
        ("", "node5:7@node6:7", 62),
    ],
)
def test_filters_leave_the_ranks_that_the_comments_say(include, exclude, ranks):
    path = ROOT / "hostfiles" / "eight_nodes_of_8"
    example = f"INCLUDE='{include}'" if include else f"EXCLUDE='{exclude}'"
    assert example in path.read_text()
    active = parse_inclusion_exclusion(fetch_hostfile(str(path)), include, exclude)
    assert sum(map(len, active.values())) == ranks
