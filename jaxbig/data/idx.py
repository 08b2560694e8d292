"""IDX, the format of MNIST and of the sets made after it: an array of bytes or numbers behind a short header."""

import math
import os
from pathlib import Path

import numpy as np

from jaxbig.data.array import Batch
from jaxbig.data.file import inside, read
from jaxbig.errors import UserError

DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
FASHION_CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
FASHION_FOLDER = "/usr/share/datasets/fashion-mnist"
"""Where Debian and Ubuntu's package dataset-fashion-mnist puts the set."""

MNIST = {"train": "train", "test": "t10k"}
"""What the names of a split's files begin with."""


def read_idx(path: str | os.PathLike, hint: str = "") -> np.ndarray:
    """Reads an IDX file.

    Args:
        path: the file, gzipped or not.
        hint: how to get the file where it is not there.

    Returns:
        the array, of the file's shape and dtype (uint8, int8, int16, int32, float32, float64).

    Raises:
        UserError: no IDX file; an unknown type; fewer or more bytes than the header says.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "labels-idx1-ubyte"
        >>> _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
        >>> read_idx(path)
        array([7, 2, 1], dtype=uint8)

    Reference:
        LeCun, Cortes and Burges (1998), "The MNIST database of handwritten digits".
    """
    data = read(path, hint)
    if len(data) < 4 or data[:2] != b"\0\0" or data[3] == 0:
        raise UserError(f"{path}: no IDX file, it begins with the bytes {data[:4].hex(' ')}, not 00 00 type axes")
    if data[2] not in DTYPES:
        raise UserError(f"{path}: byte 2, the IDX type, is {data[2]:#04x}; known are {', '.join(map(hex, DTYPES))}")
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise UserError(f"{path}: cut off in the header at byte {len(data)} of {start}; get the file again")
    shape = tuple(np.frombuffer(data, ">u4", data[3], 4).tolist())
    dtype = np.dtype(DTYPES[data[2]])
    expected = start + math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        fault = f"cut off at byte {len(data)} of {expected}" if len(data) < expected else (
            f"{len(data) - expected} bytes too long")  # fmt: skip
        raise UserError(f"{path}: {fault} for {dtype.name} {list(shape)}; get the file again")
    return np.frombuffer(data, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def mnist(folder: str | os.PathLike, split: str = "train") -> Batch:
    """Reads MNIST, Fashion-MNIST, KMNIST, or a set laid out like them, from its public files.

    Args:
        folder: holds ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte``, and for the test part ``t10k-...``;
            each may end in ``.gz``, and may be written ``train-images.idx3-ubyte`` as some copies do.
        split: "train" or "test".

    Returns:
        ``image`` uint8 [N, H, W, 1] and ``label`` int32 [N].

    Raises:
        UserError: a file is missing or damaged, images and labels are exchanged, or differ in number.

    Example:
        >>> mnist("no_such_folder")
        Traceback (most recent call last):
            ...
        jaxbig.errors.UserError: no_such_folder: no such file or folder; MNIST is four public files, ...

    Reference:
        LeCun, Bottou, Bengio and Haffner (1998), "Gradient-based learning applied to document recognition".
    """
    if split not in MNIST:
        raise UserError(f"mnist: split={split!r}; use 'train' or 'test'")
    where = _find(Path(folder), f"{MNIST[split]}-images", 3)
    labels_at = _find(Path(folder), f"{MNIST[split]}-labels", 1)
    images, labels = _bytes(where, 3, "images [N, H, W]"), _bytes(labels_at, 1, "labels [N]")
    if len(images) != len(labels):
        raise UserError(
            f"{labels_at}: {len(labels)} labels for the {len(images)} images of {where.name}; take both from one set"
        )
    return {"image": images[..., None], "label": labels.astype(np.int32)}


def fashion_mnist(split: str = "train", folder: str | os.PathLike = FASHION_FOLDER) -> Batch:
    """Reads Fashion-MNIST; by default from where Debian and Ubuntu install it: ``apt install dataset-fashion-mnist``.

    Args:
        split: "train" or "test".
        folder: holds the four files, see `mnist`.

    Returns:
        ``image`` uint8 [N, 28, 28, 1] and ``label`` int32 [N]; `FASHION_CLASSES` names them.

    Raises:
        UserError: as `mnist`.

    Example:
        >>> fashion_mnist(folder="no_such_folder")
        Traceback (most recent call last):
            ...
        jaxbig.errors.UserError: no_such_folder: no such file or folder; Fashion-MNIST is in the package ...

    Reference:
        Xiao, Rasul and Vollgraf (2017), arXiv:1708.07747.
    """
    if not Path(folder).exists():
        inside(folder, "Fashion-MNIST is in the package dataset-fashion-mnist of Debian and Ubuntu; or give its folder")
    return mnist(folder, split)


def idx_name(name: str) -> str:
    """An IDX file's name in MNIST's own spelling, without ``.gz``.

    Example:
        >>> idx_name("train-images.idx3-ubyte.gz")
        'train-images-idx3-ubyte'
    """
    return name.removesuffix(".gz").replace(".idx", "-idx")


def _bytes(path: Path, axes: int, what: str) -> np.ndarray:
    array = read_idx(path)
    if array.ndim != axes:
        raise UserError(f"{path}: holds {list(array.shape)}, not {what}; are images and labels exchanged?")
    if array.dtype != np.uint8:
        raise UserError(f"{path}: holds {array.dtype.name}, not uint8 {what}; give MNIST's own files")
    return array


def _find(folder: Path, stem: str, axes: int) -> Path:
    hint = "MNIST is four public files, train-images-idx3-ubyte.gz and so on; put them into one folder, and give that"
    wanted = f"{stem}-idx{axes}-ubyte"
    for path in inside(folder, hint):
        if idx_name(path.name) == wanted:
            return path
    raise UserError(f"{folder}: holds no {wanted}[.gz]; {hint}")
