"""A page of headings, tables and figures, and its two forms: Markdown and one HTML file.

What is in the page is said once, as a list of blocks; the renderers know nothing of it. Text is
plain: whatever it holds is escaped, so names of folders can't break a table or become tags.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import re
from collections.abc import Sequence
from pathlib import Path

MISSING = "–"


@dataclasses.dataclass(frozen=True)
class Heading:
    """Of level 1 (the page's title, once) to 4."""

    level: int
    text: str


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """A few sentences."""

    text: str


@dataclasses.dataclass(frozen=True)
class Bullets:
    """A list."""

    items: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Cell:
    """Of a table.

    Attributes:
      text: its first line.
      detail: a smaller second line, or nothing.
      strong: set off from the others.
      notes: indices into the table's notes.
    """

    text: str
    detail: str = ""
    strong: bool = False
    notes: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns of cells; the first cell of a row names it.

    Attributes:
      caption: what it shows, with the units.
      header: one cell for each column.
      rows: each as long as the header.
      notes: footnotes, marked a, b, c, ...
      wide: indices of columns that hold words, not numbers.
    """

    caption: str
    header: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    wide: tuple[int, ...] = (0,)


@dataclasses.dataclass(frozen=True)
class Figure:
    """A picture beside the page.

    Attributes:
      name: of the file.
      alt: what it shows, for those who do not see it.
      caption: below it.
    """

    name: str
    alt: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Details:
    """Blocks that are folded away behind a line."""

    summary: str
    blocks: tuple[Block, ...]


class Notes:
    """Footnotes of a table in the making, each text once."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def add(self, text: str) -> int:
        """The index of a note."""
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text)


Block = Heading | Paragraph | Bullets | Table | Figure | Details


def figures(blocks: Sequence[Block]) -> list[str]:
    """Names of all pictures, in order."""
    names = []
    for block in blocks:
        if isinstance(block, Figure):
            names.append(block.name)
        elif isinstance(block, Details):
            names += figures(block.blocks)
    return names


def count(number: int, singular: str, plural: str | None = None) -> str:
    """`1 run`, `2 runs`."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def mark(note: int) -> str:
    """The letter of a note: a, ..., z, aa, ab, ..."""
    letters = ""
    note += 1
    while note:
        note, letter = divmod(note - 1, 26)
        letters = chr(ord("a") + letter) + letters
    return letters


def to_markdown(blocks: Sequence[Block]) -> str:
    """GitHub's Markdown; pictures are files in the page's folder."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def to_html(blocks: Sequence[Block], folder: Path) -> str:
    """One file that needs no other: the pictures, read from `folder`, are inside."""
    title = next(b.text for b in blocks if isinstance(b, Heading) and b.level == 1)
    sections = [b.text for b in blocks if isinstance(b, Heading) and b.level == 2]
    ids = {text: f"section-{i + 1}" for i, text in enumerate(sections)}
    links = "".join(f'<li><a href="#{ids[s]}">{html.escape(s)}</a></li>' for s in ids)
    body = []
    for i, block in enumerate(blocks):
        body.append(_html(block, folder, ids))
        if i == 0 and len(ids) > 1:
            body.append(f'<nav aria-label="Contents"><ul>{links}</ul></nav>')
    return _PAGE.format(title=html.escape(title), style=_STYLE, body="\n".join(body))


