"""Which rank runs where, with which experts: the plan of ranks as a grid of nodes, and what is wrong with it.

Ranks e * ep_size .. (e + 1) * ep_size - 1 are expert group e: together they hold every expert once, so a group is also one
replica of the experts. All of a group's tokens travel between its ranks in every MoE layer, so a group belongs inside a
node; replicas exchange gradients once a step, and may be on other nodes.
"""

import os
import socket
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from imp_ds.parallel.groups import world_size

SHOWN = 8  # rows and columns of the grid; of more, the first ones and the last


@dataclass(frozen=True)
class Place:
    """Where a rank runs: the machine's name, the rank's number there by its launcher, and its device ("GPU 3" or "CPU")."""

    host: str
    local_rank: int
    device: str


@dataclass(frozen=True)
class Seat:
    """A rank in the grid: its expert group, which is also the number of its replica, and the experts that it holds."""

    rank: int
    place: Place
    group: int
    experts: range


@dataclass(frozen=True)
class Grid:
    """All ranks. `nodes`: hosts in the order of their first rank, each with its ranks in order. `warnings`: what is unfit."""

    ep_size: int
    nodes: dict[str, list[Seat]]
    warnings: list[str]


def gather_places(device: torch.device) -> list[Place]:
    """The places of all ranks, in rank order. All ranks call it, with their device."""
    name = "CPU" if device.type == "cpu" else f"GPU {device.index or 0}"
    mine = Place(socket.gethostname(), int(os.environ.get("LOCAL_RANK", "0")), name)
    if world_size() == 1:
        return [mine]
    places: list[Place | None] = [None] * world_size()
    dist.all_gather_object(places, mine)
    return places


def rank_grid(places: list[Place], ep_size: int, num_experts: int, hosts: list[tuple[str, int]] | None = None) -> Grid:
    """The plan of the ranks at `places`, in rank order, and its weaknesses. A pure function.

    Args:
        ep_size: ranks of an expert group; divides the number of ranks.
        num_experts: experts of a layer, a multiple of ep_size; 0 for a dense model.
        hosts: (name, slots) of the hostfile, where the run was started with one.
    """
    held = num_experts // ep_size
    nodes: dict[str, list[Seat]] = {}
    for rank, place in enumerate(places):
        group, member = divmod(rank, ep_size)
        nodes.setdefault(place.host, []).append(Seat(rank, place, group, range(member * held, (member + 1) * held)))
    sizes = [len(seats) for seats in nodes.values()]
    warnings = _shared_devices(nodes) + _scattered(places, nodes) + _spanning(nodes, sizes, ep_size)
    return Grid(ep_size, nodes, warnings + ([] if hosts is None else _against_hostfile(nodes, hosts)))


def _shared_devices(nodes: dict[str, list[Seat]]) -> list[str]:
    """Two ranks on one GPU: two launchers on a machine, two names for it in the hostfile, or two machines of one name."""
    found = []
    for host, seats in nodes.items():
        by_device: dict[str, list[int]] = {}
        for seat in seats:
            by_device.setdefault(seat.place.device, []).append(seat.rank)
        found += [
            f"ranks {_some(ranks)} share {device} of {host}; if these are two machines of one name, give them names of their own,"
            " else start one launcher on a machine, with one slot for each GPU"
            for device, ranks in by_device.items()
            if device != "CPU" and len(ranks) > 1
        ]
    return found


def _scattered(places: list[Place], nodes: dict[str, list[Seat]]) -> list[str]:
    """Ranks of a node that do not follow each other."""
    blocks = [host for host, _ in groupby(place.host for place in places)]
    torn = next((host for host in nodes if blocks.count(host) > 1), None)
    if torn is None:
        return []
    ranks = _some([seat.rank for seat in nodes[torn]])
    return [
        f"ranks are dealt out to the nodes in turn ({torn} has {ranks}) instead of in blocks: whatever ep_size, neighbours sit on"
        " different nodes; number each node's ranks in a row: srun --distribution=block, mpirun --map-by slot"
    ]


