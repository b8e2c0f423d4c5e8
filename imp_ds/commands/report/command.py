"""The command `report`: one HTML page of a run, out of what its folder holds; no script, nothing from elsewhere."""

from pathlib import Path

from imp_ds.commands.report import charts, sections
from imp_ds.commands.report.page import page, safe
from imp_ds.commands.report.record import RunRecord, records
from imp_ds.errors import UserError
from imp_ds.terminal.printable import printable
from imp_ds.written_files import write_result

_SECTIONS = (
    ("Trained", sections.trained), ("Loss", sections.losses), ("Scores", sections.scores), ("Answers", sections.answers),
    ("Samples", sections.pictures), ("Speed and optimizer", sections.speed), ("Experts", sections.experts),
    ("Interference", sections.interference), ("Samples left out", sections.rejected), ("Configuration", sections.configuration),
    ("Environment", sections.environment),
)  # fmt: skip
_STYLE = """
nav { margin: .2rem 0 1rem } nav a { margin-right: 1rem } a { color: var(--c0) } h2 { margin-top: 1.6rem }
section + section { border-top: 3px solid var(--line); margin-top: 2.5rem; padding-top: .5rem }
h3.part { margin: 1.4rem 0 .4rem }
table { border-collapse: collapse; font-size: 14px; margin: .3rem 0 1rem }
td, th { padding: .18rem .7rem .18rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
td { overflow-wrap: anywhere; max-width: 40rem } th { color: var(--soft); font-weight: 600 }
td.n, th.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
table.cells td, table.cells th { padding: .15rem .5rem; text-align: right; border: 1px solid var(--card) }
.scroll { overflow-x: auto } pre { overflow-x: auto; font-size: 12.5px } summary { cursor: pointer; margin: .3rem 0 }
"""


def report(folder: Path, out: Path | None = None) -> str:
    """Write the page of the run in `folder` to `out` (None: report.html in it); returns a line that says so.

    A folder of several stages has all of them on one page. Raises UserError where there is no run, and a file that cannot be
    written.
    """
    folder = Path(folder)
    out = folder / "report.html" if out is None else Path(out)
    if out.is_dir() or not out.parent.is_dir() and out.parent != folder:
        raise UserError("the page cannot be written there", got=out, allowed="a file in a folder that exists")
    found = records(folder)
    many = len(found) > 1
    parts = "".join(_part(record, many) for record in found)
    links = "".join(f'<a href="#{safe(_anchor(record))}">{safe(record.folder.name)}</a>' for record in found) if many else ""
    title = f"{found[0].run.name if not many else folder.resolve().name}: report of the run"
    write_result(out, page(title, (f"<nav>{links}</nav>" if many else "") + parts, charts.STYLE + _STYLE))
    lost = sum(sum(record.damaged.values()) for record in found)
    left_out = f"; {lost} damaged lines or files were left out" if lost else ""
    return f"wrote {printable(out)}: {len(found)} {'stages' if many else 'run'}, {out.stat().st_size / 1e6:.1f} MB{left_out}"


def _part(record: RunRecord, many: bool) -> str:
    made = [(title, section(record)) for title, section in _SECTIONS]
    body = "".join(f"<h3 class=part>{title}</h3>{content}" for title, content in made if content)
    heading = f"<h2>{safe(record.folder.name)}</h2>" if many else ""
    return f'<section id="{safe(_anchor(record))}">{heading}{body}</section>'


def _anchor(record: RunRecord) -> str:
    return f"stage-{record.folder.name}"
