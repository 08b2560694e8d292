"""``jaxbig data show``: what a file or a folder of data holds, as tables on the terminal and as a picture."""

import difflib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxbig.atomic import write
from jaxbig.data.array import order
from jaxbig.data.file import missing
from jaxbig.data.recognise import Part, Recognised, recognise
from jaxbig.errors import UsageError
from jaxbig.gallery import gallery
from jaxbig.summary import ArraySummary, class_names, summarise
from jaxbig.words import Words

_MOST_NAMES = 20
_MOST_PARTS = 5
_MOST_DRAWN = 100


class Options(NamedTuple):
    """What was asked for on the command line."""

    path: Path
    n: int | None = None
    out: Path | None = None
    part: str | None = None
    rows: int = 10_000
    seed: int = 0
    size: int | None = None


def parse(words: Sequence[str]) -> Options:
    """Reads the words after ``jaxbig data show``.

    Raises:
        UsageError: an unknown option (names the nearest one), a missing or an ill-typed value, no path or one
            that is not there.

    Example:
        >>> parse([".", "--n", "4"]).n
        4
        >>> parse([".", "--ot", "a.png"])
        Traceback (most recent call last):
            ...
        jaxbig.errors.UsageError: unknown option --ot; did you mean --out?
    """
    parser = Words("jaxbig data show PATH [--out FILE.png]")
    parser.add_argument("path", type=Path, nargs="?")
    for name, kind in (("n", int), ("out", Path), ("part", str), ("rows", int), ("seed", int), ("size", int)):
        parser.add_argument(f"--{name}", type=kind, default=Options._field_defaults[name])
    found = parser.read(words)
    options = Options(**vars(found))
    if options.path is None:
        raise UsageError("no file or folder; try `jaxbig data show PATH [--out FILE.png]`")
    if not options.path.exists():
        raise UsageError(str(missing(options.path)))
    if options.n is not None and not 1 <= options.n <= _MOST_DRAWN:
        raise UsageError(f"--n {options.n}: draw from 1 to {_MOST_DRAWN} examples")
    if options.rows < 0 or options.seed < 0 or (options.size is not None and options.size < 1):
        raise UsageError("--rows and --seed are not negative, --size is at least 1")
    if options.out is not None and (options.out.suffix.lower() != ".png" or options.out.is_dir()):
        raise UsageError(f"--out {options.out}: give a file whose name ends in .png")
    return options


def show(options: Options, console: Console | None = None) -> Recognised:
    """Prints what a set of data holds, and draws some of its examples where ``out`` is given.

    Args:
        options: as `parse` returns them.
        console: where to print; None: standard output.

    Returns:
        the set.

    Raises:
        UserError: none of the known formats, or a damaged file. UsageError: no such part.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> _ = path.write_text("one line\\nanother\\n")
        >>> show(Options(path), Console(width=80)).format
        <BLANKLINE>
        text: a.txt, 2 examples
        ...
        'text'
    """
    console = console or Console(highlight=False)
    found = recognise(options.path, None if options.size is None else (options.size, options.size))
    chosen = _chosen(found, options.part)
    # All is read before anything is printed, so that an error stands alone.
    looked = {title: summarise(part.source, part.rate, options.rows) for title, part in found.parts.items()}
    summaries = {title: arrays for title, (arrays, _) in looked.items()}
    total = sum(len(part.source) for part in found.parts.values())
    console.print()
    name = options.path.resolve().name
    console.print(Text.assemble((f"{found.format}: ", "bold"), f"{name}, {_many(total, 'example')}"), soft_wrap=True)
    if found.left_out:
        console.print(Text(f"left out: {found.left_out}", style="dim"), soft_wrap=True)
    for title, part in found.parts.items():
        console.print()
        console.print(_arrays(title, part, *looked[title]))
    for table in _classes(found.parts, summaries):
        console.print()
        console.print(table)
    if options.out is not None:
        drawn = _draw(found.parts[chosen], options, options.out)
        console.print(f"\n{options.out}: {_many(drawn, 'example')} of {chosen}", soft_wrap=True)
    return found


def _chosen(found: Recognised, part: str | None) -> str:
    if part is None:
        training = [title for title in found.parts if title.split(".")[0] == "train"]
        return (training or list(found.parts))[0]
    if part not in found.parts:
        near = difflib.get_close_matches(part, list(found.parts), n=1)
        raise UsageError(
            f"--part {part}: " + (f"did you mean {near[0]}?" if near else f"use {' or '.join(found.parts)}")
        )
    return part


