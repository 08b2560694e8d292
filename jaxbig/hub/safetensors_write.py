"""Safetensors files written tensor by tensor, cut into several above a size, with the index that names them.

The ``safetensors`` package wants all tensors of a file in memory before it writes the first; a tree of Weights is never
there as a whole, only the array that is being written.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxbig.errors import UsageError, UserError
from jaxbig.hub.folder import INDEX, WEIGHTS
from jaxbig.hub.safetensors_file import DTYPES

_CODES = {dtype: code for code, dtype in DTYPES.items()}


class Out(NamedTuple):
    """A tensor to write.

    Attributes:
        name: its name.
        shape: its lengths.
        dtype: NumPy's.
        blocks: called when its turn comes: its numbers in C order, in as many arrays as one likes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    blocks: Callable[[], Iterable[np.ndarray]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(folder: Path, tensors: Sequence[Out], most: int) -> None:
    """Writes ``model.safetensors``, or several files and their index.

    Args:
        folder: where to.
        tensors: all of them.
        most: bytes of a file; a tensor that is larger gets one of its own.

    Raises:
        UserError: a dtype that the format has not, or a tensor that changed its length.

    Example:
        >>> import tempfile
        >>> from safetensors.numpy import load_file
        >>> place, x = Path(tempfile.mkdtemp()), np.ones((2, 3), np.float32)
        >>> write_tensors(place, [Out("x", x.shape, x.dtype, lambda: [x])], most=10**9)
        >>> load_file(place / WEIGHTS)["x"].shape
        (2, 3)
    """
    parts = _parts(tensors, most)
    if len(parts) == 1:
        _write(folder / WEIGHTS, parts[0])
        return
    table = {}
    for number, part in enumerate(parts, 1):
        name = WEIGHTS.replace(".", f"-{number:05d}-of-{len(parts):05d}.")
        _write(folder / name, part)
        table |= {tensor.name: name for tensor in part}
    total = sum(tensor.nbytes for tensor in tensors)
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(table.items()))}, indent=2)
    (folder / INDEX).write_text(text + "\n", encoding="utf-8")


def size_of(text: str) -> int:
    """The bytes that a size in words means; units of a thousand.

    Raises:
        UsageError: it is none.

    Example:
        >>> size_of("5GB"), size_of("200 MB")
        (5000000000, 200000000)
    """
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "B": 1, "": 1}
    number = text.strip().upper()
    unit = next(unit for unit in units if number.endswith(unit))
    number = number.removesuffix(unit).strip()
    if not number.isdecimal() or not int(number):
        raise UsageError(f"{text!r} is no size; give one such as 5GB or 200MB")
    return int(number) * units[unit]


def _parts(tensors: Sequence[Out], most: int) -> list[list[Out]]:
    parts: list[list[Out]] = [[]]
    for tensor in tensors:
        if parts[-1] and sum(other.nbytes for other in parts[-1]) + tensor.nbytes > most:
            parts.append([])
        parts[-1].append(tensor)
    return parts


def _write(path: Path, tensors: Sequence[Out]) -> None:
    tensors = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)  # so that each begins where its dtype may
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        if tensor.dtype not in _CODES:
            raise UserError(f"{tensor.name} is {tensor.dtype}, which safetensors files do not have; give a dtype")
        offsets = [at, at + tensor.nbytes]
        header[tensor.name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        at = offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            written = 0
            for block in tensor.blocks():
                written += file.write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
            if written != tensor.nbytes:
                raise UserError(f"{path}: {tensor.name} gave {written} bytes, {tensor.nbytes} were expected")
