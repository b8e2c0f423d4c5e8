"""Parts of HTML pages that need nothing beside themselves: no script, no network, every text escaped."""

import base64
import html

from imp_ds.terminal.printable import printable

# light and dark, by what the reader's system asks for
STYLE = """
:root { color-scheme: light dark; --ink: #222; --soft: #666; --page: #fafafa; --card: #fff; --line: #ddd;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b3478f; --c4: #b07d00; --c5: #2b9fd9; --c6: #5b4bb5; --c7: #7a7a2e;
  --c8: #c1272d; --c9: #3d6b5f; --c10: #8c5a3c; --c11: #555 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --soft: #a3a3a3; --page: #16181b; --card: #1f2226; --line: #3a3f45;
  --c0: #58a6ff; --c1: #ff9a56; --c2: #3fd6a4; --c3: #f08cc8; --c4: #e6c04a; --c5: #7cd4ff;
  --c6: #b3a5ff; --c7: #c9c97a; --c8: #ff8f8f; --c9: #8fd0bf; --c10: #d9a683; --c11: #bbb } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem }
body { color: var(--ink); background: var(--page) }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin: 2rem 0 .2rem } p { margin: .1rem 0 .8rem; color: var(--soft) }
.row { display: flex; flex-wrap: wrap; gap: 1rem }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .6rem; max-width: 100%;
  box-sizing: border-box }
img { display: block; image-rendering: pixelated; max-width: 100% } img + img, audio { margin-top: .4rem }
"""


def safe(text: object) -> str:
    """For the page."""
    return html.escape(printable(text))


def picture(png: bytes) -> str:
    """A PNG, in the page itself."""
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def page(title: str, body: str, style: str = "") -> str:
    """The whole page. title: a text; body: HTML."""
    head = "<meta charset=utf-8><meta name=viewport content='width=device-width'>"
    head += f"<title>{safe(title)}</title><style>{STYLE}{style}</style>"
    return f"<!doctype html><html lang=en>{head}<h1>{safe(title)}</h1>{body}"


def table(head: list[str], rows: list[list[object]], numbers: tuple[int, ...] = ()) -> str:
    """Texts in rows; the columns of `numbers` are set to the right. "" without rows."""
    if not rows:
        return ""
    side = lambda place: " class=n" if place in numbers else ""  # noqa: E731
    heads = "".join(f"<th{side(place)}>{safe(cell)}" for place, cell in enumerate(head))
    lines = "".join("<tr>" + "".join(f"<td{side(place)}>{safe(cell)}" for place, cell in enumerate(row)) for row in rows)
    return f"<div class=scroll><table><thead><tr>{heads}<tbody>{lines}</table></div>"
