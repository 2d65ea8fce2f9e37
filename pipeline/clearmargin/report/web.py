"""HTML pages that stand alone: tables, figures and pictures inside one file, light and dark, and fit to print."""

from __future__ import annotations

import base64
import hashlib
import html
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.files import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["counted", "figure_image", "link", "picture_image", "table", "text", "web_page"]

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1d21; --faint: #63686f; --line: #d9dce1; --good: #0b6e4f;
  --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --paper: #14161a; --ink: #e8eaed; --faint: #9aa0a8; --line: #31353c;
  --good: #6fd3ad; --bad: #ff8a80; } }
body { margin: 0 auto; padding: 24px; max-width: 1100px; font: 14px/1.5 system-ui, sans-serif;
  background: var(--paper); color: var(--ink); }
h1 { font-size: 22px; margin: 0 0 4px; }
h2 { font-size: 17px; margin: 28px 0 6px; border-bottom: 1px solid var(--line); }
h3 { font-size: 14px; margin: 16px 0 4px; }
p { margin: 4px 0; } .faint { color: var(--faint); } .better { color: var(--good); font-weight: 600; }
.worse { color: var(--bad); font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 12.5px; }
th { text-align: left; color: var(--faint); font-weight: 600; }
th, td { padding: 2px 12px 2px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number { text-align: right; white-space: nowrap; }
img { max-width: 100%; height: auto; background: #fff; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(440px, 1fr)); gap: 14px; }
.card { border: 1px solid var(--line); border-radius: 6px; padding: 8px; break-inside: avoid; }
.card img { display: block; width: 100%; background: #000; }
figure.card { margin: 0; } figure.card img { background: #fff; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(0, 1fr)); grid-auto-flow: column; gap: 4px; }
a { color: inherit; }
@page { margin: 14mm; }
@media print { :root { --paper: #fff; --ink: #000; --faint: #444; --line: #bbb; } body { max-width: none; padding: 0;
  font-size: 10pt; } h2 { break-after: avoid; } table, figure, img { break-inside: avoid; } .screen { display: none; }
  .cards { grid-template-columns: repeat(3, 1fr); } }
"""


def web_page(title: str, parts: Sequence[str]) -> str:
    """Return a page that loads nothing: its policy lets in its own style and its own pictures alone.

    Args:
        title: Text.
        parts: HTML, made by the functions beside this one.
    """
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head>\n<body>\n<h1>{text(title)}</h1>\n{body}\n</body></html>\n"
    )


def text(value: object) -> str:
    """Return a value as text of a page, without what acts on one."""
    return html.escape(printable(str(value)))


def link(address: str, words: str) -> str:
    """Return a link to a file beside the page."""
    return f'<a href="{html.escape(address)}">{text(words)}</a>'


def table(rows: Sequence[Mapping[str, Any]], *, marked: str = "") -> str:
    """Return rows as a table: numbers to the right with four significant digits, None as a dash.

    Args:
        rows: Columns are those of the first row.
        marked: A column whose words ``better`` and ``worse`` are coloured.
    """
    if not rows:
        return '<p class="faint">none</p>'
    columns = list(rows[0])
    head = "".join(f"<th>{text(name)}</th>" for name in columns)
    lines = [
        f"<tr>{''.join(_cell(row.get(name), mark=name == marked) for name in columns)}</tr>" for row in rows
    ]
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _cell(value: Any, *, mark: bool) -> str:
    if value is None:
        return '<td class="number">-</td>'
    if isinstance(value, bool | str):
        kind = f' class="{value}"' if mark and value in ("better", "worse") else ""
        return f"<td{kind}>{text(value)}</td>"
    return (
        f'<td class="number">{value:.4g}</td>'
        if isinstance(value, float)
        else f'<td class="number">{value}</td>'
    )


def counted(number: int, thing: str) -> str:
    """Return a number of things in words.

    >>> counted(1, "false negative"), counted(0, "case"), counted(2, "case")
    ('1 false negative', '0 cases', '2 cases')
    """
    return f"{number} {thing}" + ("" if number == 1 else "s")


def figure_image(figure: Figure, title: str) -> str:
    """Return a figure inside the page."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return _image(stream.getvalue(), title)


def picture_image(picture: NDArray[np.uint8], title: str, *, side: int = 640) -> str:
    """Return an RGB picture inside the page, as JPEG, at most ``side`` pixels wide."""
    from PIL import Image as Pillow

    image = Pillow.fromarray(picture)
    if image.width > side:
        image = image.resize((side, max(1, round(image.height * side / image.width))))
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=82)
    return _image(stream.getvalue(), title, kind="jpeg")


def _image(content: bytes, title: str, *, kind: str = "png") -> str:
    return f'<img alt="{text(title)}" src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'