def _spanning(nodes: dict[str, list[Seat]], sizes: list[int], ep_size: int) -> list[str]:
    """Expert groups on several nodes."""
    members: dict[int, dict[str, int]] = {}
    for host, seats in nodes.items():
        for seat in seats:
            counts = members.setdefault(seat.group, {})
            counts[host] = counts.get(host, 0) + 1
    spanning = sorted(group for group, counts in members.items() if len(counts) > 1)
    if not spanning:
        return []
    # a row goes from any member to any other alike: it stays on its node with the share of the group that sits there
    crossing = max(1 - sum(n * n for n in members[group].values()) / ep_size**2 for group in spanning)
    unequal = f"; nodes have {min(sizes)} to {max(sizes)} ranks" if len(set(sizes)) > 1 else ""
    fits = [n for n in range(1, ep_size) if ep_size % n == 0 and all(size % n == 0 for size in sizes)]
    return [
        f"{len(spanning)} of {len(members)} expert groups span nodes (group {spanning[0]}: {_some(list(members[spanning[0]]))}"
        f"{unequal}): up to {crossing:.0%} of what experts send and receive crosses the network, in every MoE layer, forward and"
        f" backward; --set train.ep_size={fits[-1]} keeps groups inside nodes that hold their ranks in blocks"
    ]


def _against_hostfile(nodes: dict[str, list[Seat]], hosts: list[tuple[str, int]]) -> list[str]:
    """Hosts without ranks, ranks on other hosts, and slots without ranks.

    A hostfile may name machines by address or alias, which their own names do not show: unless some name matches, only
    the numbers are compared, by place. Domains do not count: "node1" is "node1.cluster".
    """
    names, own = [_short(name) for name, _ in hosts], [_short(host) for host in nodes]
    if not set(names) & set(own) or len(set(names)) < len(names) or len(set(own)) < len(own):
        names, own = list(range(len(names))), list(range(len(own)))
    listed, found = dict(zip(names, hosts)), dict(zip(own, nodes.items()))
    warnings = [f"host {name} of the hostfile has no rank" for key, (name, _) in listed.items() if key not in found]
    for key, (host, seats) in found.items():
        ranks = f"{host} has {len(seats)} rank(s)"
        if key not in listed:
            warnings.append(f"{ranks} and is not in the hostfile")
        elif len(seats) != listed[key][1]:
            warnings.append(f"{ranks}, {listed[key][1]} slot(s) in the hostfile")
    return [f"{warning}; compare the hostfile with where the launchers were started" for warning in warnings]


def _short(host: str) -> str:
    """A host's name without its domain; an address as it is."""
    return host if host.replace(".", "").isdigit() else host.split(".")[0].casefold()


def show(grid: Grid, console: Console) -> None:
    """Print the grid and its warnings: nodes as rows, of large worlds the first ones and the last."""
    seats = [seat for row in grid.nodes.values() for seat in row]
    experts = len(seats[0].experts) * grid.ep_size
    title = f"{len(seats)} rank(s) on {len(grid.nodes)} node(s)"
    if experts:
        title += f", in expert groups of {grid.ep_size}: {len(seats) // grid.ep_size} replica(s) of {experts} experts"
    console.print(title, highlight=False)
    if len(seats) > 1:
        console.print("rank and device" + (", g its group, e its experts:" if experts else ":"), highlight=False)
        console.print(_table(grid))
    for warning in grid.warnings:
        console.print(f"warning: {warning}", highlight=False, soft_wrap=True)


def _table(grid: Grid) -> Table:
    columns = _shown(max(map(len, grid.nodes.values())))
    table = Table(show_header=False, show_lines=True)
    for host in _shown(len(grid.nodes)):
        if host is None:
            table.add_row(*["..."] * (len(columns) + 1))
            continue
        name, seats = list(grid.nodes.items())[host]
        cells = ["..." if i is None else _cell(seats[i]) if i < len(seats) else "" for i in columns]
        table.add_row(name, *cells)
    return table


def _cell(seat: Seat) -> str:
    """The rank and its device, and under them its group and its experts."""
    first_line = f"{seat.rank} {seat.place.device}"
    if not seat.experts:
        return first_line
    first, last = seat.experts[0], seat.experts[-1]
    return f"{first_line}\ng{seat.group} e{first}" + (f"-{last}" if last > first else "")


def _shown(number: int) -> list[int | None]:
    """Indices to show; None is for those that are left out."""
    if number <= SHOWN:
        return list(range(number))
    return [*range(SHOWN - 2), None, number - 1]


def _some(items: list) -> str:
    return ", ".join(map(str, items if len(items) <= 4 else [*items[:3], "...", items[-1]]))
