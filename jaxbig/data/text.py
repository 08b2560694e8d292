"""Plain text: lines, lines that are translations of each other, and records of JSON."""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxbig.data.array import Batch
from jaxbig.data.file import read_text
from jaxbig.errors import UserError


def read_lines(path: str | os.PathLike, hint: str = "", keep_blank: bool = False) -> Batch:
    """The lines of a text file.

    Args:
        path: the file, gzipped or not, UTF-8. For the whole text as one string there is `read_text`.
        hint: how to get the file where it is not there.
        keep_blank: whether lines of blanks count as examples.

    Returns:
        ``text``: Python strings [N], without the ends of the lines.

    Raises:
        UserError: as `read_text`; no line is left.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.txt"
        >>> _ = path.write_text("one\\n\\ntwo\\n")
        >>> read_lines(path)["text"].tolist()
        ['one', 'two']
    """
    lines = [line for line in split_lines(read_text(path, hint)) if keep_blank or line.strip()]
    if not lines:
        raise UserError(f"{path}: holds blank lines only; get the file again")
    return {"text": np.array(lines, object)}


def split_lines(text: str) -> list[str]:
    """Cuts text at line feeds only: Python's `splitlines` would also cut at U+2028 and others inside a line.

    Example:
        >>> split_lines("a\\u2028b\\r\\nc\\n")
        ['a\\u2028b', 'c']
    """
    return text.removesuffix("\n").replace("\r\n", "\n").removesuffix("\r").split("\n")


def read_aligned(paths: Mapping[str, str | os.PathLike], hint: str = "") -> Batch:
    """Files whose lines belong together, as sentences and their translations do.

    Args:
        paths: name -> file, such as ``{"en": "train.en", "de": "train.de"}``.
        hint: how to get a file where it is not there.

    Returns:
        name -> Python strings [N].

    Raises:
        UserError: as `read_text`; the files have different numbers of lines, or only one of them has a blank line.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.en").write_text("Good morning\\n"), (folder / "a.de").write_text("Guten Morgen\\n")
        >>> read_aligned({"en": folder / "a.en", "de": folder / "a.de"})["de"].tolist()
        ['Guten Morgen']
    """
    if not paths:
        raise UserError("read_aligned: no files; give a name and a file for each language")
    lines = {name: split_lines(read_text(path, hint)) for name, path in paths.items()}
    first = next(iter(lines))
    for name, some in lines.items():
        if len(some) != len(lines[first]):
            raise UserError(
                f"{paths[name]}: {len(some)} lines, but {len(lines[first])} in {paths[first]}; "
                "lines of both have to belong together"
            )
        for number, (one, other) in enumerate(zip(some, lines[first], strict=True), 1):
            if bool(one.strip()) != bool(other.strip()):
                blank, full = (name, first) if other.strip() else (first, name)
                raise UserError(f"{paths[blank]}:{number}: is blank, but not so in {paths[full]}; remove both lines")
    return {name: np.array(some, object) for name, some in lines.items()}


def read_records(path: str | os.PathLike, hint: str = "") -> list[dict[str, Any]]:
    """Records of JSON: one object a line (jsonl), or one array of objects; which it is, the first character tells.

    Args:
        path: the file, gzipped or not, UTF-8.
        hint: how to get the file where it is not there.

    Returns:
        the objects, as they are.

    Raises:
        UserError: as `read_text`; a line or the array is no JSON, or holds something else than objects.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.jsonl"
        >>> _ = path.write_text('{"q": "1 + 1", "a": 2}\\n')
        >>> read_records(path)
        [{'q': '1 + 1', 'a': 2}]
    """
    text = read_text(path, hint)
    if text.lstrip().startswith("["):
        records = _parsed(path, text, 1)
        places = [f"{path}: record {i}" for i in range(len(records))]
    else:
        lines = [(number, line) for number, line in enumerate(split_lines(text), 1) if line.strip()]
        records = [_parsed(path, line, number) for number, line in lines]
        places = [f"{path}:{number}" for number, _ in lines]
    for place, record in zip(places, records, strict=True):
        if not isinstance(record, dict):
            raise UserError(f"{place}: is a JSON {type(record).__name__}, not an object {{...}}; mend or remove it")
    if not records:
        raise UserError(f"{path}: holds no records; get the file again")
    return records


def columns(records: list[dict[str, Any]], what: str = "records") -> Batch:
    """Records by their fields.

    Args:
        records: objects, as `read_records` returns them.
        what: what errors call them.

    Returns:
        field -> array [N]: int64 or float64 where all values are numbers, bool where all are true or false; else Python
        objects: strings, lists, and None where a record has no such field.

    Raises:
        UserError: there are no records, or none has a field.

    Example:
        >>> columns([{"q": "1 + 1", "a": 2}, {"q": "2 + 2", "a": 4}])["a"]
        array([2, 4])
    """
    fields = dict.fromkeys(field for record in records for field in record)
    if not fields:
        raise UserError(f"{what}: {len(records)} records without any field; give objects such as {{'text': ...}}")
    return {field: _column([record.get(field) for record in records]) for field in fields}


def _parsed(path: str | os.PathLike, text: str, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path}:{line + error.lineno - 1}:{error.colno}"
        raise UserError(f"{where}: no JSON ({error.msg}); mend or remove it") from error


def _column(values: list[Any]) -> np.ndarray:
    kinds = {type(value) for value in values}
    if kinds == {bool}:
        return np.array(values, bool)
    if kinds == {int} and max(map(abs, values)) < 2**63:
        return np.array(values, np.int64)
    if kinds and kinds <= {int, float}:
        return np.array(values, np.float64)
    array = np.empty(len(values), object)
    array[:] = values
    return array