def _draw(part: Part, options: Options, out: Path) -> int:
    """Draws some examples into a file, in the order of the set; returns how many."""
    most = options.n or (8 if part.rate else 16)
    rows = np.sort(order(len(part.source), options.seed, 0)[:most])
    file = io.BytesIO()
    gallery(part.source.batch(rows), part.classes, part.rate).savefig(file, format="png", dpi=200)
    write(out, file.getvalue())
    return len(rows)


def _arrays(title: str, part: Part, summaries: Mapping[str, ArraySummary], seen: int) -> Table:
    n = len(part.source)
    looked = "" if seen == n else f"; {seen:,} of them looked at"
    table = Table(
        title=Text.assemble((title, "bold"), f"  {_many(n, 'example')}{looked}"),
        title_justify="left", title_style="", box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim",
    )  # fmt: skip
    for column in ("array", "shape", "type"):
        table.add_column(column, overflow="fold")
    for column in ("min", "mean", "max", "std"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for name, summary in summaries.items():
        shape = "varies" if summary.shape is None else " x ".join(map(str, summary.shape)) or "-"
        notes = Text(_notes(summary, part.rate, seen == n), style="dim")
        if name in part.classes and summary.counts:
            table.add_row(Text(name), shape, f"{len(part.classes[name])} classes", "", "", "", "", notes)
        else:
            table.add_row(Text(name), shape, summary.dtype, *_numbers(summary), notes)
    return table


def _numbers(summary: ArraySummary) -> list[str]:
    values = summary.values
    if not values.count:
        return ["", "", "", ""]
    if summary.dtype == "text":
        return [f"{int(values.low):,}", f"{float(values.mean):,.1f}", f"{int(values.high):,}", f"{values.std():,.1f}"]
    return [
        "\n".join(map(_short, np.atleast_1d(value))) for value in (values.low, values.mean, values.high, values.std())
    ]


def _short(value: float) -> str:
    """Four digits that tell something, whole numbers whole."""
    return f"{value:,.0f}" if (value == round(value) or abs(value) >= 1000) and abs(value) < 1e9 else f"{value:.4g}"


def _notes(summary: ArraySummary, rate: int | None, complete: bool) -> str:
    notes = []
    if summary.dtype == "text":
        notes.append(f"in characters, {summary.characters:,} different")
        notes.append(f"{summary.words:,} words, {summary.vocabulary:,} different")
    if summary.seconds.count:
        s = summary.seconds
        low, mean, high = float(s.low), float(s.mean), float(s.high)
        span = f"{mean:.2f} s" if low == high else f"{low:.2f} to {high:.2f} s, mean {mean:.2f}"
        notes.append(f"{rate:,} Hz; {span}" + (f"; {mean * s.count:,.0f} s in all" if complete else ""))
    if summary.missing:
        notes.append(f"{summary.missing:,} missing")
    return "; ".join(notes)


def _classes(parts: Mapping[str, Part], summaries: Mapping[str, Mapping[str, ArraySummary]]) -> list[Table]:
    """For each array of classes a table: a row a class, a column a part."""
    tables = []
    titles = list(parts)[:_MOST_PARTS]
    for name in dict.fromkeys(name for title in titles for name in summaries[title]):
        counted = {}
        for title in titles:
            summary, names = summaries[title].get(name), parts[title].classes.get(name)
            # Integers without names count as classes where they are called so, or only two.
            if (
                summary
                and summary.counts
                and (names or name in ("label", "class", "Y", "y") or len(summary.counts) == 2)
            ):
                counted[title] = class_names(summary.counts, names or ())
        if counted:
            tables.append(_counts(name, counted, len(parts) - len(titles)))
    return tables


def _counts(name: str, counted: Mapping[str, Mapping[str, int]], left_out: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(name, overflow="fold")
    for title in counted:
        table.add_column(title, justify="right")
        table.add_column("", justify="right", style="dim")
    classes = list(dict.fromkeys(value for counts in counted.values() for value in counts))
    for value in classes[:_MOST_NAMES]:
        cells: list[Any] = [Text(value)]
        for counts in counted.values():
            share = counts.get(value, 0) / sum(counts.values())
            cells += [f"{counts.get(value, 0):,}", f"{100 * share:.1f}%"]
        table.add_row(*cells)
    if len(classes) > _MOST_NAMES:
        table.add_row(Text(f"and {len(classes) - _MOST_NAMES} more", style="dim"))
    if left_out:
        table.caption, table.caption_justify = f"and {_many(left_out, 'part')} more", "left"
    return table


def _many(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
