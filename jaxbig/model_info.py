"""What a published model's folder holds, by its ``config.json`` and the headers of its files alone."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxbig.hub.build import Built, build, opened
from jaxbig.hub.folder import CONFIG, INDEX, WEIGHTS, read_json, tensors_of
from jaxbig.hub.peft_files import some
from jaxbig.hub.resolve import resolve
from jaxbig.hub.safetensors_file import Stored


def is_model(path: Path) -> bool:
    """Whether a folder looks like a published model.

    Example:
        >>> is_model(Path("nowhere"))
        False
    """
    return any((path / name).is_file() for name in (CONFIG, WEIGHTS, INDEX))


def model_info(folder: Path, leaves: bool, console: Console) -> None:
    """Prints family, architecture, layers, parameters, bytes and dtypes. No weights are read, but for a head that
    has to equal the embedding.

    Args:
        folder: of a published model.
        leaves: whether to list every tensor.
        console: where to print.

    Raises:
        UserError: a file is damaged; or, told after all else, jaxbig cannot load the model, and why.
    """
    config, stored = read_json(folder / CONFIG), tensors_of(folder)
    console.print(Text(f"{folder}", style="bold"))
    console.print(Text(f"{_plain(config.get('model_type'))}, architecture {_architecture(config)}"))
    console.print(_files(stored))
    size = sum(tensor.size for tensor in stored.values())
    console.print(Text(f"{size:,} numbers, {_bytes(stored):,} bytes, {_dtypes(stored)}"))
    if leaves:
        console.print(_leaves(stored))
    at = opened(folder)
    built = build(at)
    console.print(Text(would_read(built, resolve(at, built).unused)))


def would_read(built: Built, unused: Sequence[str]) -> str:
    """A line that says what `jaxbig.load` makes of a file's tensors, and which it leaves out."""
    layers = getattr(built.module, "layers", None)
    numbers = sum(math.prod(leaf.shape) for leaf in built.shapes.values())
    told = "" if layers is None else f", {layers} layers"
    rest = f"; no part of it: {some(dict.fromkeys(unused))}" if unused else ""
    return f"jaxbig.load reads {type(built.module).__name__} for {built.task}{told}, {numbers:,} parameters{rest}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) and value.isprintable() else "no model_type"


def _architecture(config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    return ", ".join(map(str, named)) if isinstance(named, list) and named else "not named"


def _bytes(stored: Mapping[str, Stored]) -> int:
    return sum(tensor.stop - tensor.start for tensor in stored.values())


def _dtypes(stored: Mapping[str, Stored]) -> str:
    """The format's names, those of most bytes first."""
    sizes: dict[str, int] = {}
    for tensor in stored.values():
        sizes[tensor.code] = sizes.get(tensor.code, 0) + tensor.stop - tensor.start
    return ", ".join(sorted(sizes, key=lambda code: -sizes[code]))


def _files(stored: Mapping[str, Stored]) -> Table:
    """One row a file."""
    table = Table(title="files", title_justify="left")
    for name in ("file", "tensors", "numbers", "dtypes", "bytes"):
        table.add_column(name, justify="left" if name in ("file", "dtypes") else "right")
    for file in sorted({tensor.file for tensor in stored.values()}):
        own = {name: tensor for name, tensor in stored.items() if tensor.file == file}
        numbers = sum(tensor.size for tensor in own.values())
        table.add_row(Text(file.name), f"{len(own):,}", f"{numbers:,}", _dtypes(own), f"{_bytes(own):,}")
    return table


def _leaves(stored: Mapping[str, Stored]) -> Table:
    table = Table(title="tensors", title_justify="left")
    for name in ("name", "shape", "dtype"):
        table.add_column(name)
    for name, tensor in stored.items():
        table.add_row(Text(name), "x".join(map(str, tensor.shape)) or "scalar", tensor.code)
    return table
