"""The plan of ranks: who sits where with which experts, what is wrong with a layout, and how it is printed."""

import io

import pytest
import torch
from rich.console import Console

from helpers.ranks import run_ranks
from imp_ds.parallel.rank_grid import Grid, Place, gather_places, rank_grid, show


def places(*sizes: int, device: str = "GPU") -> list[Place]:
    """Ranks in blocks on node1, node2, ..., as many on each as `sizes` says."""
    names = (lambda i: f"GPU {i}") if device == "GPU" else (lambda i: "CPU")
    return [Place(f"node{n}", i, names(i)) for n, size in enumerate(sizes, 1) for i in range(size)]


def printed(grid: Grid) -> list[str]:
    file = io.StringIO()
    show(grid, Console(file=file, width=140))
    return file.getvalue().splitlines()


def test_every_rank_has_its_node_its_group_and_its_experts():
    grid = rank_grid(places(4, 4), 2, 6)
    assert grid.warnings == []
    seats = {host: [(s.rank, s.place.local_rank, s.group, list(s.experts)) for s in row] for host, row in grid.nodes.items()}
    first, second = [0, 1, 2], [3, 4, 5]  # 6 experts over 2 ranks of a group
    assert seats == {
        "node1": [(0, 0, 0, first), (1, 1, 0, second), (2, 2, 1, first), (3, 3, 1, second)],
        "node2": [(4, 0, 2, first), (5, 1, 2, second), (6, 2, 3, first), (7, 3, 3, second)],
    }


@pytest.mark.parametrize("sizes, ep_size", [((1,), 1), ((8,), 4), ((8, 8), 8), ((8, 4), 4), ((6, 2), 2), ((3, 5), 1)])
def test_groups_inside_nodes_are_no_matter(sizes, ep_size):
    assert rank_grid(places(*sizes), ep_size, 16).warnings == []


def test_a_group_over_two_nodes_says_what_it_costs_and_what_would_do():
    # each of the 4 ranks sends as much to each of the 4: 2 of them, one half, are on the other node
    [warning] = rank_grid(places(2, 2), 4, 8).warnings
    assert "1 of 1 expert groups span nodes (group 0: node1, node2)" in warning
    assert "50% of what" in warning and "--set train.ep_size=2" in warning


def test_unequal_nodes_are_named_with_the_size_that_fits_both():
    # groups 0-3, 4-7, 8-11 on nodes 0-5 and 6-11: the middle one has two ranks on each
    [warning] = rank_grid(places(6, 6), 4, 8).warnings
    assert "1 of 3 expert groups span nodes (group 1: node1, node2)" in warning and "train.ep_size=2" in warning
    # groups 0-3 and 4-7 on nodes 0-2 and 3-7; three of four on node1: 1 - (9 + 1) / 16 = 37.5 %
    [warning] = rank_grid(places(3, 5), 4, 8).warnings
    assert "(group 0: node1, node2; nodes have 3 to 5 ranks)" in warning
    assert "38% of what" in warning and "train.ep_size=1" in warning


def test_ranks_dealt_out_in_turn_are_distinguished_from_blocks():
    in_turn = [Place(f"node{1 + rank % 2}", rank // 2, f"GPU {rank // 2}") for rank in range(8)]
    scattered, spanning = rank_grid(in_turn, 2, 4).warnings
    assert "node1 has 0, 2, 4, 6" in scattered and "--distribution=block" in scattered
    assert "4 of 4 expert groups span nodes" in spanning
    assert len(rank_grid(in_turn, 1, 4).warnings) == 1  # without groups, only the order is strange


def test_two_ranks_on_one_gpu_are_named_and_two_on_one_cpu_are_not():
    twice = places(2) + places(2)  # two machines that both say that they are node1
    shared = rank_grid(twice, 2, 4).warnings
    assert [warning.split(";")[0] for warning in shared] == ["ranks 0, 2 share GPU 0 of node1", "ranks 1, 3 share GPU 1 of node1"]
    assert rank_grid(places(2, device="CPU") * 2, 2, 4).warnings == []


@pytest.mark.parametrize(
    "hosts, expected",
    [
        ([("node1", 2), ("node2", 2)], []),
        ([("node1.cluster.org", 2), ("NODE2", 2)], []),
        ([("10.0.0.1", 2), ("10.0.0.2", 2)], []),  # names that machines do not give themselves: numbers agree
        ([("node1", 2), ("node2", 2), ("node3", 2)], ["host node3 of the hostfile has no rank"]),
        ([("node1", 2)], ["node2 has 2 rank(s) and is not in the hostfile"]),
        (
            [("node1", 2), ("node3", 2)],
            ["host node3 of the hostfile has no rank", "node2 has 2 rank(s) and is not in the hostfile"],
        ),
        ([("node1", 2), ("node2", 4)], ["node2 has 2 rank(s), 4 slot(s) in the hostfile"]),
        ([("10.0.0.1", 2), ("10.0.0.2", 2), ("10.0.0.3", 2)], ["host 10.0.0.3 of the hostfile has no rank"]),
        ([("gpu.a", 2), ("gpu.b", 1)], ["node2 has 2 rank(s), 1 slot(s) in the hostfile"]),
    ],
)
def test_ranks_are_compared_with_the_hostfile(hosts, expected):
    warnings = rank_grid(places(2, 2), 2, 4, hosts).warnings
    assert [warning.split(";")[0] for warning in warnings] == expected


def test_the_grid_as_printed():
    lines = printed(rank_grid(places(2, 2), 2, 8))
    assert lines[0] == "4 rank(s) on 2 node(s), in expert groups of 2: 2 replica(s) of 8 experts"
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    assert cells == [
        ["node1", "0 GPU 0", "1 GPU 1"], ["", "g0 e0-3", "g0 e4-7"],
        ["node2", "2 GPU 0", "3 GPU 1"], ["", "g1 e0-3", "g1 e4-7"],
    ]  # fmt: skip


def test_a_dense_model_has_no_groups_and_one_rank_no_table():
    assert printed(rank_grid(places(1), 1, 4)) == ["1 rank(s) on 1 node(s), in expert groups of 1: 1 replica(s) of 4 experts"]
    text = "\n".join(printed(rank_grid(places(2), 1, 0)))
    assert "g0" not in text and "expert" not in text and "1 GPU 1" in text


def test_a_large_world_shows_its_ends():
    lines = printed(rank_grid(places(*[16] * 64), 16, 128))
    assert len(lines) < 30 and max(map(len, lines)) <= 140
    text = "\n".join(lines)
    # the last rank of the first node and of the last; nothing of the middle
    assert "15 GPU 15" in text and "1023 GPU 15" in text and "g63 e120-127" in text and "node40" not in text


def where(expected_hosts: int) -> None:
    torch.distributed.init_process_group("gloo")
    found = gather_places(torch.device("cpu"))
    assert [place.local_rank for place in found] == [0, 1] and {place.device for place in found} == {"CPU"}
    assert len({place.host for place in found}) == expected_hosts
    torch.distributed.destroy_process_group()


def test_ranks_tell_each_other_where_they_are(tmp_path):
    run_ranks(where, 1, ranks=2, folder=tmp_path)


def test_a_process_alone_knows_its_own_place(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    [place] = gather_places(torch.device("cuda", 3))
    assert (place.local_rank, place.device) == (3, "GPU 3")
