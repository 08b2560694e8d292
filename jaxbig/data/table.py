"""Tables: files of separated values, with each column typed as a number, a category or text."""

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np

from jaxbig.data.array import Batch
from jaxbig.data.file import read_text
from jaxbig.errors import UserError

Kind = Literal["number", "category", "text"]
MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "?")
"""What stands for a value that is not known, in columns of numbers and categories."""

_TEXT_SHARE = 0.5
_TEXT_WORDS = 3.0


class Table(NamedTuple):
    """A table by columns.

    Attributes:
        columns: name -> array [N]: float32 (NaN where missing), int32 codes (-1 where missing), or Python strings.
        kinds: name -> "number", "category" or "text".
        vocabulary: name of a column of categories -> its values; the code is the place in it.
        missing: name -> how many values are missing, for the columns where some are.
    """

    columns: Batch
    kinds: dict[str, Kind]
    vocabulary: dict[str, tuple[str, ...]]
    missing: dict[str, int]


def read_table(
    path: str | os.PathLike,
    *,
    delimiter: str | None = None,
    header: bool | None = None,
    names: Sequence[str] | None = None,
    kinds: Mapping[str, Kind] | None = None,
    like: Table | None = None,
    missing: Sequence[str] = MISSING,
    hint: str = "",
) -> Table:
    """Reads a file of separated values.

    Args:
        path: the file, gzipped or not, UTF-8. Lines without anything are left out, and so are blanks around
            numbers and categories.
        delimiter: one character; " " is any number of blanks. None takes tab, comma, semicolon or blanks: the first
            that gives the first lines equally many values. Only values between commas and semicolons may be
            quoted (with ``"``).
        header: whether the first line names the columns; None says yes where it holds no number, above numbers.
        names: the columns' names where there is no header; None calls them ``c0``, ``c1``, ...
        kinds: name -> kind, for columns where what is taken by default is wrong: "number" where all values are numbers;
            "text" where more than half of the values are different and have more than three words on average; else
            "category", with the values in alphabetical order (numbers in theirs).
        like: a table, the training part say, whose names, kinds and vocabulary this one shall have.
        missing: the values that mean a missing one.
        hint: how to get the file where it is not there.

    Returns:
        A `Table`.

    Raises:
        UserError: the file is not there or damaged; a row has more or fewer values than the first; a value is no number
            in a column of numbers, or no known category; columns called alike, or other ones than `like` has.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.csv"
        >>> _ = path.write_text("age,job\\n31,baker\\n,clerk\\n50,baker\\n")
        >>> table = read_table(path)
        >>> table.columns["age"].tolist(), table.columns["job"].tolist(), table.vocabulary, table.missing
        ([31.0, nan, 50.0], [0, 1, 0], {'job': ('baker', 'clerk')}, {'age': 1})
    """
    text = read_text(path, hint)
    numbered = rows(path, text, delimiter if delimiter is not None else sniff(text) or ",")
    if not numbered:
        raise UserError(f"{path}: holds blank lines only; get the file again")
    absent = frozenset(missing)
    if header is None:
        header = _has_header([row for _, row in numbered], absent)
    named = _names(path, numbered[0], header, names, like)
    numbered = numbered[1:] if header else numbered
    if not numbered:
        raise UserError(f"{path}: holds the names of the columns but no rows; get the file again")
    if kinds and (unknown := [name for name in kinds if name not in named]):
        raise UserError(f"{path}: no column {unknown[0]!r}; there are {', '.join(named)}")
    lines = [line for line, _ in numbered]
    columns: Batch = {}
    table = Table(columns, {}, {}, {})
    for name, values in zip(named, zip(*(row for _, row in numbered), strict=True), strict=True):
        stripped = [value.strip() for value in values]
        kind: Kind = (like.kinds if like else kinds or {}).get(name) or _kind(stripped, absent)
        vocabulary = like.vocabulary.get(name) if like else None
        columns[name], lost, known = _typed(
            path, name, lines, values if kind == "text" else stripped, kind, vocabulary, absent
        )
        table.kinds[name] = kind
        table.vocabulary.update({name: known} if known is not None else {})
        table.missing.update({name: lost} if lost else {})
    return table


def features(table: Table, label: str, leave_out: Sequence[str] = ()) -> Batch:
    """A table as what a model takes: its numbers, its categories and the label.

    Args:
        table: of N rows.
        label: the column to predict: categories, or numbers that are whole (labels) or not (targets).
        leave_out: columns that tell nothing, such as row numbers.

    Returns:
        ``number`` float32 [N, columns], ``category`` int32 [N, columns] (each only where there are such columns), and
        ``label`` int32 [N], or float32 [N] where the numbers are not whole.

    Raises:
        UserError: no such column; the label is text, or missing somewhere.

    Example:
        >>> table = Table({"x": np.float32([1, 2]), "y": np.float32([0, 1])}, {"x": "number", "y": "number"}, {}, {})
        >>> features(table, "y")
        {'number': array([[1.],
               [2.]], dtype=float32), 'label': array([0, 1], dtype=int32)}
    """
    if unknown := [name for name in (label, *leave_out) if name not in table.columns]:
        raise UserError(f"features: no column {unknown[0]!r}; there are {', '.join(table.columns)}")
    if table.kinds[label] == "text" or label in table.missing:
        fault = f"{table.missing[label]} values are missing" if label in table.missing else "it is text"
        raise UserError(f"features: column {label!r} is no label: {fault}; choose another or read it as a category")
    batch: Batch = {}
    for kind in ("number", "category"):
        chosen = [c for n, c in table.columns.items() if n not in (label, *leave_out) and table.kinds[n] == kind]
        batch |= {kind: np.stack(chosen, axis=1)} if chosen else {}
    target = table.columns[label]
    whole = bool(np.all(target == np.round(target)))
    return batch | {"label": target.astype(np.int32) if whole else target}


