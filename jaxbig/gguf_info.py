"""What a GGUF file holds, by its metadata and its tensors' places alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxbig.hub.gguf import Container, Held, read_container
from jaxbig.hub.gguf_model import plan_gguf
from jaxbig.model_info import would_read

# Metadata that say what a file is, in the order of telling.
TOLD = ("general.name", "general.architecture", "general.size_label", "general.license", "tokenizer.ggml.model")


def gguf_info(path: Path, leaves: bool, console: Console) -> None:
    """Prints name, architecture, formats with their bits a number, and what `jaxbig.load` makes of it.

    Args:
        path: of the file.
        leaves: whether to list every tensor.
        console: where to print.

    Raises:
        UserError: the file is damaged; or, told after all else, jaxbig cannot load the model, and why.
    """
    container = read_container(path)
    console.print(Text(f"{path}", style="bold"))
    console.print(Text("\n".join(_told(container.data))))
    console.print(_formats(container))
    tensors = container.tensors.values()
    numbers, size = sum(tensor.size for tensor in tensors), sum(map(_bytes, tensors))
    console.print(Text(f"{numbers:,} numbers, {size:,} bytes of weights, {path.stat().st_size:,} of the file"))
    if leaves:
        console.print(_leaves(container))
    plan = plan_gguf(path, None, {})
    console.print(Text(would_read(plan.built, plan.unused)))


def _told(data: Mapping[str, Any]) -> list[str]:
    """A line for each metadatum of `TOLD` that is there, and one for the chat template."""
    lines = [
        f"{key.rpartition('.')[2] if key in TOLD[:4] else 'tokenizer'}: {data[key]!s:.200}"
        for key in TOLD
        if key in data
    ]
    lines.append("chat template: " + ("yes" if "tokenizer.chat_template" in data else "none"))
    return ["".join(sign if sign.isprintable() else "?" for sign in line) for line in lines]


def _bytes(tensor: Held) -> int:
    return tensor.stop - tensor.start


def _formats(container: Container) -> Table:
    """One row a format, that of most bytes first."""
    table = Table(title="formats", title_justify="left")
    for name in ("format", "tensors", "numbers", "bytes", "bits a number"):
        table.add_column(name, justify="left" if name == "format" else "right")
    own: dict[str, list[Held]] = {}
    for tensor in container.tensors.values():
        own.setdefault(tensor.format.name, []).append(tensor)
    for name, tensors in sorted(own.items(), key=lambda pair: -sum(map(_bytes, pair[1]))):
        numbers, size = sum(tensor.size for tensor in tensors), sum(map(_bytes, tensors))
        table.add_row(name, f"{len(tensors):,}", f"{numbers:,}", f"{size:,}", f"{8 * size / numbers:.2f}")
    return table


def _leaves(container: Container) -> Table:
    table = Table(title="tensors", title_justify="left")
    for name in ("name", "shape", "format"):
        table.add_column(name)
    for name, tensor in container.tensors.items():
        table.add_row(Text(name), "x".join(map(str, tensor.shape)) or "scalar", tensor.format.name)
    return table
