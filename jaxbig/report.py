"""Reports: one self-contained HTML file with text, tables and figures, and tables for the terminal.

A report loads nothing from outside: figures stand in it as SVG, and follow the reader's light or dark setting where
they use the colours of `jaxbig.theme`. The same calls give the same bytes, so two reports can be compared by hash.
"""

import html
import io
import math
import numbers
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import matplotlib
import numpy as np
import rich.box
import rich.table
import rich.text
from matplotlib.figure import Figure

from jaxbig import atomic
from jaxbig.theme import DARK, LIGHT

Row = Mapping[str, Any]


class Report:
    """A page that is written from top to bottom, then saved.

    Args:
        title: stands at the top and in the browser's tab.

    Example:
        >>> report = Report("Digits")
        >>> report = report.text("Five seeds.").table([{"method": "LoRA", "accuracy": 0.97}], "Accuracy")
        >>> "<td class=number>0.97</td>" in report.html()
        True
    """

    def __init__(self, title: str):
        self._title = title
        self._parts: list[str] = []
        self._figures = 0

    def section(self, title: str) -> Self:
        """Begin a section."""
        self._parts.append(f"<h2>{html.escape(title)}</h2>")
        return self

    def text(self, text: str) -> Self:
        """Add plain text; a blank line begins a new paragraph, and nothing in it is markup."""
        for paragraph in re.split(r"\n\s*\n", text.strip()):
            self._parts.append(f"<p>{html.escape(' '.join(paragraph.split()))}</p>")
        return self

    def table(self, rows: Sequence[Row], caption: str = "") -> Self:
        """Add a table.

        Args:
            rows: one mapping a row; the columns are the keys in the order in which they first appear, and a key that a
                row lacks gives a dash. Numbers are set to the right, fractions with the decimals that show the column's
                largest with four significant digits; text stands as it is.
            caption: a line above the table.
        """
        columns = _columns(rows)
        classes = {column: " class=number" if _is_numeric(rows, column) else "" for column in columns}
        head = "".join(f"<th scope=col{classes[c]}>{html.escape(c)}</th>" for c in columns)
        body = "".join(
            f"<tr>{''.join(f'<td{classes[c]}>{html.escape(cell[c])}</td>' for c in columns)}</tr>\n"
            for cell in _cells(rows, columns)
        )
        title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
        table = f"<table>{title}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>"
        self._parts.append(f"<div class=scroll tabindex=0>{table}</div>")
        return self

    def figure(self, figure: Figure, caption: str = "") -> Self:
        """Add a matplotlib figure as inline SVG.

        Args:
            figure: any figure; the colours of `jaxbig.theme` follow the page's light or dark theme, others stay.
            caption: a line below the figure, read out by screen readers.
        """
        self._figures += 1
        legend = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
        label = html.escape(caption or f"Figure {self._figures}", quote=True)
        self._parts.append(f"<figure>{_svg(figure, f'f{self._figures}', label)}{legend}</figure>")
        return self

    def html(self) -> str:
        """The whole page."""
        title = html.escape(self._title)
        body = "\n".join(self._parts)
        return (
            "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n"
            '<meta name=viewport content="width=device-width, initial-scale=1">\n'
            '<meta name=color-scheme content="light dark">\n'
            f"<title>{title}</title>\n<style>\n{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n"
            f"{body}\n</main>\n</body>\n</html>\n"
        )

    def save(self, path: str | os.PathLike) -> Path:
        """Write the page: whole or not at all, so that a reader or a kill in between never leaves half of one.

        Args:
            path: the file to write; its folder is made where it is missing.

        Returns:
            The path.

        Raises:
            UserError: the folder or the file cannot be written; the report that was there before still is.
        """
        return atomic.write(path, self.html())


def terminal_table(rows: Sequence[Row], title: str = "") -> rich.table.Table:
    """A table for the terminal, by the rules of `Report.table`.

    Args:
        rows: one mapping a row.
        title: a line above the table.

    Returns:
        What `rich.print` or a `rich.console.Console` prints.

    Example:
        >>> import rich.console
        >>> rows = [{"method": "LoRA", "bytes": 12345}, {"method": "BitFit", "bytes": 678}]
        >>> rich.console.Console(width=40, color_system=None).print(terminal_table(rows))
         method    bytes
        ─────────────────
         LoRA     12,345
         BitFit      678
    """
    table = rich.table.Table(title=title or None, box=rich.box.SIMPLE_HEAD, show_edge=False, title_justify="left")
    columns = _columns(rows)
    for column in columns:
        justify = "right" if _is_numeric(rows, column) else "left"
        # Text, not str: a column or a path with brackets must not be read as markup.
        table.add_column(rich.text.Text(column), justify=justify, overflow="fold")
    for cells in _cells(rows, columns):
        table.add_row(*(rich.text.Text(cells[column]) for column in columns))
    return table


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in row))


