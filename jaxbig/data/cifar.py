"""CIFAR-10 and CIFAR-100 in their binary version; the Python version is pickled, and pickles are never read."""

import os
from pathlib import Path

import numpy as np

from jaxbig.data.array import Batch
from jaxbig.data.file import read
from jaxbig.errors import UserError

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FILES = {
    10: {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
    100: {"train": ("train.bin",), "test": ("test.bin",)},
}
_PIXELS = 3 * 32 * 32


def cifar(folder: str | os.PathLike, split: str = "train", classes: int = 10) -> Batch:
    """Reads CIFAR-10 or CIFAR-100 from the files of ``cifar-10-binary.tar.gz`` or ``cifar-100-binary.tar.gz``.

    An example is a byte for the label (of 100 classes two: one of 20 coarse classes, then the fine one), then 32 x 32
    bytes of red, as many of green and of blue, row by row.

    Args:
        folder: holds the files, or the folder ``cifar-10-batches-bin`` (``cifar-100-binary``) that the archive has.
        split: "train" or "test".
        classes: 10 or 100.

    Returns:
        ``image`` uint8 [N, 32, 32, 3], ``label`` int32 [N], and of CIFAR-100 ``coarse`` int32 [N].

    Raises:
        UserError: no such split or number of classes, a file is not there or is cut off, or a label is out of range.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "test_batch.bin").write_bytes(bytes([3]) + bytes(3072))
        >>> found = cifar(folder, "test")
        >>> found["image"].shape, CIFAR10_CLASSES[found["label"][0]]
        ((1, 32, 32, 3), 'cat')

    Reference:
        Krizhevsky (2009), "Learning multiple layers of features from tiny images".
    """
    if classes not in _FILES or split not in ("train", "test"):
        raise UserError(f"cifar: split={split!r}, classes={classes}; use 'train' or 'test', and 10 or 100")
    inner = Path(folder) / ("cifar-10-batches-bin" if classes == 10 else "cifar-100-binary")
    folder = inner if inner.is_dir() else Path(folder)
    parts = [_records(folder / name, classes) for name in _FILES[classes][split]]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _records(path: Path, classes: int) -> Batch:
    data = np.frombuffer(read(path, f"unpack cifar-{classes}-binary.tar.gz and give its folder"), np.uint8)
    labels = 1 if classes == 10 else 2
    if len(data) % (labels + _PIXELS):
        raise UserError(f"{path}: {len(data):,} bytes are not a multiple of {labels + _PIXELS:,}; get the file again")
    rows = data.reshape(-1, labels + _PIXELS)
    label = rows[:, labels - 1].astype(np.int32)
    if label.max() >= classes:
        raise UserError(f"{path}: label {label.max()}, but there are {classes} classes; give the files of that set")
    image = np.ascontiguousarray(rows[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    coarse = {"coarse": rows[:, 0].astype(np.int32)} if classes == 100 else {}
    return {"image": image, "label": label} | coarse
