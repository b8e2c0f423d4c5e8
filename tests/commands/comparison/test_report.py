"""The files of a comparison, from constructed numbers."""

import json

import pytest
from PIL import Image

from imp_ds.commands.comparison.measure import spreads
from imp_ds.commands.comparison.measures import COST, SECTIONS, SKILL
from imp_ds.commands.comparison.picture import draw_comparison
from imp_ds.commands.comparison.report import facts, write_page, write_table
from imp_ds.recipes.routers import ROUTERS


@pytest.fixture
def values():
    """Two seeds of each router: the k-th has k + 1 and k + 3 in whatever is shown."""
    keys = [measure.key for measures in SECTIONS.values() for measure in measures]
    return {router: [dict.fromkeys(keys, place + 1.0 + two) for two in (0, 2)] for place, router in enumerate(ROUTERS)}


def test_the_page_holds_what_was_measured_how_and_with_what(tmp_path, values):
    study = facts("imp_ds compare-routers there", 300, 2, interference_samples=32)
    write_page(tmp_path, study, spreads(values), SECTIONS, ["one note", "another"], title="Routers", of="router")
    page = (tmp_path / "README.md").read_text()
    torch_version = f"torch {study['versions']['torch']}"
    for part in (study["date"], torch_version, "300 steps", "2 seeds", "compare-routers there", "- one note"):
        assert part in page
    for title, measures in SECTIONS.items():
        assert (f"## {title}" in page) == bool(measures)
    # the third router, context: mean of 3 and 5, deviation sqrt(2), in ms
    assert COST[0].unit == "ms" and "| context | 4000.0 ± 1414.2 |" in page


def test_the_table_holds_every_number_and_null_for_none(tmp_path, values):
    values["dense"][0]["loss"] = float("nan")
    write_table(tmp_path, {"steps": 3}, values, {"layers_with_experts": [1]}, of="routers")
    found = json.loads((tmp_path / "table.json").read_text())
    assert found["facts"] == {"steps": 3} and found["details"]["layers_with_experts"] == [1]
    assert found["routers"]["dense"][0]["loss"] is None
    assert found["routers"]["attribute"][1][SKILL[0].key] == 8.0


def test_the_picture_has_room_for_every_panel_and_bears_gaps(tmp_path, values):
    found = spreads(values)
    del found["task"][SKILL[0].key]
    found["token"][SKILL[1].key] = found["token"][SKILL[1].key]._replace(mean=-2.0)
    draw_comparison([*COST, *SKILL], found, tmp_path / "a.png", title="all")
    draw_comparison([*COST[:3]], found, tmp_path / "b.png")
    tall, flat = (Image.open(tmp_path / name) for name in ("a.png", "b.png"))
    assert tall.width == flat.width and tall.height > 2 * flat.height
    colours = {colour for _, colour in tall.convert("RGB").getcolors(1 << 24)}
    assert {(0xE6, 0x9F, 0x00), (0x00, 0x9E, 0x73)} <= colours  # the bars of token and attribute