def _is_numeric(rows: Sequence[Row], column: str) -> bool:
    values = [row[column] for row in rows if row.get(column) is not None]
    return bool(values) and all(isinstance(value, numbers.Number) and not isinstance(value, bool) for value in values)


def _cells(rows: Sequence[Row], columns: Sequence[str]) -> list[dict[str, str]]:
    """Every cell as text; the fractions of a column get one number of decimals, so that their points stand in line."""
    decimals = {column: _decimals([row.get(column) for row in rows]) for column in columns}
    return [{column: _show(row.get(column), decimals[column]) for column in columns} for row in rows]


def _decimals(values: Sequence[Any]) -> int | None:
    """How many decimals show the largest value with four significant digits; None where no fixed number is readable."""
    sizes = [abs(float(v)) for v in values if _is_fraction(v)]
    if not sizes or not 1e-3 <= max(sizes) < 1e6:
        return None
    most = max(0, 3 - math.floor(math.log10(max(sizes))))
    return max((len(f"{size:.{most}f}".partition(".")[2].rstrip("0")) for size in sizes), default=0)


def _is_fraction(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral) and math.isfinite(float(value))


def _show(value: Any, decimals: int | None = None) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}"
    if isinstance(value, numbers.Real):
        return f"{float(value):.4g}" if decimals is None else f"{float(value):,.{decimals}f}"
    return str(value)


def _svg(figure: Figure, prefix: str, label: str) -> str:
    """A figure as SVG that can stand beside others in one page: no date, no id twice, colours that follow the theme."""
    # The figure's own salt makes ids that matplotlib derives from content depend on nothing else.
    with matplotlib.rc_context({"svg.hashsalt": prefix, "svg.fonttype": "none", "svg.image_inline": True}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    svg = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    svg = svg[svg.index("<svg") :]
    # matplotlib numbers its groups from one in each figure, and a page may hold an id only once.
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    width = 72 * figure.get_figwidth()
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', f'style="max-width: {width / 9.5:.1f}rem"', svg, count=1)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    for name, colour in LIGHT.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg


def _variables(colours: Mapping[str, str]) -> str:
    return "".join(f" --{name}: {colour};" for name, colour in colours.items())


_STYLE = (
    f":root {{{_variables(LIGHT)} }}\n@media (prefers-color-scheme: dark) {{ :root {{{_variables(DARK)} }} }}\n"
    + """\
html { background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%; }
body { margin: 0; font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 46rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; font-weight: 650; letter-spacing: -0.01em; margin: 0 0 1.25rem; }
h2 { font-size: 1.2rem; line-height: 1.3; font-weight: 650; margin: 2.75rem 0 0.75rem; }
p { margin: 0 0 1rem; max-width: 40rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: 1.5rem 0; }
table { border-collapse: collapse; min-width: 60%; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: 0.4rem; }
th, td { text-align: left; padding: 0.4rem 1.25rem 0.4rem 0; vertical-align: baseline; }
th { font-weight: 600; border-bottom: 1px solid var(--soft); white-space: nowrap; }
td { border-bottom: 1px solid var(--rule); }
th:last-child, td:last-child { padding-right: 0; }
.number { text-align: right; white-space: nowrap; }
figure { margin: 1.75rem 0; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; }
figure svg text { font-family: inherit !important; }
figure svg image { image-rendering: pixelated; }
figcaption { color: var(--soft); font-size: 0.92rem; margin-top: 0.5rem; max-width: 40rem; }
@media (max-width: 30rem) {
  main { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.45rem; }
  table { font-size: 0.85rem; }
  th, td { padding-right: 0.8rem; }
  td:first-child { min-width: 6.5rem; }
}
@media print { main { max-width: none; padding: 0; } figure, tr { break-inside: avoid; } }
"""
)
