"""``jaxbig convert``: a published model's folder in another dtype, or in files of another size."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from jaxbig.hub.convert import convert as convert_folder
from jaxbig.hub.folder import tensors_of
from jaxbig.hub.safetensors_write import size_of
from jaxbig.words import Words

USAGE = "jaxbig convert SRC DST [--dtype NAME] [--max-shard-size SIZE] [--overwrite]"


def convert(words: Sequence[str], console: Console | None = None) -> Path:
    """Writes the folder and prints what it holds now.

    Args:
        words: those after ``jaxbig convert``.
        console: where to print; None: standard output.

    Returns:
        the new folder.

    Raises:
        UsageError: an unknown option, dtype or size, or nothing at the path.
        UserError: as `jaxbig.hub.convert.convert`.
    """
    parser = Words(USAGE)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--dtype")
    parser.add_argument("--max-shard-size", default="5GB")
    parser.add_argument("--overwrite", action="store_true")
    options = parser.read(words)
    most = size_of(options.max_shard_size)
    folder = convert_folder(options.source, options.target, options.dtype, most, options.overwrite)
    tensors = tensors_of(folder).values()
    size, files = sum(tensor.stop - tensor.start for tensor in tensors), len({tensor.file for tensor in tensors})
    told = f"{folder}: {len(tensors):,} tensors, {size:,} bytes in {files} file{'s' if files > 1 else ''}"
    console = Console(highlight=False, soft_wrap=True) if console is None else console
    console.print(Text(told))
    return folder