def _escape(text: str) -> str:
    """Plain text as Markdown that shows it."""
    brackets = r"\[\]" if re.search(r"\][(\[:]", text) else ""  # of links; not of intervals
    special = rf"[\\`*|~${brackets}]|(?<!\w)_|_(?!\w)"
    text = re.sub(special, r"\\\g<0>", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _line(text: str) -> str:
    """The same at the start of a line, where it must not look like a heading or a list."""
    return re.sub(r"^(\d*)([#+.)-])", r"\1\\\2", _escape(text))


def _markdown(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {_line(text)}"
        case Paragraph(text):
            return _line(text)
        case Bullets(items):
            return "\n".join(f"- {_line(item)}" for item in items)
        case Figure(name, alt, caption):
            return f"![{_escape(alt)}]({name})\n\n{_line(caption)}"
        case Details(summary, blocks):
            inner = "\n\n".join(map(_markdown, blocks))
            summary = html.escape(summary)
            return f"<details>\n<summary>{summary}</summary>\n\n{inner}\n\n</details>"
        case Table():
            rule = [":--" if i in block.wide else "--:" for i in range(len(block.header))]
            rows = [map(_markdown_cell, block.header), rule]
            rows += [map(_markdown_cell, row) for row in block.rows]
            lines = [f"| {' | '.join(row)} |" for row in rows]
            notes = [f"<sup>{mark(i)}</sup> {_escape(note)}" for i, note in enumerate(block.notes)]
            parts = [_line(block.caption), "\n".join(lines), "<br>\n".join(notes)]
            return "\n\n".join(part for part in parts if part)


def _markdown_cell(cell: Cell) -> str:
    text = f"**{_escape(cell.text)}**" if cell.strong and cell.text else _escape(cell.text)
    if cell.notes:
        text += f"<sup>{','.join(map(mark, cell.notes))}</sup>"
    return f"{text}<br>{_escape(cell.detail)}" if cell.detail else text


def _html(block: Block, folder: Path, ids: dict[str, str]) -> str:
    escape = html.escape
    match block:
        case Heading(level, text):
            anchor = f' id="{ids[text]}"' if level == 2 else ""
            return f"<h{level}{anchor}>{escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{escape(text)}</p>"
        case Bullets(items):
            return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"
        case Figure(name, alt, caption):
            kind = "gif" if name.endswith(".gif") else "png"
            data = base64.b64encode((folder / name).read_bytes()).decode()
            image = f'<img src="data:image/{kind};base64,{data}" alt="{escape(alt)}">'
            return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"
        case Details(summary, blocks):
            inner = "\n".join(_html(b, folder, ids) for b in blocks)
            return f"<details><summary>{escape(summary)}</summary>\n{inner}\n</details>"
        case Table():
            return _html_table(block)


def _html_table(table: Table) -> str:
    def row(cells: Sequence[Cell], header: bool = False) -> str:
        parts = []
        for i, cell in enumerate(cells):
            tag = "th" if header or i == 0 else "td"
            scope = f' scope="{"col" if header else "row"}"' if tag == "th" else ""
            kind = ' class="words"' if i in table.wide else ""
            parts.append(f"<{tag}{scope}{kind}>{_html_cell(cell)}</{tag}>")
        return f"<tr>{''.join(parts)}</tr>"

    caption = html.escape(table.caption)
    notes = "".join(
        f"<p class='note'><sup>{mark(i)}</sup> {html.escape(note)}</p>"
        for i, note in enumerate(table.notes)
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}"><table>\n'
        f"<caption>{caption}</caption>\n"
        f"<thead>{row(table.header, header=True)}</thead>\n<tbody>\n"
        + "\n".join(map(row, table.rows))
        + f"\n</tbody></table></div>\n{notes}"
    )


def _html_cell(cell: Cell) -> str:
    text = html.escape(cell.text)
    if cell.strong and text:
        text = f"<strong>{text}</strong>"
    if cell.notes:
        text += f"<sup>{','.join(map(mark, cell.notes))}</sup>"
    return f"{text}<br><small>{html.escape(cell.detail)}</small>" if cell.detail else text


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """:root { color-scheme: light dark; --text: #1f2933; --back: #ffffff; --line: #cbd2d9;
  --soft: #52606d; --head: #f1f4f7; --link: #1d4ed8; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e7eb; --back: #15191e; --line: #3e4c59;
  --soft: #a3b0bd; --head: #222a32; --link: #8ab4f8; } }
body { margin: 0; color: var(--text); background: var(--back);
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
p, li, figcaption { max-width: 50rem; overflow-wrap: anywhere; }
a, summary { color: var(--link); }
summary { cursor: pointer; padding: .3rem 0; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: 0; list-style: none; }
.scroll { overflow-x: auto; margin: 1rem 0 .4rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
caption { text-align: left; padding-bottom: .4rem; color: var(--soft); }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; white-space: nowrap; }
th.words, td.words { text-align: left; white-space: normal; min-width: 7rem; }
thead th { background: var(--head); }
tbody th { font-weight: 600; }
small, figcaption, .note { color: var(--soft); font-size: .85rem; }
.note { margin: .1rem 0; }
figure { margin: 1.2rem 0; }
img { max-width: 100%; height: auto; background: #ffffff; border-radius: 4px; }
@media print { main { max-width: none; padding: 0; } nav { display: none; }
  .scroll { overflow: visible; } table { font-size: .75rem; } th, td { padding: .15rem .35rem; }
  tr, figure { break-inside: avoid; } details::details-content { content-visibility: visible; } }
"""
