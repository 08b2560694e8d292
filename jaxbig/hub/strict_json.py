"""JSON of files that others wrote: one object, every name once, every number finite; an error is one line."""

import json
from pathlib import Path
from typing import Any

from jaxbig.errors import UserError

LFS = b"version https://git-lfs"


def parse_object(path: Path, text: bytes, what: str = "it") -> dict[str, Any]:
    """The object that a text holds.

    Args:
        path: where the text comes from, for messages.
        text: UTF-8.
        what: the part of the file that it is, for messages.

    Returns:
        name -> value.

    Raises:
        UserError: it is no JSON object, a name is given twice, a number is NaN or infinite, or it is nested too deep.

    Example:
        >>> parse_object(Path("config.json"), b'{"model_type": "gpt2"}')
        {'model_type': 'gpt2'}
        >>> parse_object(Path("config.json"), b'{"a": 1, "a": 2}')
        Traceback (most recent call last):
            ...
        jaxbig.errors.UserError: config.json: is damaged: it is no JSON (the name 'a' is given twice); fetch it again
    """
    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_number)
    except UnicodeDecodeError:
        raise UserError(f"{path}: is damaged: {what} is no UTF-8 text; fetch it again") from None
    except RecursionError:
        raise UserError(f"{path}: is damaged: {what} is nested too deep; fetch it again") from None
    except ValueError as error:
        raise UserError(f"{path}: is damaged: {what} is no JSON ({error}); fetch it again") from error
    if not isinstance(found, dict):
        raise UserError(
            f"{path}: is damaged: {what} is a {type(found).__name__} where an object is expected; fetch it again"
        )
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the name {twice!r:.60} is given twice")
    return found


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number")