def rows(path: str | os.PathLike, text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """The rows of separated values, each with its line's number from 1.

    Raises:
        UserError: the delimiter is not one character; a row has more or fewer values than the first; an open quote.

    Example:
        >>> rows("a.csv", 'x,"y, z"\\n1,2\\n', ",")
        [(1, ['x', 'y, z']), (2, ['1', '2'])]
    """
    if len(delimiter) != 1:
        raise UserError(f"{path}: delimiter={delimiter!r}; use one character, such as ',' or '\\t'")
    found: list[tuple[int, list[str]]] = []
    if delimiter in " \t":
        cut = str.split if delimiter == " " else lambda line: line.split("\t")
        # Not splitlines: text may hold separators of its own, such as U+2028.
        lines = text.replace("\r\n", "\n").split("\n")
        found = [(number, cut(line)) for number, line in enumerate(lines, 1) if line.strip()]
    else:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        try:
            found = [(reader.line_num, row) for row in reader if row]
        except csv.Error as error:
            raise UserError(f"{path}:{reader.line_num}: {error}; mend the quotes there, or give delimiter") from error
    for line, row in found:
        if len(row) != len(found[0][1]):
            raise UserError(
                f"{path}:{line}: {len(row)} values, but {len(found[0][1])} in line {found[0][0]}; "
                "mend the row, or give the right delimiter"
            )
    return found


def sniff(text: str) -> str | None:
    """The delimiter that gives each of the first lines equally many values, two at least; None where none does.

    Example:
        >>> sniff("a\\tb, c\\n1\\t2\\n"), sniff("A11 6 A34\\nA12 48 A32\\n"), sniff("Once upon a time.\\n")
        ('\\t', ' ', None)
    """
    lines = [line for line in islice(io.StringIO(text), 200) if line.strip()][:50]
    for delimiter in "\t,; ":
        quoted = delimiter in ",;"
        cut = csv.reader(lines, delimiter=delimiter) if quoted else (
            line.split(None if delimiter == " " else delimiter) for line in lines)  # fmt: skip
        counts = {len(row) for row in cut if row}
        # One line of prose has as many words as itself.
        if len(counts) == 1 and counts.pop() > 1 and (len(lines) > 1 or delimiter != " "):
            return delimiter
    return None


def _has_header(table: list[list[str]], absent: frozenset[str]) -> bool:
    first, rest = table[0], table[1:1000]
    if any(_is_number(value) or value in absent for value in first):
        return False
    columns = zip(*rest, strict=True)
    return any(all(_is_number(v) or v in absent for v in column) and any(map(_is_number, column)) for column in columns)


def _names(path, first: tuple[int, list[str]], header: bool, names, like: Table | None) -> list[str]:
    line, row = first
    named: list[str] = [name.strip() for name in row] if header else list(names or ())
    if not header and like is not None:
        named = list(like.columns)
    if not named:
        named = [f"c{i}" for i in range(len(row))]
    if len(named) != len(row):
        raise UserError(f"{path}:{line}: {len(row)} columns, but {len(named)} names; give one for each")
    if twice := [name for i, name in enumerate(named) if name in named[:i]]:
        raise UserError(f"{path}:{line}: two columns are called {twice[0]!r}; give header=False and names")
    if like is not None and named != list(like.columns):
        raise UserError(f"{path}:{line}: columns {', '.join(named)}, but like has {', '.join(like.columns)}")
    return named


def _is_number(value: str) -> bool:
    try:
        finite = math.isfinite(float(value))
    except ValueError:
        return False
    return finite and "_" not in value  # Python reads 1_000 as a number, no other program does


def _kind(values: Sequence[str], absent: frozenset[str]) -> Kind:
    different = set(values)
    present = different - absent
    if present and all(map(_is_number, present)):
        return "number"
    words = sum(value.count(" ") + 1 for value in different) / len(different)
    return "text" if len(different) > _TEXT_SHARE * len(values) and words > _TEXT_WORDS else "category"


def _typed(path, name, lines, values, kind: Kind, vocabulary, absent):
    """A column's array, how many values are missing, and the vocabulary of a column of categories."""
    if kind == "text":
        return np.array(values, object), 0, None
    if kind not in ("number", "category"):
        raise UserError(f"{path}: column {name!r}: kind {kind!r}; use 'number', 'category' or 'text'")
    lost = sum(value in absent for value in values)
    different = set(values) - absent
    if kind == "number":
        largest = float(np.finfo(np.float32).max)
        known = {value: float(value) for value in different if _is_number(value) and abs(float(value)) <= largest}
        known |= dict.fromkeys(absent, math.nan)
        fault = "is no number within float32; mend it, or read the column as a category"
    else:
        if vocabulary is None:
            vocabulary = tuple(sorted(different, key=float if all(map(_is_number, different)) else None))
        known = dict.fromkeys(absent, -1) | {value: code for code, value in enumerate(vocabulary)}
        fault = (
            f"is none of the {len(vocabulary)} categories of the table given as like; mend it, or read both together"
        )
    if wrong := different - known.keys():
        at = next(i for i, value in enumerate(values) if value in wrong)
        raise UserError(f"{path}:{lines[at]}: column {name!r}: {values[at]!r} {fault}")
    array = np.array([known[value] for value in values], np.float32 if kind == "number" else np.int32)
    return array, lost, vocabulary
