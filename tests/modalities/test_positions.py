"""Coordinates to buckets: exact floors, sparse reads at low resolution, and true places after tokens are dropped.

Shapes: B batch, L tokens of an example, A axes, D width.
"""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from imp_ds.modalities.drop_token import kept_count, kept_tokens, write_tokens
from imp_ds.modalities.positions import FactoredPositions, TablePositions, grid_positions


def plain(*buckets: int) -> FactoredPositions:
    """Positions whose tables are one number per bucket, axis a counting in steps of 1000**a, and whose norm is left out:
    the output spells the buckets that were read."""
    positions = FactoredPositions(list(buckets), 1, 1e-6)
    positions.norm = torch.nn.Identity()
    for axis, table in enumerate(positions.tables):
        table.weight.data = 1000.0**axis * torch.arange(table.num_embeddings, dtype=torch.float64).unsqueeze(1)
    return positions


def buckets_of(positions: FactoredPositions, grid: np.ndarray) -> list[tuple[int, ...]]:
    spelled = positions(torch.from_numpy(grid).unsqueeze(0))[0, :, 0].long().tolist()
    return [tuple(number // 1000**axis % 1000 for axis in range(len(positions.buckets))) for number in spelled]


def test_a_lower_resolution_reads_the_table_sparsely():
    # 4 places over 8 buckets: 0/4*8, 1/4*8, 2/4*8, 3/4*8; 3 places: 0, 8/3 = 2.67, 16/3 = 5.33; 1 place: 0
    assert buckets_of(plain(8), grid_positions(4)) == [(0,), (2,), (4,), (6,)]
    assert buckets_of(plain(8), grid_positions(3)) == [(0,), (2,), (5,)]
    assert buckets_of(plain(8), grid_positions(1)) == [(0,)]
    assert buckets_of(plain(8), grid_positions(8)) == [(i,) for i in range(8)]


def test_axes_are_read_independently_in_row_major_order():
    # 2 steps over 16 buckets: 0, 8; 2 rows over 32: 0, 16; 4 columns over 32: 0, 8, 16, 24
    expected = list(itertools.product([0, 8], [0, 16], [0, 8, 16, 24]))
    assert buckets_of(plain(16, 32, 32), grid_positions(2, 2, 4)) == expected


def test_dropped_tokens_are_counted_as_on_paper():
    """Of all rates of two decimals and all counts to 2,048, in integers; 0.9 of 100 leaves 10, where floats make it 9."""
    pairs = itertools.product(range(100), range(1, 2049))
    assert [pair for pair in pairs if kept_count(pair[1], pair[0] / 100) != max(1, (100 - pair[0]) * pair[1] // 100)] == []
    assert kept_count(100, 0.9) == 10 and kept_count(10_000, 0.9999) == 1 and kept_count(65_536, 0.125) == 57_344


@pytest.mark.parametrize("buckets", [8, 10, 16, 32, 64, 77, 512])
def test_floors_equal_exact_arithmetic(buckets):
    """i * buckets // n in integers, for every i < n <= 512."""
    positions = plain(buckets)
    for n in range(1, 513):
        got = positions(torch.from_numpy(grid_positions(n)).unsqueeze(0))[0, :, 0].long()
        assert torch.equal(got, torch.arange(n) * buckets // n), n


@pytest.mark.parametrize("buckets", [1, 4, 10, 77, 512, 32768])
def test_the_largest_coordinate_below_1_reads_the_last_bucket(buckets):
    positions = FactoredPositions([buckets], 1, 1e-6)
    positions.norm = torch.nn.Identity()
    positions.tables[0].weight.data = torch.arange(buckets, dtype=torch.float32).unsqueeze(1)
    assert positions(torch.full((1, 1, 1), 1 - 2.0**-24)).item() == buckets - 1


@pytest.mark.parametrize("longest", [4096, 5000, 8191, 32768])
def test_every_word_of_the_longest_text_has_a_bucket_of_its_own(longest):
    """Text is scaled by its longest length: place i / longest must read bucket i, also where float32 is coarse."""
    positions = FactoredPositions([longest], 1, 1e-6)
    positions.norm = torch.nn.Identity()
    positions.tables[0].weight.data = torch.arange(longest, dtype=torch.float32).unsqueeze(1)
    places = torch.arange(longest, dtype=torch.float32) / longest
    assert torch.equal(positions(places.view(1, -1, 1))[0, :, 0], torch.arange(longest, dtype=torch.float32))


def test_tables_are_summed_and_normed():
    torch.manual_seed(0)
    positions = FactoredPositions([4, 2], 6, 1e-6)
    positions.norm.weight.data.normal_()
    out = positions(torch.from_numpy(grid_positions(4, 2)).unsqueeze(0))[0]
    for row, (i, j) in zip(out, itertools.product(range(4), range(2))):
        total = (positions.tables[0].weight[i] + positions.tables[1].weight[j]).double()
        normed = (total - total.mean()) / (total.var(unbiased=False) + 1e-6).sqrt() * positions.norm.weight.double()
        torch.testing.assert_close(row.double(), normed, rtol=1e-5, atol=1e-6)


def test_dropped_tokens_leave_the_others_where_they_were():
    torch.manual_seed(0)
    positions = FactoredPositions([16, 32, 32], 8, 1e-6)
    grid = (4, 6, 5)
    values = np.arange(120, dtype=np.float32).reshape(*grid, 1)
    full = positions(torch.from_numpy(grid_positions(*grid)).unsqueeze(0))[0]
    chosen = kept_tokens(120, 120, 0.75, np.random.default_rng(3))
    kept, places = np.empty((30, 1), np.float32), np.empty((30, 3), np.float32)  # (1 - 0.75) * 120
    write_tokens(values, grid, chosen, kept, places)
    survivors = positions(torch.from_numpy(places).unsqueeze(0))[0]
    assert torch.equal(survivors, full[kept[:, 0].astype(int)])


def test_a_coordinate_outside_the_table_is_not_read_from_elsewhere():
    with pytest.raises(IndexError):
        plain(8)(torch.ones(1, 1, 1))


@pytest.mark.parametrize("rows, columns", [(4, 6), (8, 6), (3, 9), (1, 1), (7, 2)])
def test_a_full_table_is_read_as_it_would_be_resized(rows, columns):
    """The same grid gives its very rows; another one what F.interpolate gives, also where most of the tokens are dropped."""
    positions = TablePositions([2, 4, 6], 8)
    table_DRS = positions.cells.weight.detach().T.unflatten(1, (4, 6))
    resized_DRS = F.interpolate(table_DRS[None], size=(rows, columns), mode="bilinear", align_corners=False)[0]
    grid = torch.from_numpy(grid_positions(1, rows, columns))[None]
    expected_LD = resized_DRS.flatten(1).T + positions.steps.weight[0]
    found_LD = positions(grid)[0]
    torch.testing.assert_close(found_LD, expected_LD, atol=1e-5, rtol=1e-5)
    if (rows, columns) == (4, 6):
        assert torch.equal(found_LD, positions.steps.weight[0] + positions.cells.weight)
    kept = [0, rows * columns - 1]  # whose last row and column are there
    torch.testing.assert_close(positions(grid[:, kept])[0], expected_LD[kept], atol=1e-5, rtol=1e-5)
