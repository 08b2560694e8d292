"""The container of a GGUF file: what it says of a model, and where its tensors lie; checked before anything is read.

The format, little-endian: "GGUF", a version, numbers of tensors and of metadata; each metadatum a key, a type and a
value; each tensor a name, its axes (the innermost first), a format and an offset; then, aligned, the tensors' bytes. A
text is its length in 8 bytes and UTF-8. Version 1 had 4 bytes for lengths; nobody writes it any more.

A length or number that does not fit into what is left of the file is an error before any memory is taken for it.
"""

import math
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jaxbig.errors import UserError
from jaxbig.hub.strict_json import LFS

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # where the file does not say
MOST_AXES = 4
MOST_NESTED = 4
LONGEST_NAME = 500
# The types of metadata that are numbers, by their code; 7 is a truth value, 8 a text, 9 an array.
_NUMBERS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_BOOL, _TEXT, _ARRAY = 7, 8, 9
_LEAST = {code: np.dtype(name).itemsize for code, name in _NUMBERS.items()} | {_TEXT: 8, _ARRAY: 12}
_LEAST_PAIR = 8 + 1 + 4 + 1  # bytes of the shortest metadatum: a key of one letter and one byte
_LEAST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8


class Format(NamedTuple):
    """How numbers are stored. Attributes: name; block: numbers that share a scale; bytes: of a block."""

    name: str
    block: int
    bytes: int


# Those that are read, by their code, and the names of others.
FORMATS = {
    0: Format("F32", 1, 4), 1: Format("F16", 1, 2), 2: Format("Q4_0", 32, 18), 3: Format("Q4_1", 32, 20),
    8: Format("Q8_0", 32, 34), 12: Format("Q4_K", 256, 144), 14: Format("Q6_K", 256, 210), 30: Format("BF16", 1, 2),
}  # fmt: skip
_OTHERS = {
    6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 13: "Q5_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS",
    18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32",
    27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


class Held(NamedTuple):
    """A tensor in a file.

    Attributes:
        file, name: where, and which.
        format: of its numbers.
        shape: its lengths, the innermost last.
        start, stop: where its bytes lie, counted from the file's beginning.
    """

    file: Path
    name: str
    format: Format
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Container(NamedTuple):
    """Attributes: file; data: key -> number, truth value, text, array of numbers or list; tensors: by name."""

    file: Path
    data: dict[str, Any]
    tensors: dict[str, Held]


def is_gguf(path: str | os.PathLike) -> bool:
    """Whether a file begins as GGUF does.

    Raises:
        UserError: it cannot be read.

    Example:
        >>> is_gguf(__file__)
        False
    """
    path = Path(path)
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


def read_container(path: str | os.PathLike) -> Container:
    """What a GGUF file holds, without its tensors' numbers.

    Args:
        path: the file.

    Returns:
        its metadata and its tensors' places.

    Raises:
        UserError: it cannot be read; it is no GGUF of version 2 or 3 in little-endian order; a number, length, type,
            key, name or place in it is not one that the format allows or that the file has room for; a tensor is in a
            format that jaxbig does not read.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "a.gguf"
        >>> _ = file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" +
        ...                      struct.pack("<II", 4, 7))
        >>> read_container(file).data
        {'a': 7}

    Reference: https://github.com/ggml-org/ggml, docs/gguf.md.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path}: is no regular file")
        with path.open("rb") as file:
            return _read(_Reader(path, file, os.fstat(file.fileno()).st_size))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


class _Reader:
    """Takes a file's parts one after the other, never more than it has left."""

    def __init__(self, path: Path, file: BinaryIO, size: int):
        self.path, self.file, self.size, self.at = path, file, size, 0

    def damaged(self, what: str) -> UserError:
        return UserError(f"{self.path}: is damaged or no GGUF file: {what}; fetch it again")

    def room(self, count: int, least: int, what: str) -> None:
        """Raises where the rest of the file cannot hold `count` things of at least so many bytes."""
        if count * least > self.size - self.at:
            raise self.damaged(f"{what} would take {count * least:,} bytes, and {self.size - self.at:,} are left")

    def take(self, count: int, what: str) -> bytes:
        self.room(count, 1, what)
        found = self.file.read(count)
        if len(found) != count:
            raise self.damaged(f"it ends within {what}")
        self.at += count
        return found

    def number(self, code: int, what: str) -> Any:
        dtype = np.dtype(_NUMBERS[code])
        return np.frombuffer(self.take(dtype.itemsize, what), dtype)[0].item()

    def whole(self, form: str, what: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form), what))[0]

    def text(self, what: str) -> str:
        found = self.take(self.whole("<Q", what), what)
        try:
            return found.decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged(f"{what} is no UTF-8 text") from None

    def name(self, what: str) -> str:
        length = self.whole("<Q", what)
        if not 1 <= length <= LONGEST_NAME:
            raise self.damaged(f"{what} is said to have {length:,} bytes, and {LONGEST_NAME} are the most")
        found = self.take(length, what)
        try:
            name = found.decode("utf-8")
        except UnicodeDecodeError:
            name = ""
        if not name or not name.isprintable():
            raise self.damaged(f"{what} is {found!r:.60}, which is none")
        return name


