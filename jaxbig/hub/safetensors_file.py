"""The header of a safetensors file: what it holds and where, checked before anything is allocated or read.

The format: 8 bytes with the length n of the header, little-endian; n bytes of JSON, name -> {"dtype", "shape",
"data_offsets": [start, stop]}, offsets counted from the header's end; the tensors' bytes, C-ordered, without gap.

Why not the ``safetensors`` package, which writes and reads our small files (adapters): as of 0.8 its ``safe_open`` for
NumPy knows no float8, takes a file that names a tensor twice, gives each tensor in an array of its own and never in one
of ours, and reads a whole tensor for any slice of it: layers of a stack, shards of a table and tensors that are cast
would be held twice. Its default, to map the file, counts every page that it touches as the process's.
"""

import math
import os
import stat
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxbig.errors import UserError
from jaxbig.hub.strict_json import LFS, parse_object

LONGEST_HEADER = 100_000_000  # as the format's own reader has it
MOST_AXES = 32
LONGEST_NAME = 500
# The format's dtypes, and what NumPy calls them. Of those of less than a byte only the size is known.
DTYPES = {
    "BOOL": np.dtype(bool), "U8": np.dtype("u1"), "I8": np.dtype("i1"), "U16": np.dtype("u2"), "I16": np.dtype("i2"),
    "U32": np.dtype("u4"), "I32": np.dtype("i4"), "U64": np.dtype("u8"), "I64": np.dtype("i8"),
    "F16": np.dtype("f2"), "BF16": np.dtype(ml_dtypes.bfloat16), "F32": np.dtype("f4"), "F64": np.dtype("f8"),
    "C64": np.dtype("c8"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2), "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}  # fmt: skip
_BITS = {name: 8 * dtype.itemsize for name, dtype in DTYPES.items()} | {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


class Stored(NamedTuple):
    """A tensor in a file.

    Attributes:
        file: the file.
        name: the tensor.
        code: the format's name of its dtype, such as "BF16".
        shape: its lengths.
        start, stop: where its bytes lie, counted from the file's beginning.
    """

    file: Path
    name: str
    code: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def dtype(self) -> np.dtype:
        """NumPy's dtype.

        Raises:
            UserError: NumPy has none for it.
        """
        if self.code not in DTYPES:
            raise UserError(
                f"{self.file}: {self.name} is stored as {self.code}, which NumPy does not have; use float32 or 16 bits"
            )
        return DTYPES[self.code]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_header(path: str | os.PathLike) -> dict[str, Stored]:
    """The tensors of one file, by name, in the order of their bytes. No data are read.

    Args:
        path: a safetensors file.

    Returns:
        name -> where and what it is.

    Raises:
        UserError: the file cannot be read, or its header is not wholly what the format demands: its length within the
            file and 100 MB, JSON without a name given twice, known dtypes, shapes that give the tensors' lengths,
            tensors that follow each other without gap or overlap to the file's last byte.

    Example:
        >>> import tempfile
        >>> from safetensors.numpy import save_file
        >>> file = tempfile.mkdtemp() + "/a.safetensors"
        >>> save_file({"w": np.ones((2, 3), np.float32)}, file)
        >>> read_header(file)["w"].shape
        (2, 3)

    Reference: https://github.com/huggingface/safetensors, "Format".
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path}: is no regular file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(len(LFS))
            if head == LFS:
                raise UserError(f"{path}: is a pointer of Git LFS, not the file; run git lfs pull in its folder")
            length = int.from_bytes(head[:8], "little")
            if size < 8 or length > min(LONGEST_HEADER, size - 8):
                raise _damaged(path, f"its header is said to have {length} bytes, the file has {size}")
            file.seek(8)
            text = file.read(length)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    found = [
        _stored(path, name, entry, 8 + length) for name, entry in _parsed(path, text).items() if name != "__metadata__"
    ]
    found.sort(key=lambda tensor: (tensor.start, tensor.stop))
    last = 8 + length
    if found and found[-1].stop > size:
        raise _damaged(path, f"{found[-1].name} ends at byte {found[-1].stop}, the file at {size}")
    for tensor in found:
        if tensor.start != last:
            raise _damaged(path, f"{tensor.name} begins at byte {tensor.start}, where {last} comes next")
        last = tensor.stop
    if last != size:
        raise _damaged(path, f"its tensors end at byte {last}, the file at {size}")
    return {tensor.name: tensor for tensor in found}


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path}: is damaged or no safetensors file: {what}; fetch it again")


def _parsed(path: Path, text: bytes) -> dict[str, Any]:
    header = parse_object(path, text, "its header")
    notes = header.get("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise _damaged(path, "its __metadata__ is no table of texts")
    return header


def _stored(path: Path, name: str, entry: Any, base: int) -> Stored:
    if not name.isprintable() or len(name) > LONGEST_NAME:
        raise _damaged(path, f"{name!r:.60} is no name of a tensor")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"{name} is not described by dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in _BITS:
        raise _damaged(path, f"{name} has the unknown dtype {code!r:.40}")
    if not _whole(shape) or len(shape) > MOST_AXES:
        raise _damaged(path, f"{name} has the shape {shape!r:.60}")
    if not _whole(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(path, f"{name} has the offsets {offsets!r:.60}")
    if math.prod(shape) * _BITS[code] != 8 * (offsets[1] - offsets[0]):
        raise _damaged(
            path,
            f"{name}, {code} of shape {shape!r:.60}, does not take the {offsets[1] - offsets[0]} bytes it is given",
        )
    return Stored(path, name, code, tuple(shape), base + offsets[0], base + offsets[1])


def _whole(numbers: Any) -> bool:
    """Whether it is a list of whole numbers, none negative and none beyond 64 bits."""
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**63 for n in numbers)
