"""A model that writes texts, with its tokenizer, from whatever format a path holds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxbig.errors import UsageError
from jaxbig.hub import llama2c


class TextModel(NamedTuple):
    """What it takes to go on with a text.

    Attributes:
        module: a decoder.
        params: its parameters.
        encode: text -> ids, with what begins a text.
        decode: ids -> text.
        ends: ids that end a text.
        positions: the longest text that the model is made for, in tokens; None: nothing says.
        kind: of the format, for people.
    """

    module: Any
    params: Any
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    ends: tuple[int, ...]
    positions: int | None
    kind: str


def text_model(path: str | Path) -> TextModel:
    """The model that a path holds; which format it is, the files' contents say.

    Args:
        path: a folder with a model of llama2.c and its tokenizer.

    Returns:
        the model.

    Raises:
        UsageError: there is nothing at the path, or nothing that is known here.
        UserError: a file is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    for known in _FORMATS:
        found = known(path)
        if found is not None:
            return found
    raise UsageError(
        f"{path}: no model that jaxbig can write texts with; it knows folders of llama2.c (two files *.bin)"
    )


def _llama2c(path: Path) -> TextModel | None:
    if not path.is_dir() or llama2c.find(path) is None:
        return None
    module, params, tokenizer, positions = llama2c.read_llama2c(path)
    return TextModel(module, params, tokenizer.encode, tokenizer.decode, tokenizer.ends, positions, "llama2.c")


# Each looks at a path and gives the model, or None where it is of another format.
_FORMATS: tuple[Callable[[Path], TextModel | None], ...] = (_llama2c,)