def _read(reader: _Reader) -> Container:
    head = reader.take(min(reader.size, len(LFS)), "its beginning")
    if head == LFS:
        raise UserError(f"{reader.path}: is a pointer of Git LFS, not the file; run git lfs pull in its folder")
    if head[:4] != MAGIC:
        raise reader.damaged(f"it begins with {head[:4]!r}")
    reader.file.seek(len(MAGIC))
    reader.at = len(MAGIC)
    version = reader.whole("<I", "its version")
    if version not in VERSIONS:
        turned = version >> 24 in VERSIONS and not version & 0xFF_FFFF
        told = "is in big-endian order" if turned else f"is of version {version}"
        raise UserError(f"{reader.path}: {told}; jaxbig reads GGUF of version 2 and 3 in little-endian order")
    tensors, pairs = (reader.whole("<Q", "its number of tensors and metadata") for _ in range(2))
    reader.room(pairs, _LEAST_PAIR, f"{pairs:,} metadata")
    data = _unique(reader, pairs, "a metadatum", lambda: _pair(reader))
    reader.room(tensors, _LEAST_TENSOR, f"{tensors:,} tensors")
    infos = _unique(reader, tensors, "a tensor", lambda: _info(reader))
    return Container(reader.path, data, _placed(reader, data, infos))


def _unique(reader: _Reader, count: int, what: str, one: Callable[[], tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(count):
        name, value = one()
        if name in found:
            raise reader.damaged(f"{what}, {name}, is given twice")
        found[name] = value
    return found


def _pair(reader: _Reader) -> tuple[str, Any]:
    key = reader.name("a metadatum's key")
    return key, _value(reader, reader.whole("<I", key), key, MOST_NESTED)


def _value(reader: _Reader, code: int, key: str, depth: int) -> Any:
    if code not in _LEAST:
        raise reader.damaged(f"{key} is of the unknown type {code}")
    if code == _TEXT:
        return reader.text(key)
    if code != _ARRAY:
        found = reader.number(code, key)
        if code == _BOOL and found not in (0, 1):
            raise reader.damaged(f"{key} is a truth value of {found}")
        return bool(found) if code == _BOOL else found
    kind, count = reader.whole("<I", key), reader.whole("<Q", key)
    if kind not in _LEAST:
        raise reader.damaged(f"{key} is an array of the unknown type {kind}")
    if not depth:
        raise reader.damaged(f"{key} is nested more than {MOST_NESTED} deep")
    reader.room(count, _LEAST[kind], f"{key}, an array of {count:,},")
    if kind in _NUMBERS:
        dtype = np.dtype(_NUMBERS[kind])
        return np.frombuffer(reader.take(count * dtype.itemsize, key), bool if kind == _BOOL else dtype)
    return [_value(reader, kind, key, depth - 1) for _ in range(count)]


def _info(reader: _Reader) -> tuple[str, tuple[Format, tuple[int, ...], int]]:
    name = reader.name("a tensor's name")
    axes = reader.whole("<I", name)
    if axes > MOST_AXES:
        raise reader.damaged(f"{name} has {axes:,} axes, and {MOST_AXES} are the most")
    shape = tuple(reader.whole("<Q", name) for _ in range(axes))[::-1]
    code, offset = reader.whole("<I", name), reader.whole("<Q", name)
    if code not in FORMATS:
        if code in _OTHERS:
            known = ", ".join(each.name for each in FORMATS.values())
            raise UserError(f"{reader.path}: {name} is stored as {_OTHERS[code]}; jaxbig reads {known}")
        raise reader.damaged(f"{name} is in the unknown format {code}")
    if not all(shape) or math.prod(shape) >= 2**63 or (shape[-1] if shape else 1) % FORMATS[code].block:
        raise reader.damaged(f"{name}, {FORMATS[code].name}, has the shape {list(shape)!r:.80}")
    return name, (FORMATS[code], shape, offset)


def _placed(reader: _Reader, data: dict[str, Any], infos: dict[str, Any]) -> dict[str, Held]:
    """The tensors where the file has them: aligned, none over another, none beyond the end."""
    step = data.get("general.alignment", ALIGNMENT)
    if type(step) is not int or not 8 <= step <= 1 << 20 or step % 8:
        raise reader.damaged(f"general.alignment is {step!r:.40}")
    base = -(-reader.at // step) * step
    found = {}
    for name, (form, shape, offset) in infos.items():
        length = math.prod(shape) // form.block * form.bytes
        if offset % step:
            raise reader.damaged(f"{name} begins at byte {offset:,} of the tensors, which is no multiple of {step}")
        if base + offset + length > reader.size:
            raise reader.damaged(f"{name} ends at byte {base + offset + length:,}, the file at {reader.size:,}")
        found[name] = Held(reader.path, name, form, shape, base + offset, base + offset + length)
    last = base
    for tensor in sorted(found.values(), key=lambda tensor: tensor.start):
        if tensor.start < last:
            raise reader.damaged(f"{tensor.name} begins at byte {tensor.start:,}, within another tensor")
        last = tensor.stop
    return found


def read_bytes(tensor: Held) -> np.ndarray:
    """A tensor's bytes, uint8 [blocks' bytes].

    Raises:
        UserError: the file cannot be read, or has become shorter.
    """
    out = np.empty(tensor.stop - tensor.start, np.uint8)
    try:
        with tensor.file.open("rb", buffering=0) as file:
            file.seek(tensor.start)
            left = out.data
            while left:
                count = file.readinto(left)
                if not count:
                    raise UserError(f"{tensor.file}: ends before {tensor.name} does; it was changed while it was read")
                left = left[count:]
    except OSError as error:
        raise UserError(f"{tensor.file}: cannot be read ({error.strerror})") from error
    return out
